#pragma once
// The proxy as a whole: N workers (one thread, one io_context, one SO_REUSEPORT acceptor per listen address, one upstream pool,
// one usage ring each), started together, told of key changes together, drained together. `serve` owns it.
//
// Threads: construct, start, drain from one thread; publish(), counters(), ready() from any thread but a worker's.

#include <chrono>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "base/error.hpp"
#include "conf/settings.hpp"
#include "keystore/key_table.hpp"
#include "usage/recorder.hpp"

namespace latchkey::gateway {

// Sums over the workers, read without stopping them; each figure is exact, the set of them is not one instant.
struct counters {
    std::uint64_t connections_open = 0;
    std::uint64_t connections_accepted = 0;
    std::uint64_t connections_shed = 0;  // closed at once: over a limit, or out of descriptors
    std::uint64_t requests = 0;          // every request that left a usage record
    std::uint64_t requests_in_flight = 0;
    std::uint64_t forwarded = 0;
    std::uint64_t refused = 0;
    std::uint64_t upstream_failures = 0;
    std::uint64_t upstream_retries = 0;  // stale pooled connections replaced
    std::uint64_t upstream_connections = 0;
    std::uint64_t client_aborts = 0;
    std::uint64_t tls_handshakes = 0;
    std::uint64_t tls_resumed = 0;            // of these, by a ticket
    std::uint64_t tls_handshakes_failed = 0;  // ended before they were done; without those that sent nothing and left
    std::uint64_t request_bytes = 0;
    std::uint64_t response_bytes = 0;
    std::uint64_t status_class[6] = {};  // [2] counts 2xx, ...; [0]: nothing was sent
};

class server {
  public:
    // `settings` checked; `shards` from key_directory::load(); `rings` has at least conf::worker_count(settings) rings and
    // outlives the server.
    server(conf::settings const& settings, std::vector<keystore::shard_update> const& shards, usage::recorder& rings);
    ~server();

    // Binds every listen address for every worker, resolves upstream names, starts the threads. Throws std::runtime_error with
    // address and reason ("cannot listen on 127.0.0.1:8080: Address already in use; stop the other program or give --listen").
    void start();

    // The ports actually bound, in the order of settings.listen.
    std::vector<std::uint16_t> ports() const;
    std::vector<std::uint16_t> tls_ports() const;  // of settings.tls.listen

    // Every worker swaps the shards in; returns when all have, so that what they say is in force (law 5). Error `unavailable`
    // after 5 s, naming the workers that did not answer; the change stays posted.
    result<void> publish(std::vector<keystore::shard_update> const& updates);

    // Stops accepting, closes idle connections, lets running exchanges finish until `deadline` (then closes them), ends the
    // threads. Every request is on record when it returns. Idempotent.
    void drain(std::chrono::milliseconds deadline);

    gateway::counters counters() const;

    // One line that the log shows at start: what memory the settings allow at most, and of what it is the sum.
    std::string memory_bound() const;

  private:
    struct impl;
    std::unique_ptr<impl> impl_;
};

}  // namespace latchkey::gateway
