#pragma once
// The files of a data directory's rings: how they are named, which of a folder's files are ours, what becomes of one that an
// earlier process left. For recorder.cpp; one thread.

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "base/error.hpp"
#include "usage/block.hpp"
#include "usage/journal.hpp"
#include "usage/ring.hpp"

namespace latchkey::usage {

// 16 hex digits that stand for a folder: SHA-256 of its real path, cut. `io` where the folder is not there.
result<std::string> folder_tag(std::string const& folder);

// "FOLDER/TAG-NUMBER.ring"
std::string ring_file(std::string const& folder, std::string_view tag, unsigned number);

struct found_ring {
    std::string file;
    unsigned number = 0;
};
// The ring files of `tag` in `folder`, whatever kind of file bears the name, by number. A folder that is not there has none.
result<std::vector<found_ring>> list_rings(std::string const& folder, std::string_view tag);

// Makes the folder (mode 0700) if it is not there. `not_allowed` where it is not a folder, or with `ours_alone` where it is a
// symbolic link, belongs to another user, or others may write in it.
result<void> make_folder(std::string const& folder, bool ours_alone);

// What one pass over a ring brought.
struct taken {
    std::uint64_t records = 0;
    bool damaged = false;  // a frame could not be read; everything before it is in the journal
};
// Moves the committed records of `from` behind `position`, at most a ring full of them, into the journal: block by block, each in
// one transaction with the cursor behind it, and only then frees them in the ring. `position` follows, and `counted` with each
// block. An error is the journal's; what was not journalled is still in the ring. `between` is called after every 32 records at
// most, and again and again while a block is sealed and written: whoever shares a processor with a worker can stand back there.
result<taken> take_records(
    ring& from, std::uint64_t& position, journal& into, block_packer& packer, std::atomic<std::uint64_t>* counted = nullptr,
    std::function<void()> const& between = [] {});

// Recovers what a file holds, once and only once. Then the ring itself where it can go on as the ring of a worker
// (`keep_bytes` is its size), or null: the file is gone, or stands aside as FILE.damaged. Errors: a file that is not ours, is in
// use, or was made by a later version; the journal's errors. `between` as above.
result<std::unique_ptr<ring>> recover_ring(
    std::string const& file, std::uint64_t keep_bytes, journal& into, block_packer& packer, std::uint64_t& recovered,
    std::function<void()> const& between = [] {});

}  // namespace latchkey::usage
