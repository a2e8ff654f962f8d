#include "conf/rules.hpp"

#include <arpa/inet.h>
#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <charconv>
#include <vector>

#include "conf/settings.hpp"

namespace latchkey::conf {
namespace {

constexpr std::size_t shown_bytes_max = 80;
constexpr std::size_t host_bytes_max = 253;
constexpr std::size_t label_bytes_max = 63;
constexpr std::size_t realm_bytes_max = 128;

bool is_digit(char c) noexcept { return c >= '0' && c <= '9'; }
bool is_lower(char c) noexcept { return c >= 'a' && c <= 'z'; }
bool is_upper(char c) noexcept { return c >= 'A' && c <= 'Z'; }

std::vector<std::string_view> split(std::string_view text, char at) {
    std::vector<std::string_view> parts;
    for (;;) {
        auto const end = text.find(at);
        parts.push_back(text.substr(0, end));
        if (end == std::string_view::npos) return parts;
        text.remove_prefix(end + 1);
    }
}

bool is_label(std::string_view label) noexcept {
    auto const inside = [](char c) { return is_lower(c) || is_digit(c) || c == '-' || c == '_'; };
    return !label.empty() && label.size() <= label_bytes_max && label.front() != '-' && label.back() != '-' &&
           std::all_of(label.begin(), label.end(), inside);
}

bool is_ipv6(std::string_view text) {
    in6_addr out{};
    return inet_pton(AF_INET6, std::string(text).c_str(), &out) == 1;
}

std::string lowered(std::string_view text) {
    std::string out(text);
    for (char& c : out)
        if (is_upper(c)) c = static_cast<char>(c - 'A' + 'a');
    return out;
}

struct address {
    std::array<unsigned char, 16> bytes{};
    unsigned bits = 0;  // 32 or 128; 0: not an address
    int family = AF_UNSPEC;
};

address read_address(std::string const& text) {
    address a;
    if (inet_pton(AF_INET, text.c_str(), a.bytes.data()) == 1) {
        a.bits = 32;
        a.family = AF_INET;
    } else if (inet_pton(AF_INET6, text.c_str(), a.bytes.data()) == 1) {
        a.bits = 128;
        a.family = AF_INET6;
    }
    return a;
}

// Clears the bits behind the first `kept`; true where all of them were zero.
bool clear_host_bits(address& a, unsigned kept) {
    bool clean = true;
    for (unsigned bit = kept; bit < a.bits; ++bit) {
        auto const mask = static_cast<unsigned char>(0x80U >> (bit % 8U));
        auto& byte = a.bytes[bit / 8U];
        if ((byte & mask) != 0) clean = false;
        byte = static_cast<unsigned char>(byte & ~mask);
    }
    return clean;
}

std::string to_text(address const& a) {
    std::array<char, INET6_ADDRSTRLEN> out{};
    inet_ntop(a.family, a.bytes.data(), out.data(), out.size());
    return out.data();
}

constexpr std::size_t name_bytes_max = 64;  // a longer one is not compared: no setting is near it

// Optimal string alignment distance.
std::size_t edits(std::string_view a, std::string_view b) {
    std::vector<std::vector<std::size_t>> d(a.size() + 1, std::vector<std::size_t>(b.size() + 1));
    for (std::size_t i = 0; i <= a.size(); ++i) d[i][0] = i;
    for (std::size_t j = 0; j <= b.size(); ++j) d[0][j] = j;
    for (std::size_t i = 1; i <= a.size(); ++i) {
        for (std::size_t j = 1; j <= b.size(); ++j) {
            auto const replaced = d[i - 1][j - 1] + (a[i - 1] == b[j - 1] ? 0U : 1U);
            d[i][j] = std::min({d[i - 1][j] + 1, d[i][j - 1] + 1, replaced});
            if (i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1]) d[i][j] = std::min(d[i][j], d[i - 2][j - 2] + 1);
        }
    }
    return d[a.size()][b.size()];
}

}  // namespace

std::string shown(std::string_view text) {
    std::string out = "'";
    for (char const c : text.substr(0, shown_bytes_max)) {
        auto const u = static_cast<unsigned char>(c);
        if (u < 0x20 || u == 0x7f)
            fmt::format_to(std::back_inserter(out), "\\x{:02x}", u);
        else
            out.push_back(c);
    }
    if (text.size() > shown_bytes_max) out += "...";
    return out + "'";
}

std::optional<unsigned long long> decimal(std::string_view text) noexcept {
    if (text.empty() || !is_digit(text.front())) return std::nullopt;
    unsigned long long value = 0;
    auto const [end, ec] = std::from_chars(text.data(), text.data() + text.size(), value);
    if (ec != std::errc{} || end != text.data() + text.size()) return std::nullopt;
    return value;
}

std::optional<problem> api_name_problem(std::string_view name) {
    auto const inside = [](char c) { return is_lower(c) || is_upper(c) || is_digit(c) || c == '.' || c == '_' || c == '-'; };
    if (!name.empty() && name.size() <= 64 && std::all_of(name.begin(), name.end(), inside)) return std::nullopt;
    return problem{fmt::format("{} cannot name an api", shown(name)), "take 1 to 64 of A-Z a-z 0-9 . _ -"};
}

