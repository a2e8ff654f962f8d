#include "usage/ring.hpp"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <bit>
#include <cassert>
#include <cerrno>
#include <cstddef>
#include <cstring>
#include <span>
#include <system_error>

#include "base/ids.hpp"
#include "base/short_copy.hpp"

// The file: one header page, then the data area. Native byte order (the magic tells): a ring never leaves its machine.
//
//   header page   line 0  magic, version, header size, data size, id, check of these; written once, the magic last
//                 line 1  head      stored by the producer only
//                 line 2  cursor    stored by the consumer only
//                 line 3  appended, dropped   stored by the producer only
//   data area     frames end to end, each at a multiple of 8, none across the end of the area
//
// Positions count bytes since the file was made and only grow; a position's place is `position mod data size`. The committed
// frames are those from `cursor` to `head`; head - cursor never exceeds the data size.
//
//   frame   0  u64  mark    position | kind. Kinds: 1 record; 3 record whose end stands in `final`; 4 one that was taken back;
//                           2 pad, the rest of the area is skipped (a pad has no more than these eight bytes). 0: nothing
//                           stands here.
//           8  u32  length  of the whole frame, a multiple of 8
//          12  u32  check   of position, length and everything from byte 40 on, seeded with the ring's id
//          16  final        outcome, response bytes and duration as commit(...) set them, with a check of their own
//          40  fixed        fields of the record and the lengths of its strings
//         100  strings, then zeros up to a multiple of 8
//
// The mark carries the position, so a frame that stood here a lap ago never passes for one of this lap; and the seeded check
// keeps text that a client sent from passing for a frame.
//
// What a kill can leave. A killed process has executed some prefix of its instructions, and all stores of that prefix are in the
// page cache; what has to be right is therefore the order of the stores in the program, which the release stores below fix:
//
//   prepare  1 mark := 0, 2 frame from byte 8 on, 3 mark := position|1 (release)
//            Killed before 3: no mark, nothing was said. After 3: a whole record stands at head, or behind others that are
//            prepared, and recovery commits it.
//            Where the record does not fit before the end of the area, a pad is written and head moves over it first: head
//            then stands at a place that holds no valid mark of this position, as after any commit. Behind others that are
//            prepared head stays, and whoever looks for the first prepared record looks behind a pad, too.
//   commit   1 final, 2 mark := position|3 (release), 3 head := end (release). Without new values only step 3.
//            Killed before 2: the record as it was prepared is valid, for its check does not cover `final`. Between 2 and 3: the
//            record with its end is valid, and recovery commits it. After 3 it is committed.
//   retract  mark := 0 (release), or where others are prepared behind it: mark := position|4 (release), head := end (release).
//            Killed before: the record counts as said; after: it does not, and recovery passes over it.
//
// Memory orders between living threads. head: release by the producer, acquire by the consumer, so the consumer sees whole
// frames. cursor: release by the consumer after its last look at a frame, acquire by the producer before it writes there. The
// marks matter to recovery only, when no producer runs. Counters are relaxed: one writer, any reader. A kill between a counter
// and head may leave `appended` one off; nothing is decided by it.

