#include "usage/block.hpp"

#include <zstd.h>

#include <algorithm>
#include <array>
#include <bit>
#include <cstring>
#include <functional>
#include <span>
#include <vector>

#include "base/ids.hpp"

// Sealed block, as it lies in usage.db:
//
//   "LKB"  u8 version (1)  then one zstd frame with its content size and checksum
//
// Packed block, the content of that frame. Numbers are varints (LEB128: seven bits a byte, low ones first, at most ten bytes);
// signed ones are zigzag. Equal things stand together, column by column, because that is what the compressor needs:
//
//   records, base time in ms (signed), number of strings, then the length in bytes of each column, then the columns:
//   0       strings: each once, its length then its bytes; string 0 is empty and does not stand here
//   1       time: signed difference to the record before (the first: to the base time)
//   2..9    application, application id, key id, api, method, host, path, client address (16 bytes): numbers of strings
//   10      request id's form: 0: 32 lower-case hex digits, as 16 bytes in column 17; n > 0: n - 1 bytes of text in column 18
//   11..16  status, outcome, request bytes, response bytes, duration in us, upstream time in us
//   17, 18  request ids
//
// Strings are numbered in order of their first use. A reader that finds a column too short, too long, or a number out of its
// range calls the block damaged. A change of meaning takes a new version.

namespace latchkey::usage {

namespace {

constexpr std::string_view seal_magic = "LKB\x01";
// -1 costs two thirds of level 1's time and 8 % more space on this kind of data (bench/micro/usage_bench.cpp).
constexpr int compression_level = -1;
// Compressed at a time: some 50 us. 64 KiB take a tenth less time in all; a block is no longer for its steps.
constexpr std::size_t seal_step = 32 << 10;
constexpr std::size_t zstd_block_header = 3;  // what a step adds at most, beside ZSTD_compressBound (RFC 8878, 3.1.1.2)

enum column : std::size_t {
    col_strings,
    col_time,
    col_application,
    col_application_id,
    col_key_id,
    col_api,
    col_method,
    col_host,
    col_path,
    col_ip,
    col_id_form,
    col_status,
    col_outcome,
    col_request_bytes,
    col_response_bytes,
    col_duration,
    col_upstream,
    col_id_binary,
    col_id_text,
    columns
};

constexpr std::size_t name_bytes_max = 255;
constexpr std::size_t request_id_bytes_max = 128;
constexpr std::size_t varint_bytes_max = 10;
constexpr std::size_t strings_max = block_records_max * 8;

unsigned char* put_varint(unsigned char* to, std::uint64_t v) noexcept {
    while (v >= 0x80) {
        *to++ = static_cast<unsigned char>(v | 0x80U);
        v >>= 7U;
    }
    *to++ = static_cast<unsigned char>(v);
    return to;
}

std::uint64_t zigzag(std::uint64_t difference) noexcept { return (difference << 1U) ^ (0 - (difference >> 63U)); }
std::uint64_t unzigzag(std::uint64_t v) noexcept { return (v >> 1U) ^ (0 - (v & 1U)); }

// Eight hex digits at once. Each byte c becomes its value in the low nibble: digits are 0x30..0x39, letters 0x61..0x66, so
// (c & 15) + 9 * (c >> 6). False where a byte is neither.
bool eight_hex(char const* text, std::uint32_t& value) noexcept {
    constexpr std::uint64_t ones = 0x0101010101010101ULL;
    std::uint64_t c = 0;
    std::memcpy(&c, text, 8);
    if ((c & (ones * 0x80)) != 0) return false;
    auto const at_least = [&](unsigned char x) { return (c + ones * (0x80U - x)) & (ones * 0x80); };
    auto const digit = at_least('0') & ~at_least('9' + 1);
    auto const letter = at_least('a') & ~at_least('f' + 1);
    if ((digit | letter) != ones * 0x80) return false;
    std::uint64_t n = (c & (ones * 15)) + ((letter >> 7U) * 9);
    if constexpr (std::endian::native == std::endian::little) n = __builtin_bswap64(n);
    n = (n | (n >> 4U)) & 0x00ff00ff00ff00ffULL;
    n = (n | (n >> 8U)) & 0x0000ffff0000ffffULL;
    value = static_cast<std::uint32_t>(n | (n >> 16U));
    return true;
}

bool hex_to_binary(std::string_view text, unsigned char* to) noexcept {
    if (text.size() != 32) return false;
    for (std::size_t i = 0; i < 4; ++i) {
        std::uint32_t word = 0;
        if (!eight_hex(text.data() + 8 * i, word)) return false;
        for (std::size_t b = 0; b < 4; ++b) to[4 * i + b] = static_cast<unsigned char>(word >> (24 - 8 * b));
    }
    return true;
}

void binary_to_hex(unsigned char const* from, char* to) noexcept {
    for (std::size_t i = 0; i < 16; ++i) {
        to[2 * i] = "0123456789abcdef"[from[i] >> 4U];
        to[2 * i + 1] = "0123456789abcdef"[from[i] & 15U];
    }
}

// As ==, for short strings: inline, and from the end, where identifiers and paths of one kind differ.
bool equal(std::string_view a, std::string_view b) noexcept {
    if (a.size() != b.size()) return false;
    auto n = a.size();
    if (n < 8) return std::equal(a.begin(), a.end(), b.begin());
    auto const differ = [&](std::size_t at) {
        std::uint64_t x = 0;
        std::uint64_t y = 0;
        std::memcpy(&x, a.data() + at, 8);
        std::memcpy(&y, b.data() + at, 8);
        return x != y;
    };
    for (; n >= 8; n -= 8)
        if (differ(n - 8)) return false;
    return !differ(0);
}

// The strings of a block, each once, as column 0 has them. An open-addressed table that grows with them; hashed with a random
// seed, because paths are chosen by clients, who must not be able to make a block slow.
class string_table {
  public:
    string_table() : slots_(first_slots), text_(new unsigned char[block_text_bytes_max + headroom]) {
        random_bytes(std::as_writable_bytes(std::span(&seed_, 1)));
        ends_.reserve(first_slots);
        clear();
    }

