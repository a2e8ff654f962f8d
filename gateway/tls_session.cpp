#include "gateway/tls_session.hpp"

#include <openssl/bio.h>
#include <openssl/err.h>
#include <openssl/ssl.h>
#include <sys/socket.h>

#include <algorithm>
#include <boost/asio/error.hpp>
#include <cerrno>
#include <cstring>
#include <new>

namespace latchkey::gateway {
namespace {

constexpr std::size_t record_bytes_max = 16U << 10;
// What one client can make us do in one go, whatever it sends: so many records, then others get their turn. And without one plain
// byte in between so many receives and answers, then it is sent away: key updates and asking for renegotiation cost it little.
constexpr unsigned records_at_once = 64;
constexpr unsigned receives_for_nothing = 8;
constexpr unsigned replies_max = 4;
// A key update costs us some ten microseconds and the client 27 bytes. Real clients send one in gigabytes.
constexpr unsigned key_updates_max = 32;
constexpr std::uint64_t bytes_a_key_update = 64U << 10;  // beyond those
constexpr unsigned char content_alert = 21;
constexpr unsigned char content_handshake = 22;
constexpr unsigned char content_data = 23;
constexpr unsigned char client_hello = 1;
constexpr unsigned char server_hello = 2;

// The random of a HelloRetryRequest begins so (RFC 8446 section 4.1.3); it stands behind record header, message header, version.
constexpr std::array<unsigned char, 8> retry_random{0xcf, 0x21, 0xad, 0x74, 0xe5, 0x9a, 0x61, 0x11};
constexpr std::size_t random_at = 11;

bool is_retry_request(unsigned char const* data, std::size_t size) noexcept {
    return size >= random_at + retry_random.size() && data[0] == content_handshake && data[5] == server_hello &&
           std::memcmp(data + random_at, retry_random.data(), retry_random.size()) == 0;
}

bool is_letter(unsigned char c) noexcept { return (c >= 'A' && c <= 'Z') || (c >= 'a' && c <= 'z'); }

tls_session& of(BIO* b) noexcept { return *static_cast<tls_session*>(BIO_get_data(b)); }

// The bytes of one record, out of pieces that are shorter. One a thread: a record is made and sent before the next.
thread_local std::array<char, record_bytes_max> gathered;

}  // namespace

BIO_METHOD* tls_session::make_method() noexcept {
    BIO_METHOD* const m = BIO_meth_new(BIO_TYPE_SOURCE_SINK, "latchkey socket");
    if (!m) return nullptr;
    BIO_meth_set_read(m, &tls_session::on_read);
    BIO_meth_set_write(m, &tls_session::on_write);
    BIO_meth_set_ctrl(m, &tls_session::on_control);
    return m;
}

std::unique_ptr<tls_session> tls_session::make(tls_context const& c, int descriptor) noexcept {
    std::unique_ptr<tls_session> out(new (std::nothrow) tls_session);
    if (!out) return nullptr;
    out->descriptor_ = descriptor;
    out->ssl_ = SSL_new(c.identities_.front().rules);
    BIO* const bio = out->ssl_ ? BIO_new(c.method_) : nullptr;
    if (!bio) return ERR_clear_error(), nullptr;
    BIO_set_data(bio, out.get());
    SSL_set_bio(out->ssl_, bio, bio);
    SSL_set_accept_state(out->ssl_);
    SSL_set_info_callback(out->ssl_, &tls_session::on_state);
    return out;
}

tls_session::~tls_session() { SSL_free(ssl_); }

// --- OpenSSL's way to the socket

int tls_session::on_read(BIO* b, char* data, int size) noexcept {
    auto& s = of(b);
    BIO_clear_retry_flags(b);
    if (s.breaking_) {  // the header of a record that is too long; where one has come in part, what makes it one that is damaged
        constexpr std::array<unsigned char, 5> overflow{content_data, 3, 3, 0xff, 0xff};
        for (int i = 0; i < size; ++i) data[i] = static_cast<char>(overflow[static_cast<std::size_t>(i) % overflow.size()]);
        return size;
    }
    if (s.drained_) {
        BIO_set_retry_read(b);
        return -1;
    }
    if (s.receives_ == receives_for_nothing) {
        s.last_errno_ = EPROTO;
        return -1;
    }
    for (;;) {
        ssize_t const n = ::recv(s.descriptor_, data, static_cast<std::size_t>(size), MSG_DONTWAIT);
        if (n > 0) {
            auto const* const bytes = reinterpret_cast<unsigned char const*>(data);
            s.plain_ = s.received_ == 0 && is_letter(bytes[0]);
            s.received_ += static_cast<std::uint64_t>(n);
            s.drained_ = n < size;
            ++s.receives_;
            if (s.plain_ || (s.hello_.watching && !s.acceptable(bytes, static_cast<std::size_t>(n)))) return -1;
            return static_cast<int>(n);
        }
        if (n == 0) {
            s.ended_ = true;
            return 0;
        }
        if (errno == EINTR) continue;
        s.drained_ = true;
        if (errno == EAGAIN || errno == EWOULDBLOCK)
            BIO_set_retry_read(b);
        else
            s.last_errno_ = errno;
        return -1;
    }
}

int tls_session::on_write(BIO* b, char const* data, int size) noexcept {
    auto& s = of(b);
    BIO_clear_retry_flags(b);
    if (s.reading_ && s.replies_ == replies_max) {
        s.send_away();
        return -1;
    }
    if (s.hello_.watching)  // behind any answer but that one, what the client sends is encrypted
        s.hello_.watching = is_retry_request(reinterpret_cast<unsigned char const*>(data), static_cast<std::size_t>(size));
    for (;;) {
        ssize_t const n = ::send(s.descriptor_, data, static_cast<std::size_t>(size), MSG_NOSIGNAL | MSG_DONTWAIT);
        if (n >= 0) {
            s.sent_ += static_cast<std::uint64_t>(n);
            if (s.reading_) ++s.replies_;
            return static_cast<int>(n);
        }
        if (errno == EINTR) continue;
        if (errno == EAGAIN || errno == EWOULDBLOCK)
            BIO_set_retry_write(b);
        else
            s.last_errno_ = errno;
        return -1;
    }
}

long tls_session::on_control(BIO* b, int command, long, void*) noexcept {
    if (command == BIO_CTRL_FLUSH) return 1;
    return command == BIO_CTRL_EOF && of(b).ended_ ? 1 : 0;
}

// OpenSSL reads on and on through what it has in hand, even where it could not write the answer, unless it is told that the
// client has ended.
void tls_session::send_away() noexcept {
    flooded_ = true;
    last_errno_ = EPROTO;
    SSL_set_shutdown(ssl_, SSL_get_shutdown(ssl_) | SSL_RECEIVED_SHUTDOWN);
}

// OpenSSL's word of each step of a handshake; behind a key update that it has read, it looks once whether to answer.
void tls_session::on_state(SSL const* ssl, int where, int) noexcept {
    if (where != SSL_CB_ACCEPT_LOOP || SSL_get_state(ssl) != TLS_ST_SR_KEY_UPDATE) return;
    auto& s = of(SSL_get_rbio(ssl));
    if (++s.key_updates_ > key_updates_max + s.received_ / bytes_a_key_update) s.send_away();
}

// Follows what comes in clear. False: a ClientHello that says it is longer than we keep, or one in too many pieces.
bool tls_session::acceptable(unsigned char const* data, std::size_t size) noexcept {
    auto& h = hello_;
    hello_too_long_ = received_ > hello_wire_bytes_max;
    if (hello_too_long_) return false;
    for (std::size_t i = 0; i < size; ++i) {
        unsigned char const c = data[i];
        if (h.header < 5) {
            if (h.header == 0) h.type = c;
            if (h.header >= 3) h.record_left = (h.record_left << 8U | c) & 0xffffU;
            if (++h.header == 5 && h.record_left == 0) h.header = 0;
            continue;
        }
        if (--h.record_left == 0) h.header = 0;
        if (h.type != content_handshake) continue;
        if (h.message_header < 4) {
            if (h.message_header == 0)
                h.message = c;
            else
                h.message_left = (h.message_left << 8U | c) & 0xffffffU;
            if (++h.message_header < 4) continue;
            hello_too_long_ = h.message == client_hello && h.message_left > hello_bytes_max;
            if (hello_too_long_) return false;
        } else {
            --h.message_left;
        }
        if (h.message_left == 0) h.message_header = 0;
    }
    return true;
}

// --- the handshake

tls_session::progress tls_session::handshake() noexcept {
    drained_ = false;
    receives_ = 0;
    ERR_clear_error();
    int const r = SSL_do_handshake(ssl_);
    if (r == 1) {
        established_ = true;
        hello_.watching = false;
        return progress::done;
    }
    if (plain_) return progress::plain;
    int const why = SSL_get_error(ssl_, r);
    if (why == SSL_ERROR_WANT_READ) return progress::wants_read;
    if (why == SSL_ERROR_WANT_WRITE) return progress::wants_write;
    failure();
    fail_handshake();
    return progress::failed;
}

bool tls_session::resumed() const noexcept { return SSL_session_reused(ssl_) == 1; }

// To what is no TLS at all OpenSSL says nothing; a client is better told. And where unread bytes are left behind, the kernel ends
// the connection by a reset, which can take the alert along.
void tls_session::fail_handshake() noexcept {
    constexpr unsigned char unexpected_message = 10;
    constexpr unsigned char decode_error = 50;
    if (received_ > 0 && (sent_ == 0 || hello_too_long_)) {
        std::array<unsigned char, 7> const alert{
            content_alert, 3, 1, 0, 2, 2, hello_too_long_ ? decode_error : unexpected_message};
        ::send(descriptor_, alert.data(), alert.size(), MSG_NOSIGNAL | MSG_DONTWAIT);
    }
    ::shutdown(descriptor_, SHUT_WR);
    std::array<char, 4096> nowhere;
    for (int i = 0; i < 16 && ::recv(descriptor_, nowhere.data(), nowhere.size(), MSG_DONTWAIT) > 0; ++i) {
    }
}

error_code tls_session::failure() noexcept {
    ERR_clear_error();
    broken_ = last_errno_ != 0 ? error_code(last_errno_, boost::system::system_category())
                               : make_error_code(boost::system::errc::protocol_error);
    return broken_;
}

// --- reading

bool tls_session::pending() const noexcept {
    return broken_ || SSL_has_pending(ssl_) == 1 || (SSL_get_shutdown(ssl_) & SSL_RECEIVED_SHUTDOWN) != 0;
}

io_result tls_session::read(char* data, std::size_t size, bool from_socket) noexcept {
    if (broken_) return {broken_, 0};
    drained_ = !from_socket;
    receives_ = 0;
    // Behind a client's key update OpenSSL 3.0 fails to read the next one while a write is pending: our answer goes first.
    read_wants_write_ = write_pending_ && (SSL_in_init(ssl_) == 1 || SSL_get_key_update_type(ssl_) != SSL_KEY_UPDATE_NONE);
    if (read_wants_write_) return {asio::error::would_block, 0};
    reading_ = true;
    ERR_clear_error();
    io_result out;
    for (unsigned records = 0; out.n < size && records < records_at_once; ++records) {
        std::size_t n = 0;
        if (SSL_read_ex(ssl_, data + out.n, size - out.n, &n) == 1) {
            out.n += n;
            given_ += n;
            receives_ = replies_ = 0;
            continue;
        }
        int const why = SSL_get_error(ssl_, 0);
        read_wants_write_ = why == SSL_ERROR_WANT_WRITE;
        if (why == SSL_ERROR_WANT_READ || read_wants_write_) {
            if (out.n == 0) out.ec = asio::error::would_block;
        } else if (why != SSL_ERROR_ZERO_RETURN || flooded_) {
            error_code const ec = failure();  // what came before it counts; the next read tells of it
            if (out.n == 0) out.ec = ec;
        }
        break;
    }
    reading_ = false;
    return out;
}

// --- writing

io_result tls_session::write(std::span<iovec const> pieces) noexcept {
    if (broken_) return {broken_, 0};
    ERR_clear_error();
    io_result out;
    std::size_t begun = 0;  // bytes of the first piece that have left
    while (!pieces.empty()) {
        char const* data = static_cast<char const*>(pieces[0].iov_base) + begun;
        std::size_t size = std::min(pieces[0].iov_len - begun, record_bytes_max);
        if (size < record_bytes_max && pieces.size() > 1) {
            std::memcpy(gathered.data(), data, size);
            for (iovec const& next : pieces.subspan(1)) {
                std::size_t const n = std::min(next.iov_len, record_bytes_max - size);
                std::memcpy(gathered.data() + size, next.iov_base, n);
                size += n;
            }
            data = gathered.data();
        }
        std::size_t n = 0;
        if (SSL_write_ex(ssl_, data, size, &n) != 1) {
            // To read (WANT_READ) it wants only in the middle of a key update that has come in two records. Those five bytes
            // nobody cuts in earnest, and a wait for the rest that is no wait for the socket would be a loop at the client's
            // mercy: it ends.
            write_pending_ = SSL_get_error(ssl_, 0) == SSL_ERROR_WANT_WRITE;
            if (write_pending_)
                out.ec = asio::error::would_block;
            else
                out.ec = failure();
            return out;
        }
        write_pending_ = false;
        out.n += n;
        for (n += begun; !pieces.empty() && n >= pieces[0].iov_len; pieces = pieces.subspan(1)) n -= pieces[0].iov_len;
        begun = n;
    }
    return out;
}

// OpenSSL has no call for it, but says it when it reads a record that breaks the rules. What of sound ones is in hand is passed
// over.
void tls_session::tell_break() noexcept {
    if (broken_ || !established_ || write_pending_ || (SSL_get_shutdown(ssl_) & SSL_SENT_SHUTDOWN) != 0) return;
    breaking_ = true;
    ERR_clear_error();
    std::array<char, 4096> nowhere;
    std::size_t n = 0;
    for (unsigned i = 0; i < records_at_once && SSL_read_ex(ssl_, nowhere.data(), nowhere.size(), &n) == 1; ++i) {
    }
    failure();
}

error_code tls_session::close_notify() noexcept {
    if (broken_ || !established_ || write_pending_) return {};
    bool const said = (SSL_get_shutdown(ssl_) & SSL_SENT_SHUTDOWN) != 0;
    if (said && !notify_pending_) return {};
    ERR_clear_error();
    int const r = SSL_shutdown(ssl_);
    notify_pending_ = r < 0 && SSL_get_error(ssl_, r) == SSL_ERROR_WANT_WRITE;
    ERR_clear_error();
    return notify_pending_ ? error_code(asio::error::would_block) : error_code();
}

}  // namespace latchkey::gateway
