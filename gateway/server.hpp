#pragma once
// The proxy as a whole: N workers (one thread, one io_context, one SO_REUSEPORT acceptor per listen address, one upstream pool,
// one usage ring each), started together, told of key changes together, drained together. `serve` owns it.
//
// A restart in place: the process before hands its listening sockets to the next one, whose server takes them over by bind().
// Then hand_over() and drain() end the server that they came from.
//
// Threads: construct, bind, start, drain from one thread; hand_over() from another one before drain(); publish(), counters(),
// hurry() and end_now() from any thread but a worker's.

#include <array>
#include <chrono>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "base/error.hpp"
#include "conf/settings.hpp"
#include "gateway/refusal.hpp"
#include "keystore/key_table.hpp"
#include "usage/recorder.hpp"

namespace latchkey::gateway {

// Sums over the workers, read without stopping them; each figure is exact, the set of them is not one instant.
struct counters {
    std::uint64_t connections_open = 0;
    std::uint64_t connections_accepted = 0;
    std::uint64_t connections_shed = 0;  // closed at once: over a limit, or out of descriptors
    std::uint64_t clients_put_off = 0;   // how often one waited, unread, since its worker was behind
    std::uint64_t io_uring_workers = 0;  // that may read and send for several sockets by one system call
    std::uint64_t requests = 0;          // every request that left a usage record
    std::uint64_t requests_in_flight = 0;
    std::uint64_t forwarded = 0;
    std::uint64_t refused = 0;
    std::uint64_t upstream_failures = 0;
    std::uint64_t upstream_retries = 0;  // stale pooled connections replaced
    std::uint64_t upstream_connections = 0;
    std::uint64_t buffer_bytes = 0;        // of limits.memory, lent or promised, at the last sweep
    std::uint64_t buffer_limit_bytes = 0;  // limits.memory
    std::uint64_t frame_bytes = 0;         // mapped by frame_pool; of all servers of the process
    std::uint64_t client_aborts = 0;
    std::uint64_t tls_handshakes = 0;
    std::uint64_t tls_resumed = 0;            // of these, by a ticket
    std::uint64_t tls_handshakes_failed = 0;  // ended before they were done; without those that sent nothing and left
    std::uint64_t request_bytes = 0;
    std::uint64_t response_bytes = 0;
    std::uint64_t status_class[6] = {};  // [2] counts 2xx, ...; [0]: nothing was sent
    // Answers of the gateway's own, by their reason: refused requests, and those that an upstream failed.
    std::array<std::uint64_t, static_cast<std::size_t>(refusal::count_)> problems{};
};

// A listen address and the sockets that stand for it.
struct listen_point {
    conf::endpoint at;  // as the settings have it: port 0 where the kernel chose one
    bool tls = false;
    std::vector<int> sockets;  // bound, and all listening once the server has started
};

class server {
  public:
    // `settings` checked; `shards` from key_directory::load(); `rings` has at least conf::worker_count(settings) rings and
    // outlives the server.
    server(conf::settings const& settings, std::vector<keystore::shard_update> const& shards, usage::recorder& rings);
    ~server();

    // Takes over the sockets of `inherited` whose address the settings still name, closes its copies of the others, binds what is
    // missing, and resolves upstream names, which may last. Nobody is let in yet, and no client can come to wait in a queue that
    // was not there before: whatever fails up to start(), nobody notices. Throws std::runtime_error with address and reason
    // ("cannot listen on 127.0.0.1:8080: Address already in use; stop the other program or give --listen").
    void bind(std::vector<listen_point> inherited = {});

    // bind() where it was not called; listens, and starts the threads. Throws as bind().
    void start();

    // The listening sockets, which the server goes on to own; and which of bind()'s `inherited` it had no use for (places there).
    std::vector<listen_point> const& listeners() const;
    std::vector<std::size_t> const& unused() const;

    // The ports actually bound, in the order of settings.listen.
    std::vector<std::uint16_t> ports() const;
    std::vector<std::uint16_t> tls_ports() const;  // of settings.tls.listen

    // Every worker swaps the shards in; returns when all have, so that what they say is in force (law 5). Error `unavailable`
    // after 5 s, naming the workers that did not answer; the change stays posted. Before start(): on its thread only.
    result<void> publish(std::vector<keystore::shard_update> const& updates);

    // Another process accepts on our sockets now: lets go of them, and returns when no worker accepts any more. Clients that wait
    // at those in `unused` (places in listeners()) are taken in first, for nobody else would. A connection without a request may
    // send one for `patience` yet, and is closed behind its answer or then. drain() follows.
    void hand_over(std::vector<std::size_t> const& unused, std::chrono::milliseconds patience);
    void hurry();    // ends that patience
    void end_now();  // cuts what runs off; drain() then returns

    // Stops accepting, closes idle connections (not behind hand_over()), lets running exchanges finish until `deadline` (then
    // closes them), ends the threads. Every request is on record when it returns. Key changes are published to the end.
    // Idempotent.
    void drain(std::chrono::milliseconds deadline);

    gateway::counters counters() const;

    // One line that the log shows at start: what memory the settings allow at most, and of what it is the sum.
    std::string memory_bound() const;

  private:
    struct impl;
    std::unique_ptr<impl> impl_;
};

}  // namespace latchkey::gateway
