#include "usage/export.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <charconv>
#include <cstring>
#include <iterator>

#include "base/clock.hpp"
#include "base/log.hpp"
#include "base/utf8.hpp"
#include "usage/block.hpp"

namespace latchkey::usage {

namespace {

constexpr std::size_t piece_bytes = 64 * 1024;

void append_number(std::string& out, std::uint64_t n) {
    std::array<char, 20> digits{};
    out.append(digits.data(), std::to_chars(digits.data(), digits.data() + digits.size(), n).ptr);
}

// Microseconds as milliseconds with three decimals.
void append_ms(std::string& out, std::uint32_t us) {
    append_number(out, us / 1000);
    auto const rest = us % 1000;
    char const decimals[] = {'.', static_cast<char>('0' + rest / 100), static_cast<char>('0' + rest / 10 % 10),
                             static_cast<char>('0' + rest % 10)};
    out.append(decimals, sizeof decimals);
}

// RFC 5952: lower case, no leading zeros, the longest run of two or more zero groups (the first of equals) as "::".
void append_ipv6(std::string& out, std::array<unsigned, 8> const& group) {
    std::size_t best = 8;
    std::size_t best_length = 1;
    for (std::size_t i = 0; i < 8; ++i) {
        std::size_t n = 0;
        while (i + n < 8 && group[i + n] == 0) ++n;
        if (n > best_length) {
            best = i;
            best_length = n;
        }
    }
    for (std::size_t i = 0; i < 8; ++i) {
        if (i == best) {
            out += "::";
            i += best_length - 1;
            continue;
        }
        if (i != 0 && out.back() != ':') out += ':';
        std::array<char, 4> hex{};
        out.append(hex.data(), std::to_chars(hex.data(), hex.data() + hex.size(), group[i], 16).ptr);
    }
}

void append_ip(std::string& out, std::array<unsigned char, 16> const& ip) {
    static constexpr std::array<unsigned char, 12> mapped = {0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff};
    if (std::memcmp(ip.data(), mapped.data(), mapped.size()) == 0) {
        for (std::size_t i = 12; i < 16; ++i) {
            if (i != 12) out += '.';
            append_number(out, ip[i]);
        }
        return;
    }
    std::array<unsigned, 8> group{};
    for (std::size_t i = 0; i < 8; ++i) group[i] = static_cast<unsigned>(ip[2 * i]) << 8U | ip[2 * i + 1];
    append_ipv6(out, group);
}

void append_row(std::string& out, record const& r) {
    std::array<char, 24> time{};
    out.append(time.data(), format_time_to(time.data(), r.time_ms));
    for (auto const text : {r.request_id, r.application, r.application_id, r.key_id, r.api, r.method, r.host, r.path}) {
        out += ',';
        append_cell(out, text);
    }
    out += ',';
    append_number(out, r.status);
    out += ',';
    out += to_string(r.end);
    out += ',';
    append_number(out, r.request_bytes);
    out += ',';
    append_number(out, r.response_bytes);
    out += ',';
    append_ms(out, r.duration_us);
    out += ',';
    if (r.upstream_us != 0) append_ms(out, r.upstream_us);
    out += ',';
    append_ip(out, r.client_ip);
    out += "\r\n";
}

// What is no UTF-8, and controls beyond ASCII, by their bytes as "%FF": host and path of a refused request stand here as a client
// sent them, and one such byte would make a whole export unreadable to whoever decodes it.
std::string escaped(std::string_view text) {
    std::string out;
    while (!text.empty()) {
        std::size_t const n = utf8_character(text);
        auto const character = text.substr(0, std::max<std::size_t>(n, 1));
        text.remove_prefix(character.size());
        if (n == 1 || (n != 0 && !is_control(character)))
            out += character;
        else
            for (char const c : character) fmt::format_to(std::back_inserter(out), "%{:02X}", static_cast<unsigned char>(c));
    }
    return out;
}

// Spreadsheets take the full-width forms of '=', '+', '-' and '@' for the plain ones.
bool begins_formula(std::string_view text) {
    if (text.front() != '\xef') return std::string_view("=+-@\t\r").find(text.front()) != std::string_view::npos;
    return text.starts_with("\uff1d") || text.starts_with("\uff0b") || text.starts_with("\uff0d") || text.starts_with("\uff20");
}

bool wanted(filter const& f, record const& r) {
    return r.time_ms >= f.from_ms && r.time_ms < f.to_ms && (f.key_id.empty() || f.key_id == r.key_id) &&
           (f.application_id.empty() || f.application_id == r.application_id);
}

}  // namespace

void append_cell(std::string& out, std::string_view text) {
    if (text.empty()) return;
    std::string legible;
    if (std::any_of(text.begin(), text.end(), [](char c) { return static_cast<unsigned char>(c) >= 0x80; }))
        text = legible = escaped(text);
    bool const defuse = begins_formula(text);
    if (text.find_first_of(",\"\r\n") == std::string_view::npos) {
        if (defuse) out += '\'';
        out += text;
        return;
    }
    out += '"';
    if (defuse) out += '\'';
    for (char const c : text) {
        if (c == '"') out += '"';
        out += c;
    }
    out += '"';
}

result<std::uint64_t> export_csv(journal& from, filter const& f, std::function<bool(std::string_view)> const& sink) {
    std::string piece;
    piece.reserve(piece_bytes + 16 * 1024);  // a row is shorter than that, even with every quote doubled
    piece += csv_columns;
    piece += "\r\n";
    std::uint64_t written = 0;
    std::uint64_t bad_blocks = 0;
    bool reader_gone = false;
    auto const visit = [&](std::string_view packed) {
        auto reader = block_reader::over(packed);
        if (!reader) {
            log::warn("usage.block_damaged", "{}", reader.error().message);
            ++bad_blocks;
            return true;
        }
        record r;
        while (reader->next(r)) {
            if (!wanted(f, r)) continue;
            append_row(piece, r);
            ++written;
            if (piece.size() < piece_bytes) continue;
            reader_gone = !sink(piece);
            if (reader_gone) return false;
            piece.clear();
        }
        if (reader->damaged()) {
            log::warn("usage.block_damaged", "a usage block ends in the middle of a record; {} records stand in it by its head",
                      reader->records());
            ++bad_blocks;
        }
        return true;
    };
    auto const damaged = [&](std::int64_t id, std::string_view why) {
        log::warn("usage.block_damaged", "block {}: {}; its records are missing in the export", id, why);
        ++bad_blocks;
    };
    auto done = from.each_block(f.from_ms, f.to_ms, visit, damaged);
    if (!done) return error{errc::io, done.error().message};  // cut short: `corrupt` is an export with all that can be read
    if (!reader_gone && !piece.empty()) sink(piece);
    if (bad_blocks != 0)
        return error{errc::corrupt, fmt::format("{} damaged block(s) of the usage journal were left out (named in the log); "
                                                "{} records were written",
                                                bad_blocks, written)};
    return written;
}

result<bool> has_record(journal& in, filter const& f) {
    bool found = false;
    auto const visit = [&](std::string_view packed) {
        auto reader = block_reader::over(packed);
        record r;
        while (reader && !found && reader->next(r)) found = wanted(f, r);
        return !found;
    };
    auto done = in.each_block(f.from_ms, f.to_ms, visit, [](std::int64_t, std::string_view) {});
    if (!done) return done.error();
    return found;
}

}  // namespace latchkey::usage