    // Room for the strings of one more record?
    bool has_room() const noexcept { return text_bytes() < block_text_bytes_max && ends_.size() + 8 <= strings_max; }
    std::size_t text_bytes() const noexcept { return ends_.back(); }
    std::size_t size() const noexcept { return ends_.size(); }
    std::span<unsigned char const> column() const noexcept { return {text_.get(), text_bytes()}; }

    std::uint32_t number_of(std::string_view text) {
        if (text.empty()) return 0;
        auto const h = hash(text);
        auto const tag = static_cast<std::uint32_t>(h >> 32U);
        auto const mask = slots_.size() - 1;
        auto i = static_cast<std::size_t>(h) & mask;
        for (; slots_[i].number != 0; i = (i + 1) & mask)
            if (slots_[i].tag == tag && equal(at(slots_[i].number), text)) return slots_[i].number;
        auto const number = static_cast<std::uint32_t>(ends_.size());
        slots_[i] = {tag, number};
        auto* const to = put_varint(text_.get() + ends_.back(), text.size());
        std::memcpy(to, text.data(), text.size());
        ends_.push_back(static_cast<std::uint32_t>(to + text.size() - text_.get()));
        if (ends_.size() * 2 > slots_.size()) grow();
        return number;
    }

    std::string_view at(std::uint32_t number) const noexcept {
        if (number == 0) return {};
        auto const begin = ends_[number - 1];
        auto const bytes = ends_[number] - begin;
        std::uint32_t const length = bytes > 0x80 ? 2 : 1;  // bytes of it: two from a text of 128 on
        return {reinterpret_cast<char const*>(text_.get()) + begin + length, bytes - length};
    }

    void clear() noexcept {
        std::fill(slots_.begin(), slots_.end(), slot{});
        ends_.assign(1, 0);
    }

  private:
    struct slot {
        std::uint32_t tag = 0;
        std::uint32_t number = 0;  // 0: empty
    };
    static constexpr std::size_t first_slots = 1024;
    static constexpr std::size_t headroom = 8 * (2 + path_bytes_max);  // the last record's strings

