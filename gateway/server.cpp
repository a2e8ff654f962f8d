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

#include "base/clock.hpp"
#include "base/log.hpp"
#include "conf/load.hpp"
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

// Throws with the address, the reason and the remedy.
bound_socket bind_and_listen(conf::endpoint const& at, std::uint16_t port) {
    std::string const shown =
        at.host.find(':') != std::string::npos ? fmt::format("[{}]:{}", at.host, port) : fmt::format("{}:{}", at.host, port);
    auto const fail = [&](int fd, char const* remedy) {
        int const why = errno;
        if (fd >= 0) ::close(fd);
        throw std::runtime_error(fmt::format("cannot listen on {}: {}; {}", shown, std::strerror(why), remedy));
    };
    error_code ec;
    auto const address = asio::ip::make_address(at.host, ec);
    if (ec) throw std::runtime_error(fmt::format("cannot listen on {}: not an IP address", shown));
    tcp_endpoint const e(address, port);
    int const fd = ::socket(e.protocol().family(), SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, IPPROTO_TCP);
    if (fd < 0) fail(fd, "the system gives no socket");
    int const on = 1;
    ::setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    ::setsockopt(fd, SOL_SOCKET, SO_REUSEPORT, &on, sizeof on);
    ::setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);  // accepted sockets inherit it
    if (address.is_v6()) ::setsockopt(fd, IPPROTO_IPV6, IPV6_V6ONLY, &on, sizeof on);
    if (::bind(fd, e.data(), static_cast<socklen_t>(e.size())) != 0)
        fail(fd, "stop the other program, or choose another address with --listen");
    if (::listen(fd, listen_backlog) != 0) fail(fd, "choose another address with --listen");
    sockaddr_storage bound{};
    socklen_t size = sizeof bound;
    ::getsockname(fd, reinterpret_cast<sockaddr*>(&bound), &size);
    auto const net = bound.ss_family == AF_INET6 ? reinterpret_cast<sockaddr_in6 const&>(bound).sin6_port
                                                 : reinterpret_cast<sockaddr_in const&>(bound).sin_port;
    return {fd, ntohs(net)};
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
    if (r != 0)
        throw std::runtime_error(fmt::format("cannot listen on {}:{}: {}; {}", at.host, at.port, std::strerror(why),
                                             "stop the other program, or choose another address with --listen"));
}

}  // namespace

struct server::impl {
    common shared;
    std::vector<std::unique_ptr<worker>> workers;
    std::vector<std::uint16_t> ports;
    std::vector<std::uint16_t> tls_ports;
    std::atomic<bool> started{false};
    std::atomic<bool> drained{false};

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

    void listen() {
        for (auto const& at : shared.settings.listen) listen(at, false, ports);
        for (auto const& at : shared.settings.tls.listen) listen(at, true, tls_ports);
    }

    void listen(conf::endpoint const& at, bool tls, std::vector<std::uint16_t>& bound) {
        prove_free(at);
        std::uint16_t port = at.port;
        for (auto& w : workers) {
            auto const b = bind_and_listen(at, port);
            port = b.port;
            w->listen(b.descriptor, port, tls);
        }
        bound.push_back(port);
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

void server::start() {
    impl_->listen();
    impl_->resolve_all();
    for (auto& w : impl_->workers) w->start();
    impl_->run_resolver();
    impl_->started = true;
}

std::vector<std::uint16_t> server::ports() const { return impl_->ports; }

std::vector<std::uint16_t> server::tls_ports() const { return impl_->tls_ports; }

result<void> server::publish(std::vector<keystore::shard_update> const& updates) {
    if (!impl_->started || impl_->drained) return {};
    struct confirmation {
        std::mutex guard;
        std::condition_variable done;
        std::vector<bool> obeyed;
        std::size_t missing;
    };
    auto const c = std::make_shared<confirmation>();
    c->obeyed.resize(impl_->workers.size());
    c->missing = impl_->workers.size();
    for (std::size_t i = 0; i < impl_->workers.size(); ++i) {
        worker& w = *impl_->workers[i];
        w.post([&w, c, i, updates] {
            w.keys().apply(updates);
            std::lock_guard const lock(c->guard);
            c->obeyed[i] = true;
            if (--c->missing == 0) c->done.notify_all();
        });
    }
    std::unique_lock lock(c->guard);
    if (c->done.wait_for(lock, publish_deadline, [&] { return c->missing == 0; })) return {};
    std::string names;
    for (std::size_t i = 0; i < c->obeyed.size(); ++i)
        if (!c->obeyed[i]) names += fmt::format("{}{}", names.empty() ? "" : ", ", i);
    return error{errc::unavailable, fmt::format("the change is stored, but worker {} has not confirmed it in 5 s", names)};
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
    for (auto& w : impl_->workers) w->post([w = w.get()] { w->drain(); });
    std::thread hard_stop([&] {
        std::unique_lock lock(p.guard);
        if (p.ended.wait_for(lock, deadline, [&] { return p.all; })) return;
        for (auto& w : impl_->workers) w->post([w = w.get()] { w->close_all(); });
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
    for (auto const& w : impl_->workers) {
        auto const& c = w->counts();
        out.connections_accepted += c.accepted.get();
        out.connections_shed += c.shed.get();
        out.requests += c.requests.get();
        out.requests_in_flight += c.in_flight.get();
        out.forwarded += c.forwarded.get();
        out.refused += c.refused.get();
        out.upstream_failures += c.upstream_failures.get();
        out.upstream_retries += c.upstream_retries.get();
        out.upstream_connections += c.upstream_connections.get();
        out.tls_handshakes += c.tls_handshakes.get();
        out.tls_resumed += c.tls_resumed.get();
        out.tls_handshakes_failed += c.tls_handshakes_failed.get();
        out.client_aborts += c.client_aborts.get();
        out.request_bytes += c.request_bytes.get();
        out.response_bytes += c.response_bytes.get();
        for (std::size_t i = 0; i < c.status_class.size(); ++i) out.status_class[i] += c.status_class[i].get();
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