namespace latchkey::usage {

namespace {

constexpr std::size_t page_bytes = 4096;
constexpr std::uint64_t data_bytes_min = 64 * 1024;
constexpr std::uint64_t data_bytes_max = 1ULL << 40;
constexpr std::uint64_t ring_magic = 0x31474e495255'4b4cULL;  // "LKURING1" in memory on a little-endian machine
constexpr std::uint32_t ring_version = 2;                     // 1: no record was ever taken back while another stood behind it
constexpr std::size_t id_chars = 32;

constexpr std::uint64_t kind_record = 1;
constexpr std::uint64_t kind_pad = 2;
constexpr std::uint64_t kind_final = 3;
constexpr std::uint64_t kind_void = 4;

constexpr std::size_t request_id_bytes_max = 128;
constexpr std::size_t name_bytes_max = 255;

struct final_part {
    std::uint64_t response_bytes;
    std::uint32_t duration_us;
    std::uint32_t end;
    std::uint64_t check;
};

struct fixed_part {
    std::int64_t time_ms;
    std::uint64_t request_bytes;
    std::uint64_t response_bytes;
    std::uint32_t duration_us;
    std::uint32_t upstream_us;
    std::array<unsigned char, 16> client_ip;
    std::uint16_t status;
    std::uint16_t path_bytes;
    std::uint8_t end;
    // request_id, application, application_id, key_id, api, method, host
    std::array<std::uint8_t, 7> text_bytes;
};

constexpr std::size_t length_at = 8;
constexpr std::size_t check_at = 12;
constexpr std::size_t final_at = 16;
constexpr std::size_t fixed_at = final_at + sizeof(final_part);
constexpr std::size_t fixed_bytes = offsetof(fixed_part, text_bytes) + 7;
constexpr std::size_t text_at = fixed_at + fixed_bytes;
static_assert(sizeof(final_part) == 24 && fixed_at == 40 && text_at == 100);

constexpr std::uint64_t round_up(std::uint64_t n) { return (n + 7) & ~std::uint64_t{7}; }

constexpr std::uint64_t frame_bytes_max =
    round_up(text_at + request_id_bytes_max + 4 * name_bytes_max + method_bytes_max + host_bytes_max + path_bytes_max);
static_assert(frame_bytes_max * 8 < data_bytes_min);

constexpr std::uint64_t usual_frame_bytes = 384;

template <class T>
T load(unsigned char const* at) noexcept {
    T value;
    std::memcpy(&value, at, sizeof value);
    return value;
}

template <class T>
void store(unsigned char* at, T const& value) noexcept {
    std::memcpy(at, &value, sizeof value);
}

std::atomic_ref<std::uint64_t> mark_at(unsigned char* frame) noexcept {
    return std::atomic_ref<std::uint64_t>(*reinterpret_cast<std::uint64_t*>(frame));
}

// Four lanes of multiply and rotate, so that the multiplications of one record overlap: 200 bytes take about 12 ns on any
// 64-bit machine, without a choice of instruction set at run time. Detects damage; it is no defence against who knows the seed.
constexpr std::uint64_t prime_a = 0x9E3779B185EBCA87ULL;
constexpr std::uint64_t prime_b = 0xC2B2AE3D27D4EB4FULL;

std::uint64_t mix(std::uint64_t lane, std::uint64_t word) noexcept { return std::rotl(lane + word * prime_b, 31) * prime_a; }

std::uint64_t checksum(std::uint64_t seed, unsigned char const* words, std::size_t bytes) noexcept {
    std::uint64_t a = seed + prime_a + prime_b;
    std::uint64_t b = seed + prime_b;
    std::uint64_t c = seed;
    std::uint64_t d = seed - prime_a;
    for (; bytes >= 32; bytes -= 32, words += 32) {
        a = mix(a, load<std::uint64_t>(words));
        b = mix(b, load<std::uint64_t>(words + 8));
        c = mix(c, load<std::uint64_t>(words + 16));
        d = mix(d, load<std::uint64_t>(words + 24));
    }
    if (bytes >= 8) a = mix(a, load<std::uint64_t>(words));
    if (bytes >= 16) b = mix(b, load<std::uint64_t>(words + 8));
    if (bytes >= 24) c = mix(c, load<std::uint64_t>(words + 16));
    std::uint64_t h = std::rotl(a, 1) + std::rotl(b, 7) + std::rotl(c, 12) + std::rotl(d, 18);
    h = (h ^ (h >> 33)) * prime_b;
    h = (h ^ (h >> 29)) * prime_a;
    return h ^ (h >> 32);
}

error refuse(errc code, std::string const& file, std::string_view why) {
    return error{code, "the usage ring " + file + " " + std::string(why)};
}

error system_says(std::string const& file, std::string_view what, int number) {
    return refuse(errc::io, file, std::string(what) + ": " + std::generic_category().message(number));
}

// Strings of a record as they go into a frame: cut to what a frame can hold.
struct texts {
    std::array<std::string_view, 7> part;
    std::string_view path;
    bool path_cut;