    static std::uint64_t fold(std::uint64_t a, std::uint64_t b) noexcept {
        __extension__ using wide = unsigned __int128;
        auto const product = static_cast<wide>(a) * b;
        return static_cast<std::uint64_t>(product) ^ static_cast<std::uint64_t>(product >> 64U);
    }
    std::uint64_t hash(std::string_view text) const noexcept {
        std::uint64_t h = seed_ ^ text.size();
        auto const* p = text.data();
        auto n = text.size();
        std::uint64_t low = 0;
        std::uint64_t high = 0;
        for (; n > 16; n -= 16, p += 16) {
            std::memcpy(&low, p, 8);
            std::memcpy(&high, p + 8, 8);
            h = fold(low ^ h, high ^ 0x9E3779B97F4A7C15ULL);
        }
        low = high = 0;
        if (n >= 8) {
            std::memcpy(&low, p, 8);
            std::memcpy(&high, p + n - 8, 8);
        } else if (n >= 4) {
            std::memcpy(&low, p, 4);
            std::memcpy(&high, p + n - 4, 4);
        } else {
            low = static_cast<unsigned char>(p[0]) | static_cast<std::uint64_t>(static_cast<unsigned char>(p[n / 2])) << 8U |
                  static_cast<std::uint64_t>(static_cast<unsigned char>(p[n - 1])) << 16U;
        }
        return fold(fold(low ^ h, high ^ 0xD6E8FEB86659FD93ULL) ^ seed_, 0xA0761D6478BD642FULL);
    }
    void grow() {
        std::vector<slot> larger(slots_.size() * 2);
        for (std::uint32_t number = 1; number < ends_.size(); ++number) {
            auto const h = hash(at(number));
            auto i = static_cast<std::size_t>(h) & (larger.size() - 1);
            while (larger[i].number != 0) i = (i + 1) & (larger.size() - 1);
            larger[i] = {static_cast<std::uint32_t>(h >> 32U), number};
        }
        slots_.swap(larger);
    }

    std::uint64_t seed_ = 0;
    std::vector<slot> slots_;
    std::vector<std::uint32_t> ends_;  // [number]: where its text ends; [0] is 0
    std::unique_ptr<unsigned char[]> text_;
};

struct free_compressor {
    void operator()(ZSTD_CCtx* c) const noexcept { ZSTD_freeCCtx(c); }
};
struct free_decompressor {
    void operator()(ZSTD_DCtx* c) const noexcept { ZSTD_freeDCtx(c); }
};

error damage(std::string_view why) { return error{errc::corrupt, "a usage block is damaged: " + std::string(why)}; }

// Greatest number of bytes that one record may put into a column.
constexpr std::size_t column_bytes(std::size_t c) {
    if (c == col_id_binary) return 16;
    if (c == col_id_text) return request_id_bytes_max;
    if (c == col_outcome) return 1;
    if (c == col_strings) return 0;
    return varint_bytes_max;
}

}  // namespace

struct block_packer::impl {
    string_table strings;
    std::array<std::unique_ptr<unsigned char[]>, columns> start;
    std::array<unsigned char*, columns> end{};
    // The last number of each string column: neighbours are often equal.
    std::array<std::uint32_t, columns> last{};
    std::int64_t base_time = 0;
    std::int64_t last_time = 0;
    // By the key's number: what stood in application, application id and client address beside it the last time. They seldom
    // change for one key, and a guess that is compared is cheaper than a look-up.
    std::vector<std::array<std::uint32_t, 3>> beside_key;
    block_meta meta;
    std::unique_ptr<ZSTD_CCtx, free_compressor> compressor{ZSTD_createCCtx()};
    std::string sealed;

