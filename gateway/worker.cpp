#include "gateway/worker.hpp"

#include <arpa/inet.h>
#include <fcntl.h>
#include <fmt/format.h>
#include <netinet/in.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <bit>
#include <boost/asio/ip/tcp.hpp>
#include <cassert>
#include <csignal>
#include <cstring>
#include <ctime>
#include <exception>
#include <new>
#include <set>

#include "base/clock.hpp"
#include "base/ids.hpp"
#include "base/log.hpp"
#include "gateway/congestion_control.hpp"
#include "gateway/scan.hpp"
#include "gateway/text.hpp"

namespace latchkey::gateway {
namespace {

constexpr auto accept_pause = std::chrono::milliseconds(50);  // after EMFILE (fault R1)
constexpr unsigned accepts_per_turn = 64;                     // then others get their turn
constexpr unsigned last_accepts_max = 4096;                   // as many as a queue holds
constexpr std::size_t large_buffer_bytes = 512U << 10U;
constexpr std::size_t large_buffers_bytes_max = 16U << 20U;  // per worker, and no more than a quarter of its share
constexpr std::size_t pipes_max = 16;                        // of a worker, for long bodies
// Of all: half of what the kernel lets the pipes of one user hold (64 MiB); the rest is for a successor, and for others.
constexpr std::size_t pipes_of_all_max = 64;
constexpr std::size_t served_together = 32;  // messages; more buy nothing
constexpr std::size_t buffers_kept = 64;

rlim_t open_files_max() noexcept {
    rlimit files{};
    return ::getrlimit(RLIMIT_NOFILE, &files) == 0 ? files.rlim_cur : RLIM_INFINITY;
}

// Two open files each; but they are not needed, so no more than an eighth of all.
std::size_t pipes_for(std::size_t workers) noexcept {
    return std::min<rlim_t>(std::clamp<std::size_t>(pipes_of_all_max / workers, 1, pipes_max), open_files_max() / 16 / workers);
}

std::size_t small_buffer_for(conf::limits const& l) {
    constexpr std::size_t least = 64U << 10U;
    constexpr std::size_t added = 8U << 10U;  // what rewriting may add to a head
    return std::max(least, std::bit_ceil(std::max<std::size_t>(l.head_bytes, l.response_head_bytes) + added));
}

// All that can be open at one time: one for each request in flight, and the idle ones.
rlim_t upstream_connections_max(conf::settings const& s, unsigned workers) {
    if (s.limit.requests_in_flight == 0) return RLIM_INFINITY;
    std::set<upstream_server> servers;  // those that apis share count once
    for (auto const& a : s.apis)
        for (auto const& t : a.upstreams) servers.insert(server_of(a, t));
    rlim_t out = s.limit.requests_in_flight;
    for (auto const& each : servers)
        out += workers * (each.connections_max == 0 ? each.idle_max : std::min(each.idle_max, each.connections_max));
    return out;
}

// The gateway's own: those of the process with the connections of its admin listeners, 64 each, and of its workers.
rlim_t own_files(conf::settings const& s, unsigned workers) {
    constexpr rlim_t process = 32 + 2 * 64;
    rlim_t const worker = 8 + s.listen.size() + s.tls.listen.size() + 2 * pipes_for(workers);
    return process + workers * worker;
}

// A client connection takes one upstream connection at most beside it.
conf::settings fitted(conf::settings s, unsigned workers) {
    constexpr rlim_t enough_to_divide = 257;
    rlim_t const files = open_files_max();
    if (files == RLIM_INFINITY || files < enough_to_divide) return s;
    rlim_t const theirs = files - std::min(own_files(s, workers), files / 4 * 3);
    auto const fit = theirs - std::min(theirs / 2, upstream_connections_max(s, workers));
    if (fit >= s.limit.connections) return s;
    log::warn("start",
              "limits.connections is lowered from {}, connections_per_address with it: each may take two open files, the second "
              "while a request is in flight, and {} allow {} (raise it with LimitNOFILE or ulimit -n, or lower "
              "limits.requests_in_flight)",
              s.limit.connections, files, fit);
    // One address keeps its part of the places, rounded up.
    std::uint64_t const part = std::uint64_t{s.limit.connections_per_address} * fit + s.limit.connections - 1;
    s.limit.connections_per_address = static_cast<std::uint32_t>(part / s.limit.connections);
    s.limit.connections = static_cast<std::uint32_t>(fit);
    return s;
}

// Throws with every file, reason and remedy, a line each.
std::unique_ptr<tls_context> certificates_of(conf::settings const& s) {
    if (s.tls.listen.empty()) return nullptr;
    std::vector<conf::finding> mistakes;
    std::vector<conf::finding> warnings;
    auto out = tls_context::load(s.tls, mistakes, warnings);
    for (auto const& w : warnings) log::warn("tls", "{}", conf::to_text(w));
    std::string text;
    for (auto const& m : mistakes) text += (text.empty() ? "" : "\n") + conf::to_text(m);
    if (!out) throw std::runtime_error(text.empty() ? "tls.listen has no certificate to show" : text);
    return out;
}

std::uint64_t mix(std::uint64_t z) noexcept {  // SplitMix64's finalizer: a bijection
    z = (z ^ (z >> 30U)) * 0xbf58476d1ce4e5b9ULL;
    z = (z ^ (z >> 27U)) * 0x94d049bb133111ebULL;
    return z ^ (z >> 31U);
}

void put_hex(char* out, std::uint64_t v) noexcept {
    if constexpr (std::endian::native == std::endian::little) v = __builtin_bswap64(v);
    sixteen bytes{};
    std::memcpy(&bytes, &v, sizeof v);
    sixteen const digits =
        __builtin_shufflevector(bytes >> 4, bytes & 15, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
    sixteen const letters = reinterpret_cast<sixteen>(digits > 9);
    sixteen const text = digits + '0' + (letters & ('a' - '0' - 10));
    std::memcpy(out, &text, sizeof text);
}

// The kernel lets whoever runs finish its time slice (some 3 ms) before a thread of the same processor that wakes up, unless that
// one asked for shorter slices: then it goes first. A worker needs microseconds at a time; the flusher, which packs a second's
// records at once, can wait. From Linux 6.12 on (`sched_runtime` of a normal thread); before, nothing changes.
void ask_for_short_slices() noexcept {
    struct {  // sched_attr: the kernel's header cannot be included beside glibc's
        std::uint32_t size;
        std::uint32_t policy;  // 0: normal
        std::uint64_t flags;
        std::int32_t nice;
        std::uint32_t priority;
        std::uint64_t runtime_ns;
        std::uint64_t deadline_ns;
        std::uint64_t period_ns;
    } a{};
    a.size = sizeof a;
    a.nice = ::getpriority(PRIO_PROCESS, 0);
    a.runtime_ns = 100'000;  // the least there is
    ::syscall(SYS_sched_setattr, 0, &a, 0U);
}

int open_reserve() noexcept { return ::open("/dev/null", O_RDONLY | O_CLOEXEC); }

}  // namespace

// --- common

common::common(conf::settings s, unsigned worker_count)
    : settings(fitted(std::move(s), worker_count)),
      router(settings.apis),
      tls(certificates_of(settings)),
      connections(settings.limit.connections, settings.limit.connections_per_address),
      requests(settings.limit.requests_in_flight, worker_count),
      small_buffer_bytes(small_buffer_for(settings.limit)),
      workers(worker_count) {
    // conf::check() has said it with its place, where the settings came through it.
    if (buffer_bytes_per_worker() < conf::memory_per_worker_min)
        throw std::runtime_error(fmt::format("limits.memory: {} MiB are too few for {} workers; write \"{}MiB\" or more",
                                             settings.limit.memory >> 20U, workers,
                                             workers * conf::memory_per_worker_min >> 20U));
    for (auto const& text : settings.trusted_proxies) {
        boost::system::error_code ec;
        bool const v6 = text.find(':') != std::string::npos;
        bool const bare = text.find('/') == std::string::npos;
        if (v6) {
            auto const n = asio::ip::make_network_v6(bare ? text + "/128" : text, ec);
            if (!ec) trusted_v6_.push_back(n);
        } else {
            auto const n = asio::ip::make_network_v4(bare ? text + "/32" : text, ec);
            if (!ec) trusted_v4_.push_back(n);
        }
        if (ec) throw std::runtime_error(fmt::format("trusted_proxies: '{}' is neither an address nor a CIDR block", text));
    }
}

bool common::trusts(ip_address const& peer) const noexcept {
    if (peer.is_v4()) {
        auto const bits = peer.to_v4().to_uint();
        return std::any_of(trusted_v4_.begin(), trusted_v4_.end(),
                           [&](auto const& n) { return (bits & n.netmask().to_uint()) == n.network().to_uint(); });
    }
    auto const bytes = peer.to_v6().to_bytes();
    return std::any_of(trusted_v6_.begin(), trusted_v6_.end(), [&](auto const& n) {
        auto const net = n.network().to_bytes();
        for (unsigned bit = 0; bit < n.prefix_length(); ++bit)
            if (((bytes[bit / 8] ^ net[bit / 8]) >> (7U - bit % 8) & 1U) != 0) return false;
        return true;
    });
}

std::size_t common::large_buffers_per_worker() const noexcept {
    return std::min(large_buffers_bytes_max, buffer_bytes_per_worker() / 4) / buffer_pool::cost(large_buffer_bytes);
}

bool common::counts(address_bytes const& peer) const noexcept {
    asio::ip::address_v6::bytes_type raw{};
    std::memcpy(raw.data(), peer.data(), raw.size());
    asio::ip::address_v6 const v6(raw);
    if (!v6.is_v4_mapped()) return !v6.is_loopback() && !trusts(v6);
    auto const v4 = asio::ip::make_address_v4(asio::ip::v4_mapped, v6);
    return v4 != asio::ip::address_v4::loopback() && !trusts(v4);
}

// --- worker

struct worker::acceptor {
    explicit acceptor(io_context& io) : socket(io), pause(io) {}
    asio::ip::tcp::acceptor socket;
    asio::steady_timer pause;
    listener_address address;
    bool waiting = false;  // for a client, or for the end of its rest
    std::int64_t complained_ns = 0;
};

worker::worker(common& shared, usage::ring& ring, unsigned index)
    : shared_(shared),
      ring_(ring),
      index_(index),
      io_(BOOST_ASIO_CONCURRENCY_HINT_UNSAFE_IO),  // one thread runs it: posts are locked, sockets need not be
      reactor_(reactor::of(io_)),
      buffers_(shared.small_buffer_bytes, large_buffer_bytes, shared.large_buffers_per_worker(),
               shared.buffer_bytes_per_worker()),
      pipes_(pipes_for(shared.workers)),
      request_head_(std::make_unique<head>()),
      response_head_(std::make_unique<head>()),
      upstreams_(reactor_, shared.settings.apis),
      sweep_timer_(io_),
      places_(shared.requests),
      memory_tight_(shared.buffer_bytes_per_worker() / 100 * 92),
      memory_short_(shared.buffer_bytes_per_worker() / 100 * 95),
      memory_full_(shared.buffer_bytes_per_worker() / 100 * 98) {
    reactor_.init_task();
    if (!shared.settings.io_uring) reactor_.calls().never();
    // Those who wait for their step hold a buffer each: not one in sixteen.
    reactor_.wait_at_most(
        std::min(served_together, shared.buffer_bytes_per_worker() / 16 / buffer_pool::cost(shared.small_buffer_bytes)));
    random_bytes(std::as_writable_bytes(std::span(&id_prefix_, 1)));
    random_bytes(std::as_writable_bytes(std::span(&id_secret_, 1)));
    random_bytes(std::as_writable_bytes(std::span(random_state_)));
    reserve_descriptor_ = open_reserve();
    set_clock(steady_ns());
}

worker::~worker() {
    assert(!thread_.joinable());
    if (reserve_descriptor_ >= 0) ::close(reserve_descriptor_);
}

void worker::listen(int descriptor, std::uint16_t port, bool tls) {
    auto a = std::make_unique<acceptor>(io_);
    tcp_endpoint bound;
    auto size = static_cast<socklen_t>(bound.capacity());
    ::getsockname(descriptor, bound.data(), &size);
    a->socket.assign(bound.protocol(), descriptor);
    a->socket.non_blocking(true);
    choose_congestion_control(descriptor, bound.address());
    a->address = {port, std::to_string(port), tls, bound.address().is_loopback()};
    acceptors_.push_back(std::move(a));
}

void worker::start() {
    thread_ = std::thread([this] { run(); });
}

void worker::join() {
    if (thread_.joinable()) thread_.join();
}

void worker::run() {
    pthread_setname_np(pthread_self(), fmt::format("worker-{}", index_).c_str());
    ask_for_short_slices();
    sigset_t broken_pipe;  // splice() to a client that is gone would raise it
    ::sigemptyset(&broken_pipe);
    ::sigaddset(&broken_pipe, SIGPIPE);
    ::pthread_sigmask(SIG_BLOCK, &broken_pipe, nullptr);
    for (;;) {
        try {
            go_on();
            io_.run();
            ended_.store(true, std::memory_order_release);
            return;
        } catch (std::exception const& e) {  // out of memory: a handler is lost, the worker is not
            log::error("worker", "memory ran out: {}", e.what());
            std::this_thread::sleep_for(std::chrono::milliseconds(1));  // rather than spin until there is some
        }
    }
}

// What a lost handler would have set up for the next round.
void worker::go_on() {
    for (auto& a : acceptors_)
        if (!a->waiting && !draining_) accept_some(*a);
    if (!sweeping_) wait_for_sweep();
}

// --- accepting: many a turn, never more than the limits, and never in a spin when descriptors run out

void worker::accept_some(acceptor& a) {
    a.socket.async_wait(asio::ip::tcp::acceptor::wait_read, [this, &a](error_code const& ec) {
        reactor_.serve();
        a.waiting = false;
        if (ec || draining_) return;
        if (memory_full()) return rest(a);  // clients wait in the kernel's queue until there is room
        int const listener = a.socket.native_handle();
        for (unsigned i = 0; i < accepts_per_turn; ++i) {
            int const fd = ::accept4(listener, nullptr, nullptr, SOCK_NONBLOCK | SOCK_CLOEXEC);
            if (fd >= 0) {
                adopt_or_close(fd, a.address);
                continue;
            }
            if (errno == EINTR || errno == ECONNABORTED) continue;
            if (errno == EAGAIN || errno == EWOULDBLOCK) break;
            if (shed_one(a)) return;
            break;
        }
        accept_some(a);
    });
    a.waiting = true;
}

// Out of descriptors or memory: the reserve descriptor takes one waiting client off the queue and closes it, so that it learns of
// its fate; then accepting rests a while. True: it goes on by itself.
bool worker::shed_one(acceptor& a) {
    int const why = errno;
    if ((why == EMFILE || why == ENFILE) && reserve_descriptor_ >= 0) {
        ::close(std::exchange(reserve_descriptor_, -1));
        int const fd = ::accept4(a.socket.native_handle(), nullptr, nullptr, SOCK_NONBLOCK | SOCK_CLOEXEC);
        if (fd >= 0) {
            ::close(fd);
            counts_.shed.add();
        }
        reserve_descriptor_ = open_reserve();
    }
    std::int64_t const now = steady_ns();
    if (now - a.complained_ns > 5'000'000'000) {
        a.complained_ns = now;
        log::warn("accept", "connections wait: {}; raise the descriptor limit or lower limits.connections", std::strerror(why));
    }
    rest(a);
    return true;
}

void worker::rest(acceptor& a) {
    a.pause.expires_after(accept_pause);
    a.pause.async_wait([this, &a](error_code const& ec) {
        a.waiting = false;
        if (!ec && !draining_) accept_some(a);
    });
    a.waiting = true;
}

void worker::adopt_or_close(int descriptor, listener_address const& at) noexcept {
    try {
        adopt(descriptor, at);
    } catch (std::exception const& e) {  // out of memory: this client is lost, the others are not
        log::error("accept", "a connection was closed: {}", e.what());
    }
}

void worker::adopt(int descriptor, listener_address const& at) {
    sockaddr_storage peer{};
    socklen_t size = sizeof peer;
    address_bytes bytes{};
    std::array<char, 46> text{};
    ip_address address;
    if (::getpeername(descriptor, reinterpret_cast<sockaddr*>(&peer), &size) != 0) {
        ::close(descriptor);  // gone already
        return;
    }
    if (peer.ss_family == AF_INET) {
        auto const& v4 = reinterpret_cast<sockaddr_in const&>(peer);
        bytes[10] = bytes[11] = 0xff;
        std::memcpy(bytes.data() + 12, &v4.sin_addr, 4);
        ::inet_ntop(AF_INET, &v4.sin_addr, text.data(), text.size());
        address = asio::ip::address_v4(ntohl(v4.sin_addr.s_addr));
    } else {
        auto const& v6 = reinterpret_cast<sockaddr_in6 const&>(peer);
        std::memcpy(bytes.data(), &v6.sin6_addr, 16);
        asio::ip::address_v6::bytes_type raw{};
        std::memcpy(raw.data(), bytes.data(), 16);
        address = asio::ip::address_v6(raw);
        if (IN6_IS_ADDR_V4MAPPED(&v6.sin6_addr)) address = asio::ip::make_address_v4(asio::ip::v4_mapped, address.to_v6());
        ::inet_ntop(address.is_v4() ? AF_INET : AF_INET6, bytes.data() + (address.is_v4() ? 12 : 0), text.data(), text.size());
    }
    if (!shared_.connections.enter(bytes, shared_.counts(bytes))) {
        ::close(descriptor);
        counts_.shed.add();
        return;
    }
    if (!at.loopback) choose_congestion_control(descriptor, address);  // or it was inherited
    auto* const s = new (std::nothrow) session(*this, bytes, text.data(), shared_.trusts(address), at);
    if (!s || s->open(descriptor, steady_ns()) || !sessions_.add(*s)) {
        if (!s) ::close(descriptor);
        shared_.connections.leave(bytes, shared_.counts(bytes));
        counts_.shed.add();
        delete s;
        return;
    }
    counts_.accepted.add();
    try {
        s->run();
    } catch (std::bad_alloc const&) {  // its frame could not be made, so nothing of it ran
        s->end_now();
        finished(*s);
        throw;
    }
}

void worker::finished(session& s) noexcept {
    shared_.connections.leave(s.address(), shared_.counts(s.address()));
    sessions_.remove(s);
    delete &s;
    maybe_stop();
}

// --- the sweep: deadlines, the wall clock, memory that is not needed any more

void worker::wait_for_sweep() {
    sweep_timer_.expires_after(std::chrono::nanoseconds(sweep_interval_ns));
    sweep_timer_.async_wait([this](error_code const& ec) {
        sweeping_ = false;
        if (ec) return;
        sweep();
        maybe_stop();
        if (!(draining_ && sessions_.empty())) wait_for_sweep();
    });
    sweeping_ = true;
}

void worker::sweep() {
    reactor_.serve();
    std::int64_t const now = steady_ns();
    set_clock(now);
    sessions_.each_due<session>(now, [now](session& s) { s.sweep(now); });
    if (patient() && now >= patient_until_ns_) drain();
    upstreams_.sweep(now);
    counts_.upstream_connections.set(upstreams_.count());
    counts_.buffer_bytes.set(buffers_.lent_bytes());
    if (++sweeps_ % 4 == 0) {
        buffers_.trim(buffers_kept);
        pipes_.trim();
        frame_pool::trim();
    }
    for (auto* a = std::exchange(until_sweep_, nullptr); a != nullptr;) {
        auto const h = a->waiting;
        a = a->next;  // before its frame goes on, and perhaps away
        h.resume();
    }
}

void worker::set_clock(std::int64_t now_ns) noexcept {
    std::int64_t const wall = latchkey::wall_ms();
    wall_offset_ms_ = wall - now_ns / 1'000'000;
    std::int64_t const second = wall / 1000;
    if (second == date_second_) return;
    date_second_ = second;
    auto const t = static_cast<std::time_t>(second);
    std::tm utc{};
    ::gmtime_r(&t, &utc);
    std::strftime(date_.data(), date_.size(), "%a, %d %b %Y %H:%M:%S GMT", &utc);
}

// --- ending

void worker::drain() noexcept {
    draining_ = true;
    patient_until_ns_ = 0;
    for (auto& a : acceptors_) {
        boost::system::error_code ignored;
        a->socket.close(ignored);
        a->pause.cancel();
    }
    sessions_.each<session>([](session& s) { s.end_if_idle(); });
    maybe_stop();
}

// A plain close would leave the sockets in our epoll set, since the other process keeps them open: release() takes them out.
void worker::hand_over(std::vector<int> const& last, std::chrono::milliseconds patience) noexcept {
    draining_ = true;
    patient_until_ns_ = steady_ns() + std::chrono::nanoseconds(patience).count();
    for (auto& a : acceptors_) {
        boost::system::error_code failed;
        a->pause.cancel();
        int const fd = a->socket.release(failed);
        if (failed) continue;
        if (std::find(last.begin(), last.end(), fd) != last.end())
            for (unsigned n = 0; n < last_accepts_max; ++n) {
                int const client = ::accept4(fd, nullptr, nullptr, SOCK_NONBLOCK | SOCK_CLOEXEC);
                if (client < 0) break;
                adopt_or_close(client, a->address);
            }
        ::close(fd);
    }
    maybe_stop();
}

void worker::close_all() noexcept {
    draining_ = closing_ = true;
    sessions_.each<session>([](session& s) { s.end_now(); });
    upstreams_.close_all();  // connections that are still being made, too
    maybe_stop();
}

// Once drained, nothing must stay that keeps the loop running.
void worker::maybe_stop() noexcept {
    if (!draining_ || !sessions_.empty()) return;
    sweep_timer_.cancel();
    upstreams_.close_all();
}

// --- identifiers

void worker::make_request_id(char* out) noexcept {
    put_hex(out, id_prefix_);
    put_hex(out + 16, mix(++id_counter_ ^ id_secret_));
}

void worker::make_trace(char* out) noexcept {
    for (std::size_t i = 0; i < 3; ++i) put_hex(out + 16 * i, next_random() | 1U);  // never all zero
}

std::uint64_t worker::next_random() noexcept {  // xoshiro256+ (public domain algorithm by Blackman and Vigna)
    auto& s = random_state_;
    std::uint64_t const result = s[0] + s[3];
    std::uint64_t const t = s[1] << 17U;
    s[2] ^= s[0];
    s[3] ^= s[1];
    s[1] ^= s[2];
    s[0] ^= s[3];
    s[2] ^= t;
    s[3] = std::rotl(s[3], 45);
    return result;
}

}  // namespace latchkey::gateway
