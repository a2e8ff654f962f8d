#include "gateway/frame_pool.hpp"

#include <sys/mman.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cstdint>
#include <new>

#include "base/prefetch.hpp"

// A frame that is free is nobody's to read or write: a sanitizer is told so.
#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#else
#define ASAN_POISON_MEMORY_REGION(at, bytes) ((void)(at), (void)(bytes))
#define ASAN_UNPOISON_MEMORY_REGION(at, bytes) ((void)(at), (void)(bytes))
#endif

namespace latchkey::gateway {
namespace {

// A frame takes an odd number of lines: where frames lie at multiples of a power of two, their beginnings, which are what is used
// most, push each other out of the few cache sets that all of them select.
constexpr std::size_t class_bytes = 2 * cache_line_bytes;
constexpr std::size_t class_count = 33;  // frames up to 4 KiB and a line; larger ones go to operator new
constexpr std::size_t chunk_bytes = 64U << 10U;
constexpr std::size_t trimmed_min = (1U << 20U) / chunk_bytes;

constexpr std::size_t class_of(std::size_t bytes) { return (bytes + cache_line_bytes - 1) / class_bytes; }
constexpr std::size_t size_of(std::size_t c) { return c * class_bytes + cache_line_bytes; }

struct node {
    node* next;
};

// Lies at the beginning of its memory, which is aligned to its size: so a frame's address tells its chunk.
struct alignas(cache_line_bytes) chunk {
    chunk* next = nullptr;
    chunk* previous = nullptr;
    node* free = nullptr;  // were lent before
    char* fresh;           // from here on no frame was lent ever: the kernel has given no memory for them
    char* end;
    std::size_t lent = 0;

    explicit chunk(std::size_t size) : fresh(begin()), end(begin() + (chunk_bytes - sizeof(chunk)) / size * size) {
        ASAN_POISON_MEMORY_REGION(begin(), chunk_bytes - sizeof(chunk));
    }
    static chunk* of(void* frame) noexcept {
        return reinterpret_cast<chunk*>(static_cast<char*>(frame) - reinterpret_cast<std::uintptr_t>(frame) % chunk_bytes);
    }
    char* begin() noexcept { return reinterpret_cast<char*>(this) + sizeof(chunk); }
    bool full() const noexcept { return !free && fresh == end; }

    void* lend(std::size_t size) noexcept {
        ++lent;
        void* const frame = free ? static_cast<void*>(free) : fresh;
        ASAN_UNPOISON_MEMORY_REGION(frame, size);
        if (free) {
            free = free->next;
        } else {
            fresh += size;
        }
        return frame;
    }
    void take_back(void* frame, std::size_t size) noexcept {
        --lent;
        free = new (frame) node{free};
        ASAN_POISON_MEMORY_REGION(frame, size);
    }
};

std::atomic<std::size_t> mapped = 0;

// The chunks of one class that have room. A full one is in no list, and found again by its first frame that is freed.
class size_class {
  public:
    size_class() = default;
    size_class(size_class const&) = delete;
    size_class& operator=(size_class const&) = delete;
    // The thread ends. What is still lent is nobody's from here on, until somebody frees it.
    ~size_class() {
        while (empty_) unmap(take_empty());
        while (used_) {
            chunk& c = *used_;
            unlink(c);
            c.free = nullptr;
            c.fresh = c.end;
        }
    }

    void* allocate(std::size_t size) {
        if (!used_) link(empty_ ? *take_empty() : *map(size));
        chunk& c = *used_;
        void* const frame = c.lend(size);
        if (c.full()) unlink(c);
        return frame;
    }
    void release(void* frame, std::size_t size) noexcept {
        chunk& c = *chunk::of(frame);
        bool const was_full = c.full();
        c.take_back(frame, size);
        if (was_full) link(c);
        if (c.lent > 0) return;
        unlink(c);
        c.next = empty_;
        empty_ = &c;
        ++empties_;
    }
    void trim() noexcept {
        std::size_t const unwanted = std::min(least_, empties_ - std::min<std::size_t>(empties_, 1));
        std::size_t const n = std::min(unwanted, std::max(unwanted / 8, trimmed_min));
        for (std::size_t i = 0; i < n; ++i) unmap(take_empty());
        least_ = empties_;
    }

  private:
    chunk* map(std::size_t size) {
        void* const got = mmap(nullptr, 2 * chunk_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (got == MAP_FAILED) throw std::bad_alloc();
        // Its upper part stays, so that it lies right below the chunk before it, and the kernel has one mapping for both.
        auto* const all = static_cast<char*>(got);
        std::size_t const behind = reinterpret_cast<std::uintptr_t>(got) % chunk_bytes;
        std::size_t const before = chunk_bytes - behind;
        munmap(all, before);
        if (behind > 0) munmap(all + before + chunk_bytes, behind);
        mapped.fetch_add(chunk_bytes, std::memory_order_relaxed);
        return new (all + before) chunk(size);
    }
    void unmap(chunk* c) noexcept {
        ASAN_UNPOISON_MEMORY_REGION(c, chunk_bytes);
        munmap(c, chunk_bytes);
        mapped.fetch_sub(chunk_bytes, std::memory_order_relaxed);
    }
    chunk* take_empty() noexcept {
        chunk* const c = empty_;
        empty_ = c->next;
        least_ = std::min(least_, --empties_);
        return c;
    }
    void link(chunk& c) noexcept {
        c.previous = nullptr;
        c.next = used_;
        if (used_) used_->previous = &c;
        used_ = &c;
    }
    void unlink(chunk& c) noexcept {
        (c.previous ? c.previous->next : used_) = c.next;
        if (c.next) c.next->previous = c.previous;
    }

    chunk* used_ = nullptr;   // some frames of it are lent
    chunk* empty_ = nullptr;  // none
    std::size_t empties_ = 0;
    std::size_t least_ = 0;  // fewest empty ones since the last trim
};

thread_local std::array<size_class, class_count> classes;

}  // namespace

void* frame_pool::allocate(std::size_t bytes) {
    std::size_t const c = class_of(bytes);
    return c < classes.size() ? classes[c].allocate(size_of(c)) : ::operator new(bytes);
}

void frame_pool::release(void* memory, std::size_t bytes) noexcept {
    std::size_t const c = class_of(bytes);
    if (c < classes.size()) {
        classes[c].release(memory, size_of(c));
    } else {
        ::operator delete(memory);
    }
}

void frame_pool::trim() noexcept {
    for (auto& c : classes) c.trim();
}

std::size_t frame_pool::mapped_bytes() noexcept { return mapped.load(std::memory_order_relaxed); }

}  // namespace latchkey::gateway