    impl() {
        for (std::size_t c = 1; c < columns; ++c) start[c].reset(new unsigned char[block_records * column_bytes(c)]);
        clear();
        ZSTD_CCtx_setParameter(compressor.get(), ZSTD_c_compressionLevel, compression_level);
        ZSTD_CCtx_setParameter(compressor.get(), ZSTD_c_checksumFlag, 1);
    }
    void clear() noexcept {
        strings.clear();
        for (std::size_t c = 0; c < columns; ++c) end[c] = start[c].get();
        last.fill(0);
        beside_key.clear();
        meta = {};
    }
    void number(column c, std::uint64_t v) noexcept { end[c] = put_varint(end[c], v); }
    // Puts the string's number; `guess` is the number it may well have, and becomes the one it has.
    void text(column c, std::string_view t, std::uint32_t& guess) {
        if (!equal(strings.at(guess), t)) guess = strings.number_of(t);
        number(c, guess);
    }
    void text(column c, std::string_view t) { text(c, t, last[c]); }
    void request_id(std::string_view id) noexcept {
        if (hex_to_binary(id, end[col_id_binary])) {
            end[col_id_binary] += 16;
            number(col_id_form, 0);
            return;
        }
        id = id.substr(0, request_id_bytes_max);
        number(col_id_form, id.size() + 1);
        if (!id.empty()) std::memcpy(end[col_id_text], id.data(), id.size());
        end[col_id_text] += id.size();
    }
    std::span<unsigned char const> column_bytes_of(std::size_t c) const noexcept {
        if (c == col_strings) return strings.column();
        return {start[c].get(), end[c]};
    }
};

block_packer::block_packer() : impl_(std::make_unique<impl>()) {}
block_packer::~block_packer() = default;
block_meta const& block_packer::meta() const noexcept { return impl_->meta; }
void block_packer::clear() noexcept { impl_->clear(); }

bool block_packer::add(record const& r) {
    auto& b = *impl_;
    if (b.meta.records == block_records || !b.strings.has_room()) return false;
    if (b.meta.records++ == 0) b.base_time = b.last_time = b.meta.first_ms = b.meta.last_ms = r.time_ms;
    b.meta.first_ms = std::min(b.meta.first_ms, r.time_ms);
    b.meta.last_ms = std::max(b.meta.last_ms, r.time_ms);
    b.number(col_time, zigzag(static_cast<std::uint64_t>(r.time_ms) - static_cast<std::uint64_t>(b.last_time)));
    b.last_time = r.time_ms;
    b.text(col_key_id, r.key_id.substr(0, name_bytes_max));
    auto const key = b.last[col_key_id];
    if (key >= b.beside_key.size()) b.beside_key.resize(key + 1);
    auto& [application, application_id, address] = b.beside_key[key];
    b.text(col_application, r.application.substr(0, name_bytes_max), application);
    b.text(col_application_id, r.application_id.substr(0, name_bytes_max), application_id);
    b.text(col_ip, {reinterpret_cast<char const*>(r.client_ip.data()), r.client_ip.size()}, address);
    b.text(col_api, r.api.substr(0, name_bytes_max));
    b.text(col_method, r.method.substr(0, method_bytes_max));
    b.text(col_host, r.host.substr(0, host_bytes_max));
    b.text(col_path, r.path.substr(0, path_bytes_max));
    b.request_id(r.request_id);
    b.number(col_status, r.status);
    b.number(col_outcome, static_cast<std::uint8_t>(r.end));
    b.number(col_request_bytes, r.request_bytes);
    b.number(col_response_bytes, r.response_bytes);
    b.number(col_duration, r.duration_us);
    b.number(col_upstream, r.upstream_us);
    return true;
}

namespace {

// Writes one zstd frame into `out` from `begin` on, and calls `between` after every seal_step bytes of its content, whose size is
// known before. `out` only grows: what is longer than needed is not written anew each time.
class frame_writer {
  public:
    frame_writer(ZSTD_CCtx* c, std::string& out, std::size_t begin, std::size_t content, std::function<void()> const& between)
        : compressor_(c), between_(between) {
        auto const needed = begin + ZSTD_compressBound(content) + (content / seal_step + 1) * zstd_block_header;
        if (out.size() < needed) out.resize(needed);
        to_ = {out.data(), out.size(), begin};
        ZSTD_CCtx_reset(c, ZSTD_reset_session_only);
        ZSTD_CCtx_setPledgedSrcSize(c, content);
    }

    void put(std::span<unsigned char const> bytes) {
        while (!bytes.empty()) {
            auto const n = std::min(bytes.size(), seal_step - in_step_);
            in_step_ = (in_step_ + n) % seal_step;
            compress(bytes.first(n), in_step_ == 0 ? ZSTD_e_flush : ZSTD_e_continue);
            bytes = bytes.subspan(n);
            if (in_step_ == 0 && between_) between_();
        }
    }

    // Where the frame ends in `out`.
    result<std::size_t> end() {
        compress({}, ZSTD_e_end);
        if (why_ != nullptr) return error{errc::io, std::string("a usage block cannot be compressed: ") + why_};
        return to_.pos;
    }

