#include "gateway/server.hpp"

#include <fmt/format.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <cstring>
#include <map>
#include <mutex>
#include <set>
#include <stdexcept>
#include <thread>
#include <utility>

#include "base/clock.hpp"
#include "base/log.hpp"
#include "conf/load.hpp"
#include "gateway/frame_pool.hpp"
#include "gateway/worker.hpp"

namespace latchkey::gateway {
namespace {

constexpr auto publish_deadline = std::chrono::seconds(5);
constexpr int listen_backlog = 4096;

bool is_literal(std::string const& host) {
    error_code ec;
    asio::ip::make_address(host, ec);
    return !ec;
}

// Blocking; never on a worker. Empty where the name cannot be resolved now. The addresses have no port yet.
std::vector<tcp_endpoint> resolve(std::string const& host) {
    addrinfo hints{};
    hints.ai_socktype = SOCK_STREAM;
    hints.ai_flags = is_literal(host) ? AI_NUMERICHOST : AI_ADDRCONFIG;
    addrinfo* list = nullptr;
    std::vector<tcp_endpoint> out;
    if (::getaddrinfo(host.c_str(), nullptr, &hints, &list) != 0) return out;
    for (addrinfo const* a = list; a; a = a->ai_next) {
        tcp_endpoint e;
        if (a->ai_addrlen > e.capacity()) continue;
        std::memcpy(e.data(), a->ai_addr, a->ai_addrlen);
        e.resize(a->ai_addrlen);
        if (std::find(out.begin(), out.end(), e) == out.end()) out.push_back(e);
    }
    ::freeaddrinfo(list);
    return out;
}

struct bound_socket {
    int descriptor = -1;
    std::uint16_t port = 0;
};

std::string shown(conf::endpoint const& at, std::uint16_t port) {
    return at.host.find(':') != std::string::npos ? fmt::format("[{}]:{}", at.host, port) : fmt::format("{}:{}", at.host, port);
}

[[noreturn]] void cannot_listen(std::string const& where, std::string_view why, std::string_view remedy) {
    throw std::runtime_error(fmt::format("cannot listen on {}: {}; {}", where, why, remedy));
}

std::uint16_t port_of(int descriptor) {
    sockaddr_storage bound{};
    socklen_t size = sizeof bound;
    ::getsockname(descriptor, reinterpret_cast<sockaddr*>(&bound), &size);
    auto const net = bound.ss_family == AF_INET6 ? reinterpret_cast<sockaddr_in6 const&>(bound).sin6_port
                                                 : reinterpret_cast<sockaddr_in const&>(bound).sin_port;
    return ntohs(net);
}

char const* remedy_for(int why) noexcept {
    if (why == EADDRNOTAVAIL) return "this machine has no such address; choose another with --listen";
    return why == EACCES ? "for a port below 1024 allow it (CAP_NET_BIND_SERVICE, or sysctl "
                           "net.ipv4.ip_unprivileged_port_start), or choose "
                           "another address with --listen"
                         : "stop the other program, or choose another address with --listen";
}

// Throws with the address, the reason and the remedy. It does not listen yet, so no client can come to wait there.
bound_socket bind_socket(conf::endpoint const& at, std::uint16_t port) {
    auto const fail = [&](int fd, char const* remedy) {
        int const why = errno;
        if (fd >= 0) ::close(fd);
        cannot_listen(shown(at, port), std::strerror(why), remedy);
    };
    error_code ec;
    auto const address = asio::ip::make_address(at.host, ec);
    if (ec) cannot_listen(shown(at, port), "not an IP address", "write one");
    tcp_endpoint const e(address, port);
    int const fd = ::socket(e.protocol().family(), SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, IPPROTO_TCP);
    if (fd < 0) fail(fd, "the system gives no socket");
    int const on = 1;
    ::setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    ::setsockopt(fd, SOL_SOCKET, SO_REUSEPORT, &on, sizeof on);
    ::setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);  // accepted sockets inherit it
    if (address.is_v6()) ::setsockopt(fd, IPPROTO_IPV6, IPV6_V6ONLY, &on, sizeof on);
    if (::bind(fd, e.data(), static_cast<socklen_t>(e.size())) != 0) fail(fd, remedy_for(errno));
    return {fd, port_of(fd)};
}

// SO_REUSEPORT lets two gateways of one user share a port by mistake, each with half of the connections. So the port is first
// bound without it.
void prove_free(conf::endpoint const& at) {
    if (at.port == 0) return;
    error_code ec;
    auto const address = asio::ip::make_address(at.host, ec);
    if (ec) return;  // bind_and_listen says so
    tcp_endpoint const e(address, at.port);
    int const fd = ::socket(e.protocol().family(), SOCK_STREAM | SOCK_CLOEXEC, IPPROTO_TCP);
    if (fd < 0) return;
    int const on = 1;
    ::setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    if (address.is_v6()) ::setsockopt(fd, IPPROTO_IPV6, IPV6_V6ONLY, &on, sizeof on);
    int const r = ::bind(fd, e.data(), static_cast<socklen_t>(e.size()));
    int const why = errno;
    ::close(fd);
    if (r != 0) cannot_listen(shown(at, at.port), std::strerror(why), remedy_for(why));
}

}  // namespace

