#include "gateway/buffer_pool.hpp"

#include <sys/mman.h>

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
    free_small_.reserve(1024);
    free_large_.reserve(large_max);
}

buffer_pool::~buffer_pool() {
    for (char* const p : free_small_) unmap(p, small_bytes_);
    for (char* const p : free_large_) unmap(p, large_bytes_);
}

// Null where the bound or the kernel says no. Unused large buffers make room first.
char* buffer_pool::map(std::size_t bytes) noexcept {
    while (mapped_ + cost(bytes) > memory_max_ && !free_large_.empty()) {
        unmap(free_large_.back(), large_bytes_);
        free_large_.pop_back();
    }
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
    char* p = nullptr;
    if (free_small_.empty()) {
        p = map(small_bytes_);
        if (!p) return {};
    } else {
        p = free_small_.back();
        free_small_.pop_back();
    }
    return lend(p, small_bytes_);
}

lease buffer_pool::large() {
    if (large_lent_ >= large_max_ || !fits(large_bytes_)) return small();
    char* p = nullptr;
    if (free_large_.empty()) {
        p = map(large_bytes_);
        if (!p) return small();
    } else {
        p = free_large_.back();
        free_large_.pop_back();
    }
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
        free_large_.push_back(data);  // reserved for large_max_
        return;
    }
    if (free_small_.size() == free_small_.capacity()) {
        unmap(data, small_bytes_);
        return;
    }
    free_small_.push_back(data);
}

void buffer_pool::trim(std::size_t keep_small) noexcept {
    while (free_small_.size() > keep_small) {
        unmap(free_small_.back(), small_bytes_);
        free_small_.pop_back();
    }
    for (std::size_t n = (free_large_.size() + 1) / 2; n > 0; --n) {
        unmap(free_large_.back(), large_bytes_);
        free_large_.pop_back();
    }
}

}  // namespace latchkey::gateway