  private:
    void compress(std::span<unsigned char const> bytes, ZSTD_EndDirective how) {
        ZSTD_inBuffer in{bytes.data(), bytes.size(), 0};
        auto const left = ZSTD_compressStream2(compressor_, &to_, &in, how);
        if (why_ != nullptr) return;
        if (ZSTD_isError(left) != 0)
            why_ = ZSTD_getErrorName(left);
        else if (in.pos != in.size || (how != ZSTD_e_continue && left != 0))
            why_ = "it is longer than it can be";
    }

    ZSTD_CCtx* compressor_;
    std::function<void()> const& between_;
    ZSTD_outBuffer to_{};
    std::size_t in_step_ = 0;
    char const* why_ = nullptr;  // the first failure
};

}  // namespace

result<std::string_view> block_packer::seal(std::function<void()> const& between) {
    auto& b = *impl_;
    std::array<unsigned char, (columns + 3) * varint_bytes_max> head;
    auto* to = head.data();
    to = put_varint(to, b.meta.records);
    to = put_varint(to, zigzag(static_cast<std::uint64_t>(b.base_time)));
    to = put_varint(to, b.strings.size() - 1);
    std::size_t content = 0;
    for (std::size_t c = 0; c < columns; ++c) {
        auto const bytes = b.column_bytes_of(c).size();
        to = put_varint(to, bytes);
        content += bytes;
    }
    auto const head_bytes = static_cast<std::size_t>(to - head.data());

    frame_writer frame(b.compressor.get(), b.sealed, seal_magic.size(), head_bytes + content, between);
    std::copy(seal_magic.begin(), seal_magic.end(), b.sealed.begin());
    frame.put(std::span(head).first(head_bytes));
    for (std::size_t c = 0; c < columns; ++c) frame.put(b.column_bytes_of(c));
    auto const end = frame.end();
    if (!end) return end.error();
    return std::string_view(b.sealed).substr(0, *end);
}

struct block_opener::impl {
    std::unique_ptr<ZSTD_DCtx, free_decompressor> decompressor{ZSTD_createDCtx()};
};

block_opener::block_opener() : impl_(std::make_unique<impl>()) {}
block_opener::~block_opener() = default;

result<void> block_opener::open(std::string_view sealed, std::string& packed) {
    if (!sealed.starts_with(seal_magic)) return damage("not a block of a version known here");
    sealed.remove_prefix(seal_magic.size());
    auto const bytes = ZSTD_getFrameContentSize(sealed.data(), sealed.size());
    if (bytes == ZSTD_CONTENTSIZE_UNKNOWN || bytes == ZSTD_CONTENTSIZE_ERROR || bytes > block_packed_bytes_max)
        return damage("it does not say its size, or too great a one");
    packed.resize(static_cast<std::size_t>(bytes));
    auto const n = ZSTD_decompressDCtx(impl_->decompressor.get(), packed.data(), packed.size(), sealed.data(), sealed.size());
    if (ZSTD_isError(n) != 0) return damage(ZSTD_getErrorName(n));
    if (n != bytes) return damage("it is shorter than it says");
    return {};
}

namespace {

// What is left of a column. Every take checks; the first that fails sets `bad` and all later ones give nothing.
struct cursor {
    unsigned char const* at = nullptr;
    unsigned char const* end = nullptr;

    std::uint64_t varint(bool& bad) noexcept {
        std::uint64_t v = 0;
        for (unsigned shift = 0; at != end && shift < 70; shift += 7) {
            auto const byte = *at++;
            if (shift == 63 && byte > 1) break;
            v |= static_cast<std::uint64_t>(byte & 0x7fU) << shift;
            if (byte < 0x80) return v;
        }
        bad = true;
        return 0;
    }
    std::uint64_t varint_to(std::uint64_t max, bool& bad) noexcept {
        auto const v = varint(bad);
        if (v > max) bad = true;
        return v > max ? 0 : v;
    }
    std::string_view bytes(std::uint64_t n, bool& bad) noexcept {
        if (n > static_cast<std::uint64_t>(end - at)) bad = true;
        if (bad) return {};
        std::string_view const text(reinterpret_cast<char const*>(at), static_cast<std::size_t>(n));
        at += n;
        return text;
    }
};

}  // namespace

struct block_reader::impl {
    std::uint64_t records = 0;
    std::uint64_t left = 0;
    std::uint64_t time = 0;
    bool bad = false;
    std::array<cursor, columns> column_at;
    std::vector<std::string_view> strings;
    std::array<char, 32> hex{};