struct server::impl {
    common shared;
    std::vector<std::unique_ptr<worker>> workers;
    std::vector<std::uint16_t> ports;
    std::vector<std::uint16_t> tls_ports;
    std::vector<listen_point> listeners;  // in the order of settings.listen, then of settings.tls.listen
    std::vector<std::size_t> unused;      // of what was inherited
    std::vector<int> silent;              // bound, and not listening yet
    bool bound = false;
    std::atomic<bool> started{false};
    std::atomic<bool> drained{false};
    std::atomic<bool> handed_over{false};

    std::thread resolver;
    std::mutex guard;
    std::condition_variable wake;
    bool stop_resolver = false;

    std::size_t key_count = 0;

    impl(conf::settings const& s, std::vector<keystore::shard_update> const& shards, usage::recorder& rings)
        : shared(s, conf::worker_count(s)) {
        for (auto const& u : shards) key_count += u.shard ? u.shard->size() : 0;
        for (unsigned i = 0; i < shared.workers; ++i) {
            workers.push_back(std::make_unique<worker>(shared, rings.ring(i), i));
            workers.back()->keys().apply(shards);
        }
    }

    // Each host name of an upstream once, with the ports that it is asked at: one look-up serves them all.
    std::map<std::string, std::set<std::uint16_t>> upstream_hosts() const {
        std::map<std::string, std::set<std::uint16_t>> out;
        for (auto const& a : shared.settings.apis)
            for (auto const& t : a.upstreams) out[t.at.host].insert(t.at.port);
        return out;
    }

    // An address goes on with the sockets that it had, all of them: closing one would reset the clients in its queue. A port that
    // the kernel chose is known by where its address stands in the settings.
    std::vector<int> take(conf::endpoint const& at, bool tls, std::vector<listen_point>& inherited) {
        for (auto& from : inherited) {
            if (from.at.host != at.host || from.sockets.empty()) continue;
            if ((from.at.port == at.port && from.tls == tls) || (at.port != 0 && port_of(from.sockets.front()) == at.port))
                return std::exchange(from.sockets, {});
        }
        return {};
    }

    void bind(conf::endpoint const& at, bool tls, std::vector<listen_point>& inherited, std::vector<std::uint16_t> const& known) {
        auto sockets = take(at, tls, inherited);
        bool const ours = std::find(known.begin(), known.end(), at.port) != known.end();
        if (sockets.empty() && !ours) prove_free(at);
        std::uint16_t port = sockets.empty() ? at.port : port_of(sockets.front());
        while (sockets.size() < workers.size()) {
            auto const b = bind_socket(at, port);
            port = b.port;
            sockets.push_back(b.descriptor);
            silent.push_back(b.descriptor);
        }
        for (std::size_t i = 0; i < sockets.size(); ++i) workers[i % workers.size()]->listen(sockets[i], port, tls);
        (tls ? tls_ports : ports).push_back(port);
        listeners.push_back({at, tls, std::move(sockets)});
    }

    void bind(std::vector<listen_point> inherited) {
        bound = true;
        std::vector<std::uint16_t> known;  // a port of ours may stay ours with another host: "127.0.0.1:80" becomes "0.0.0.0:80"
        for (auto const& from : inherited)
            if (!from.sockets.empty()) known.push_back(port_of(from.sockets.front()));
        for (auto const& at : shared.settings.listen) bind(at, false, inherited, known);
        for (auto const& at : shared.settings.tls.listen) bind(at, true, inherited, known);
        for (std::size_t i = 0; i < inherited.size(); ++i) {
            if (inherited[i].sockets.empty()) continue;
            unused.push_back(i);
            for (int const fd : inherited[i].sockets) ::close(fd);
        }
    }

    void listen() {
        for (int const fd : std::exchange(silent, {}))
            if (::listen(fd, listen_backlog) != 0)
                cannot_listen(std::to_string(port_of(fd)), std::strerror(errno), "choose another address with --listen");
    }

