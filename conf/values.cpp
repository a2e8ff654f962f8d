// The parsers of single values that flags and the file share: listeners, targets, durations, sizes.

#include <arpa/inet.h>
#include <fmt/format.h>

#include <array>
#include <limits>
#include <optional>
#include <utility>

#include "conf/load.hpp"
#include "conf/rules.hpp"

namespace latchkey::conf {
namespace {

struct unit {
    std::string_view name;
    std::uint64_t factor;
};

constexpr std::array<unit, 5> time_units{{{"ms", 1}, {"s", 1'000}, {"m", 60'000}, {"h", 3'600'000}, {"d", 86'400'000}}};

constexpr std::array<unit, 10> size_units{{{"", 1},
                                           {"B", 1},
                                           {"KiB", 1ULL << 10},
                                           {"MiB", 1ULL << 20},
                                           {"GiB", 1ULL << 30},
                                           {"TiB", 1ULL << 40},
                                           {"kB", 1'000},
                                           {"KB", 1'000},
                                           {"MB", 1'000'000},
                                           {"GB", 1'000'000'000}}};

// number and unit, multiplied; nullopt: no such unit, no number, or more than `most`.
template <std::size_t N>
std::optional<std::uint64_t> scaled(std::string_view text, std::array<unit, N> const& units, std::uint64_t most) {
    auto const digits = text.find_first_not_of("0123456789");
    auto const number = decimal(text.substr(0, digits));
    if (!number) return std::nullopt;
    auto const name = digits == std::string_view::npos ? std::string_view{} : text.substr(digits);
    for (auto const& u : units)
        if (u.name == name) return *number <= most / u.factor ? std::optional(*number * u.factor) : std::nullopt;
    return std::nullopt;
}

error invalid(std::string message) { return error{errc::invalid_argument, std::move(message)}; }

std::optional<std::uint16_t> port_of(std::string_view text) {
    auto const value = decimal(text);
    if (!value || *value > std::numeric_limits<std::uint16_t>::max()) return std::nullopt;
    return static_cast<std::uint16_t>(*value);
}

bool is_address(int family, std::string const& text) {
    std::array<unsigned char, 16> out{};
    return inet_pton(family, text.c_str(), out.data()) == 1;
}

struct host_port {
    std::string host;  // without brackets
    bool bracketed = false;
    std::optional<std::string> port;  // what stands behind the ':'
};

// "host", "host:port", "[v6]", "[v6]:port"; nullopt: brackets that do not match, or more than one ':' outside of them.
std::optional<host_port> split_authority(std::string_view text) {
    host_port out;
    if (text.starts_with('[')) {
        auto const close = text.find(']');
        if (close == std::string_view::npos) return std::nullopt;
        out.host = text.substr(1, close - 1);
        out.bracketed = true;
        text.remove_prefix(close + 1);
        if (text.empty()) return out;
        if (text.front() != ':') return std::nullopt;
        out.port = text.substr(1);
        return out;
    }
    auto const colon = text.find(':');
    out.host = text.substr(0, colon);
    if (colon == std::string_view::npos) return out;
    out.port = text.substr(colon + 1);
    if (out.port->find(':') != std::string::npos) return std::nullopt;
    return out;
}

bool starts_with_scheme(std::string_view url, std::string_view scheme) {
    if (url.size() < scheme.size()) return false;
    for (std::size_t i = 0; i < scheme.size(); ++i)
        if ((url[i] | ((url[i] >= 'A' && url[i] <= 'Z') ? 0x20 : 0)) != scheme[i]) return false;
    return true;
}

result<endpoint> target_endpoint(std::string_view url, std::string_view authority) {
    auto const parts = split_authority(authority);
    if (!parts || parts->host.empty())
        return invalid(fmt::format("upstream {} names no host; write it like http://127.0.0.1:9000", shown(url)));
    endpoint at{parts->host, 80};
    if (parts->port) {
        auto const port = port_of(*parts->port);
        if (!port || *port == 0) return invalid(fmt::format("upstream {} has no valid port; write 1 to 65535", shown(url)));
        at.port = *port;
    }
    if (parts->bracketed) {
        if (!is_address(AF_INET6, at.host))
            return invalid(
                fmt::format("upstream {} has no IPv6 address in its brackets; write it like http://[::1]:9000", shown(url)));
        return at;
    }
    for (char& c : at.host)
        if (c >= 'A' && c <= 'Z') c = static_cast<char>(c - 'A' + 'a');
    if (host_problem(at.host) || at.host.starts_with("*."))
        return invalid(fmt::format("upstream {} has no valid host; write it like http://127.0.0.1:9000", shown(url)));
    return at;
}

}  // namespace

result<target> parse_target(std::string_view url) {
    constexpr std::string_view http = "http://";
    if (starts_with_scheme(url, "https://"))
        return invalid(
            fmt::format("upstream {} uses https, which upstream connections do not offer yet; write http:// and keep "
                        "the connection inside a network you trust",
                        shown(url)));
    if (!starts_with_scheme(url, http))
        return invalid(fmt::format("upstream {} does not start with http://; write it like http://127.0.0.1:9000", shown(url)));
    auto const rest = url.substr(http.size());
    if (rest.find_first_of("?#") != std::string_view::npos)
        return invalid(fmt::format("upstream {} has a query or fragment; write scheme, host, port and path only", shown(url)));
    auto const slash = rest.find('/');
    auto const authority = rest.substr(0, slash);
    if (authority.find('@') != std::string_view::npos)
        return invalid("an upstream has user information before its host; leave it out, it is never sent");
    auto const at = target_endpoint(url, authority);
    if (!at) return at.error();
    target out{*at, slash == std::string_view::npos ? std::string{} : std::string(rest.substr(slash))};
    if (!out.base_path.empty())
        if (auto const p = path_prefix_problem(out.base_path))
            return invalid(fmt::format("upstream {}: {}; {}", shown(url), p->what, p->remedy));
    while (out.base_path.ends_with('/')) out.base_path.pop_back();
    return out;
}

result<endpoint> parse_listen(std::string_view text) {
    constexpr std::string_view forms = "write it like 127.0.0.1:8080, [::1]:8080, :8080 (every IPv4 address) or 8080 (127.0.0.1)";
    auto const bad = [&](std::string_view why) {
        return invalid(fmt::format("cannot listen on {}: {}; {}", shown(text), why, forms));
    };
    if (auto const port = port_of(text)) return endpoint{"127.0.0.1", *port};
    auto const parts = split_authority(text);
    if (!parts) return bad(is_address(AF_INET6, std::string(text)) ? "IPv6 addresses stand in brackets" : "not an address");
    if (!parts->port) return bad("the port is missing");
    auto const port = port_of(*parts->port);
    if (!port) return bad("the port is not a number from 0 to 65535");
    if (parts->bracketed)
        return is_address(AF_INET6, parts->host) ? result<endpoint>(endpoint{parts->host, *port}) : bad("not an IPv6 address");
    if (parts->host.empty()) return endpoint{"0.0.0.0", *port};
    if (!is_address(AF_INET, parts->host)) return bad("only literal addresses are taken, names are not looked up");
    return endpoint{parts->host, *port};
}

result<milliseconds> parse_duration(std::string_view text) {
    if (text == "0") return milliseconds{0};
    auto const value = scaled(text, time_units, static_cast<std::uint64_t>(std::numeric_limits<std::int64_t>::max()));
    if (!value)
        return invalid(fmt::format("{} is not a duration; write a whole number and ms, s, m, h or d, like '30s'", shown(text)));
    return milliseconds{static_cast<std::int64_t>(*value)};
}

result<std::uint64_t> parse_bytes(std::string_view text) {
    auto const value = scaled(text, size_units, std::numeric_limits<std::uint64_t>::max());
    if (!value)
        return invalid(fmt::format("{} is not a size; write a whole number and B, KiB, MiB, GiB, TiB, kB, MB or GB, like '16KiB'",
                                   shown(text)));
    return *value;
}

}  // namespace latchkey::conf
