#include "gateway/buffer_pool.hpp"

#include <sys/mman.h>

#include <algorithm>
#include <cstring>

namespace latchkey::gateway {
namespace {

// Buffers come straight from the kernel, so that what is trimmed is really given back, and pages that nobody touched cost
// nothing. They do not begin at the page: heads are short and stand at the front, and if all fronts had the same address bits
// they would push each other out of the few cache sets that those bits select. So each begins at a line of its own "colour";
// the word before it tells where its mapping begins.
constexpr std::size_t line_bytes = 64;

}  // namespace

buffer_pool::buffer_pool(std::size_t small_bytes, std::size_t large_bytes, std::size_t large_max, std::size_t memory_max)
    : small_bytes_(small_bytes), large_bytes_(large_bytes), large_max_(large_max), memory_max_(memory_max) {
    small_.free.reserve(1024);
    large_.free.reserve(large_max);
}

buffer_pool::~buffer_pool() {
    for (char* const p : small_.free) unmap(p, small_bytes_);
    for (char* const p : large_.free) unmap(p, large_bytes_);
}

// Null where the bound or the kernel says no. Unused buffers make room first, large ones before small ones.
char* buffer_pool::map(std::size_t bytes) noexcept {
    while (mapped_ + cost(bytes) > memory_max_ && !large_.free.empty()) unmap(large_.take(), large_bytes_);
    while (mapped_ + cost(bytes) > memory_max_ && !small_.free.empty()) unmap(small_.take(), small_bytes_);
    if (mapped_ + cost(bytes) > memory_max_) return nullptr;
    void* const p = mmap(nullptr, cost(bytes), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (p == MAP_FAILED) return nullptr;
    mapped_ += cost(bytes);
    colour_ = (colour_ + 17) % (colour_bytes / line_bytes - 1);
    char* const data = static_cast<char*>(p) + (colour_ + 1) * line_bytes;
    std::memcpy(data - sizeof p, &p, sizeof p);
    return data;
}

void buffer_pool::unmap(char* data, std::size_t bytes) noexcept {
    void* p = nullptr;
    std::memcpy(&p, data - sizeof p, sizeof p);
    munmap(p, cost(bytes));
    mapped_ -= cost(bytes);
}

lease buffer_pool::lend(char* data, std::size_t bytes) noexcept {
    lent_bytes_ += cost(bytes);
    return {this, data, bytes};
}

lease buffer_pool::small() {
    if (!fits(small_bytes_)) return {};
    char* const p = small_.free.empty() ? map(small_bytes_) : small_.take();
    if (!p) return {};
    return lend(p, small_bytes_);
}

lease buffer_pool::large() {
    if (large_lent_ >= large_max_ || !fits(large_bytes_)) return small();
    char* const p = large_.free.empty() ? map(large_bytes_) : large_.take();
    if (!p) return small();
    ++large_lent_;
    return lend(p, large_bytes_);
}

bool buffer_pool::promise_small(promise& p) noexcept {
    if (p) return true;
    if (!fits(small_bytes_)) return false;
    p.pool_ = this;
    lent_bytes_ += cost(small_bytes_);
    return true;
}

lease buffer_pool::redeem(promise& p, bool large_one) {
    bool const was_promised{p};
    p.reset();
    lease got = large_one ? large() : small();
    if (!got && was_promised) promise_small(p);
    return got;
}

void buffer_pool::give_back(char* data, std::size_t size) noexcept {
    lent_bytes_ -= cost(size);
    if (size == large_bytes_) {
        --large_lent_;
        large_.free.push_back(data);  // reserved for large_max_
        return;
    }
    if (small_.free.size() == small_.free.capacity()) {
        unmap(data, small_bytes_);
        return;
    }
    small_.free.push_back(data);
}

void buffer_pool::enlarge(lease& l) {
    if (l.size() >= large_bytes_) return;
    lease larger = large();
    if (larger.size() > l.size()) l = std::move(larger);
}

void buffer_pool::shrink(lease& l, std::size_t used) {
    if (l.size() <= small_bytes_ || used > small_bytes_) return;
    lease smaller = small();
    if (!smaller) return;
    std::memcpy(smaller.data(), l.data(), used);
    l = std::move(smaller);
}

void buffer_pool::trim(std::size_t keep_small) noexcept {
    trim(small_, keep_small, small_bytes_);
    trim(large_, 0, large_bytes_);
}

// Those at the bottom go: they lay there longest.
void buffer_pool::trim(stock& of, std::size_t keep, std::size_t bytes) noexcept {
    constexpr std::size_t share = 8;
    constexpr std::size_t freed_bytes_min = 1U << 20U;
    auto const unwanted = std::min(of.least, of.free.size() - std::min(keep, of.free.size()));
    auto const at_once = std::max({unwanted / share, freed_bytes_min / cost(bytes), std::size_t{1}});
    auto const n = static_cast<std::ptrdiff_t>(std::min(unwanted, at_once));
    std::for_each(of.free.begin(), of.free.begin() + n, [&](char* p) { unmap(p, bytes); });
    of.free.erase(of.free.begin(), of.free.begin() + n);
    of.least = of.free.size();
}

}  // namespace latchkey::gateway
