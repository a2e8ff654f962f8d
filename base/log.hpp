#pragma once
// The operator's log: one JSON object a line on stderr (or a file), written by a background thread. A full queue drops the
// oldest line and never makes the caller wait (law 1), but formatting allocates: nothing on a request's warm path logs. A line
// for which there is no memory is lost; whoever logs never gets an exception for it. Any thread. Never pass a key, a query string
// or a body.

#include <fmt/format.h>
#include <spdlog/spdlog.h>

#include <string>
#include <string_view>

namespace latchkey::log {

enum class level { debug, info, warning, error, off };

// Call once before the first thread starts; `file` empty means stderr. `json` false gives plain lines for a terminal.
// Throws std::runtime_error if the file cannot be opened.
void start(level threshold, std::string const& file, bool json);

// Flushes what is queued and stops the background thread; later lines are dropped.
void stop() noexcept;

// A JSON string of UTF-8: controls (C1 too), quotes and backslashes are escaped, so that text from outside stays inside its line
// (ASVS 16.4.1); bytes that are not UTF-8 become U+FFFD. Plain lines are treated the same but for quotes and backslashes.
std::string quoted(std::string_view text);

void write(level at, std::string_view event, std::string_view detail);

template <class... Args>
void info(std::string_view event, fmt::format_string<Args...> f, Args&&... args) noexcept try {
    write(level::info, event, fmt::format(f, std::forward<Args>(args)...));
} catch (...) {
}
template <class... Args>
void warn(std::string_view event, fmt::format_string<Args...> f, Args&&... args) noexcept try {
    write(level::warning, event, fmt::format(f, std::forward<Args>(args)...));
} catch (...) {
}
template <class... Args>
void error(std::string_view event, fmt::format_string<Args...> f, Args&&... args) noexcept try {
    write(level::error, event, fmt::format(f, std::forward<Args>(args)...));
} catch (...) {
}

}  // namespace latchkey::log
