#pragma once
// The upstream of the benchmarks, in the load generator's own process and loop: two programs on one core would fight for it and
// wake each other across cores, and the figures would show that instead of the proxy. It looks at every request it gets, so that
// a proxy that skips its work is found out under load too.
//
//   GET  /bytes/N   N bytes of 'x'                 GET /echo   the request's head, as it arrived
//   POST anything   the number of body bytes that arrived, in 20 digits (needs Content-Length)

#include <cstdint>
#include <memory>
#include <string>
#include <unordered_map>

#include "bench/load/reactor.hpp"

namespace load {

inline constexpr std::size_t upload_receipt_bytes = 20;

// Since start.
struct upstream_counts {
    std::uint64_t connections = 0;
    std::uint64_t requests = 0;
    std::uint64_t leaked_keys = 0;  // requests that still had X-API-KEY
    std::uint64_t anonymous = 0;    // requests without X-Consumer-Id
    std::uint64_t malformed = 0;    // heads we do not understand, bodies without length; the connection is closed
};

class upstream final : public event_target {
  public:
    upstream(reactor& loop, std::uint16_t port);
    ~upstream() override;
    upstream(upstream const&) = delete;
    upstream& operator=(upstream const&) = delete;

    upstream_counts const& counts() const noexcept { return counts_; }
    void on_events(std::uint32_t events) override;

  private:
    class connection;
    // A whole response with `bytes` of body; made at first use and kept.
    std::string const& response_of(std::uint64_t bytes);
    void remove(connection& gone);

    reactor& loop_;
    int listener_;
    upstream_counts counts_;
    std::unordered_map<std::uint64_t, std::string> responses_;
    std::unordered_map<connection*, std::unique_ptr<connection>> connections_;
};

}  // namespace load
