#pragma once
// The clients of the benchmarks. One run drives one proxy for a while and checks every response: status, and the length of the
// body by Content-Length and by what arrived (an upload's response says how much of it reached the upstream).
//
// Modes
//   closed  each connection sends its next request when the response is complete: how much can it do?
//   open    requests arrive by a Poisson process at `rate`, whatever the proxy does meanwhile; one that finds no free connection
//           waits, and its latency counts from when it should have started. So a stall shows in every request that fell into it
//           (no coordinated omission).
//   fresh   as closed, with a new connection for every request ("Connection: close", and the proxy closes)
//   idle    one request on each connection, which then stay open until the next run: what does a connection hold?

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "bench/load/histogram.hpp"
#include "bench/load/reactor.hpp"

namespace load {

enum class mode : std::uint8_t { closed, open, fresh, idle };

struct plan {
    load::mode mode = mode::closed;
    std::uint16_t port = 0;
    unsigned connections = 64;
    double warm_s = 0.3;
    double seconds = 1.0;        // the window that is measured, after warm_s
    double rate = 0;             // open: arrivals a second
    std::uint64_t requests = 0;  // closed: > 0: the run ends after so many, or after `seconds`; wants warm_s = 0
    std::string path = "/bytes/1024";
    std::string host = "api.example.com";
    unsigned spread = 0;            // > 0: "{n}" in path and host becomes 0000 to spread - 1, drawn for every request
    std::int64_t upload_bytes = 0;  // > 0: POST with that much body
    int status = 200;               // what every response must be
    std::int64_t body_bytes = -1;   // what every response body must be long; -1: anything whole
    std::string keys_file;          // CSV `name,key` with a header; a key is drawn from it for every request
    std::string key;                // instead of keys_file: one key for all
    bool tls = false;               // by TLS, each connection with a whole handshake; certificates are not checked
    bool spin = true;               // poll without sleeping: no wake-ups that the proxy would have to pay for
    std::vector<int> pids;          // whose CPU time is measured
};

inline constexpr std::int64_t silence_ns = 2'000'000;

struct figures {
    double seconds = 0;
    std::uint64_t completed = 0;    // responses that ended in the window
    std::uint64_t unfinished = 0;   // open: due in the window and not answered 2 s after it
    std::uint64_t broken = 0;       // connections that ended within an exchange, or could not be made
    std::uint64_t reconnected = 0;  // idle connections that the proxy closed
    std::uint64_t wrong_status = 0;
    std::uint64_t wrong_length = 0;
    std::uint64_t bytes_in = 0;
    std::uint64_t bytes_out = 0;
    std::uint64_t silences = 0;   // times in the window of silence_ns or more in which no response ended
    std::uint64_t queue_max = 0;  // open: most requests that waited for a connection
    std::uint64_t ready = 0;      // idle: connections that had their response and are open
    std::int64_t cpu_ns = 0;      // of plan.pids, in the window
    std::map<int, std::uint64_t> statuses;
    histogram latency;
};

class generator {
  public:
    explicit generator(reactor& loop);
    ~generator();
    generator(generator const&) = delete;
    generator& operator=(generator const&) = delete;

    // Drives `what` to its end. Throws std::runtime_error if keys cannot be read, or if nothing answers at the port within 5 s.
    figures run(plan const& what);

    // Closes what an idle run has left open.
    void release();

  private:
    class session;
    class connection;
    reactor& loop_;
    std::unique_ptr<session> session_;
    std::string keys_file_;
    std::vector<std::string> keys_;  // of keys_file_
};

}  // namespace load
