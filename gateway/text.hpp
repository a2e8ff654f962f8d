#pragma once
// Small text tools of the proxy: a bounded writer, case-blind comparison, the character classes of RFC 9110 and 3986. Pure.

#include <array>
#include <charconv>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <string_view>

#include "base/short_copy.hpp"

namespace latchkey::gateway {

class decimal {
  public:
    explicit decimal(std::uint64_t n) noexcept
        : size_(static_cast<std::size_t>(std::to_chars(text_.data(), text_.data() + text_.size(), n).ptr - text_.data())) {}
    std::string_view view() const noexcept { return {text_.data(), size_}; }

  private:
    std::array<char, 20> text_;
    std::size_t size_;
};

// Appends to a caller's memory and never beyond it; what does not fit sets overflowed() and is left out.
class writer {
  public:
    writer(char* begin, std::size_t capacity) noexcept : begin_(begin), at_(begin), end_(begin + capacity) {}

    // All of these texts, or none of them. Literals are cheapest as such.
    template <class... Texts>
    writer& add(Texts const&... texts) noexcept {
        if ((size_of(texts) + ...) > room()) {
            overflowed_ = true;
        } else {
            char* at = at_;
            ((at = put(at, texts)), ...);
            at_ = at;
        }
        return *this;
    }

    std::size_t size() const noexcept { return static_cast<std::size_t>(at_ - begin_); }
    std::size_t room() const noexcept { return static_cast<std::size_t>(end_ - at_); }
    std::string_view view() const noexcept { return {begin_, size()}; }
    bool overflowed() const noexcept { return overflowed_; }

  private:
    static constexpr std::size_t size_of(std::string_view text) noexcept { return text.size(); }
    template <std::size_t Size>
    static constexpr std::size_t size_of(char const (&)[Size]) noexcept {
        return Size - 1;
    }

    char* begin_;
    char* at_;
    char* end_;
    bool overflowed_ = false;
};

constexpr char lower(char c) noexcept { return c >= 'A' && c <= 'Z' ? static_cast<char>(c + 32) : c; }

// A character of a field name as an upstream knows it that makes a variable of the name (CGI, WSGI): without case, and '-' for
// whatever is no letter or digit. All of them cannot tell '_' from '-'; lighttpd cannot tell '.', '!' or '~' from it either.
constexpr char fold_name(char c) noexcept {
    char const l = lower(c);
    return (l >= 'a' && l <= 'z') || (l >= '0' && l <= '9') ? l : '-';
}

// No other character in the place of a '-'.
constexpr bool plainly_spelled(std::string_view name) noexcept {
    for (char const c : name)
        if (c != '-' && fold_name(c) == '-') return false;
    return true;
}

// `with` must be folded already.
constexpr bool begins_folded(std::string_view name, std::string_view with) noexcept {
    if (name.size() < with.size()) return false;
    for (std::size_t i = 0; i < with.size(); ++i)
        if (fold_name(name[i]) != with[i]) return false;
    return true;
}

constexpr bool is_folded(std::string_view name, std::string_view other) noexcept {
    return name.size() == other.size() && begins_folded(name, other);
}

// `b` must be lower-case already.
constexpr bool equals_lower(std::string_view a, std::string_view b) noexcept {
    if (a.size() != b.size()) return false;
    for (std::size_t i = 0; i < a.size(); ++i)
        if (lower(a[i]) != b[i]) return false;
    return true;
}

constexpr bool equals_blind(std::string_view a, std::string_view b) noexcept {
    if (a.size() != b.size()) return false;
    for (std::size_t i = 0; i < a.size(); ++i)
        if (lower(a[i]) != lower(b[i])) return false;
    return true;
}

constexpr std::string_view trimmed(std::string_view s) noexcept {
    while (!s.empty() && (s.front() == ' ' || s.front() == '\t')) s.remove_prefix(1);
    while (!s.empty() && (s.back() == ' ' || s.back() == '\t')) s.remove_suffix(1);
    return s;
}

// Calls `f(element)` for each element of a comma-separated list (RFC 9110 section 5.6.1), trimmed, empty ones too; stops where
// f returns false, and returns whether it never did.
template <class F>
constexpr bool each_element(std::string_view list, F&& f) {
    for (;;) {
        auto const comma = list.find(',');
        if (!f(trimmed(list.substr(0, comma)))) return false;
        if (comma == std::string_view::npos) return true;
        list.remove_prefix(comma + 1);
    }
}

namespace char_class {
inline constexpr std::uint8_t token = 1;        // tchar, RFC 9110 section 5.6.2
inline constexpr std::uint8_t digit = 2;        // 0-9
inline constexpr std::uint8_t hex = 4;          // 0-9A-Fa-f
inline constexpr std::uint8_t unreserved = 8;   // RFC 3986 section 2.3
inline constexpr std::uint8_t host = 16;        // of a reg-name or IPv4 literal, without escapes and ',' (RFC 3986 section 3.2.2)
inline constexpr std::uint8_t value = 32;       // field value octet: VCHAR, SP, HTAB, obs-text
inline constexpr std::uint8_t request_id = 64;  // A-Za-z0-9._-

constexpr std::array<std::uint8_t, 256> make() {
    std::array<std::uint8_t, 256> t{};
    for (int c = 0; c < 256; ++c) {
        bool const dig = c >= '0' && c <= '9';
        bool const alpha = (c >= 'A' && c <= 'Z') || (c >= 'a' && c <= 'z');
        bool const hexa = dig || (c >= 'A' && c <= 'F') || (c >= 'a' && c <= 'f');
        std::uint8_t m = 0;
        if (dig) m |= digit;
        if (hexa) m |= hex;
        bool tchar = dig || alpha;
        for (char const p : std::string_view("!#$%&'*+-.^_`|~")) tchar = tchar || c == p;
        if (tchar) m |= token;
        if (dig || alpha || c == '-' || c == '.' || c == '_' || c == '~') m |= unreserved;
        if (dig || alpha || c == '-' || c == '.' || c == '_') m |= host | request_id;
        for (char const p : std::string_view("!$&'()*+;="))
            if (c == p) m |= host;
        if (c == '\t' || (c >= 0x20 && c != 0x7f)) m |= value;
        t[static_cast<std::size_t>(c)] = m;
    }
    return t;
}
inline constexpr auto table = make();
}  // namespace char_class

constexpr bool is(char c, std::uint8_t cls) noexcept { return (char_class::table[static_cast<unsigned char>(c)] & cls) != 0; }
constexpr bool all(std::string_view s, std::uint8_t cls) noexcept {
    for (char const c : s)
        if (!is(c, cls)) return false;
    return true;
}

constexpr int hex_value(char c) noexcept {
    if (c >= '0' && c <= '9') return c - '0';
    char const l = lower(c);
    return l >= 'a' && l <= 'f' ? l - 'a' + 10 : -1;
}

}  // namespace latchkey::gateway
