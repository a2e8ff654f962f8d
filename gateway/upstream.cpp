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
#include "gateway/congestion_control.hpp"
#include "gateway/tcp_acked.hpp"

namespace latchkey::gateway {
namespace {

constexpr std::int64_t second_ns = 1'000'000'000;

std::int64_t ns(std::chrono::milliseconds d) noexcept { return d.count() * 1'000'000; }

std::string authority_of(upstream_server const& s) {
    std::string const host = s.host.find(':') != std::string::npos ? fmt::format("[{}]", s.host) : s.host;
    return s.port == 80 ? host : fmt::format("{}:{}", host, s.port);
}

// A connecting, non-blocking socket, or -1 with errno.
int start_connect(tcp_endpoint const& to) noexcept {
    int const fd = ::socket(to.protocol().family(), SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, IPPROTO_TCP);
    if (fd < 0) return -1;
    int const on = 1;
    ::setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    choose_congestion_control(fd, to.address());
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
        case state::idle: c->pool_.discard(c); return;
        case state::dead: c->pool_.bury(c); return;
        case state::leased: return;  // an early answer: the exchange will read it
    }
}

upstream_server server_of(conf::api const& a, conf::target const& t) {
    return {t.at.host, t.at.port, a.deadlines.connect, a.deadlines.idle, a.connections_per_target, a.idle_per_target};
}

upstream_pool::upstream_pool(reactor& r, upstream_server server)
    : idle_max_(server.idle_max), authority_(authority_of(server)), reactor_(r), server_(std::move(server)) {}

upstream_pool::~upstream_pool() {
    if (look_back_.is_linked()) reactor_.forget(look_back_);
}

void upstream_pool::set_addresses(std::vector<tcp_endpoint> addresses) {
    addresses_ = std::move(addresses);
    next_address_ = 0;
}

upstream_connection* upstream_pool::take_idle() noexcept {
    while (!idle_.empty() && idle_.front().io.watch_found()) discard(&idle_.front());
    if (idle_.empty()) return nullptr;
    upstream_connection& c = idle_.front();
    idle_.pop_front();
    leased_.push_back(c);
    c.state_ = upstream_connection::state::leased;
    c.reused = true;
    c.io.prefetch();
    return &c;
}

task<upstream_pool::connected> upstream_pool::connect(std::int64_t now_ns) {
    std::int64_t const deadline = now_ns + ns(server_.connect);
    connected out{nullptr, asio::error::host_not_found};
    std::size_t const tries = addresses_.size();
    for (std::size_t i = 0; i < tries && !addresses_.empty(); ++i) {
        auto const address = addresses_[next_address_ % addresses_.size()];
        auto* const c = new upstream_connection(reactor_, *this);
        leased_.push_back(*c);
        ++all_count_;
        int const fd = start_connect(address);
        out.ec = fd < 0 ? error_code(errno, boost::system::system_category()) : c->io.open(fd);
        if (!out.ec) {
            c->io.write_until(deadline);
            do {
                out.ec = co_await c->io.writable();
                if (!out.ec) out.ec = c->io.connect_result();
            } while (out.ec == asio::error::would_block);
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

void upstream_pool::give_back(upstream_connection* c, std::int64_t now_ns) noexcept {
    c->in.reset();
    c->begin = c->end = 0;
    // (Where a read took as much as it was to, something may lie behind an answer that was none of it. If less, all has been
    // read.)
    if (idle_.size() >= idle_max_ || !c->io.is_open() ||
        (c->io.filled() && peek(c->io.descriptor()).ec != asio::error::would_block)) {
        discard(c);
        return;
    }
    some_returned_ = true;
    if (!waiters_.empty()) {
        returned& w = waiters_.front();
        waiters_.pop_front();
        reactor_.goes_on();
        w.connection_ = c;
        c->reused = true;
        reactor_.after_look(w);
        return;
    }
    c->state_ = upstream_connection::state::idle;
    c->idle_since_ns_ = idle_.empty() ? now_ns : std::max(now_ns, idle_.front().idle_since_ns_);
    leased_.erase(leased_.iterator_to(*c));
    idle_.push_front(*c);
    c->io.watch(&upstream_connection::on_watch, c);
}

void upstream_pool::wait(returned& r) noexcept {
    waiters_.push_back(r);
    reactor_.held_up();
    if (!look_back_.is_linked()) look_again();
}

void upstream_pool::look_again() noexcept {
    looks_ = reactor_.looks();
    some_returned_ = false;
    reactor_.after_look(look_back_);
}

void upstream_pool::look_back::look(waiting& w) noexcept {
    upstream_pool& p = static_cast<look_back&>(w).pool;
    if (p.waiters_.empty()) return;
    if (p.looks_ == p.reactor_.looks()) return p.reactor_.after_look(w);  // that one was under way
    bool const some_returned = p.some_returned_;
    std::int64_t const late = steady_ns() - wait_for_returned_ns;
    for (unsigned n = some_returned ? made_a_look_beside_returned : made_a_look; n != 0 && !p.waiters_.empty(); --n) {
        returned& first = p.waiters_.front();
        if (some_returned && first.since_ns_ > late) break;
        p.waiters_.pop_front();
        p.reactor_.goes_on();
        returned::resume(first);
    }
    if (!p.waiters_.empty() && !p.look_back_.is_linked()) p.look_again();
}

upstream_connection* upstream_pool::returned::await_resume() noexcept {
    if (connection_ && peek(connection_->io.descriptor()).ec != asio::error::would_block)
        pool_.discard(std::exchange(connection_, nullptr));
    return connection_;
}

void upstream_pool::returned::resume(waiting& w) noexcept { static_cast<returned&>(w).awaiting_.resume(); }

void upstream_pool::discard(upstream_connection* c) noexcept {
    auto& in = c->state_ == upstream_connection::state::idle ? idle_ : leased_;
    in.erase(in.iterator_to(*c));
    c->state_ = upstream_connection::state::dead;
    c->in.reset();
    bool const pending = c->io.read_pending();
    if (pending && c->io.is_open()) c->io.watch(&upstream_connection::on_watch, c);  // its last word buries it
    c->io.close();
    if (!pending) bury(c);
}

void upstream_pool::bury(upstream_connection* c) noexcept {
    --all_count_;
    delete c;
}

void upstream_pool::failed(std::int64_t now_ns, error_code const& why) noexcept {
    constexpr std::int64_t silence_ns = 60 * second_ns;
    bool const shortage = is_shortage(why);
    std::int64_t& complained_ns = shortage ? complained_shortage_ns_ : complained_ns_;
    if (complained_ns == 0 || now_ns - complained_ns >= silence_ns) {
        complained_ns = now_ns;
        bool const system = why.category() == boost::system::system_category();
        log::warn("upstream", "{} cannot be reached: {}", authority_,
                  system ? std::strerror(why.value()) : "its name is not known");
    }
    if (shortage) return;
    failures_ = std::min(failures_ + 1, 6U);
    down_until_ns_ = now_ns + std::min<std::int64_t>(second_ns << (failures_ - 1), 30 * second_ns);
}

void upstream_pool::succeeded() noexcept {
    failures_ = 0;
    down_until_ns_ = 0;
    if (std::exchange(complained_ns_, 0) != 0) log::info("upstream", "{} is reached again", authority_);
}

void upstream_pool::sweep(std::int64_t now_ns) noexcept {
    for (auto& c : leased_) c.io.expire(now_ns);
    while (!idle_.empty() && now_ns - idle_.back().idle_since_ns_ >= ns(server_.idle)) discard(&idle_.back());
}

void upstream_pool::close_idle() noexcept {
    while (!idle_.empty()) discard(&idle_.front());
}

void upstream_pool::close_all() noexcept {
    close_idle();
    for (auto& c : leased_) c.io.close();  // their exchanges see the end and discard them
}

target_group::target_group(target_list targets) : targets_(std::move(targets)) {
    for (auto const& t : targets_) lines_max_ = std::max(lines_max_, t.base_path.size() + t.pool->authority().size());
}

target* target_group::choose(std::int64_t now_ns, std::uint64_t tried) noexcept {
    target* longest_down = nullptr;
    std::size_t index = next_;
    for (std::size_t i = 0; i < targets_.size(); ++i, ++index) {
        if (index >= targets_.size()) index = 0;
        if (index < 64 && (tried >> index & 1U) != 0) continue;
        target* const t = &targets_[index];
        if (t->pool->usable(now_ns)) {
            next_ = index + 1;
            return t;
        }
        if (!longest_down || t->pool->down_until() < longest_down->pool->down_until()) longest_down = t;
    }
    return longest_down;
}

std::uint64_t target_group::bits_of(target const& t) const noexcept {
    if (&t - targets_.data() >= 64) return 0;
    std::uint64_t bits = 0;
    for (std::size_t i = 0; i < targets_.size() && i < 64; ++i)
        if (targets_[i].pool == t.pool) bits |= std::uint64_t{1} << i;
    return bits;
}

upstreams::upstreams(reactor& r, std::vector<conf::api> const& apis) {
    groups_.reserve(apis.size());
    for (auto const& a : apis) {
        target_group::target_list targets;
        targets.reserve(a.upstreams.size());
        for (auto const& t : a.upstreams) {
            auto const server = server_of(a, t);
            targets.push_back({&pools_.try_emplace(server, r, server).first->second, t.base_path});
        }
        groups_.emplace_back(std::move(targets));
    }
    all_.reserve(pools_.size());
    for (auto& [server, pool] : pools_) all_.push_back(&pool);
}

void upstreams::set_addresses(std::string const& host, std::uint16_t port, std::vector<tcp_endpoint> const& addresses) {
    for (auto at = pools_.lower_bound({host, port}); at != pools_.end() && at->first.host == host && at->first.port == port; ++at)
        at->second.set_addresses(addresses);
}

void upstreams::sweep(std::int64_t now_ns) noexcept {
    for (auto* const pool : all_) pool->sweep(now_ns);
}

void upstreams::close_all() noexcept {
    for (auto* const pool : all_) pool->close_all();
}

std::size_t upstreams::count() const noexcept {
    std::size_t n = 0;
    for (auto const* const pool : all_) n += pool->count();
    return n;
}

}  // namespace latchkey::gateway
