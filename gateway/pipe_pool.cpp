#include "gateway/pipe_pool.hpp"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cassert>
#include <cerrno>
#include <new>

#include "base/log.hpp"

namespace latchkey::gateway {
pipe_lease::~pipe_lease() {
    if (!pool_) return;
    --pool_->lent_;
    pipe_pool::ends const e{read_, write_};
    if (left_ == 0 && pool_->most_ != 0)
        pool_->free_.push_back(e);
    else
        pipe_pool::close(e);
}

io_result pipe_lease::fill_from(int socket, std::size_t most) noexcept {
    assert(left_ == 0 && most > 0);
    ssize_t n = 0;
    do n = ::splice(socket, nullptr, write_, nullptr, most, SPLICE_F_NONBLOCK | SPLICE_F_MOVE);
    while (n < 0 && errno == EINTR);
    if (n < 0) return failure();
    pool_->filled_ = pool_->filled_ || n > 0;
    left_ = static_cast<std::size_t>(n);
    return {{}, left_};
}

io_result pipe_lease::drain_to(int socket) noexcept {
    assert(left_ > 0);
    ssize_t n = 0;
    do n = ::splice(read_, nullptr, socket, nullptr, left_, SPLICE_F_NONBLOCK | SPLICE_F_MOVE);
    while (n < 0 && errno == EINTR);
    if (n < 0) return failure();
    if (n == 0) return {asio::error::broken_pipe, 0};
    pool_->drained_ = true;
    left_ -= static_cast<std::size_t>(n);
    return {{}, static_cast<std::size_t>(n)};
}

// Of a splice(). A connection can end with one of these codes, too, but not the first time that anything is moved.
io_result pipe_lease::failure() noexcept {
    int const e = errno;
    if (e == EAGAIN || e == EWOULDBLOCK) return {asio::error::would_block, 0};
    bool const has_worked = left_ == 0 ? pool_->filled_ : pool_->drained_;
    if (!has_worked && (e == EINVAL || e == ENOSYS || e == EPERM || e == EACCES)) {
        pool_->give_up();
        return {asio::error::operation_not_supported, 0};
    }
    return {error_code(e == EOPNOTSUPP ? ECONNABORTED : e, boost::system::system_category()), 0};
}

std::size_t pipe_lease::read(char* into, std::size_t most) noexcept {
    ssize_t n = 0;
    do n = ::read(read_, into, std::min(most, left_));
    while (n < 0 && errno == EINTR);
    if (n <= 0) return 0;
    left_ -= static_cast<std::size_t>(n);
    return static_cast<std::size_t>(n);
}

pipe_pool::~pipe_pool() {
    assert(lent_ == 0);
    give_up();
}

pipe_lease pipe_pool::take() noexcept {
    if (!may_lend()) return {};
    if (!free_.empty()) {
        ends const e = free_.back();
        free_.pop_back();
        least_free_ = std::min(least_free_, free_.size());
        ++lent_;
        return {*this, e.read, e.write};
    }
    try {
        free_.reserve(most_);
    } catch (std::bad_alloc const&) {
        return {};
    }
    std::array<int, 2> both{};
    none_made_ = true;
    if (::pipe2(both.data(), O_NONBLOCK | O_CLOEXEC) != 0) return {};
    if (::fcntl(both[1], F_SETPIPE_SZ, static_cast<int>(pipe_lease::size)) < 0) {
        close({both[0], both[1]});
        return {};
    }
    none_made_ = false;
    ++lent_;
    return {*this, both[0], both[1]};
}

void pipe_pool::give_up() noexcept {
    for (auto const& e : free_) close(e);
    free_.clear();
    if (std::exchange(most_, 0) != 0 && lent_ != 0) log::info("relay", "splice() does not work here: long bodies are copied");
    least_free_ = 0;
}

void pipe_pool::trim() noexcept {
    none_made_ = false;
    for (; least_free_ > 0; --least_free_) {
        close(free_.front());
        free_.erase(free_.begin());
    }
    least_free_ = free_.size();
}

void pipe_pool::close(ends const& e) noexcept {
    ::close(e.read);
    ::close(e.write);
}

}  // namespace latchkey::gateway
