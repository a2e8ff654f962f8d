#pragma once
// One worker: a thread, an io_context, an acceptor per listen address, its sessions, its upstream connections, its key table, its
// usage ring. Nothing of it is touched by another thread but through post() and the counters.

#include <array>
#include <atomic>
#include <boost/asio/ip/network_v4.hpp>
#include <boost/asio/ip/network_v6.hpp>
#include <boost/asio/post.hpp>
#include <chrono>
#include <coroutine>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <thread>
#include <vector>

#include "conf/settings.hpp"
#include "gateway/buffer_pool.hpp"
#include "gateway/connection_limit.hpp"
#include "gateway/head.hpp"
#include "gateway/net.hpp"
#include "gateway/pipe_pool.hpp"
#include "gateway/refusal.hpp"
#include "gateway/request_limit.hpp"
#include "gateway/router.hpp"
#include "gateway/session.hpp"
#include "gateway/sweep_list.hpp"
#include "gateway/tally.hpp"
#include "gateway/tls_context.hpp"
#include "gateway/upstream.hpp"
#include "keystore/key_table.hpp"
#include "usage/ring.hpp"

namespace latchkey::gateway {

struct tallies {
    tally accepted, shed, requests, in_flight, forwarded, refused, upstream_failures, upstream_retries, client_aborts,
        request_bytes, response_bytes, upstream_connections, buffer_bytes, tls_handshakes, tls_resumed, tls_handshakes_failed;
    std::array<tally, 6> status_class;
    std::array<tally, static_cast<std::size_t>(refusal::count_)> problems;
};

// What all workers share: read-only but for the counts of connections and of places for requests.
struct common {
    common(conf::settings s, unsigned worker_count);
    bool trusts(ip_address const& peer) const noexcept;  // is it one of settings.trusted_proxies?

    conf::settings settings;
    gateway::router router;
    std::unique_ptr<tls_context> tls;  // null where nobody listens for TLS
    connection_limit connections;
    request_limit requests;
    std::size_t small_buffer_bytes;
    unsigned workers;

    // What one worker's buffers may take: its share of limits.memory.
    std::size_t buffer_bytes_per_worker() const noexcept { return settings.limit.memory / workers; }
    std::size_t large_buffers_per_worker() const noexcept;
    // Whether limits.connections_per_address counts this peer: not those who speak for others (trusted proxies, this machine).
    bool counts(address_bytes const& peer) const noexcept;

  private:
    std::vector<asio::ip::network_v4> trusted_v4_;
    std::vector<asio::ip::network_v6> trusted_v6_;
};

// A listening socket's address as sessions need it.
struct listener_address {
    std::uint16_t port = 0;
    std::string port_text;
    bool tls = false;       // clients speak TLS there
    bool loopback = false;  // bound to a loopback address: clients are on this host
};

class worker {
  public:
    worker(common& shared, usage::ring& ring, unsigned index);
    ~worker();
    worker(worker const&) = delete;
    worker& operator=(worker const&) = delete;

    // --- before the thread starts
    // Takes over a listening descriptor.
    void listen(int descriptor, std::uint16_t port, bool tls);
    keystore::key_table& keys() noexcept { return keys_; }
    gateway::upstreams& upstreams() noexcept { return upstreams_; }

    // --- from another thread
    void start();
    void join();
    template <class F>
    void post(F f) {
        asio::post(io_, std::move(f));
    }
    tallies const& counts() const noexcept { return counts_; }
    std::uint64_t clients_put_off() const noexcept { return reactor_.put_off_total(); }
    bool uses_io_uring() const noexcept { return reactor_.calls().in_use(); }
    // Its loop has ended: nothing that is posted runs any more, and no session is left.
    bool ended() const noexcept { return ended_.load(std::memory_order_acquire); }

    // --- on the worker's thread (posted)
    void drain() noexcept;  // stop accepting, end idle connections; the loop ends with the last session
    // Another process accepts: lets go of the listening sockets, takes in who waits at those of `last`, and drains, but lets
    // idle connections send a request for `patience` yet.
    void hand_over(std::vector<int> const& last, std::chrono::milliseconds patience) noexcept;
    void close_all() noexcept;  // end every session now

