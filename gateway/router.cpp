#include "gateway/router.hpp"

#include <algorithm>

namespace latchkey::gateway {

router::router(std::vector<conf::api> const& apis) {
    for (std::uint32_t i = 0; i < apis.size(); ++i) {
        auto const& a = apis[i];
        if (a.hosts.empty()) add(any_host_, a, i);
        for (auto const& host : a.hosts) {
            if (host.starts_with("*."))
                add(wildcard_[host.substr(2)], a, i);
            else
                add(exact_[host], a, i);
        }
    }
}

void router::add(paths& to, conf::api const& a, std::uint32_t index) {
    if (a.path_prefixes.empty()) to.any_path = index;
    for (std::string_view prefix : a.path_prefixes) {
        if (prefix.size() > 1 && prefix.ends_with('/')) prefix.remove_suffix(1);
        if (prefix == "/") {
            to.any_path = index;
            continue;
        }
        to.by_prefix.emplace(prefix, index);
        to.longest = std::max(to.longest, prefix.size());
    }
}

std::optional<router::match> router::find_path(paths const& in, std::string_view path) noexcept {
    if (!in.by_prefix.empty() && path != "*") {
        // From the longest prefix that ends at a segment's end down to the first segment.
        std::size_t end = path.size();
        if (end > 1 && path.back() == '/') --end;
        if (end > in.longest) {
            auto const slash = path.rfind('/', in.longest);
            end = slash == std::string_view::npos ? 0 : slash;
        }
        while (end > 0) {
            if (auto const it = in.by_prefix.find(path.substr(0, end)); it != in.by_prefix.end())
                return match{it->second, static_cast<std::uint32_t>(end)};
            end = path.rfind('/', end - 1);
            if (end == std::string_view::npos) break;
        }
    }
    if (in.any_path) return match{*in.any_path, 0};
    return std::nullopt;
}

std::optional<router::match> router::find(std::string_view host, std::string_view path) const noexcept {
    if (!exact_.empty()) {
        if (auto const it = exact_.find(host); it != exact_.end())
            if (auto const m = find_path(it->second, path)) return m;
    }
    if (!wildcard_.empty()) {
        for (auto dot = host.find('.'); dot != std::string_view::npos; dot = host.find('.', dot + 1)) {
            if (auto const it = wildcard_.find(host.substr(dot + 1)); it != wildcard_.end())
                if (auto const m = find_path(it->second, path)) return m;
        }
    }
    return find_path(any_host_, path);
}

}  // namespace latchkey::gateway