    explicit texts(record const& r) noexcept
        : part{r.request_id.substr(0, request_id_bytes_max),
               r.application.substr(0, name_bytes_max),
               r.application_id.substr(0, name_bytes_max),
               r.key_id.substr(0, name_bytes_max),
               r.api.substr(0, name_bytes_max),
               r.method.substr(0, method_bytes_max),
               r.host.substr(0, host_bytes_max)},
          path(r.path.size() <= path_bytes_max ? r.path : r.path.substr(0, path_bytes_max - 3)),
          path_cut(r.path.size() > path_bytes_max) {}

    std::size_t path_bytes() const noexcept { return path_cut ? path_bytes_max : path.size(); }
    std::size_t bytes() const noexcept {
        std::size_t n = path_bytes();
        for (auto const& text : part) n += text.size();
        return n;
    }
};

void write_payload(unsigned char* frame, std::uint64_t length, record const& r, texts const& t) noexcept {
    fixed_part fixed{.time_ms = r.time_ms,
                     .request_bytes = r.request_bytes,
                     .response_bytes = r.response_bytes,
                     .duration_us = r.duration_us,
                     .upstream_us = r.upstream_us,
                     .client_ip = r.client_ip,
                     .status = r.status,
                     .path_bytes = static_cast<std::uint16_t>(t.path_bytes()),
                     .end = static_cast<std::uint8_t>(r.end),
                     .text_bytes = {}};
    for (std::size_t i = 0; i < t.part.size(); ++i) fixed.text_bytes[i] = static_cast<std::uint8_t>(t.part[i].size());
    std::memset(frame + length - 8, 0, 8);  // the zeros behind the strings
    std::memcpy(frame + fixed_at, &fixed, fixed_bytes);
    auto* to = reinterpret_cast<char*>(frame + text_at);
    for (auto const& text : t.part) to = put(to, text);
    to = put(to, t.path);
    if (t.path_cut) put(to, "...");
}

}  // namespace

struct ring::layout {
    alignas(64) std::atomic<std::uint64_t> magic;
    std::uint32_t version;
    std::uint32_t header_bytes;
    std::uint64_t data_bytes;
    std::array<char, id_chars> id;
    std::uint64_t check;
    alignas(64) std::atomic<std::uint64_t> head;
    alignas(64) std::atomic<std::uint64_t> cursor;
    alignas(64) std::atomic<std::uint64_t> appended;
    std::atomic<std::uint64_t> dropped;

