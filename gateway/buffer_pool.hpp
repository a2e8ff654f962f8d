#pragma once
// Buffers that a worker lends while bytes are in hand; an idle connection holds none. Two sizes: `small` (a head with room
// behind it) and `large` (long bodies). When all large ones are lent, callers go on with small ones; when the bound on all memory
// is reached, or the kernel has none, they get an empty lease and must do without: never an allocation beyond. Who will need one
// later, and cannot do without then, has it promised: nobody else is lent the memory for it meanwhile. One thread.

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <utility>
#include <vector>

namespace latchkey::gateway {

class buffer_pool;

// Owns one buffer of a pool, or nothing. Returns it on destruction.
class lease {
  public:
    lease() = default;
    lease(lease&& other) noexcept
        : pool_(std::exchange(other.pool_, nullptr)),
          data_(std::exchange(other.data_, nullptr)),
          size_(std::exchange(other.size_, 0)) {}
    lease& operator=(lease&& other) noexcept {
        if (this != &other) {
            reset();
            pool_ = std::exchange(other.pool_, nullptr);
            data_ = std::exchange(other.data_, nullptr);
            size_ = std::exchange(other.size_, 0);
        }
        return *this;
    }
    ~lease() { reset(); }

    explicit operator bool() const noexcept { return data_ != nullptr; }
    char* data() const noexcept { return data_; }
    std::size_t size() const noexcept { return size_; }
    void reset() noexcept;

  private:
    friend class buffer_pool;
    lease(buffer_pool* pool, char* data, std::size_t size) noexcept : pool_(pool), data_(data), size_(size) {}
    buffer_pool* pool_ = nullptr;
    char* data_ = nullptr;
    std::size_t size_ = 0;
};

// A claim on one small buffer of a pool, or nothing. Returned on destruction.
class promise {
  public:
    promise() = default;
    promise(promise const&) = delete;
    promise& operator=(promise const&) = delete;
    ~promise() { reset(); }

    explicit operator bool() const noexcept { return pool_ != nullptr; }
    void reset() noexcept;

  private:
    friend class buffer_pool;
    buffer_pool* pool_ = nullptr;
};

class buffer_pool {
  public:
    // `memory_max`: bytes that all buffers, lent or kept, may take.
    buffer_pool(std::size_t small_bytes, std::size_t large_bytes, std::size_t large_max, std::size_t memory_max = SIZE_MAX);
    ~buffer_pool();
    buffer_pool(buffer_pool const&) = delete;
    buffer_pool& operator=(buffer_pool const&) = delete;

    // Empty where there is no memory for it.
    lease small();
    // A large buffer, or a small one where all large ones are lent or cannot be had; empty as small().
    lease large();

    // Makes `p` a claim, where it is none yet. False: there is no memory for it.
    bool promise_small(promise& p) noexcept;
    // What small() or large() lends, with the memory that was promised. Empty only where there was no promise or the kernel has
    // no memory; then the claim stands.
    lease redeem(promise& p, bool large);

    // Exchanges a large buffer of which the first `used` bytes are in use for a small one, where that holds them and can be had.
    void shrink(lease& l, std::size_t used);
    // Exchanges a small buffer with nothing in it for a large one, where one can be had.
    void enlarge(lease& l);

    // Frees some of the buffers that nobody wanted since the last call: an eighth of them, and 1 MiB (one large one) at least,
    // but `keep_small` small ones stay. So some calls after a rush its memory is the kernel's again, and a gateway whose load
    // goes up and down does not unmap what it maps again a moment later (microseconds each, in which no request goes on). The
    // sweep calls it.
    void trim(std::size_t keep_small) noexcept;

    // Whether fewer than half of the large ones are lent: one may be had for long, then.
    bool large_to_spare() const noexcept { return 2 * large_lent_ < large_max_; }

    std::size_t small_bytes() const noexcept { return small_bytes_; }
    std::size_t large_bytes() const noexcept { return large_bytes_; }
    // Memory that what is lent and what is promised takes, and all that is mapped: with what is kept for the next one.
    std::size_t lent_bytes() const noexcept { return lent_bytes_; }
    std::size_t mapped_bytes() const noexcept { return mapped_; }

    // What one buffer of a size takes, with the room for its colour.
    static constexpr std::size_t cost(std::size_t bytes) noexcept { return bytes + colour_bytes; }

  private:
    friend class lease;
    friend class promise;
    static constexpr std::size_t colour_bytes = 8192;
    struct stock {
        std::vector<char*> free;
        std::size_t least = 0;  // fewest that lay here since the last trim
        char* take() noexcept {
            char* const p = free.back();
            free.pop_back();
            least = std::min(least, free.size());
            return p;
        }
    };
    void trim(stock& of, std::size_t keep, std::size_t bytes) noexcept;
    void give_back(char* data, std::size_t size) noexcept;
    bool fits(std::size_t bytes) const noexcept { return lent_bytes_ + cost(bytes) <= memory_max_; }
    char* map(std::size_t bytes) noexcept;
    void unmap(char* data, std::size_t bytes) noexcept;
    lease lend(char* data, std::size_t bytes) noexcept;

    std::size_t small_bytes_;
    std::size_t large_bytes_;
    std::size_t large_max_;
    std::size_t memory_max_;
    std::size_t mapped_ = 0;
    std::size_t large_lent_ = 0;
    std::size_t lent_bytes_ = 0;
    std::size_t colour_ = 0;
    stock small_;
    stock large_;
};

inline void lease::reset() noexcept {
    if (pool_) pool_->give_back(data_, size_);
    pool_ = nullptr;
    data_ = nullptr;
    size_ = 0;
}

inline void promise::reset() noexcept {
    if (pool_) pool_->lent_bytes_ -= buffer_pool::cost(pool_->small_bytes_);
    pool_ = nullptr;
}

}  // namespace latchkey::gateway
