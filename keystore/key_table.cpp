// The memory of a shard, one allocation: slots, then entries.
//
//   slots    2^n x 4 bytes   open addressing, linear; 0 is empty, else (tag << 24) | (the entry's place in words, from 1)
//   entries  each at a word of 8 bytes: a row of 40 bytes, then its texts: [8 bytes expires_ms, where it has one] key id,
//            application id, application, [username, where it differs]
//
// A slot's start is taken from the 32 digest bits after those that chose the shard, its tag from eight more; digests are as good
// as random in all of them. The tag keeps a look-up of an unknown key from touching an entry in 255 of 256 cases that meet a
// slot. At most three quarters of the slots are taken, so a probe always ends. What a look-up reads of an entry lies side by
// side: with many keys it is the cache misses that cost.

#include "keystore/key_table.hpp"

#include <sys/mman.h>

#include <algorithm>
#include <bit>
#include <cstdlib>
#include <cstring>
#include <new>
#include <stdexcept>

namespace latchkey::keystore {
namespace {

// In constant time (ASVS 11.2.4): every byte is looked at, wherever the first difference stands.
bool same_digest(unsigned char const* row, digest const& d) noexcept {
    std::array<std::uint64_t, 4> a;
    std::array<std::uint64_t, 4> b;
    std::memcpy(a.data(), row, sizeof a);
    std::memcpy(b.data(), d.data(), sizeof b);
    return ((a[0] ^ b[0]) | (a[1] ^ b[1]) | (a[2] ^ b[2]) | (a[3] ^ b[3])) == 0;
}

constexpr std::uint32_t place_bits = 24;
constexpr std::uint32_t place_mask = (1U << place_bits) - 1;
constexpr std::size_t word = 8;

struct row {
    digest hash;
    std::uint16_t username_bytes;  // 0: the same as `application`
    std::uint8_t key_id_bytes;
    std::uint8_t application_id_bytes;
    std::uint8_t application_bytes;
    std::uint8_t flags;  // bits 0..1 the key_state, bit 2: expires_ms stands before the texts
    std::uint16_t unused;
};
static_assert(sizeof(row) == 40 && sizeof(row) % word == 0);

constexpr std::uint8_t has_expiry = 4;

std::uint32_t start_of(digest const& d) noexcept {
    return static_cast<std::uint32_t>(d[2]) << 24U | static_cast<std::uint32_t>(d[3]) << 16U |
           static_cast<std::uint32_t>(d[4]) << 8U | d[5];
}

std::uint32_t tag_of(digest const& d) noexcept { return static_cast<std::uint32_t>(d[6]) << place_bits; }

std::size_t slots_for(std::size_t count) {
    if (count == 0) return 0;
    return std::bit_ceil(count + count / 3 + 1);
}

bool needs_encoding(std::string_view name) noexcept {
    return std::any_of(name.begin(), name.end(), [](char c) { return c < 0x21 || c > 0x7e || c == '%'; });
}

std::size_t entry_bytes(key_entry const& e, std::string const& username) {
    constexpr std::size_t id_max = 64;
    constexpr std::size_t name_max = 200;
    if (e.key_id.size() > id_max || e.application_id.size() > id_max || e.application.size() > name_max)
        throw std::length_error("a key entry's texts are longer than the store allows");
    std::size_t const bytes = sizeof(row) + (e.expires_ms != 0 ? sizeof e.expires_ms : 0) + e.key_id.size() +
                              e.application_id.size() + e.application.size() + username.size();
    return (bytes + word - 1) / word * word;
}

unsigned char* put(unsigned char* to, void const* from, std::size_t bytes) noexcept {
    std::memcpy(to, from, bytes);
    return to + bytes;
}

// Texts of one entry at `to`; returns their end.
unsigned char* put_texts(unsigned char* to, key_entry const& e, std::string const& username) noexcept {
    if (e.expires_ms != 0) to = put(to, &e.expires_ms, sizeof e.expires_ms);
    to = put(to, e.key_id.data(), e.key_id.size());
    to = put(to, e.application_id.data(), e.application_id.size());
    to = put(to, e.application.data(), e.application.size());
    return put(to, username.data(), username.size());
}

row make_row(key_entry const& e, std::string const& username) noexcept {
    row r{};
    r.hash = e.hash;
    r.username_bytes = static_cast<std::uint16_t>(username.size());
    r.key_id_bytes = static_cast<std::uint8_t>(e.key_id.size());
    r.application_id_bytes = static_cast<std::uint8_t>(e.application_id.size());
    r.application_bytes = static_cast<std::uint8_t>(e.application.size());
    r.flags = static_cast<std::uint8_t>(static_cast<unsigned>(e.state) | (e.expires_ms != 0 ? has_expiry : 0U));
    return r;
}

// `at` is where the texts of `r` begin.
key_view view_of(row const& r, unsigned char const* at) noexcept {
    key_view v;
    v.state = static_cast<key_state>(r.flags & 3U);
    if ((r.flags & has_expiry) != 0) {
        std::memcpy(&v.expires_ms, at, sizeof v.expires_ms);
        at += sizeof v.expires_ms;
    }
    auto const take = [&at](std::size_t bytes) {
        std::string_view const text(reinterpret_cast<char const*>(at), bytes);
        at += bytes;
        return text;
    };
    v.key_id = take(r.key_id_bytes);
    v.application_id = take(r.application_id_bytes);
    v.application = take(r.application_bytes);
    v.username = r.username_bytes == 0 ? v.application : take(r.username_bytes);
    return v;
}

constexpr std::size_t large_page_bytes = 2U << 20U;
constexpr std::size_t arena_block_bytes = 4 * large_page_bytes;
constexpr std::size_t arena_shard_bytes_min = 2048;  // of all shards: a page of 2 MiB

}  // namespace

std::shared_ptr<unsigned char> shard_arena::allocate(std::size_t bytes) {
    bytes = (bytes + 63) / 64 * 64;  // a shard begins at a cache line
    if (!block_ || used_ + bytes > arena_block_bytes) {
        std::size_t const block =
            std::max(arena_block_bytes, (bytes + large_page_bytes - 1) / large_page_bytes * large_page_bytes);
        auto* const p = static_cast<unsigned char*>(std::aligned_alloc(large_page_bytes, block));
        if (!p) throw std::bad_alloc();
        block_ = std::shared_ptr<unsigned char>(p, [](unsigned char* q) { std::free(q); });
        ::madvise(p, block, MADV_HUGEPAGE);  // only a wish
        used_ = 0;
    }
    auto* const at = block_.get() + used_;
    used_ += bytes;
    return {block_, at};
}

key_shard::key_shard(std::vector<key_entry> const& entries, shard_arena* arena) : size_(entries.size()) {
    if (size_ == 0) return;
    std::vector<std::string> usernames(size_);  // empty, without memory of its own, where it equals the name
    std::size_t bytes = 0;
    for (std::size_t i = 0; i < size_; ++i) {
        if (needs_encoding(entries[i].application)) usernames[i] = percent_encoded(entries[i].application);
        bytes += entry_bytes(entries[i], usernames[i]);
    }
    if (bytes / word > place_mask) throw std::length_error("the keys of one shard exceed 128 MiB");

    std::size_t const slots = slots_for(size_);
    std::size_t const entries_offset = slots * sizeof(std::uint32_t);
    slot_mask_ = static_cast<std::uint32_t>(slots - 1);
    std::size_t const all = entries_offset + bytes;
    if (arena && all >= arena_shard_bytes_min)
        memory_ = arena->allocate(all);
    else
        memory_ = std::shared_ptr<unsigned char>(new unsigned char[all], std::default_delete<unsigned char[]>());
    std::memset(memory_.get(), 0, entries_offset);

    auto* const start = memory_.get() + entries_offset;
    std::size_t place = 0;
    for (std::size_t i = 0; i < size_; ++i) {
        auto const r = make_row(entries[i], usernames[i]);
        put_texts(put(start + place, &r, sizeof r), entries[i], usernames[i]);
        std::uint32_t slot = start_of(r.hash) & slot_mask_;
        auto const value = static_cast<std::uint32_t>(tag_of(r.hash) | (place / word + 1));
        for (std::uint32_t taken = 1; taken != 0; slot = (slot + 1) & slot_mask_) {
            std::memcpy(&taken, memory_.get() + slot * sizeof taken, sizeof taken);
            if (taken == 0) std::memcpy(memory_.get() + slot * sizeof value, &value, sizeof value);
        }
        place += entry_bytes(entries[i], usernames[i]);
    }
}

unsigned char const* key_shard::location::slot(digest const& d) const noexcept {
    return memory + std::size_t{start_of(d) & slot_mask} * sizeof(std::uint32_t);
}

// Of the first slot that a look-up meets: nearly always the entry that it ends at.
unsigned char const* key_shard::location::likely_entry(digest const& d) const noexcept {
    std::uint32_t value = 0;
    std::memcpy(&value, slot(d), sizeof value);
    return value == 0 ? nullptr : entries() + std::size_t{(value & place_mask) - 1} * word;
}

bool key_shard::location::find(digest const& d, key_view& out) const noexcept {
    if (!memory) return false;
    std::uint32_t const tag = tag_of(d);
    for (std::uint32_t slot = start_of(d) & slot_mask;; slot = (slot + 1) & slot_mask) {
        std::uint32_t value = 0;
        std::memcpy(&value, memory + slot * sizeof value, sizeof value);
        if (value == 0) return false;
        if ((value & ~place_mask) != tag) continue;
        auto const* const at = entries() + std::size_t{(value & place_mask) - 1} * word;
        if (!same_digest(at, d)) continue;  // the digest is a row's first member
        row r;
        std::memcpy(&r, at, sizeof r);
        out = view_of(r, at + sizeof r);
        return true;
    }
}

void key_table::apply(std::vector<shard_update> const& updates) {
    for (auto const& u : updates) {
        shards_.at(u.index) = u.shard;
        places_[u.index] = u.shard ? u.shard->place() : key_shard::location{};
    }
    ++revision_;
}

std::size_t key_table::size() const noexcept {
    std::size_t keys = 0;
    for (auto const& shard : shards_) keys += shard ? shard->size() : 0;
    return keys;
}

std::string percent_encoded(std::string_view name) {
    constexpr std::string_view hex = "0123456789ABCDEF";
    std::string out;
    out.reserve(name.size() * 3);
    for (char const c : name) {
        auto const u = static_cast<unsigned char>(c);
        if (u >= 0x21 && u <= 0x7e && u != '%') {
            out.push_back(c);
        } else {
            out.push_back('%');
            out.push_back(hex[u >> 4U]);
            out.push_back(hex[u & 15U]);
        }
    }
    return out;
}

}  // namespace latchkey::keystore
