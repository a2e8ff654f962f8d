#include "usage/ring_files.hpp"

#include <fmt/format.h>
#include <openssl/evp.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <charconv>
#include <filesystem>
#include <system_error>

#include "base/log.hpp"

// Why a recovery that is itself killed, at any place, counts nothing twice and loses nothing:
//
//   The journal's cursor of a ring moves in the transaction that brings the records before it, and recovery begins at that
//   cursor, or at the ring's own where that is ahead: behind records that were taken back, or where the journal was lost. So
//   every record is read until its transaction is in, and never again after.
//
//   A prepared record is committed in the ring before anything is read; doing so twice changes nothing.
//
//   A file is removed or moved aside only after its last transaction, and its row in the journal only after the file. A row that
//   stays because of a kill in between is small and names an id that never comes back.

namespace latchkey::usage {

namespace fs = std::filesystem;

namespace {

error system_says(std::string const& file, std::string_view what, int number) {
    return error{errc::io, fmt::format("{} {}: {}", file, what, std::generic_category().message(number))};
}

constexpr std::string_view suffix = ".ring";

// FILE.damaged, or FILE.damaged-2 and so on where that is taken: what was saved before is never written over.
void move_aside(std::string const& file, std::string_view why) {
    auto aside = file + ".damaged";
    struct stat about {};
    for (unsigned n = 2; n < 100 && ::lstat(aside.c_str(), &about) == 0; ++n) aside = fmt::format("{}.damaged-{}", file, n);
    if (::rename(file.c_str(), aside.c_str()) == 0)
        log::error("usage.ring_damaged", "{}; what could be read was kept, the file now stands as {}", why, aside);
    else
        log::error("usage.ring_damaged", "{}; it cannot be moved aside: {}", why, std::generic_category().message(errno));
}

result<void> remove_file(std::string const& file) {
    if (::unlink(file.c_str()) != 0 && errno != ENOENT) return system_says(file, "cannot be removed", errno);
    return {};
}

}  // namespace

result<std::string> folder_tag(std::string const& folder) {
    std::error_code e;
    auto const real = fs::canonical(folder.empty() ? "." : folder, e);
    if (e) return error{errc::io, fmt::format("the data directory {} cannot be found: {}", folder, e.message())};
    auto const text = real.string();
    std::array<unsigned char, EVP_MAX_MD_SIZE> digest{};
    unsigned n = 0;
    if (EVP_Digest(text.data(), text.size(), digest.data(), &n, EVP_sha256(), nullptr) != 1)
        return error{errc::io, "SHA-256 failed: the OpenSSL library is not usable"};
    std::string tag;
    for (std::size_t i = 0; i < 8; ++i) fmt::format_to(std::back_inserter(tag), "{:02x}", digest[i]);
    return tag;
}

std::string ring_file(std::string const& folder, std::string_view tag, unsigned number) {
    return fmt::format("{}/{}-{}{}", folder, tag, number, suffix);
}

result<std::vector<found_ring>> list_rings(std::string const& folder, std::string_view tag) {
    std::vector<found_ring> found;
    std::error_code e;
    fs::directory_iterator at(folder, e);
    for (; !e && at != fs::directory_iterator(); at.increment(e)) {
        auto const name = at->path().filename().string();
        std::string_view rest(name);
        if (!rest.starts_with(tag) || !rest.ends_with(suffix)) continue;
        rest.remove_suffix(suffix.size());
        rest.remove_prefix(tag.size());
        unsigned number = 0;
        if (rest.size() < 2 || rest.front() != '-') continue;
        auto const parsed = std::from_chars(rest.data() + 1, rest.data() + rest.size(), number);
        if (parsed.ec != std::errc{} || parsed.ptr != rest.data() + rest.size()) continue;
        found.push_back({at->path().string(), number});
    }
    if (e && e != std::errc::no_such_file_or_directory)
        return error{errc::io, fmt::format("the usage rings' folder {} cannot be read: {}", folder, e.message())};
    std::sort(found.begin(), found.end(), [](auto const& a, auto const& b) { return a.number < b.number; });
    return found;
}

result<void> make_folder(std::string const& folder, bool ours_alone) {
    if (::mkdir(folder.c_str(), 0700) != 0 && errno != EEXIST) return system_says(folder, "cannot be made", errno);
    struct stat about {};
    if ((ours_alone ? ::lstat(folder.c_str(), &about) : ::stat(folder.c_str(), &about)) != 0)
        return system_says(folder, "cannot be looked at", errno);
    char const* why = nullptr;
    if (!S_ISDIR(about.st_mode)) why = "is not a folder";
    if (why == nullptr && ours_alone && about.st_uid != ::geteuid()) why = "belongs to another user";
    if (why == nullptr && ours_alone && (about.st_mode & (S_IWGRP | S_IWOTH)) != 0) why = "can be written by other users";
    if (why != nullptr)
        return error{errc::not_allowed, fmt::format("{} {}; remove it, or choose another usage.ring_dir", folder, why)};
    return {};
}

namespace {

constexpr std::uint64_t records_between = 32;

// The records of the packer, and the cursor behind them, into the journal; then the ring's space is free again.
result<void> hand_over(ring& from, std::uint64_t position, journal& into, block_packer& packer,
                       std::function<void()> const& between) {
    between();
    auto sealed = packer.seal(between);
    if (!sealed) return sealed.error();
    between();
    if (auto done = into.append(from.id(), position, packer.meta(), *sealed, between); !done) return done;
    from.release(position);
    packer.clear();
    return {};
}

}  // namespace

result<taken> take_records(ring& from, std::uint64_t& position, journal& into, block_packer& packer,
                           std::atomic<std::uint64_t>* counted, std::function<void()> const& between) {
    taken sum;
    auto const start = position;
    auto at = position;  // read, not all of it journalled
    packer.clear();
    for (bool more = true; more;) {
        bool full = false;
        auto const visit = [&](record const& r) { full = !packer.add(r); };
        auto next = from.read(at, 1, visit);
        // A full block leaves `at` before the record that found no room: it is read again for the next.
        more = next && *next != at && at - start < from.size();
        sum.damaged = !next;
        if (next && !full) at = *next;
        auto const records = packer.meta().records;
        if (records % records_between == 0) between();
        if ((more && !full) || records == 0) continue;
        if (auto done = hand_over(from, at, into, packer, between); !done) return done.error();
        position = at;
        sum.records += records;
        if (counted != nullptr) counted->fetch_add(records, std::memory_order_relaxed);
    }
    // Nothing but records that were taken back: their place is free, and the journal need not know.
    if (at != position) from.release(position = at);
    return sum;
}

result<std::unique_ptr<ring>> recover_ring(std::string const& file, std::uint64_t keep_bytes, journal& into, block_packer& packer,
                                           std::uint64_t& recovered, std::function<void()> const& between) {
    // Whoever owns the journal can write into it what he likes, so root believes his rings.
    auto opened = ring::open(file, 0, into.owner());
    if (!opened) {
        if (opened.error().code == errc::corrupt)
            move_aside(file, opened.error().message);
        else if (opened.error().code != errc::not_found)
            return opened.error();
        else if (auto done = remove_file(file); !done)
            return done.error();
        return std::unique_ptr<ring>();
    }
    auto& found = **opened;
    auto const journalled = into.cursor_of(found.id());
    if (!journalled) return journalled.error();
    found.recover_prepared();
    auto position = std::max(journalled->value_or(0), found.cursor());
    auto took = take_records(found, position, into, packer, nullptr, between);
    if (!took) return took.error();
    recovered += took->records;
    if (took->damaged) {
        move_aside(file, "the usage ring " + file + " is damaged");
    } else if (found.size() == keep_bytes && !found.outdated()) {
        found.release(position);
        return std::move(*opened);
    } else if (auto done = remove_file(file); !done) {
        return done.error();
    }
    if (auto done = into.forget_ring(found.id()); !done) return done.error();
    return std::unique_ptr<ring>();
}

}  // namespace latchkey::usage
