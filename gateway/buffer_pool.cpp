#include "gateway/buffer_pool.hpp"

#include <sys/mman.h>

#include <cstring>
#include <new>

namespace latchkey::gateway {
namespace {

// Buffers come straight from the kernel, so that what is trimmed is really given back, and pages that nobody touched cost
// nothing. They do not begin at the page: heads are short and stand at the front, and if all fronts had the same address bits
// they would push each other out of the few cache sets that those bits select. So each begins at a line of its own "colour";
// the word before it tells where its mapping begins.
constexpr std::size_t line_bytes = 64;
constexpr std::size_t colour_bytes = 8192;

char* map_buffer(std::size_t bytes, std::size_t& colour) {
    void* const p = mmap(nullptr, bytes + colour_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (p == MAP_FAILED) throw std::bad_alloc();
    colour = (colour + 17) % (colour_bytes / line_bytes - 1);
    char* const data = static_cast<char*>(p) + (colour + 1) * line_bytes;
    std::memcpy(data - sizeof p, &p, sizeof p);
    return data;
}

void unmap_buffer(char* data, std::size_t bytes) noexcept {
    void* p = nullptr;
    std::memcpy(&p, data - sizeof p, sizeof p);
    munmap(p, bytes + colour_bytes);
}

}  // namespace

buffer_pool::buffer_pool(std::size_t small_bytes, std::size_t large_bytes, std::size_t large_max)
    : small_bytes_(small_bytes), large_bytes_(large_bytes), large_max_(large_max) {
    free_small_.reserve(1024);
    free_large_.reserve(large_max);
}

buffer_pool::~buffer_pool() {
    for (char* const p : free_small_) unmap_buffer(p, small_bytes_);
    for (char* const p : free_large_) unmap_buffer(p, large_bytes_);
}

lease buffer_pool::small() {
    char* p = nullptr;
    if (free_small_.empty()) {
        p = map_buffer(small_bytes_, colour_);
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
        p = map_buffer(large_bytes_, colour_);
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
        unmap_buffer(data, small_bytes_);
        return;
    }
    free_small_.push_back(data);
}

void buffer_pool::trim(std::size_t keep_small) noexcept {
    while (free_small_.size() > keep_small) {
        unmap_buffer(free_small_.back(), small_bytes_);
        free_small_.pop_back();
    }
    for (std::size_t n = (free_large_.size() + 1) / 2; n > 0; --n) {
        unmap_buffer(free_large_.back(), large_bytes_);
        free_large_.pop_back();
    }
}

}  // namespace latchkey::gateway