std::optional<problem> host_problem(std::string_view host) {
    auto const bad = [&](std::string remedy) {
        return problem{fmt::format("{} is not a host name", shown(host)), std::move(remedy)};
    };
    if (host.empty()) return bad("leave `hosts` out to serve every host");
    if (host.find("://") != std::string_view::npos) return bad("write the name alone, without http:// and path");
    if (std::any_of(host.begin(), host.end(), is_upper)) {
        auto const lower = lowered(host);
        auto const more = host_problem(lower);
        return bad(more ? more->remedy : fmt::format("write it in lower case: '{}'", lower));
    }
    if (host.front() == '[') {
        auto const close = host.find(']');
        if (close == std::string_view::npos || !is_ipv6(host.substr(1, close - 1))) return bad("write it like [2001:db8::1]");
        if (close + 1 != host.size()) return bad("write it without a port: hosts are compared without one");
        return std::nullopt;
    }
    if (is_ipv6(host)) return bad(fmt::format("put IPv6 addresses in brackets: '[{}]'", host));
    if (host.find(':') != std::string_view::npos) return bad("write it without a port: hosts are compared without one");
    if (host.back() == '.') return bad("write it without the trailing dot");
    if (host == "*") return bad("leave `hosts` out to serve every host");
    auto const name = host.starts_with("*.") ? host.substr(2) : host;
    if (name.find('*') != std::string_view::npos) return bad("'*' can only stand for the leftmost labels: '*.example.com'");
    auto const labels = split(name, '.');
    if (name.size() > host_bytes_max || !std::all_of(labels.begin(), labels.end(), is_label))
        return bad("write labels of a-z 0-9 - (at most 63 characters each) with dots between them, like 'api.example.com'");
    return std::nullopt;
}

std::optional<problem> path_prefix_problem(std::string_view prefix) {
    auto const bad = [&](std::string_view rule, std::string remedy) {
        return problem{fmt::format("path prefix {} {}", shown(prefix), rule), std::move(remedy)};
    };
    if (!prefix.starts_with('/')) return bad("does not start with '/'", fmt::format("write '/{}'", prefix.substr(0, 80)));
    if (prefix.size() > path_prefix_bytes_max) return bad("is longer than 1024 bytes", "shorten it");
    if (prefix.find('%') != std::string_view::npos)
        return bad("has a '%'", "write the decoded character; prefixes are compared after decoding");
    if (prefix.find_first_of("?#") != std::string_view::npos) return bad("has a query or fragment", "write the path alone");
    if (prefix.find("//") != std::string_view::npos) return bad("has an empty segment", "write one '/' between segments");
    if (prefix.find('\\') != std::string_view::npos) return bad("has a backslash", "separate segments by '/'");
    auto const visible = [](char c) { return c > 0x20 && c < 0x7f; };
    if (!std::all_of(prefix.begin(), prefix.end(), visible))
        return bad("has a blank, a control character or a byte outside ASCII", "write visible ASCII characters only");
    for (auto const segment : split(prefix, '/'))
        if (segment == "." || segment == "..") return bad("has a dot segment", "write the path that it leads to");
    return std::nullopt;
}

std::optional<problem> cidr_problem(std::string_view text) {
    auto const slash = text.find('/');
    auto a = read_address(std::string(text.substr(0, slash)));
    if (a.bits == 0)
        return problem{fmt::format("{} is neither an address nor a network", shown(text)),
                       "write it like 10.0.0.1, 10.0.0.0/8, 2001:db8::1 or 2001:db8::/32"};
    if (slash == std::string_view::npos) return std::nullopt;
    auto const kept = decimal(text.substr(slash + 1));
    if (!kept || *kept > a.bits)
        return problem{fmt::format("{} has no valid prefix length", shown(text)), fmt::format("write /0 to /{}", a.bits)};
    if (!clear_host_bits(a, static_cast<unsigned>(*kept)))
        return problem{fmt::format("{} has bits set behind its prefix length", shown(text)),
                       fmt::format("write '{}/{}', or the address alone", to_text(a), *kept)};
    return std::nullopt;
}

std::optional<problem> key_prefix_problem(std::string_view prefix) {
    auto const inside = [](char c) { return is_lower(c) || is_digit(c); };
    if (prefix.size() >= 2 && prefix.size() <= 16 && std::all_of(prefix.begin(), prefix.end(), inside)) return std::nullopt;
    return problem{fmt::format("{} cannot be a key prefix", shown(prefix)), "take 2 to 16 of a-z 0-9, like 'lk'"};
}

std::optional<problem> realm_problem(std::string_view realm) {
    auto const inside = [](char c) { return c > 0x20 && c < 0x7f && c != '"' && c != '\\'; };
    if (!realm.empty() && realm.size() <= realm_bytes_max && std::all_of(realm.begin(), realm.end(), inside)) return std::nullopt;
    return problem{fmt::format("{} cannot be a realm", shown(realm)),
                   "take 1 to 128 visible ASCII characters without blanks, quotes and backslashes"};
}

std::optional<std::string> nearest(std::string_view wrong, std::vector<std::string> const& names) {
    if (wrong.size() > name_bytes_max) return std::nullopt;
    auto const enough = std::max<std::size_t>(1, wrong.size() / 3);
    std::optional<std::string> best;
    auto least = enough + 1;
    for (auto const& name : names) {
        auto const d = edits(wrong, name);
        if (d < least) {
            least = d;
            best = name;
        }
    }
    return best;
}

}  // namespace latchkey::conf
