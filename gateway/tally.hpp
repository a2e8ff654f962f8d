#pragma once
// A counter of a worker, for others to read.

#include <atomic>
#include <cstdint>

namespace latchkey::gateway {

// Written by one worker, read by anyone: plain stores and loads, no read-modify-write.
class tally {
  public:
    void add(std::uint64_t n = 1) noexcept {
        value_.store(value_.load(std::memory_order_relaxed) + n, std::memory_order_relaxed);
    }
    void subtract(std::uint64_t n = 1) noexcept { add(~n + 1); }
    void set(std::uint64_t n) noexcept { value_.store(n, std::memory_order_relaxed); }
    std::uint64_t get() const noexcept { return value_.load(std::memory_order_relaxed); }

  private:
    std::atomic<std::uint64_t> value_{0};
};

}  // namespace latchkey::gateway
