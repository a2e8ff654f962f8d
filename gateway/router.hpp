#pragma once
// Host and path -> api. The most specific host wins (exact, then the longest wildcard, then any), in it the longest prefix of
// whole segments; where no prefix fits, the next less specific host is asked. Built once, then read-only: any thread.
// Cost does not grow with the number of apis: a hash look-up per host label and path segment.

#include <boost/unordered/unordered_flat_map.hpp>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "conf/settings.hpp"

namespace latchkey::gateway {

class router {
  public:
    explicit router(std::vector<conf::api> const& apis);

    struct match {
        std::uint32_t api = 0;     // index into the settings' apis
        std::uint32_t prefix = 0;  // bytes of the path that matched the prefix (0 for "/" and for none)
    };
    // `host` lower-case, without port (empty: unknown); `path` normal. No allocation.
    std::optional<match> find(std::string_view host, std::string_view path) const noexcept;

  private:
    struct text_hash {
        using is_transparent = void;
        std::size_t operator()(std::string_view s) const noexcept { return std::hash<std::string_view>{}(s); }
    };
    template <class V>
    using text_map = boost::unordered_flat_map<std::string, V, text_hash, std::equal_to<>>;

    struct paths {
        text_map<std::uint32_t> by_prefix;      // without trailing slash; never "/"
        std::optional<std::uint32_t> any_path;  // no prefix, or "/"
        std::size_t longest = 0;
    };
    static void add(paths&, conf::api const&, std::uint32_t index);
    static std::optional<match> find_path(paths const&, std::string_view path) noexcept;

    text_map<paths> exact_;
    text_map<paths> wildcard_;  // by what follows "*."
    paths any_host_;
};

}  // namespace latchkey::gateway
