#include "gateway/pipe_pool.hpp"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cassert>
#include <cerrno>

namespace latchkey::gateway {
namespace {

// What goes through at once. Half of it is as fast where bytes come in full pages; the rest is for pieces that fill none.
constexpr int size_wanted = 1 << 20;
constexpr int size_least = 256 << 10;  // below, copying costs no more

// Of the calls themselves, not of the connections at their ends.
bool means_unsupported(int e) noexcept { return e == EINVAL || e == ENOSYS || e == EPERM || e == EACCES; }

error_code last_error() noexcept { return {errno, boost::system::system_category()}; }

}  // namespace

pipe_lease::~pipe_lease() {
    if (!pool_) return;
    --pool_->lent_;
    pipe_pool::ends const e{read_, write_, size_};
    if (left_ == 0 && pool_->most_ != 0)
        pool_->free_.push_back(e);
    else
        pipe_pool::close(e);
}

io_result pipe_lease::fill_from(int socket, std::size_t most) noexcept {
    assert(left_ == 0 && most > 0);
    for (;;) {
        ssize_t const n = ::splice(socket, nullptr, write_, nullptr, most, SPLICE_F_NONBLOCK | SPLICE_F_MOVE);
        if (n >= 0) {
            left_ = static_cast<std::size_t>(n);
            return {{}, left_};
        }
        if (errno == EAGAIN || errno == EWOULDBLOCK) return {asio::error::would_block, 0};
        if (means_unsupported(errno)) return {asio::error::operation_not_supported, 0};
        if (errno != EINTR) return {last_error(), 0};
    }
}

io_result pipe_lease::drain_to(int socket) noexcept {
    assert(left_ > 0);
    for (;;) {
        ssize_t const n = ::splice(read_, nullptr, socket, nullptr, left_, SPLICE_F_NONBLOCK | SPLICE_F_MOVE);
        if (n > 0) {
            left_ -= static_cast<std::size_t>(n);
            return {{}, static_cast<std::size_t>(n)};
        }
        if (n == 0) return {asio::error::broken_pipe, 0};
        if (errno == EAGAIN || errno == EWOULDBLOCK) return {asio::error::would_block, 0};
        if (errno != EINTR) return {last_error(), 0};
    }
}

pipe_pool::~pipe_pool() {
    assert(lent_ == 0);
    give_up();
}

pipe_lease pipe_pool::take() noexcept {
    if (lent_ >= most_) return {};
    if (!free_.empty()) {
        ends const e = free_.back();
        free_.pop_back();
        least_free_ = std::min(least_free_, free_.size());
        ++lent_;
        return {*this, e.read, e.write, e.size};
    }
    try {
        free_.reserve(most_);
    } catch (std::bad_alloc const&) {
        return {};
    }
    std::array<int, 2> both{};
    if (::pipe2(both.data(), O_NONBLOCK | O_CLOEXEC) != 0) return {};
    int size = ::fcntl(both[1], F_SETPIPE_SZ, size_wanted);
    if (size < 0) size = ::fcntl(both[1], F_SETPIPE_SZ, size_least);
    if (size < size_least) {
        close({both[0], both[1], 0});
        return {};
    }
    ++lent_;
    return {*this, both[0], both[1], static_cast<std::size_t>(size)};
}

void pipe_pool::give_up() noexcept {
    for (auto const& e : free_) close(e);
    free_.clear();
    most_ = least_free_ = 0;
}

void pipe_pool::trim() noexcept {
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
