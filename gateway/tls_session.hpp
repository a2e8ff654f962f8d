#pragma once
// TLS on one accepted socket: plain bytes on this side, records on that one. Internal to stream; one thread. It reads and writes
// the descriptor itself, never waits, and never raises SIGPIPE.
//
// Its reads keep stream's rule for edge-triggered epoll: a recv() that brought less than was asked for has drained the socket,
// and is not tried again before the next event, unless the last one told of an end. So a short request costs one recv() here as
// it does without TLS.

#include <sys/uio.h>

#include <array>
#include <cstdint>
#include <memory>
#include <span>

#include "gateway/net.hpp"
#include "gateway/tls_context.hpp"

struct bio_st;

namespace latchkey::gateway {

class tls_session {
  public:
    // The bytes of a first message that a client may make us keep. Real ones have 0.3 to 3 KiB; OpenSSL alone would take 128 KiB.
    static constexpr std::size_t hello_bytes_max = 16U << 10;
    // What may come before the answer to it, whatever records it is cut into: those of one byte are six bytes long.
    static constexpr std::size_t hello_wire_bytes_max = 24U << 10;

    // Null where memory is short. `descriptor` stays the caller's, the context outlives the session.
    static std::unique_ptr<tls_session> make(tls_context const&, int descriptor) noexcept;
    ~tls_session();
    tls_session(tls_session const&) = delete;
    tls_session& operator=(tls_session const&) = delete;

    enum class progress { done, wants_read, wants_write, plain, failed };
    // One step. `plain`: what came is no TLS but looks like a request line. `failed`: the client has been told by an alert, as
    // far as it could be. `done`: the rest may be called.
    progress handshake() noexcept;
    bool established() const noexcept { return established_; }  // handshake() was `done`
    bool resumed() const noexcept;

    // As much as is there and fits. n == 0 without error: end of stream (close_notify, or the connection's end). would_block
    // where no whole record is there. Without `from_socket`: only of what has been received already.
    io_result read(char* data, std::size_t size, bool from_socket = true) noexcept;
    // Whether the last read() or handshake() took all that the socket had.
    bool drained() const noexcept { return drained_; }
    // Whether read() has something to say although the socket is silent: bytes in hand, the end, an error.
    bool pending() const noexcept;

    // As writev(): n bytes have left whole in records of at most 16 KiB, small pieces together in one. would_block (perhaps with
    // n > 0): a record has left in part. The next write must then begin with the very bytes behind those n, and no fewer of them.
    io_result write(std::span<iovec const> pieces) noexcept;
    // A read could not go on because it had to write (an answer to the client's key update): try it again after a write.
    bool read_wants_write() const noexcept { return read_wants_write_; }

    // Tells the client that nothing follows, so that it can tell an end from a break. would_block: again, once writable. Says
    // nothing where a record has left in part: that can only be a break.
    error_code close_notify() noexcept;

    // Tells the client, by a fatal alert, that what it has is not the whole; as far as that can be said at once. A reset alone
    // would do for most, but Python's ssl makes a quiet end of it. Nothing can be read or written afterwards.
    void tell_break() noexcept;

    std::uint64_t received() const noexcept { return received_; }  // bytes from the socket
    std::uint64_t sent() const noexcept { return sent_; }          // bytes to it
    // What the client has sent beside its plain bytes: records cost by the piece, and this grows by 22 bytes or more with each.
    std::uint64_t overhead() const noexcept { return received_ - given_; }

  private:
    friend class tls_context;
    static bio_method_st* make_method() noexcept;
    static int on_read(bio_st*, char* data, int size) noexcept;
    static int on_write(bio_st*, char const* data, int size) noexcept;
    static long on_control(bio_st*, int command, long, void*) noexcept;
    static void on_state(ssl_st const*, int where, int) noexcept;
    tls_session() = default;
    bool acceptable(unsigned char const* data, std::size_t size) noexcept;
    void send_away() noexcept;
    void fail_handshake() noexcept;
    error_code failure() noexcept;

    ssl_st* ssl_ = nullptr;
    int descriptor_ = -1;
    error_code broken_;  // from then on reads and writes end with it
    std::uint64_t received_ = 0;
    std::uint64_t sent_ = 0;
    std::uint64_t given_ = 0;  // plain bytes
    int last_errno_ = 0;
    bool established_ = false;
    bool drained_ = false;
    bool ended_ = false;  // the socket's end was read
    bool plain_ = false;
    bool reading_ = false;
    bool breaking_ = false;  // what is read is a record that cannot be
    bool read_wants_write_ = false;
    bool write_pending_ = false;   // a record has left in part
    bool notify_pending_ = false;  // likewise the word of our end
    bool hello_too_long_ = false;
    bool flooded_ = false;   // by what costs us and not the client
    unsigned receives_ = 0;  // since the last plain byte
    unsigned replies_ = 0;   // likewise: what the client made us send
    unsigned key_updates_ = 0;

    // Where in the client's first message we are: a record's header, then a message's, each byte by byte.
    struct {
        bool watching = true;
        unsigned header = 0;  // bytes of the record header so far
        unsigned record_left = 0;
        unsigned char type = 0;
        unsigned message_header = 0;
        unsigned message_left = 0;
        unsigned char message = 0;
    } hello_;
};

}  // namespace latchkey::gateway
