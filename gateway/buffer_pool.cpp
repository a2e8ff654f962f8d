#include "gateway/buffer_pool.hpp"

#include <sys/mman.h>

#include <new>

namespace latchkey::gateway {
namespace {

// Straight from the kernel, so that what is trimmed is really given back, and pages that nobody touched cost nothing.
char* map_pages(std::size_t bytes) {
    void* const p = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (p == MAP_FAILED) throw std::bad_alloc();
    return static_cast<char*>(p);
}

}  // namespace

buffer_pool::buffer_pool(std::size_t small_bytes, std::size_t large_bytes, std::size_t large_max)
    : small_bytes_(small_bytes), large_bytes_(large_bytes), large_max_(large_max) {
    free_small_.reserve(1024);
    free_large_.reserve(large_max);
}

buffer_pool::~buffer_pool() {
    for (char* const p : free_small_) munmap(p, small_bytes_);
    for (char* const p : free_large_) munmap(p, large_bytes_);
}

lease buffer_pool::small() {
    char* p = nullptr;
    if (free_small_.empty()) {
        p = map_pages(small_bytes_);
    } else {
        p = free_small_.back();
        free_small_.pop_back();
    }
    ++lent_;
    return {this, p, small_bytes_};
}

lease buffer_pool::large() {
    if (large_lent_ >= large_max_) return small();
    char* p = nullptr;
    if (free_large_.empty()) {
        p = map_pages(large_bytes_);
    } else {
        p = free_large_.back();
        free_large_.pop_back();
    }
    ++large_lent_;
    ++lent_;
    return {this, p, large_bytes_};
}

void buffer_pool::give_back(char* data, std::size_t size) noexcept {
    --lent_;
    if (size == large_bytes_) {
        --large_lent_;
        free_large_.push_back(data);  // reserved for large_max_
        return;
    }
    if (free_small_.size() == free_small_.capacity()) {
        munmap(data, small_bytes_);
        return;
    }
    free_small_.push_back(data);
}

void buffer_pool::trim(std::size_t keep_small) noexcept {
    while (free_small_.size() > keep_small) {
        munmap(free_small_.back(), small_bytes_);
        free_small_.pop_back();
    }
    for (std::size_t n = (free_large_.size() + 1) / 2; n > 0; --n) {
        munmap(free_large_.back(), large_bytes_);
        free_large_.pop_back();
    }
}

}  // namespace latchkey::gateway
