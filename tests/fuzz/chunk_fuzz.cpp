// The chunk decoder: what it takes is what a second decoder, written for clarity and over the whole text, takes; and the way the
// bytes are split changes nothing.
//
// Input: one byte (bit 0: forbidden trailers are dropped), one byte that seeds the splits, then the bytes.

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "gateway/chunk.hpp"
#include "gateway/frame.hpp"
#include "gateway/text.hpp"

namespace {

using namespace latchkey::gateway;
using state = chunk_decoder::state;

void require(bool holds) {
    if (!holds) std::abort();
}

struct result {
    state now = state::more;
    std::size_t consumed = 0;
    std::string payload;
    std::string trailers;
};

// Feeds `input` in pieces; the bytes of a piece that come behind the payload must stay as they were.
template <class NextSize>
result decode(std::string_view input, bool drop, NextSize&& next_size) {
    chunk_decoder d;
    if (drop) d.drop_forbidden();
    result out;
    while (out.consumed < input.size() && out.now == state::more) {
        auto const n = std::min(std::max<std::size_t>(next_size(), 1), input.size() - out.consumed);
        std::vector<char> piece(input.begin() + static_cast<std::ptrdiff_t>(out.consumed),
                                input.begin() + static_cast<std::ptrdiff_t>(out.consumed + n));
        auto const step = d.decode(piece.data(), piece.size());
        require(step.payload <= step.consumed && step.consumed <= n);
        require(step.now != state::more || step.consumed == n);
        require(std::string_view(piece.data() + step.consumed, n - step.consumed) ==
                input.substr(out.consumed + step.consumed, n - step.consumed));
        out.payload.append(piece.data(), step.payload);
        out.consumed += step.consumed;
        out.now = step.now;
    }
    require(d.done() == (out.now == state::done));
    out.trailers = d.trailers();
    return out;
}

// --- The second decoder. RFC 9112 section 7.1, line by line.

// The size in front of `line` and the extensions behind it. Empty: not well-formed. (Bounds as chunk.hpp states them.)
std::optional<std::uint64_t> size_of(std::string_view line, std::size_t& extension_bytes) {
    std::size_t n = 0;
    std::size_t zeros = 0;
    std::uint64_t size = 0;
    while (n < line.size() && hex_value(line[n]) >= 0) {
        if (size == 0 && line[n] == '0') ++zeros;
        size = size * 16 + static_cast<unsigned>(hex_value(line[n++]));
        if (zeros > 8 || n - zeros > 15) return {};
    }
    if (n == 0) return {};
    auto rest = line.substr(n);
    extension_bytes += rest.size();
    if (extension_bytes > 4096) return {};
    if (rest.empty()) return size;
    if (trimmed(rest).empty() || trimmed(rest).front() != ';') return {};
    bool quoted = false;
    for (std::size_t i = 0; i < rest.size(); ++i) {
        char const c = rest[i];
        if (quoted && c == '\\') {
            if (++i == rest.size() || !is(rest[i], char_class::value)) return {};
        } else if (c == '"') {
            quoted = !quoted;
        } else if (quoted ? !is(c, char_class::value)
                          : !is(c, char_class::token) && c != ';' && c != '=' && c != ' ' && c != '\t') {
            return {};
        }
    }
    return quoted ? std::optional<std::uint64_t>{} : size;
}

// Empty: not well-formed, or not all there.
std::optional<result> reference(std::string_view input, bool drop) {
    result out;
    std::size_t at = 0;
    std::size_t extension_bytes = 0;
    auto const line = [&]() -> std::optional<std::string_view> {
        auto const end = input.find('\n', at);
        if (end == std::string_view::npos || end == at || input[end - 1] != '\r') return {};
        auto const text = input.substr(at, end - 1 - at);
        at = end + 1;
        if (text.find('\r') != std::string_view::npos) return {};
        return text;
    };
    for (;;) {
        auto const head = line();
        if (!head) return {};
        auto const size = size_of(*head, extension_bytes);
        if (!size) return {};
        if (*size == 0) break;
        if (*size > input.size() - at) return {};
        out.payload += input.substr(at, *size);
        at += *size;
        if (input.substr(at, 2) != "\r\n") return {};
        at += 2;
    }
    std::size_t const trailer_start = at;
    for (std::size_t fields = 0;; ++fields) {
        auto const text = line();
        if (!text || at - trailer_start > 8192) return {};
        if (text->empty()) break;
        auto const colon = text->find(':');
        if (fields == 64 || colon == 0 || colon == std::string_view::npos) return {};
        auto const name = text->substr(0, colon);
        if (!all(name, char_class::token) || !all(text->substr(colon + 1), char_class::value)) return {};
        if (!allowed_in_trailer(name)) {
            if (!drop) return {};
            continue;
        }
        out.trailers.append(name).append(": ").append(trimmed(text->substr(colon + 1))).append("\r\n");
    }
    out.now = state::done;
    out.consumed = at;
    return out;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(std::uint8_t const* bytes, std::size_t size) {
    if (size < 3 || size > 32768) return 0;
    bool const drop = (bytes[0] & 1U) != 0;
    std::string_view const input(reinterpret_cast<char const*>(bytes) + 2, size - 2);

    auto const whole = decode(input, drop, [&] { return input.size(); });
    auto const expected = reference(input, drop);
    require((whole.now == state::done) == expected.has_value());
    if (expected)
        require(whole.consumed == expected->consumed && whole.payload == expected->payload &&
                whole.trailers == expected->trailers);

    std::uint32_t seed = bytes[1] + 1U;
    auto const split = decode(input, drop, [&] {
        seed = seed * 1664525U + 1013904223U;
        return std::size_t{(seed >> 24U) % 17U};
    });
    require(split.now == whole.now && split.consumed == whole.consumed && split.payload == whole.payload &&
            split.trailers == whole.trailers);
    return 0;
}
