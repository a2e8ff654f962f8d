#pragma once
// The usage ring: one memory-mapped file per worker, one producer (the worker), one consumer (the flusher). A killed process
// loses nothing of it, because the kernel keeps the pages. Format and memory orders: see ring.cpp.
//
// A record is *prepared* before the last byte of its response leaves, and *committed* or *retracted* right after that write:
// recovery counts a prepared record as said, the flusher only takes committed ones. So after kill -9 a request whose response
// reached its client whole is on record exactly once. Several may be prepared before the first of them is committed or retracted,
// where their responses leave by one system call: then that is done in the order in which they were prepared.

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>

#include "base/error.hpp"
#include "usage/record.hpp"

namespace latchkey::usage {

class ring {
  public:
    // Opens or makes `file` (mode 0600, never through a symbolic link) with a data area of `bytes` (a power of two, from
    // 64 KiB). An existing file of the same size goes on at its positions; of another size, or outdated: `conflict`, recover and
    // remove it first. `bytes` 0 takes an existing file as it is and makes none: `not_found` where there is none, or one that was
    // never finished. A link or a file that is not ours alone: `not_allowed`; for root, what belongs to the user `also_of` is
    // ours too. Held by a running process: `busy`. Damaged: `corrupt`.
    static result<std::unique_ptr<ring>> open(std::string const& file, std::uint64_t bytes, std::optional<unsigned> also_of = {});
    ~ring();
    ring(ring const&) = delete;
    ring& operator=(ring const&) = delete;

    // --- producer: the worker's thread. No allocation, no system call, no lock.

    // Copies the record behind the committed ones. False: no room; counted in dropped() unless `count_drop` is false.
    bool prepare(record const&, bool count_drop = true) noexcept;
    // Makes the first of the prepared records final. The outcome, status, bytes and times may be set to what happened at last.
    void commit() noexcept;
    void commit(outcome end, std::uint64_t response_bytes, std::uint32_t duration_us) noexcept;
    // Takes the first of the prepared records back (the last byte did not leave after all).
    void retract() noexcept;
    // True where a record of the greatest size fits now.
    bool has_room() const noexcept;

    // --- any thread
    std::uint64_t dropped() const noexcept;   // records that found no room, since the file was made
    std::uint64_t appended() const noexcept;  // records committed, since the file was made
    double fill() const noexcept;             // 0..1

    // --- consumer: the flusher's thread (or recovery, when no producer runs)
    std::string_view id() const noexcept;   // 32 hex characters, made with the file
    std::uint64_t cursor() const noexcept;  // position up to which the journal has everything
    std::uint64_t size() const noexcept { return mask_ + 1; }
    bool outdated() const noexcept;  // made by an earlier Latchkey that would not read what we write: to be recovered, no more
    // Visits committed records from `from` on, at most `max_records`; returns the position behind the last one visited.
    // A damaged record (length, checksum) ends the visit: `corrupt`. The visitor's views hold until release().
    template <class Visit>
    result<std::uint64_t> read(std::uint64_t from, std::size_t max_records, Visit&& visit);
    // Commits what a killed producer had prepared. Only where no producer runs.
    void recover_prepared() noexcept;
    // Frees everything before `position` for the producer, after the journal has committed it.
    void release(std::uint64_t position) noexcept;

  private:
    ring() = default;
    bool read_one(std::uint64_t& position, record& out, bool& damaged) const noexcept;
    std::uint64_t frame_at(std::uint64_t position, std::uint64_t room, record& out, bool& taken_back) const noexcept;
    std::uint64_t past_pad(std::uint64_t position) const noexcept;
    struct layout;
    layout* shared_ = nullptr;
    unsigned char* data_ = nullptr;
    std::uint64_t mask_ = 0;
    std::uint64_t first_prepared() const noexcept;
    void resolved(std::uint64_t end) noexcept;
    std::uint64_t prepared_end_ = 0;  // of the last one; 0: there is none
    std::size_t mapped_ = 0;
    int descriptor_ = -1;
};

template <class Visit>
result<std::uint64_t> ring::read(std::uint64_t from, std::size_t max_records, Visit&& visit) {
    record r;
    bool damaged = false;
    for (std::size_t n = 0; n < max_records && read_one(from, r, damaged); ++n) visit(r);
    if (damaged) return error{errc::corrupt, "the usage ring is damaged; what stood before the damage was kept"};
    return from;
}

}  // namespace latchkey::usage