    // Runs `f` on every worker's thread and returns when all have, or have ended. Error: who has not within the deadline.
    template <class F>
    result<void> on_all(F f) {
        struct confirmation {
            std::mutex guard;
            std::condition_variable done;
            std::vector<bool> obeyed;
            std::size_t missing;
        };
        auto const c = std::make_shared<confirmation>();
        c->obeyed.resize(workers.size());
        c->missing = workers.size();
        for (std::size_t i = 0; i < workers.size(); ++i) {
            worker& w = *workers[i];
            w.post([&w, c, i, f] {
                f(w);
                std::lock_guard const lock(c->guard);
                c->obeyed[i] = true;
                if (--c->missing == 0) c->done.notify_all();
            });
        }
        std::unique_lock lock(c->guard);
        auto const deadline = std::chrono::steady_clock::now() + publish_deadline;
        for (;;) {
            std::string names;
            for (std::size_t i = 0; i < workers.size(); ++i)
                if (!c->obeyed[i] && !workers[i]->ended()) names += fmt::format("{}{}", names.empty() ? "" : ", ", i);
            if (names.empty()) return {};
            if (std::chrono::steady_clock::now() >= deadline) return error{errc::unavailable, names};
            c->done.wait_for(lock, std::chrono::milliseconds(10), [&] { return c->missing == 0; });
        }
    }

    // `set(worker, port, addresses)` for each worker and port.
    template <class F>
    void give_out(std::vector<tcp_endpoint> addresses, std::set<std::uint16_t> const& ports_of_host, F&& set) {
        for (auto const port : ports_of_host) {
            for (auto& a : addresses) a.port(port);
            for (auto& w : workers) set(*w, port, addresses);
        }
    }

    void resolve_all() {
        for (auto const& known : upstream_hosts()) {
            auto const& host = known.first;
            auto const addresses = resolve(host);
            if (addresses.empty())
                log::warn("upstream", "{} cannot be resolved; requests for it get 502 until it can", log::quoted(host));
            give_out(addresses, known.second, [&](worker& w, std::uint16_t port, std::vector<tcp_endpoint> const& all) {
                w.upstreams().set_addresses(host, port, all);
            });
        }
    }

    // Names may move: looked up again off the request path; the last good addresses stay while the resolver fails (fault U12).
    void run_resolver() {
        auto const hosts = upstream_hosts();
        if (std::all_of(hosts.begin(), hosts.end(), [](auto const& h) { return is_literal(h.first); })) return;
        resolver = std::thread([this] {
            std::unique_lock lock(guard);
            while (!wake.wait_for(lock, shared.settings.resolve, [this] { return stop_resolver; })) {
                lock.unlock();
                look_up_names();
                lock.lock();
            }
        });
    }

    void look_up_names() try {
        for (auto const& known : upstream_hosts()) {
            auto const& host = known.first;
            if (is_literal(host)) continue;
            auto const addresses = resolve(host);
            if (addresses.empty()) continue;
            give_out(addresses, known.second, [&](worker& w, std::uint16_t port, std::vector<tcp_endpoint> const& all) {
                w.post([&w, host, port, all] { w.upstreams().set_addresses(host, port, all); });
            });
        }
    } catch (std::exception const& e) {  // out of memory: the addresses stay as they are
        log::warn("upstream", "names were not looked up: {}", e.what());
    }

    void end_resolver() {
        {
            std::lock_guard const lock(guard);
            stop_resolver = true;
        }
        wake.notify_all();
        if (resolver.joinable()) resolver.join();
    }
};

server::server(conf::settings const& settings, std::vector<keystore::shard_update> const& shards, usage::recorder& rings)
    : impl_(std::make_unique<impl>(settings, shards, rings)) {}

server::~server() { drain(std::chrono::milliseconds(0)); }

void server::bind(std::vector<listen_point> inherited) {
    impl_->bind(std::move(inherited));
    impl_->resolve_all();
}

void server::start() {
    if (!impl_->bound) bind();
    impl_->listen();
    for (auto& w : impl_->workers) w->start();
    impl_->run_resolver();
    impl_->started = true;
}

std::vector<listen_point> const& server::listeners() const { return impl_->listeners; }
std::vector<std::size_t> const& server::unused() const { return impl_->unused; }
std::vector<std::uint16_t> server::ports() const { return impl_->ports; }

std::vector<std::uint16_t> server::tls_ports() const { return impl_->tls_ports; }

result<void> server::publish(std::vector<keystore::shard_update> const& updates) {
    if (!impl_->started) {
        for (auto& w : impl_->workers) w->keys().apply(updates);
        return {};
    }
    auto const done = impl_->on_all([updates](worker& w) { w.keys().apply(updates); });
    if (done) return {};
    return error{errc::unavailable,
                 fmt::format("the change is stored, but worker {} has not confirmed it in 5 s", done.error().message)};
}