    // --- for sessions, on the worker's thread
    common const& shared() const noexcept { return shared_; }
    reactor& poller() noexcept { return reactor_; }
    buffer_pool& buffers() noexcept { return buffers_; }
    pipe_pool& pipes() noexcept { return pipes_; }
    usage::ring& ring() noexcept { return ring_; }
    tallies& count() noexcept { return counts_; }
    target_group& group(std::size_t api) noexcept { return upstreams_.group(api); }
    head& request_scratch() noexcept { return *request_head_; }    // valid until the next co_await
    head& response_scratch() noexcept { return *response_head_; }  // likewise
    bool draining() const noexcept { return draining_; }
    bool patient() const noexcept { return patient_until_ns_ != 0; }  // drains, and idle connections may send a request yet
    bool closing() const noexcept { return closing_; }
    request_limit::part& places() noexcept { return places_; }  // of limits.requests_in_flight
    // How much of this worker's share of limits.memory is lent (fault R2): from 92 % on connections are not kept, from 95 % on
    // requests are refused, from 98 % on nobody is accepted. Where one head more would bring it to 95 %, slow ones are hurried:
    // else as many as are just too few could stay, and every newcomer be refused.
    bool memory_tight() const noexcept { return buffers_.lent_bytes() > memory_tight_; }
    bool memory_short() const noexcept { return buffers_.lent_bytes() > memory_short_; }
    bool memory_short_for_another() const noexcept {
        return buffers_.lent_bytes() + buffer_pool::cost(buffers_.small_bytes()) > memory_short_;
    }
    bool memory_full() const noexcept { return buffers_.lent_bytes() > memory_full_; }
    std::span<char> spare() noexcept { return spare_; }  // for a refusal when no buffer is left; valid until the next co_await
    std::span<char> nowhere() noexcept { return nowhere_; }  // what is read into it is not looked at: any number may at once
    std::string_view date() const noexcept { return {date_.data(), 29}; }
    std::int64_t wall_ms(std::int64_t steady_ns_) const noexcept { return wall_offset_ms_ + steady_ns_ / 1'000'000; }

    // 32 lower-case hex characters, unique over processes (a random half) and within this one (a mixed counter).
    void make_request_id(char* out) noexcept;
    // 32 characters of a trace id and 16 of a span id, lower-case hex. Random, but not for secrets.
    void make_trace(char* out) noexcept;

    // To be awaited: goes on when all else that is ready on this worker has had its turn.
    struct [[nodiscard]] turn {
        worker& w;
        bool await_ready() const noexcept { return false; }
        void await_suspend(std::coroutine_handle<> h) const {
            w.post([h] { h.resume(); });
        }
        void await_resume() const noexcept {}
    };
    turn next_turn() noexcept { return {*this}; }

    // To be awaited: goes on with the next sweep, for what need not be done sooner, or cannot be. It lies in the awaiting frame.
    // No read is pending meanwhile, so whoever waits looks afterwards at what a sweep would have ended (stream::late()).
    struct [[nodiscard]] sweep_awaiter {
        worker& w;
        std::coroutine_handle<> waiting{};
        sweep_awaiter* next = nullptr;
        bool await_ready() const noexcept { return false; }
        void await_suspend(std::coroutine_handle<> h) noexcept {
            waiting = h;
            next = std::exchange(w.until_sweep_, this);
        }
        void await_resume() const noexcept {}
    };
    sweep_awaiter next_sweep() noexcept { return {*this}; }
    unsigned sweeps() const noexcept { return sweeps_; }
    // No sweep before `ns` looks at it.
    void unswept_until(session const& s, std::int64_t ns) noexcept { sessions_.not_before(s, ns); }

    void finished(session&) noexcept;  // the session's last act: it is freed

  private:
    struct acceptor;
    void run();
    void go_on();
    void accept_some(acceptor&);
    void rest(acceptor&);
    void adopt(int descriptor, listener_address const&);
    void adopt_or_close(int descriptor, listener_address const&) noexcept;
    bool shed_one(acceptor&);
    void wait_for_sweep();
    void sweep();
    void set_clock(std::int64_t now_ns) noexcept;
    void maybe_stop() noexcept;
    std::uint64_t next_random() noexcept;

    common& shared_;
    usage::ring& ring_;
    unsigned index_;
    io_context io_;
    reactor& reactor_;
    buffer_pool buffers_;
    pipe_pool pipes_;
    keystore::key_table keys_;
    tallies counts_;
    std::unique_ptr<head> request_head_;
    std::unique_ptr<head> response_head_;
    gateway::upstreams upstreams_;
    std::vector<std::unique_ptr<acceptor>> acceptors_;
    sweep_list sessions_;
    asio::steady_timer sweep_timer_;
    std::thread thread_;
    request_limit::part places_;
    std::size_t memory_tight_;
    std::size_t memory_short_;
    std::size_t memory_full_;
    std::array<char, 2048> spare_{};
    std::array<char, 16384> nowhere_{};
    std::int64_t wall_offset_ms_ = 0;
    std::int64_t date_second_ = -1;
    std::array<char, 32> date_{};
    std::uint64_t id_prefix_ = 0;
    std::uint64_t id_secret_ = 0;
    std::uint64_t id_counter_ = 0;
    std::array<std::uint64_t, 4> random_state_{};
    int reserve_descriptor_ = -1;
    unsigned sweeps_ = 0;
    sweep_awaiter* until_sweep_ = nullptr;
    std::int64_t patient_until_ns_ = 0;
    std::atomic<bool> ended_{false};
    bool sweeping_ = false;  // the next sweep is set
    bool draining_ = false;
    bool closing_ = false;
};

}  // namespace latchkey::gateway
