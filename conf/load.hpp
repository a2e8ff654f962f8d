#pragma once
// From a TOML file to settings, with every mistake named by file:line:column and its remedy. Start-up only; one thread.

#include <string>
#include <string_view>
#include <vector>

#include "base/error.hpp"
#include "conf/settings.hpp"

namespace latchkey::conf {

// One mistake. line and column count from 1; 0 where the whole file is meant.
struct finding {
    std::string file;
    unsigned line = 0;
    unsigned column = 0;
    std::string what;    // "unknown setting 'lisen'"
    std::string remedy;  // "did you mean 'listen'?"
};

// What is found where there is none: one may come from elsewhere (`serve --upstream`).
inline constexpr std::string_view no_api = "no api is defined";

// "file:line:column: what; remedy"
std::string to_text(finding const&);

struct loaded {
    settings value;
    std::vector<finding> findings;  // empty: `value` can be used
};

// Reads and validates one file. Unknown settings are findings that suggest the nearest name; every value is checked against
// its range; all findings are collected, not only the first. Relative paths in the file are relative to the file's folder.
loaded load_file(std::string const& path);
loaded load_text(std::string_view toml, std::string const& file_name);

// The threads that will serve: settings.workers, or one a core.
unsigned worker_count(settings const&);

// Fits the defaults that depend on other settings: limits.memory to the workers, unless it was said. load_file has done it;
// `serve` does it again after flags were put on top.
void settle(settings&);

// The checks that need the whole picture (an api without upstream, two apis with the same host and prefix, no api at all).
// load_file has made them; `serve` makes them again after flags were put on top. `file` is "" then.
std::vector<finding> check(settings const&);

// "http://127.0.0.1:9000/base" -> target. https is refused with a clear sentence (not there yet), as are user info, query,
// fragment.
result<target> parse_target(std::string_view url);

// "127.0.0.1:8080", "[::1]:8080", ":8080" (all IPv4 addresses), "8080" (127.0.0.1). Literal addresses only.
result<endpoint> parse_listen(std::string_view text);

// "30s", "250ms", "5m", "1h", "1d" -> milliseconds; "16KiB", "1MiB", "2GiB", "64MB", "4096" -> bytes.
result<milliseconds> parse_duration(std::string_view text);
result<std::uint64_t> parse_bytes(std::string_view text);

}  // namespace latchkey::conf