void server::hand_over(std::vector<std::size_t> const& unused, std::chrono::milliseconds patience) {
    std::vector<int> last;
    for (auto const i : unused)
        if (i < impl_->listeners.size())
            last.insert(last.end(), impl_->listeners.at(i).sockets.begin(), impl_->listeners.at(i).sockets.end());
    impl_->handed_over = true;
    auto const done = impl_->on_all([last, patience](worker& w) { w.hand_over(last, patience); });
    if (!done) log::error("handover", "worker {} has not let go of its listening sockets in 5 s", done.error().message);
}

void server::hurry() {
    for (auto& w : impl_->workers) w->post([w = w.get()] { w->drain(); });
}

void server::end_now() {
    for (auto& w : impl_->workers) w->post([w = w.get()] { w->close_all(); });
}

void server::drain(std::chrono::milliseconds deadline) {
    if (impl_->drained.exchange(true)) return;
    impl_->end_resolver();
    if (!impl_->started) return;
    struct progress {
        std::mutex guard;
        std::condition_variable ended;
        bool all = false;
    };
    progress p;
    if (!impl_->handed_over) hurry();
    std::thread hard_stop([&] {
        std::unique_lock lock(p.guard);
        if (!p.ended.wait_for(lock, deadline, [&] { return p.all; })) end_now();
    });
    for (auto& w : impl_->workers) w->join();
    {
        std::lock_guard const lock(p.guard);
        p.all = true;
    }
    p.ended.notify_all();
    hard_stop.join();
}

counters server::counters() const {
    gateway::counters out;
    out.connections_open = impl_->shared.connections.open();
    out.buffer_limit_bytes = impl_->shared.settings.limit.memory;
    out.frame_bytes = frame_pool::mapped_bytes();
    for (auto const& w : impl_->workers) {
        auto const& c = w->counts();
        out.connections_accepted += c.accepted.get();
        out.connections_shed += c.shed.get();
        out.clients_put_off += w->clients_put_off();
        out.io_uring_workers += w->uses_io_uring() ? 1 : 0;
        out.requests += c.requests.get();
        out.requests_in_flight += c.in_flight.get();
        out.forwarded += c.forwarded.get();
        out.refused += c.refused.get();
        out.upstream_failures += c.upstream_failures.get();
        out.upstream_retries += c.upstream_retries.get();
        out.upstream_connections += c.upstream_connections.get();
        out.buffer_bytes += c.buffer_bytes.get();
        out.tls_handshakes += c.tls_handshakes.get();
        out.tls_resumed += c.tls_resumed.get();
        out.tls_handshakes_failed += c.tls_handshakes_failed.get();
        out.client_aborts += c.client_aborts.get();
        out.request_bytes += c.request_bytes.get();
        out.response_bytes += c.response_bytes.get();
        for (std::size_t i = 0; i < c.status_class.size(); ++i) out.status_class[i] += c.status_class[i].get();
        for (std::size_t i = 0; i < c.problems.size(); ++i) out.problems[i] += c.problems[i].get();
    }
    return out;
}

std::string server::memory_bound() const {
    // Measured (tests/e2e/test_memory.py holds the sum against them): a connection with its session, coroutine frames and
    // upstream connection; a key with an application of its own; program, SQLite's caches, log, admin socket.
    constexpr std::size_t mib = 1U << 20U;
    constexpr std::size_t plain_bytes = 8U << 10U;
    constexpr std::size_t tls_bytes =
        56U << 10U;  // OpenSSL's state, a first message or a record in hand, one that waits to leave
    constexpr std::size_t key_bytes = 256;
    constexpr std::size_t program = 48 * mib;
    auto const& shared = impl_->shared;
    auto const& s = shared.settings;
    std::size_t const connection_bytes = plain_bytes + (s.tls.listen.empty() ? 0 : tls_bytes);
    std::size_t const connections = s.limit.connections * connection_bytes;
    std::size_t const rings = shared.workers * s.usage.ring_bytes;
    std::size_t const keys = impl_->key_count * key_bytes;
    std::size_t const all = connections + s.limit.memory + rings + keys + program;
    auto const in_mib = [](std::size_t bytes) { return (bytes + mib - 1) / mib; };
    auto out = fmt::format(
        "at most {} MiB: connections {} x {} KiB, buffers {} MiB (limits.memory), usage rings {} x {} KiB, keys {} x {} B, "
        "program {} MiB",
        in_mib(all), s.limit.connections, connection_bytes >> 10U, in_mib(s.limit.memory), shared.workers,
        s.usage.ring_bytes >> 10U, impl_->key_count, key_bytes, program / mib);
    auto const machine = static_cast<std::size_t>(::sysconf(_SC_PHYS_PAGES)) * static_cast<std::size_t>(::sysconf(_SC_PAGESIZE));
    if (all > machine) out += fmt::format("; this machine has {} MiB: lower limits.memory", machine / mib);
    return out;
}

}  // namespace latchkey::gateway
