#pragma once
// Counts what this program allocates, so that a benchmark can report allocations per operation beside the time.

#include <benchmark/benchmark.h>

#include <cstdint>

namespace latchkey::bench {

// Calls of operator new by this thread since it began.
std::uint64_t allocations() noexcept;

// Lives around the loop of a benchmark; at its end the counter "allocs" holds allocations per iteration.
class count_allocations {
  public:
    explicit count_allocations(benchmark::State& state) : state_(state), before_(allocations()) {}
    ~count_allocations() {
        state_.counters["allocs"] =
            benchmark::Counter(static_cast<double>(allocations() - before_), benchmark::Counter::kAvgIterations);
    }
    count_allocations(count_allocations const&) = delete;
    count_allocations& operator=(count_allocations const&) = delete;

  private:
    benchmark::State& state_;
    std::uint64_t before_;
};

}  // namespace latchkey::bench
