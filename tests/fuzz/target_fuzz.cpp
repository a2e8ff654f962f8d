// Request targets and hosts: a target that is taken comes out normal, no longer than it was, and normalising it again changes
// nothing, so that what is decided on is what any reader behind the gateway decides on.

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <functional>
#include <string>
#include <string_view>

#include "gateway/target.hpp"
#include "gateway/text.hpp"

namespace {

using namespace latchkey::gateway;

void require(bool holds) {
    if (!holds) std::abort();
}

void require_normal(std::string_view path) {
    require(!path.empty() && path.front() == '/');
    require(path.find("//") == std::string_view::npos);
    for (std::size_t at = 0; at < path.size();) {
        auto const end = std::min(path.find('/', at + 1), path.size());
        auto const segment = path.substr(at + 1, end - at - 1);
        auto const plain = segment.substr(0, segment.find(';'));
        require(segment != "." && segment != "..");
        require(plain == segment || (!plain.empty() && plain != "." && plain != ".."));
        at = end;
    }
    for (std::size_t i = 0; i < path.size(); ++i) {
        auto const c = static_cast<unsigned char>(path[i]);
        require(c > 0x20 && c < 0x7f && c != '\\' && c != '#' && c != '?');
        if (c != '%') continue;
        require(i + 2 < path.size());
        int const high = hex_value(path[i + 1]);
        int const low = hex_value(path[i + 2]);
        require(high >= 0 && low >= 0);
        int const byte = high * 16 + low;
        require(byte != 0 && byte != '\\');
        require(byte >= 0x80 || !is(static_cast<char>(byte), char_class::unreserved));
    }
}

void check_target(std::string_view input, std::string_view method) {
    std::string first(input);
    request_target t;
    if (normalise_target(first.data(), first.size(), method, t) != refusal::none) return;
    require(t.path.size() + t.query.size() + t.authority.size() <= input.size() + 1);  // "/" where an absolute form has no path
    require(t.query.empty() || t.query.front() == '?');
    require(input.ends_with(t.query));
    if (t.path == "*") {
        require(method == "OPTIONS" && input == "*");
        return;
    }
    require_normal(t.path);
    bool const has_slash = t.path.find("%2f") != std::string_view::npos || t.path.find("%2F") != std::string_view::npos;
    require(t.encoded_slash || !has_slash);

    std::string const normal = std::string(t.path) + std::string(t.query);
    std::string second = normal;
    request_target again;
    require(normalise_target(second.data(), second.size(), method, again) == refusal::none);
    require(again.path == t.path && again.query == t.query && again.authority.empty());
    require(again.encoded_slash == has_slash);
    if (!t.authority.empty()) require(input.find(t.authority) != std::string_view::npos);
}

void check_host(std::string_view input) {
    host_name name;
    if (!parse_host(input, name)) return;
    require(name.size > 0 && name.size <= input.size() && name.size <= 255);
    for (char const c : name.view()) require(lower(c) == c && c != '@' && c != '/' && c != '%' && c != ',');
    require(same_authority(input, input));
    host_name again;
    require(parse_host(name.view(), again) && again.view() == name.view());
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(std::uint8_t const* data, std::size_t size) {
    if (size > 4096) return 0;
    std::string_view const input(reinterpret_cast<char const*>(data), size);
    check_target(input, "GET");
    check_target(input, "OPTIONS");
    check_host(input);
    auto const half = size / 2;
    bool const same = same_authority(input.substr(0, half), input.substr(half));
    require(same == same_authority(input.substr(half), input.substr(0, half)));
    return 0;
}
