#include "gateway/connection_limit.hpp"

#include <algorithm>
#include <bit>
#include <cstring>
#include <span>

#include "base/ids.hpp"

namespace latchkey::gateway {

connection_limit::connection_limit(std::uint32_t most, std::uint32_t per_address) : most_(most), per_address_(per_address) {
    if (per_address_ == 0) return;
    random_bytes(std::as_writable_bytes(std::span(&seed_, 1)));
    slots_ = std::bit_ceil(std::max<std::size_t>(std::size_t{most} * 8, 1024));
    table_ = std::make_unique<std::atomic<std::uint32_t>[]>(slots_);
}

std::atomic<std::uint32_t>& connection_limit::slot(address_bytes const& a) noexcept {
    std::uint64_t high = 0;
    std::uint64_t low = 0;
    std::memcpy(&high, a.data(), 8);
    std::memcpy(&low, a.data() + 8, 8);
    bool const v4 = high == 0;  // ::ffff:a.b.c.d
    std::uint64_t h = (v4 ? low : high) ^ seed_;
    h = (h ^ (h >> 30U)) * 0xbf58476d1ce4e5b9ULL;  // the finalizer of SplitMix64
    h = (h ^ (h >> 27U)) * 0x94d049bb133111ebULL;
    return table_[(h ^ (h >> 31U)) & (slots_ - 1)];
}

bool connection_limit::enter(address_bytes const& a, bool by_address) noexcept {
    if (open_.fetch_add(1, std::memory_order_relaxed) >= most_) {
        open_.fetch_sub(1, std::memory_order_relaxed);
        return false;
    }
    if (by_address && per_address_ != 0) {
        auto& s = slot(a);
        if (s.fetch_add(1, std::memory_order_relaxed) >= per_address_) {
            s.fetch_sub(1, std::memory_order_relaxed);
            open_.fetch_sub(1, std::memory_order_relaxed);
            return false;
        }
    }
    return true;
}

void connection_limit::leave(address_bytes const& a, bool by_address) noexcept {
    open_.fetch_sub(1, std::memory_order_relaxed);
    if (by_address && per_address_ != 0) slot(a).fetch_sub(1, std::memory_order_relaxed);
}

}  // namespace latchkey::gateway
