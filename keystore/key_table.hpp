#pragma once
// The keys as workers see them: an array of shards, each immutable once published and shared by all workers. A change builds
// its one shard anew. A shard holds the digests that begin with its 10 bits, so its rows are one range of the store's index.
//
// Threads: a key_shard is read by any number of threads at once and never written. A key_table belongs to one worker.

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "base/prefetch.hpp"
#include "keystore/key_format.hpp"

namespace latchkey::keystore {

inline constexpr std::size_t shard_bits = 10;
inline constexpr std::size_t shard_count = std::size_t{1} << shard_bits;

// The shard a digest belongs to: its first 10 bits, big-endian.
constexpr std::size_t shard_of(digest const& d) noexcept {
    return (static_cast<std::size_t>(d[0]) << 2U) | (static_cast<std::size_t>(d[1]) >> 6U);
}

enum class key_state : std::uint8_t { active, revoked, disabled };

// What a worker needs of a key. The views live as long as the shard they came from.
struct key_view {
    std::string_view key_id;
    std::string_view application_id;
    std::string_view application;  // its name as given (UTF-8)
    std::string_view username;     // the name percent-encoded where it is not visible ASCII (X-Consumer-Username)
    std::int64_t expires_ms = 0;   // wall clock; 0: never
    key_state state = key_state::active;
};

// One row to build from. Strings are copied; application names are 1..200 bytes, ids 1..64.
struct key_entry {
    digest hash{};
    std::string key_id;
    std::string application_id;
    std::string application;
    std::int64_t expires_ms = 0;
    key_state state = key_state::active;
};

// Memory for shards that are built together: side by side in pages of 2 MiB where the kernel gives such (madvise(2),
// MADV_HUGEPAGE). Among many keys every look-up would miss the processor's table of 4 KiB pages. What was allocated stays as long
// as any shard lives that came from the same 8 MiB. One thread; frees nothing that shards still have.
class shard_arena {
  public:
    // Throws std::bad_alloc.
    std::shared_ptr<unsigned char> allocate(std::size_t bytes);

  private:
    std::shared_ptr<unsigned char> block_;
    std::size_t used_ = 0;
};

class key_shard {
  public:
    // One contiguous block of memory, about 50 bytes a key beside its texts: out of `arena`, where one is given and the shard is
    // not so small that pages of 2 MiB would be too many.
    explicit key_shard(std::vector<key_entry> const& entries, shard_arena* arena = nullptr);

    // Compares the whole digest. No allocation. True and `out` set where the digest is in the shard, whatever its state.
    bool find(digest const& d, key_view& out) const noexcept { return place().find(d, out); }

    std::size_t size() const noexcept { return size_; }

    // Where a shard's memory lies: what a table keeps at hand, so that a look-up does not have to fetch the shard first.
    struct location {
        unsigned char const* memory = nullptr;  // null: no keys
        std::uint32_t slot_mask = 0;

        bool find(digest const& d, key_view& out) const noexcept;
        unsigned char const* slot(digest const& d) const noexcept;
        unsigned char const* likely_entry(digest const& d) const noexcept;  // null: not there

      private:
        unsigned char const* entries() const noexcept { return memory + (std::size_t{slot_mask} + 1) * sizeof(std::uint32_t); }
    };
    location place() const noexcept { return {memory_.get(), slot_mask_}; }

  private:
    std::shared_ptr<unsigned char> memory_;
    std::size_t size_ = 0;
    std::uint32_t slot_mask_ = 0;
};

// A published change: shard number and its new content.
struct shard_update {
    std::size_t index = 0;
    std::shared_ptr<key_shard const> shard;
};

class key_table {
  public:
    // Every shard empty.
    key_table() = default;

    // `out` is valid until the next apply().
    bool find(digest const& d, key_view& out) const noexcept { return places_[shard_of(d)].find(d, out); }

    // Among many keys a look-up waits twice for memory that is far away: for the slot, then for the entry that it names. Whoever
    // has other work to do says early what it will look for: prefetch_slot() once the digest is known, prefetch_entry() when the
    // slot should have come, find() at last. They change nothing but the time that find() takes.
    void prefetch_slot(digest const& d) const noexcept {
        if (auto const& at = places_[shard_of(d)]; at.memory) prefetch_bytes<1>(at.slot(d));
    }
    void prefetch_entry(digest const& d) const noexcept {
        auto const& at = places_[shard_of(d)];
        if (auto const* const entry = at.memory ? at.likely_entry(d) : nullptr) prefetch_bytes<65>(entry);
    }

    // Swaps in the shards and counts the revision up by one, so that whoever remembers a key_view can tell that it is old.
    void apply(std::vector<shard_update> const& updates);

    std::uint64_t revision() const noexcept { return revision_; }
    std::size_t size() const noexcept;

  private:
    std::array<key_shard::location, shard_count> places_{};  // of shards_: what look-ups read
    std::array<std::shared_ptr<key_shard const>, shard_count> shards_{};
    std::uint64_t revision_ = 1;
};

// `name` with every byte outside 0x21..0x7e, and '%', as %XX (RFC 3986 section 2.1).
std::string percent_encoded(std::string_view name);

}  // namespace latchkey::keystore
