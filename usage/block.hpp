#pragma once
// Blocks: how thousands of usage records lie in one row of usage.db. A packer gathers records and seals them (compressed,
// checksummed); open_block and unpack go the other way and trust nothing they read. Format: see block.cpp.
//
// Threads: one at a time for each object.

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <string_view>

#include "base/error.hpp"
#include "usage/journal.hpp"
#include "usage/record.hpp"

namespace latchkey::usage {

inline constexpr std::size_t block_records = 4096;               // of a full block
inline constexpr std::size_t block_records_max = 8192;           // that a reader takes
inline constexpr std::size_t block_text_bytes_max = 1U << 20;    // strings of one block, each counted once
inline constexpr std::size_t block_packed_bytes_max = 4U << 20;  // decompressed; a block that claims more is damaged

class block_packer {
  public:
    block_packer();
    ~block_packer();
    block_packer(block_packer const&) = delete;
    block_packer& operator=(block_packer const&) = delete;

    // False: the block is full; seal it, clear, and add the record to the next. A record always fits into an empty block.
    // Strings longer than the ring keeps them are cut.
    bool add(record const&);
    block_meta const& meta() const noexcept;

    // The block of all records added, ready for journal::append; a view that lives until the next call of add, seal or clear.
    // Takes 0.1 to 0.2 us a record; `between` is called after every tenth or so of a full block and may sleep.
    result<std::string_view> seal(std::function<void()> const& between = {});
    void clear() noexcept;

  private:
    struct impl;
    std::unique_ptr<impl> impl_;
};

// Decompresses a sealed block into `packed` (its capacity is used again). `corrupt` where version, sizes or checksum are wrong.
class block_opener {
  public:
    block_opener();
    ~block_opener();
    block_opener(block_opener const&) = delete;
    block_opener& operator=(block_opener const&) = delete;
    result<void> open(std::string_view sealed, std::string& packed);

  private:
    struct impl;
    std::unique_ptr<impl> impl_;
};

// Steps through the records of a packed block; the views of a record live as long as the packed bytes and the reader.
class block_reader {
  public:
    // `corrupt` where the columns do not fit into the bytes.
    static result<block_reader> over(std::string_view packed);
    block_reader(block_reader&&) noexcept;
    block_reader& operator=(block_reader&&) noexcept;
    ~block_reader();

    std::uint64_t records() const noexcept;
    // The next record into `out`; false at the end, or where a column is damaged (ask damaged()).
    bool next(record& out) noexcept;
    bool damaged() const noexcept;

  private:
    struct impl;
    explicit block_reader(std::unique_ptr<impl>);
    std::unique_ptr<impl> impl_;
};

}  // namespace latchkey::usage