    bool parse(std::string_view packed);
    std::string_view text(column c) noexcept { return strings[column_at[c].varint_to(strings.size() - 1, bad)]; }
    std::uint64_t number(column c, std::uint64_t max) noexcept { return column_at[c].varint_to(max, bad); }
    std::string_view request_id() noexcept;
};

block_reader::block_reader(std::unique_ptr<impl> i) : impl_(std::move(i)) {}
block_reader::block_reader(block_reader&&) noexcept = default;
block_reader& block_reader::operator=(block_reader&&) noexcept = default;
block_reader::~block_reader() = default;
std::uint64_t block_reader::records() const noexcept { return impl_->records; }
bool block_reader::damaged() const noexcept { return impl_->bad; }

bool block_reader::impl::parse(std::string_view packed) {
    cursor all;
    all.at = reinterpret_cast<unsigned char const*>(packed.data());
    all.end = all.at + packed.size();
    records = left = all.varint_to(block_records_max, bad);
    time = unzigzag(all.varint(bad));
    auto const string_count = all.varint_to(strings_max, bad);
    std::array<std::uint64_t, columns> lengths{};
    for (auto& length : lengths) length = all.varint_to(block_packed_bytes_max, bad);
    for (std::size_t c = 0; c < columns && !bad; ++c) {
        auto const bytes = all.bytes(lengths[c], bad);
        column_at[c].at = reinterpret_cast<unsigned char const*>(bytes.data());
        column_at[c].end = column_at[c].at + bytes.size();
    }
    if (bad || all.at != all.end) return false;
    strings.assign(1, {});
    // A string takes at least a byte, so the count cannot make us reserve more than the block has.
    strings.reserve(std::min<std::uint64_t>(string_count, lengths[col_strings]) + 1);
    for (std::uint64_t i = 0; i < string_count && !bad; ++i)
        strings.push_back(column_at[col_strings].bytes(column_at[col_strings].varint_to(path_bytes_max, bad), bad));
    return !bad && column_at[col_strings].at == column_at[col_strings].end;
}

result<block_reader> block_reader::over(std::string_view packed) {
    auto i = std::make_unique<impl>();
    if (!i->parse(packed)) return damage("its columns do not fit");
    return block_reader(std::move(i));
}

std::string_view block_reader::impl::request_id() noexcept {
    auto const form = number(col_id_form, request_id_bytes_max + 1);
    if (form > 0) return column_at[col_id_text].bytes(form - 1, bad);
    auto const binary = column_at[col_id_binary].bytes(16, bad);
    if (bad) return {};
    binary_to_hex(reinterpret_cast<unsigned char const*>(binary.data()), hex.data());
    return {hex.data(), hex.size()};
}

bool block_reader::next(record& out) noexcept {
    auto& b = *impl_;
    if (b.left == 0 || b.bad) return false;
    --b.left;
    b.time += unzigzag(b.column_at[col_time].varint(b.bad));
    out.time_ms = static_cast<std::int64_t>(b.time);
    out.application = b.text(col_application);
    out.application_id = b.text(col_application_id);
    out.key_id = b.text(col_key_id);
    out.api = b.text(col_api);
    out.method = b.text(col_method);
    out.host = b.text(col_host);
    out.path = b.text(col_path);
    auto const ip = b.text(col_ip);
    if (ip.size() != out.client_ip.size()) b.bad = true;
    if (!b.bad) std::memcpy(out.client_ip.data(), ip.data(), ip.size());
    out.request_id = b.request_id();
    out.status = static_cast<std::uint16_t>(b.number(col_status, 0xffff));
    out.end = static_cast<outcome>(b.number(col_outcome, static_cast<std::uint8_t>(outcome::shut_down)));
    out.request_bytes = b.number(col_request_bytes, ~std::uint64_t{0});
    out.response_bytes = b.number(col_response_bytes, ~std::uint64_t{0});
    out.duration_us = static_cast<std::uint32_t>(b.number(col_duration, 0xffffffff));
    out.upstream_us = static_cast<std::uint32_t>(b.number(col_upstream, 0xffffffff));
    if (b.left == 0)
        for (auto const& c : b.column_at)
            if (c.at != c.end) b.bad = true;
    return !b.bad;
}

}  // namespace latchkey::usage
