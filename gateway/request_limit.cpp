#include "gateway/request_limit.hpp"

#include <algorithm>
#include <cassert>

namespace latchkey::gateway {

request_limit::request_limit(std::uint64_t most, unsigned workers) noexcept
    : limited_(most != 0), batch_(std::max<std::uint64_t>(most / 32 / workers, 1)), free_(most) {}

std::uint64_t request_limit::take(std::uint64_t wanted) noexcept {
    std::uint64_t free = free_.load(std::memory_order_relaxed);
    while (free != 0) {
        std::uint64_t const taken = std::min(free, wanted);
        if (free_.compare_exchange_weak(free, free - taken, std::memory_order_relaxed)) return taken;
    }
    return 0;
}

void request_limit::give_back(std::uint64_t n) noexcept { free_.fetch_add(n, std::memory_order_relaxed); }

request_limit::part::part(request_limit& all) noexcept
    : all_(all),
      held_(all.limited_ ? 0 : UINT64_MAX),
      ready_max_(!all.limited_     ? UINT64_MAX
                 : all.batch_ == 1 ? 0
                                   : 2 * all.batch_) {}

request_limit::part::~part() {
    assert(used_ == 0);
    if (all_.limited_) all_.give_back(held_);
}

bool request_limit::part::more() noexcept {
    std::uint64_t const taken = all_.take(all_.batch_);
    held_ += taken;
    return taken != 0;
}

void request_limit::part::less() noexcept {
    std::uint64_t const kept = ready_max_ / 2;
    all_.give_back(held_ - used_ - kept);
    held_ = used_ + kept;
}

}  // namespace latchkey::gateway
