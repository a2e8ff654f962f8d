#pragma once
// `usage.db`: usage records in compressed, checksummed blocks of thousands, and each ring's cursor, in SQLite (WAL). A block and
// the cursor behind it go in by one transaction, so a restart after any kill counts nothing twice and loses nothing.
// Block format: see block.hpp.
//
// Threads: a journal object belongs to one thread; any number of objects and processes may have the same file open, one writing.

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/error.hpp"
#include "usage/record.hpp"

namespace latchkey::usage {

struct block_meta {
    std::uint64_t records = 0;
    std::int64_t first_ms = 0;  // least and greatest time in the block
    std::int64_t last_ms = 0;
};

class journal {
  public:
    enum class mode { read_write, read_only };
    static result<std::unique_ptr<journal>> open(std::string const& file, mode);
    ~journal();
    journal(journal const&) = delete;
    journal& operator=(journal const&) = delete;

    // One transaction: the block, and "ring `ring_id` is journalled up to `cursor`". `conflict` where the ring is journalled that
    // far already; `io` too where the file was removed or replaced under us. After an error nothing of it is in the file.
    // Half a millisecond for a full block, and some more once in a mebibyte; `between` is called after every few microseconds of
    // it and may sleep, not use the journal, nor throw. Here and in remove_some().
    result<void> append(std::string_view ring_id, std::uint64_t cursor, block_meta const&, std::string_view block,
                        std::function<void()> const& between = {});
    // The cursor of a ring; nullopt: never seen.
    result<std::optional<std::uint64_t>> cursor_of(std::string_view ring_id);
    result<void> forget_ring(std::string_view ring_id);
    // The folder where the rings last lay; empty: never said.
    result<std::string> ring_dir();
    result<void> set_ring_dir(std::string_view folder);
    // Other folders in which rings of a process that still runs were seen last.
    result<std::vector<std::string>> other_ring_dirs();
    result<void> set_other_ring_dirs(std::vector<std::string> const& folders);
    // Removes some of the blocks whose last record is older than `before_ms`, the oldest first, in one transaction of a few
    // milliseconds (and what `between` sleeps); returns how many records went. 0: none is left.
    result<std::uint64_t> remove_some(std::int64_t before_ms, std::function<void()> const& between = {});

    // Visits blocks that may hold records of [from_ms, to_ms), in order of appending; `visit` false stops. The block is
    // already decompressed and its checksum proven; a damaged one is reported to `damaged` and skipped. What is visited is what
    // stood in the file at the call, without blocks that remove_some() takes meanwhile; no lock is held during `visit`, so a
    // slow reader hinders neither the writer nor its checkpoints.
    result<void> each_block(std::int64_t from_ms, std::int64_t to_ms, std::function<bool(std::string_view packed)> const& visit,
                            std::function<void(std::int64_t block_id, std::string_view why)> const& damaged);
    result<std::uint64_t> record_count();
    // The user that the file belongs to; nullopt where it is gone.
    std::optional<unsigned> owner() const noexcept;

  private:
    struct impl;
    explicit journal(std::unique_ptr<impl>);
    std::unique_ptr<impl> impl_;
};

}  // namespace latchkey::usage
