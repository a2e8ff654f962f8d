#include "base/log.hpp"

#include <spdlog/async.h>
#include <spdlog/sinks/basic_file_sink.h>
#include <spdlog/sinks/stdout_sinks.h>

#include <memory>
#include <mutex>
#include <shared_mutex>

#include "base/clock.hpp"

namespace latchkey::log {
namespace {

constexpr std::size_t queue_lines = 8192;

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
    the().logger.reset();
    the().pool.reset();  // joins its thread after the queue is written
}

std::string quoted(std::string_view text) {
    std::string out;
    out.reserve(text.size() + 2);
    out.push_back('"');
    for (char const c : text) {
        auto const u = static_cast<unsigned char>(c);
        if (c == '"' || c == '\\') {
            out.push_back('\\');
            out.push_back(c);
        } else if (u < 0x20 || u >= 0x7f) {
            fmt::format_to(std::back_inserter(out), "\\u{:04x}", u);
        } else {
            out.push_back(c);
        }
    }
    out.push_back('"');
    return out;
}

void write(level at, std::string_view event, std::string_view detail) {
    std::shared_lock const lock(the().guard);
    auto const& logger = the().logger;
    if (!logger || !logger->should_log(to_spdlog(at))) return;
    auto const now = format_time(wall_ms());
    if (the().json)
        logger->log(to_spdlog(at), "{{\"time\":\"{}\",\"level\":\"{}\",\"event\":{},\"detail\":{}}}", now, name_of(at),
                    quoted(event), quoted(detail));
    else
        logger->log(to_spdlog(at), "{} {:7} {}: {}", now, name_of(at), event, detail);
}

}  // namespace latchkey::log
