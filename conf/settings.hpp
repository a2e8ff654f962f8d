#pragma once
// Every setting of the gateway as a plain value: default, unit, range and consequence beside each. conf/load.hpp fills it
// from a TOML file and from flags; after start it is read-only and shared by all threads. The file's names are the names
// here, without the unit where the value carries one ("30s", "16KiB").

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

namespace latchkey::conf {

using std::chrono::milliseconds;

// Where a listener binds or a target lives. `port` 0 lets the kernel choose (tests).
struct endpoint {
    std::string host = "127.0.0.1";  // literal IPv4 or IPv6 (without brackets), or a name for targets
    std::uint16_t port = 0;
};

// One upstream server: "http://host[:port][/base]". `base_path` has no trailing slash and is put before the forwarded path.
struct target {
    endpoint at;
    std::string base_path;
};

// Waits on the client's side. Each is an upper bound; a sweep every 100 ms enforces it, so it may be that much late.
struct client_deadlines {
    milliseconds tls_handshake{
        10'000};                // `tls_handshake` 100ms..1h: accepted to the end of the TLS handshake, absolute; then close
    milliseconds head{10'000};  // `head` 100ms..1h: first byte to the end of the head, absolute; then 408 and close
    milliseconds idle{60'000};  // `idle` 100ms..24h: kept-alive connection without a request; then close
    milliseconds takeover_idle{5'000};  // `takeover_idle` 0..1h: the same, at most, in a process that handed over (reload)
    milliseconds body_stall{30'000};    // `body_stall` 100ms..1h: no body byte from the client; then 408 (or close) and abort
    milliseconds write_stall{60'000};   // `write_stall` 100ms..1h: client takes no byte of the response; then close
    milliseconds request{300'000};      // `request` 0 (none) or 1s..24h: first head byte to the request body's last; then 408
    // What a client still sends behind an answer that closes its connection is read and dropped, so that it sees the answer.
    milliseconds linger{30'000};         // `linger` 0 (not at all) or 100ms..1h: for so long; then close
    milliseconds linger_silence{2'000};  // `linger_silence` 100ms..1h: and no longer once it is silent for this
};

// Waits on the upstream's side; an api may set its own.
struct upstream_deadlines {
    milliseconds connect{5'000};         // `connect` 50ms..5min: TCP connect; then the next target, at last 504
    milliseconds response_head{60'000};  // `response_head` 100ms..1h: request sent to response head; then 504
    milliseconds body_stall{60'000};     // `body_stall` 100ms..1h: no byte of the response body; then close
    milliseconds idle{55'000};           // `idle` 100ms..1h: pooled connection unused; then closed. Keep below the upstream's own
};

// A certificate with its key, both PEM: `[[tls.certificate]]`.
struct certificate {
    std::string chain;  // `chain`: the server's certificate first, then those that lead to a root
    std::string key;    // `key`: without a passphrase, for nobody is there to type it
};

enum class tls_version : std::uint8_t { v1_2, v1_3 };

// `[tls]`. Certificates are read at start.
struct tls_settings {
    std::vector<endpoint> listen;                     // `listen`: as the top-level one; clients speak TLS here. Empty: nowhere
    std::vector<certificate> certificates;            // the first one with the name that a client asks for; else the first of all
    tls_version minimum_version = tls_version::v1_2;  // `minimum_version` "1.2" or "1.3": older clients get an alert
};

// What one client may cost.
struct limits {
    std::uint32_t head_bytes = 16 * 1024;   // `head_bytes` 1KiB..64KiB: request head; more is 431 (414 for the line alone)
    std::uint32_t target_bytes = 8 * 1024;  // `target_bytes` 64..head_bytes: request target; more is 414
    std::uint32_t fields = 100;             // `fields` 8..1000: header fields of a request or response; more is 431 / 502
    std::uint64_t body_bytes = 0;           // `body_bytes` 0 (no limit) or up to 2^63: request body; more is 413
    std::uint32_t connections = 10'000;     // `connections` 1..1000000: client connections in all; capped by the descriptor limit
    // `connections_per_address` 0 (no limit) or more: from one IP (IPv6: one /64); more are closed at once. A tenth of
    // `connections`, so that one address cannot take every place, and enough for the some hundred people behind one NAT. Who
    // speaks for others is not counted: trusted_proxies, and this machine (127.0.0.1, ::1), where a TLS proxy or a load test
    // runs.
    std::uint32_t connections_per_address = 1000;
    std::uint32_t requests_in_flight =
        4096;  // `requests_in_flight` 0 (no limit) or more: beyond it 503 with Retry-After; for all workers together
    // `memory` 4MiB (a worker) .. 1TiB: message buffers in all, shared evenly among the workers; never more. A request that waits
    // for its upstream takes three (of 72 KiB with the default head sizes; one is kept for its answer), so this is enough for all
    // requests_in_flight where they are spread evenly; one whose body is still to come takes a fourth. From 92 % of it
    // connections are closed behind their response, from 95 % requests get 503, from 98 % clients wait to be accepted. Where
    // nothing is said, settle() makes it 4 MiB a worker if that is more.
    std::uint64_t memory = 960ULL << 20;
    bool memory_said = false;                       // the file has `memory`
    std::uint64_t requests_per_connection = 0;      // `requests_per_connection` 0 (no limit): then Connection: close
    std::uint32_t response_head_bytes = 32 * 1024;  // `response_head_bytes` 1KiB..64KiB: upstream's head; more is 502
};

enum class encoded_slash : std::uint8_t { refuse, keep };
enum class host_header : std::uint8_t { client, upstream };
enum class preflight : std::uint8_t { refuse, forward };

inline constexpr std::size_t path_prefix_bytes_max = 1024;

// What is routed to: `[[api]]`.
struct api {
    std::string name = "default";  // unique; 1..64 of A-Za-z0-9._-; appears in usage records
    std::vector<std::string>
        hosts;  // lower-case host names without port, "*.example.com" for any one label or more; empty: any host
    std::vector<std::string> path_prefixes;  // each starts with '/'; matches whole segments; empty: every path. Longest wins
    bool strip_prefix = false;               // true: the matched prefix is not forwarded
    std::vector<target> upstreams;           // 1 or more, taken in turn
    host_header host = host_header::client;  // which Host the upstream sees
    encoded_slash slashes = encoded_slash::refuse;  // %2F in a path: 400, or forwarded as it stands
    bool require_key = true;                        // false: open to everyone (a key that is sent is still removed)
    bool forward_key = false;                       // true: X-API-KEY goes to the upstream too (law 4)
    preflight preflights = preflight::refuse;       // `preflight`: a browser's CORS preflight without a key: 401, or forwarded
    upstream_deadlines deadlines;
    std::uint64_t body_bytes = 0;  // 0: limits.body_bytes holds
    // Apis that name the same server and agree in these two and in deadlines.connect and .idle share its pool, and count
    // together.
    std::uint32_t connections_per_target = 0;  // upstream connections per worker and server; 0: no limit beyond need
    std::uint32_t idle_per_target = 128;       // pooled idle connections kept per worker and server
};

struct key_settings {
    std::string prefix = "lk";       // 2..16 of a-z0-9: new keys are `<prefix>_...`
    bool bearer = false;             // true: `Authorization: Bearer <key>` is taken too
    std::string realm = "latchkey";  // visible ASCII without quotes; in WWW-Authenticate
};

enum class ring_full : std::uint8_t { drop, refuse };

struct usage_settings {
    std::uint64_t ring_bytes = 16ULL << 20;  // `ring_bytes` 64KiB..1GiB per worker, on tmpfs
    std::string ring_dir;                    // empty: $RUNTIME_DIRECTORY, $XDG_RUNTIME_DIR, /dev/shm (the first that is a tmpfs)
    milliseconds flush_interval{1'000};      // 10ms..1min: what a power cut can cost
    ring_full when_full = ring_full::drop;   // drop: newest records are dropped and counted; refuse: requests get 503
    std::uint32_t retention_days = 0;        // 0: kept for ever; else blocks older than this are removed
};

struct log_settings {
    std::string level = "info";  // debug, info, warning, error, off
    std::string file;            // empty: stderr
    bool json = true;
};

struct settings {
    std::vector<endpoint> listen{{"127.0.0.1", 8080}};  // `listen`; empty where all clients come by TLS
    endpoint admin_listen{"127.0.0.1", 8081};           // `admin_listen`: /livez, /readyz, /metrics; loopback by default
    std::string data_dir = "latchkey-data";             // `data_dir`: keys.db, usage.db, admin.sock
    std::uint32_t workers = 0;                          // `workers` 0: one a core; else 1..256
    bool io_uring = true;                               // `io_uring` false: no system call serves several sockets
    std::vector<std::string> trusted_proxies;           // addresses or CIDR whose X-Forwarded-* and Forwarded are appended to
    milliseconds drain{30'000};                         // `drain` 0..1h: SIGTERM to hard stop
    milliseconds takeover{30'000};        // `takeover` 1s..10min: start of a successor (reload) to its first request
    milliseconds takeover_pause{20'000};  // `takeover_pause` 1s..10min: of it, for how long commands may have to wait
    milliseconds resolve{30'000};         // `resolve` 1s..1h: upstreams' names are looked up again this often
    limits limit;                         // [limits]
    tls_settings tls;                     // [tls]
    client_deadlines client;              // [client]
    key_settings keys;                    // [keys]
    usage_settings usage;                 // [usage]
    log_settings log;                     // [log]
    std::vector<api> apis;                // [[api]]
};

inline constexpr std::uint64_t memory_per_worker_min = 4ULL << 20;  // of limits.memory

}  // namespace latchkey::conf
