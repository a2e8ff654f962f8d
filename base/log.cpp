#include "base/log.hpp"

#include <spdlog/async.h>
#include <spdlog/sinks/basic_file_sink.h>
#include <spdlog/sinks/stdout_sinks.h>

#include <algorithm>
#include <iterator>
#include <memory>
#include <mutex>
#include <shared_mutex>

#include "base/clock.hpp"
#include "base/utf8.hpp"

namespace latchkey::log {
namespace {

constexpr std::size_t queue_lines = 2048;  // 400 bytes each, whether used or not; no line is written for a request that goes well

struct state {
    std::shared_mutex guard;
    std::shared_ptr<spdlog::details::thread_pool> pool;
    std::shared_ptr<spdlog::async_logger> logger;
    bool json = true;
};

state& the() {
    static state s;
    return s;
}

spdlog::level::level_enum to_spdlog(level at) {
    switch (at) {
        case level::debug: return spdlog::level::debug;
        case level::info: return spdlog::level::info;
        case level::warning: return spdlog::level::warn;
        case level::error: return spdlog::level::err;
        case level::off: return spdlog::level::off;
    }
    return spdlog::level::info;
}

std::string_view name_of(level at) {
    switch (at) {
        case level::debug: return "debug";
        case level::info: return "info";
        case level::warning: return "warning";
        case level::error: return "error";
        case level::off: return "off";
    }
    return "info";
}

// `text` with control characters as \u00xx, a backslash before each of `specials`, and U+FFFD for each byte that is not UTF-8.
std::string escaped(std::string_view text, std::string_view specials) {
    std::string out;
    out.reserve(text.size() + 2);
    while (!text.empty()) {
        std::size_t const bytes = utf8_character(text);
        auto const character = text.substr(0, bytes);
        if (bytes == 0) {
            out += "\uFFFD";
        } else if (is_control(character)) {
            fmt::format_to(std::back_inserter(out), "\\u{:04x}", static_cast<unsigned char>(character.back()));
        } else {
            if (specials.find(character) != std::string_view::npos) out.push_back('\\');
            out += character;
        }
        text.remove_prefix(std::max<std::size_t>(bytes, 1));
    }
    return out;
}

}  // namespace

void start(level threshold, std::string const& file, bool json) {
    std::unique_lock const lock(the().guard);
    spdlog::sink_ptr sink;
    try {
        if (file.empty())
            sink = std::make_shared<spdlog::sinks::stderr_sink_mt>();
        else
            sink = std::make_shared<spdlog::sinks::basic_file_sink_mt>(file);
    } catch (spdlog::spdlog_ex const& e) {
        throw std::runtime_error(fmt::format("cannot write the log to {}: {}", file, e.what()));
    }
    the().json = json;
    the().pool = std::make_shared<spdlog::details::thread_pool>(queue_lines, 1U);
    the().logger =
        std::make_shared<spdlog::async_logger>("latchkey", sink, the().pool, spdlog::async_overflow_policy::overrun_oldest);
    the().logger->set_pattern("%v");
    the().logger->set_level(to_spdlog(threshold));
    the().logger->flush_on(spdlog::level::debug);
}

void stop() noexcept {
    std::unique_lock const lock(the().guard);
    the().pool.reset();  // joins its thread after the queue is written: nobody else holds the logger then
    the().logger.reset();
}

std::string quoted(std::string_view text) { return '"' + escaped(text, "\"\\") + '"'; }

void write(level at, std::string_view event, std::string_view detail) {
    std::shared_lock const lock(the().guard);
    auto const& logger = the().logger;
    if (!logger || !logger->should_log(to_spdlog(at))) return;
    auto const now = format_time(wall_ms());
    if (the().json)
        logger->log(to_spdlog(at), "{{\"time\":\"{}\",\"level\":\"{}\",\"event\":{},\"detail\":{}}}", now, name_of(at),
                    quoted(event), quoted(detail));
    else
        logger->log(to_spdlog(at), "{} {:7} {}: {}", now, name_of(at), escaped(event, ""), escaped(detail, ""));
}

}  // namespace latchkey::log
