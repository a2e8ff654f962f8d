#include "gateway/upstream.hpp"

#include <fmt/format.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstring>

#include "base/log.hpp"
#include "gateway/tcp_acked.hpp"

namespace latchkey::gateway {
namespace {

constexpr std::int64_t second_ns = 1'000'000'000;

std::int64_t ns(std::chrono::milliseconds d) noexcept { return d.count() * 1'000'000; }

std::string authority_of(conf::endpoint const& e) {
    std::string const host = e.host.find(':') != std::string::npos ? fmt::format("[{}]", e.host) : e.host;
    return e.port == 80 ? host : fmt::format("{}:{}", host, e.port);
}

// A connecting, non-blocking socket, or -1 with errno.
int start_connect(tcp_endpoint const& to) noexcept {
    int const fd = ::socket(to.protocol().family(), SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, IPPROTO_TCP);
    if (fd < 0) return -1;
    int const on = 1;
    ::setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    if (::connect(fd, to.data(), static_cast<socklen_t>(to.size())) == 0 || errno == EINPROGRESS) return fd;
    int const e = errno;
    ::close(fd);
    errno = e;
    return -1;
}

}  // namespace

bool upstream_connection::peer_has_bytes() const noexcept {
    return !io.is_open() || bytes_acked(io.descriptor()) > sent + 1;  // our SYN counts as one byte
}

// The watched connection became readable, or its wait was cancelled.
void upstream_connection::on_watch(void* self) noexcept {
    auto* const c = static_cast<upstream_connection*>(self);
    switch (c->state_) {
        case state::idle: {
            auto& idle = c->to_.idle_;
            idle.erase(std::find(idle.begin(), idle.end(), c));
            c->to_.discard(c);
            return;
        }
        case state::dead: c->to_.bury(c); return;
        case state::leased: return;  // an early answer: the exchange will read it
    }
}

target::target(reactor& r, conf::api const& a, conf::target const& t)
    : reactor_(r),
      where_(t.at),
      authority_(authority_of(t.at)),
      base_path_(t.base_path),
      deadlines_(a.deadlines),
      connections_max_(a.connections_per_target),
      idle_max_(a.idle_per_target) {
    idle_.reserve(idle_max_);
}

target::~target() = default;

void target::set_addresses(std::vector<tcp_endpoint> addresses) {
    addresses_ = std::move(addresses);
    next_address_ = 0;
}

upstream_connection* target::take_idle() noexcept {
    if (idle_.empty()) return nullptr;
    auto* const c = idle_.back();
    idle_.pop_back();
    c->state_ = upstream_connection::state::leased;
    c->reused = true;
    return c;
}

task<target::connected> target::connect(std::int64_t now_ns) {
    std::int64_t const deadline = now_ns + ns(deadlines_.connect);
    connected out{nullptr, asio::error::host_not_found};
    std::size_t const tries = addresses_.size();
    for (std::size_t i = 0; i < tries && !addresses_.empty(); ++i) {
        auto const address = addresses_[next_address_ % addresses_.size()];
        auto* const c = new upstream_connection(reactor_, *this);
        all_.push_back(*c);
        ++all_count_;
        int const fd = start_connect(address);
        out.ec = fd < 0 ? error_code(errno, boost::system::system_category()) : c->io.open(fd);
        if (!out.ec) {
            c->io.write_until(deadline);
            out.ec = co_await c->io.writable();
            if (!out.ec) out.ec = c->io.connect_result();
        }
        if (!out.ec) {
            out.connection = c;
            co_return out;
        }
        discard(c);
        ++next_address_;
        if (out.ec == asio::error::timed_out || out.ec == asio::error::operation_aborted) break;
    }
    co_return out;
}

void target::give_back(upstream_connection* c, std::int64_t now_ns) noexcept {
    c->in.reset();
    c->begin = c->end = 0;
    if (idle_.size() >= idle_max_) {
        discard(c);
        return;
    }
    c->state_ = upstream_connection::state::idle;
    c->idle_since_ns_ = now_ns;
    c->looked_at_ = false;
    idle_.push_back(c);
    c->io.watch(&upstream_connection::on_watch, c);
}

void target::discard(upstream_connection* c) noexcept {
    c->state_ = upstream_connection::state::dead;
    all_.erase(all_.iterator_to(*c));
    c->in.reset();
    bool const pending = c->io.read_pending();
    if (pending && c->io.is_open()) c->io.watch(&upstream_connection::on_watch, c);  // its last word buries it
    c->io.close();
    if (!pending) bury(c);
}

void target::bury(upstream_connection* c) noexcept {
    --all_count_;
    delete c;
}

void target::failed(std::int64_t now_ns, error_code const& why) noexcept {
    constexpr std::int64_t silence_ns = 60 * second_ns;
    if (complained_ns_ == 0 || now_ns - complained_ns_ >= silence_ns) {
        complained_ns_ = now_ns;
        bool const system = why.category() == boost::system::system_category();
        log::warn("upstream", "{} cannot be reached: {}", authority_,
                  system ? std::strerror(why.value()) : "its name is not known");
    }
    failures_ = std::min(failures_ + 1, 6U);
    down_until_ns_ = now_ns + std::min<std::int64_t>(second_ns << (failures_ - 1), 30 * second_ns);
}

void target::succeeded() noexcept {
    failures_ = 0;
    down_until_ns_ = 0;
    if (std::exchange(complained_ns_, 0) != 0) log::info("upstream", "{} is reached again", authority_);
}

void target::sweep(std::int64_t now_ns) noexcept {
    for (auto& c : all_) {
        if (c.state_ == upstream_connection::state::leased) c.io.expire(now_ns);
    }
    std::size_t stale = 0;  // the oldest stand first
    while (stale < idle_.size() && now_ns - idle_[stale]->idle_since_ns_ >= ns(deadlines_.idle)) ++stale;
    for (std::size_t i = 0; i < stale; ++i) discard(idle_[i]);
    idle_.erase(idle_.begin(), idle_.begin() + static_cast<std::ptrdiff_t>(stale));
    for (auto* const c : idle_)
        if (!std::exchange(c->looked_at_, true)) c->io.nudge();
}

void target::close_idle() noexcept {
    for (auto* const c : idle_) discard(c);
    idle_.clear();
}

void target::close_all() noexcept {
    close_idle();
    for (auto& c : all_) c.io.close();  // their exchanges see the end and discard them
}

target_group::target_group(reactor& r, conf::api const& a) {
    for (auto const& t : a.upstreams) {
        targets_.push_back(std::make_unique<target>(r, a, t));
        lines_max_ = std::max(lines_max_, targets_.back()->base_path().size() + targets_.back()->authority().size());
    }
}

target* target_group::choose(std::int64_t now_ns, std::uint64_t tried) noexcept {
    target* longest_down = nullptr;
    for (std::size_t i = 0; i < targets_.size(); ++i) {
        std::size_t const index = (next_ + i) % targets_.size();
        if (index < 64 && (tried >> index & 1U) != 0) continue;
        target* const t = targets_[index].get();
        if (t->usable(now_ns)) {
            next_ = index + 1;
            return t;
        }
        if (!longest_down || t->down_until() < longest_down->down_until()) longest_down = t;
    }
    return longest_down;
}

std::uint64_t target_group::bit_of(target const& t) const noexcept {
    for (std::size_t i = 0; i < targets_.size() && i < 64; ++i)
        if (targets_[i].get() == &t) return std::uint64_t{1} << i;
    return 0;
}

}  // namespace latchkey::gateway