    std::uint64_t seed() const noexcept {
        auto const* text = reinterpret_cast<unsigned char const*>(id.data());
        return load<std::uint64_t>(text) * prime_a ^ load<std::uint64_t>(text + 8);
    }
    std::uint64_t header_check() const noexcept {
        auto const* text = reinterpret_cast<unsigned char const*>(id.data());
        return checksum(version * prime_a + header_bytes * prime_b + data_bytes, text, id.size());
    }
    std::uint32_t frame_check(std::uint64_t position, unsigned char const* frame, std::uint32_t length) const noexcept {
        auto const h = checksum(seed() + position * prime_b + length, frame + fixed_at, length - fixed_at);
        return static_cast<std::uint32_t>(h);
    }
    std::uint64_t final_check(std::uint64_t position, final_part const& f) const noexcept {
        return mix(mix(mix(seed(), position), f.response_bytes), std::uint64_t{f.duration_us} << 32 | f.end);
    }
    void initialise(std::uint64_t bytes);
    char const* why_unusable(std::uint64_t bytes) const noexcept;
};

void ring::layout::initialise(std::uint64_t bytes) {
    std::array<std::byte, id_chars / 2> random{};
    random_bytes(random);
    for (std::size_t i = 0; i < random.size(); ++i) {
        auto const b = static_cast<unsigned>(random[i]);
        id[2 * i] = "0123456789abcdef"[b >> 4U];
        id[2 * i + 1] = "0123456789abcdef"[b & 15U];
    }
    version = ring_version;
    header_bytes = page_bytes;
    data_bytes = bytes;
    check = header_check();
    for (auto* counter : {&head, &cursor, &appended, &dropped}) counter->store(0, std::memory_order_relaxed);
    magic.store(ring_magic, std::memory_order_release);
}

char const* ring::layout::why_unusable(std::uint64_t bytes) const noexcept {
    if (magic.load(std::memory_order_acquire) != ring_magic) return "is not a usage ring (magic)";
    if (header_bytes != page_bytes || check != header_check()) return "has a damaged header";
    if (data_bytes != bytes) return "is not as long as its header says";
    auto const at = head.load(std::memory_order_acquire);
    auto const from = cursor.load(std::memory_order_acquire);
    if (at % 8 != 0 || from % 8 != 0 || from > at || at - from > bytes) return "has impossible positions";
    return nullptr;
}

namespace {

bool is_ours(uid_t owner, std::optional<unsigned> also_of) {
    auto const self = ::geteuid();
    return owner == self || (self == 0 && also_of && owner == *also_of);
}

// Opens or makes the file, refuses what is not ours alone, and takes its lock. -1 with `said` on failure.
int open_file(std::string const& file, bool make, std::optional<unsigned> also_of, error& said) {
    int const flags = O_RDWR | O_NOFOLLOW | O_CLOEXEC | O_NONBLOCK | (make ? O_CREAT : 0);
    int const descriptor = ::open(file.c_str(), flags, 0600);
    if (descriptor < 0) {
        if (errno == ELOOP)
            said = refuse(errc::not_allowed, file, "is a symbolic link, which is never followed; remove it");
        else if (errno == ENOENT && !make)
            said = refuse(errc::not_found, file, "does not exist");
        else
            said = system_says(file, "cannot be opened", errno);
        return -1;
    }
    struct stat about {};
    if (::fstat(descriptor, &about) != 0)
        said = system_says(file, "cannot be looked at", errno);
    else if (S_ISREG(about.st_mode) && about.st_nlink == 0)  // by a process that looks for what others left, or that ends
        said = refuse(errc::busy, file, "was removed meanwhile");
    else if (!S_ISREG(about.st_mode) || about.st_nlink != 1)
        said = refuse(errc::not_allowed, file, "is not a plain file with one name; remove it");
    else if (!is_ours(about.st_uid, also_of))
        said = refuse(errc::not_allowed, file,
                      "belongs to another user; run this as that user, or remove the file if its records are not wanted");
    else if ((about.st_mode & (S_IWGRP | S_IWOTH)) != 0)
        said = refuse(errc::not_allowed, file, "can be written by other users; remove it, or set its mode to 0600");
    else if (::fchmod(descriptor, 0600) != 0)
        said = system_says(file, "cannot be given mode 0600", errno);
    else if (::flock(descriptor, LOCK_EX | LOCK_NB) != 0)
        said = refuse(errc::busy, file, "is in use by a running Latchkey");
    else if (::fstat(descriptor, &about) != 0 || about.st_nlink != 1)  // its holder removed it just now, and ended
        said = refuse(errc::busy, file, "was removed by its holder meanwhile");
    else
        return descriptor;
    ::close(descriptor);
    return -1;
}

std::uint64_t file_bytes(int descriptor) {
    struct stat about {};
    return ::fstat(descriptor, &about) == 0 ? static_cast<std::uint64_t>(about.st_size) : 0;
}

// A file that some process was killed over while it made it: no magic yet, and neither positions nor counters have moved.
bool is_unfinished(int descriptor) {
    std::array<unsigned char, page_bytes> page{};
    if (::pread(descriptor, page.data(), page.size(), 0) < 0) return false;
    auto const is_zero = [&](std::size_t from, std::size_t to) {
        return std::all_of(page.begin() + static_cast<long>(from), page.begin() + static_cast<long>(to),
                           [](unsigned char c) { return c == 0; });
    };
    return is_zero(0, sizeof ring_magic) && is_zero(64, page_bytes);
}

}  // namespace

result<std::unique_ptr<ring>> ring::open(std::string const& file, std::uint64_t bytes, std::optional<unsigned> also_of) {
    bool const to_append = bytes != 0;
    if (bytes != 0 && (!std::has_single_bit(bytes) || bytes < data_bytes_min || bytes > data_bytes_max))
        return refuse(errc::invalid_argument, file, "must have a power of two from 64 KiB for its size");
    error said{};
    std::unique_ptr<ring> self(new ring);
    self->descriptor_ = open_file(file, bytes != 0, also_of, said);
    if (self->descriptor_ < 0) return said;

    auto const present = file_bytes(self->descriptor_);
    auto const unfinished = present < page_bytes || is_unfinished(self->descriptor_);
    if (bytes == 0) {
        if (unfinished) return refuse(errc::not_found, file, "was never finished and holds no record");
        bytes = present - page_bytes;
        if (!std::has_single_bit(bytes) || bytes < data_bytes_min || bytes > data_bytes_max)
            return refuse(errc::corrupt, file, "has a length that no ring has");
    } else if (!unfinished && present != page_bytes + bytes) {
        return refuse(errc::conflict, file, "has another size; recover and remove it first");
    }
    // Reserved to the last page now, or a full tmpfs would kill the process (SIGBUS) at the first record that finds no page.
    auto const whole = static_cast<off_t>(page_bytes + bytes);
    int failed = unfinished && ::ftruncate(self->descriptor_, whole) != 0 ? errno : 0;
    if (failed == 0) failed = ::posix_fallocate(self->descriptor_, 0, whole);
    if (failed != 0) {
        if (unfinished) ::unlink(file.c_str());
        return system_says(file, "cannot get its space (lower usage.ring_bytes, or choose another usage.ring_dir)", failed);
    }
    self->mapped_ = page_bytes + bytes;
    void* const at = ::mmap(nullptr, self->mapped_, PROT_READ | PROT_WRITE, MAP_SHARED, self->descriptor_, 0);
    if (at == MAP_FAILED) return system_says(file, "cannot be mapped", errno);
    self->shared_ = static_cast<layout*>(at);
    self->data_ = static_cast<unsigned char*>(at) + page_bytes;
    self->mask_ = bytes - 1;
    if (unfinished) self->shared_->initialise(bytes);
    if (self->shared_->magic.load() == ring_magic && self->shared_->version > ring_version)
        return refuse(errc::newer_schema, file, "was made by a later Latchkey; start that one once, or remove the file");
    if (auto const* why = self->shared_->why_unusable(bytes)) return refuse(errc::corrupt, file, why);
    if (to_append && self->outdated())
        return refuse(errc::conflict, file, "was made by an earlier Latchkey; recover and remove it first");
    return self;
}

bool ring::outdated() const noexcept { return shared_->version < ring_version; }

ring::~ring() {
    if (shared_ != nullptr) ::munmap(shared_, mapped_);
    if (descriptor_ >= 0) ::close(descriptor_);
}

bool ring::prepare(record const& r, bool count_drop) noexcept {
    texts const t(r);
    std::uint64_t const length = round_up(text_at + t.bytes());
    std::uint64_t head = prepared_end_ != 0 ? prepared_end_ : shared_->head.load(std::memory_order_relaxed);
    std::uint64_t const free = mask_ + 1 - (head - shared_->cursor.load(std::memory_order_acquire));
    std::uint64_t const to_end = mask_ + 1 - (head & mask_);
    std::uint64_t const pad = to_end < length ? to_end : 0;
    if (pad + length > free) {
        if (count_drop) shared_->dropped.store(shared_->dropped.load(std::memory_order_relaxed) + 1, std::memory_order_relaxed);
        return false;
    }
    if (pad != 0) {
        mark_at(data_ + (head & mask_)).store(head | kind_pad, std::memory_order_release);
        head += pad;
        if (prepared_end_ == 0) shared_->head.store(head, std::memory_order_release);
    }
    auto* const frame = data_ + (head & mask_);
    mark_at(frame).store(0, std::memory_order_relaxed);
    std::atomic_signal_fence(std::memory_order_seq_cst);  // the compiler keeps the frame's stores behind it: all a kill needs
    auto const length32 = static_cast<std::uint32_t>(length);
    store(frame + length_at, length32);
    write_payload(frame, length, r, t);
    store(frame + check_at, shared_->frame_check(head, frame, length32));
    mark_at(frame).store(head | kind_record, std::memory_order_release);
    prepared_end_ = head + length;
    return true;
}

// Where it stands, behind a pad if need be.
std::uint64_t ring::first_prepared() const noexcept {
    assert(prepared_end_ != 0);
    return past_pad(shared_->head.load(std::memory_order_relaxed));
}

// The first of the prepared ones, which ends there.
void ring::resolved(std::uint64_t end) noexcept {
    shared_->head.store(end, std::memory_order_release);
    if (end != prepared_end_) return;
    // The next record's place was last touched a lap ago, and has long left the cache: it comes back while the next request runs.
    for (std::uint64_t at = 0; at < usual_frame_bytes; at += 64) __builtin_prefetch(data_ + ((end + at) & mask_), 1);
    prepared_end_ = 0;
}

void ring::commit() noexcept {
    auto const position = first_prepared();
    shared_->appended.store(shared_->appended.load(std::memory_order_relaxed) + 1, std::memory_order_relaxed);
    resolved(position + load<std::uint32_t>(data_ + (position & mask_) + length_at));
}

void ring::commit(outcome end, std::uint64_t response_bytes, std::uint32_t duration_us) noexcept {
    auto const position = first_prepared();
    auto* const frame = data_ + (position & mask_);
    final_part f{response_bytes, duration_us, static_cast<std::uint32_t>(end), 0};
    f.check = shared_->final_check(position, f);
    store(frame + final_at, f);
    mark_at(frame).store(position | kind_final, std::memory_order_release);
    commit();
}

void ring::retract() noexcept {
    auto const position = first_prepared();
    auto* const frame = data_ + (position & mask_);
    auto const end = position + load<std::uint32_t>(frame + length_at);
    if (end == prepared_end_) {  // its place is free again
        mark_at(frame).store(0, std::memory_order_release);
        prepared_end_ = 0;
    } else {  // others stand behind it
        mark_at(frame).store(position | kind_void, std::memory_order_release);
        resolved(end);
    }
}

bool ring::has_room() const noexcept {
    auto const head = shared_->head.load(std::memory_order_relaxed);
    auto const free = mask_ + 1 - (head - shared_->cursor.load(std::memory_order_acquire));
    auto const to_end = mask_ + 1 - (head & mask_);
    return (to_end < frame_bytes_max ? to_end : 0) + frame_bytes_max <= free;
}

std::uint64_t ring::dropped() const noexcept { return shared_->dropped.load(std::memory_order_relaxed); }
std::uint64_t ring::appended() const noexcept { return shared_->appended.load(std::memory_order_relaxed); }

double ring::fill() const noexcept {
    auto const from = shared_->cursor.load(std::memory_order_acquire);  // before head, or head could be the older of the two
    auto const to = shared_->head.load(std::memory_order_acquire);
    return std::min(1.0, static_cast<double>(to - from) / static_cast<double>(mask_ + 1));
}

std::string_view ring::id() const noexcept { return {shared_->id.data(), shared_->id.size()}; }
std::uint64_t ring::cursor() const noexcept { return shared_->cursor.load(std::memory_order_acquire); }

void ring::release(std::uint64_t position) noexcept {
    assert(position >= cursor() && position <= shared_->head.load());
    shared_->cursor.store(position, std::memory_order_release);
}

namespace {

// A frame whose mark, length and check are right: into `out`, as views of the frame. False: the lengths do not add up.
bool decode(unsigned char const* frame, std::uint64_t length, record& out) noexcept {
    fixed_part fixed{};
    std::memcpy(&fixed, frame + fixed_at, fixed_bytes);
    std::size_t at = text_at;
    auto const take = [&](std::size_t n) {
        std::string_view const text(reinterpret_cast<char const*>(frame + std::min<std::uint64_t>(at, length)),
                                    at + n <= length ? n : 0);
        at += n;
        return text;
    };
    out.request_id = take(fixed.text_bytes[0]);
    out.application = take(fixed.text_bytes[1]);
    out.application_id = take(fixed.text_bytes[2]);
    out.key_id = take(fixed.text_bytes[3]);
    out.api = take(fixed.text_bytes[4]);
    out.method = take(fixed.text_bytes[5]);
    out.host = take(fixed.text_bytes[6]);
    out.path = take(fixed.path_bytes);
    out.time_ms = fixed.time_ms;
    out.status = fixed.status;
    out.end = static_cast<outcome>(fixed.end);
    out.request_bytes = fixed.request_bytes;
    out.response_bytes = fixed.response_bytes;
    out.duration_us = fixed.duration_us;
    out.upstream_us = fixed.upstream_us;
    out.client_ip = fixed.client_ip;
    return at <= length && fixed.end <= static_cast<std::uint8_t>(outcome::shut_down);
}

}  // namespace

// The record frame at `position`, whose bytes end at or before position + `room`. Its length, or 0 where none stands there.
// `taken_back`: it is no record any more.
std::uint64_t ring::frame_at(std::uint64_t position, std::uint64_t room, record& out, bool& taken_back) const noexcept {
    auto* const frame = data_ + (position & mask_);
    room = std::min(room, mask_ + 1 - (position & mask_));
    auto const mark = mark_at(frame).load(std::memory_order_acquire);
    taken_back = mark == (position | kind_void);
    if ((mark != (position | kind_record) && mark != (position | kind_final) && !taken_back) || room < text_at) return 0;
    auto const length = load<std::uint32_t>(frame + length_at);
    if (length < text_at || length % 8 != 0 || length > room || length > frame_bytes_max) return 0;
    if (load<std::uint32_t>(frame + check_at) != shared_->frame_check(position, frame, length)) return 0;
    if (!decode(frame, length, out)) return 0;
    if (mark == (position | kind_final)) {
        auto const f = load<final_part>(frame + final_at);
        if (f.check != shared_->final_check(position, f) || f.end > static_cast<std::uint32_t>(outcome::shut_down)) return 0;
        out.response_bytes = f.response_bytes;
        out.duration_us = f.duration_us;
        out.end = static_cast<outcome>(f.end);
    }
    return length;
}

// `position`, or the place behind the pad that stands there.
std::uint64_t ring::past_pad(std::uint64_t position) const noexcept {
    bool const pad = mark_at(data_ + (position & mask_)).load(std::memory_order_acquire) == (position | kind_pad);
    return pad ? position + mask_ + 1 - (position & mask_) : position;
}

bool ring::read_one(std::uint64_t& position, record& out, bool& damaged) const noexcept {
    auto const head = shared_->head.load(std::memory_order_acquire);
    for (bool taken_back = true; taken_back;) {
        damaged = position % 8 != 0 || position > head || head - position > mask_ + 1;
        if (damaged || position == head) return false;
        auto const begin = past_pad(position);
        damaged = begin > head;
        if (!damaged) position = begin;
        if (damaged || position == head) return false;
        auto const length = frame_at(position, head - position, out, taken_back);
        damaged = length == 0;
        position += length;
        if (damaged) return false;
    }
    return true;
}

void ring::recover_prepared() noexcept {
    record found;
    bool taken_back = false;
    for (;;) {
        auto const begin = past_pad(shared_->head.load(std::memory_order_acquire));
        auto const used = begin - shared_->cursor.load(std::memory_order_acquire);
        auto const length = used <= mask_ ? frame_at(begin, mask_ + 1 - used, found, taken_back) : 0;
        if (length == 0) return;
        if (!taken_back)
            shared_->appended.store(shared_->appended.load(std::memory_order_relaxed) + 1, std::memory_order_relaxed);
        shared_->head.store(begin + length, std::memory_order_release);
    }
}

}  // namespace latchkey::usage
