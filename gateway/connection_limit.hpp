#pragma once
// Counts client connections over all workers: in all, and per address. Lock-free; asked at accept and at close only.

#include <array>
#include <atomic>
#include <cstdint>
#include <memory>

namespace latchkey::gateway {

// IPv6, or IPv4 mapped.
using address_bytes = std::array<unsigned char, 16>;

class connection_limit {
  public:
    // per_address 0: no such limit.
    connection_limit(std::uint32_t most, std::uint32_t per_address);

    // False: over a limit, and nothing was counted. An IPv6 client counts as its /64, since it owns all of it. `by_address`
    // false: only the limit in all holds for it; leave() must be told the same.
    bool enter(address_bytes const&, bool by_address = true) noexcept;
    void leave(address_bytes const&, bool by_address = true) noexcept;

    std::uint32_t open() const noexcept { return open_.load(std::memory_order_relaxed); }

  private:
    // One slot per address hash modulo the table. Two addresses that share a slot share a limit: with eight slots a
    // connection that is rare, and errs towards refusing, not towards letting a flood in. Seeded, so nobody can aim at it.
    std::atomic<std::uint32_t>& slot(address_bytes const&) noexcept;

    std::uint32_t most_;
    std::uint32_t per_address_;
    std::uint64_t seed_ = 0;
    std::size_t slots_ = 0;
    std::atomic<std::uint32_t> open_{0};
    std::unique_ptr<std::atomic<std::uint32_t>[]> table_;
};

}  // namespace latchkey::gateway
