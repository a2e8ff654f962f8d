#pragma once
// Pipes through which long bodies go from one socket to another without being copied (splice(2)): the kernel passes on the pages
// in which the bytes came. A pipe takes two descriptors and no memory while it is empty; few are open, for as long as they are
// wanted. Who gets none copies. One thread.

#include <cstddef>
#include <utility>
#include <vector>

#include "gateway/net.hpp"

namespace latchkey::gateway {

class pipe_pool;

// Owns one pipe of a pool, or nothing. On destruction an empty one returns, and one that holds bytes is closed.
class pipe_lease {
  public:
    pipe_lease() = default;
    pipe_lease(pipe_lease&& other) noexcept
        : pool_(std::exchange(other.pool_, nullptr)), read_(other.read_), write_(other.write_), left_(other.left_) {}
    pipe_lease& operator=(pipe_lease&&) = delete;
    ~pipe_lease();

    explicit operator bool() const noexcept { return pool_ != nullptr; }
    // Bytes that it may hold; less in small pieces. Twice as much is no faster.
    static constexpr std::size_t size = 512U << 10U;
    std::size_t left() const noexcept { return left_; }  // bytes that it holds

    // Moves at most `most` bytes from a non-blocking socket into the empty pipe; would_block where none are there (or only such
    // as splice() does not move: behind urgent data), n == 0 without error at the end of the stream.
    io_result fill_from(int socket, std::size_t most) noexcept;
    // Moves what it holds to a socket, as much as that takes. The thread must block or ignore SIGPIPE: splice() knows no
    // MSG_NOSIGNAL.
    io_result drain_to(int socket) noexcept;
    // Both: operation_not_supported where nothing was moved because this kernel, or what confines the program, does not allow it.
    // The pool lends no more then. What the pipe holds can be read:
    std::size_t read(char* into, std::size_t most) noexcept;

  private:
    friend class pipe_pool;
    io_result failure() noexcept;
    pipe_lease(pipe_pool& p, int read, int write) noexcept : pool_(&p), read_(read), write_(write) {}
    pipe_pool* pool_ = nullptr;
    int read_ = -1;
    int write_ = -1;
    std::size_t left_ = 0;
};

class pipe_pool {
  public:
    // At most so many pipes at once; 0 for none at all.
    explicit pipe_pool(std::size_t most) : most_(most) {}
    ~pipe_pool();  // all returned before
    pipe_pool(pipe_pool const&) = delete;
    pipe_pool& operator=(pipe_pool const&) = delete;

    // An empty pipe; or none where all are lent, or the kernel makes none that is large enough (descriptors, its bound on what a
    // user's pipes may hold).
    pipe_lease take() noexcept;
    // Whether one may be had.
    bool may_lend() const noexcept { return lent_ < most_ && !none_made_; }
    // Closes those that nobody wanted since the last call. The sweep calls it.
    void trim() noexcept;

    std::size_t open() const noexcept { return lent_ + free_.size(); }

  private:
    friend class pipe_lease;
    struct ends {
        int read;
        int write;
    };
    static void close(ends const&) noexcept;
    void give_up() noexcept;

    std::size_t most_;
    std::size_t lent_ = 0;
    bool filled_ = false;  // a pipe was, once: that works here
    bool drained_ = false;
    bool none_made_ = false;      // by the kernel, since the last trim
    std::size_t least_free_ = 0;  // since the last trim
    std::vector<ends> free_;      // has room for all
};

}  // namespace latchkey::gateway
