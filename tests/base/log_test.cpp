#include "base/log.hpp"

#include <algorithm>
#include <stdexcept>
#include <thread>
#include <vector>

#include "tests/base/scratch.hpp"

using namespace latchkey;
using namespace latchkey::testing;

namespace {

std::vector<std::string> logged(log::level threshold, bool json, std::function<void()> const& work) {
    scratch_dir const dir;
    log::start(threshold, dir.file("log"), json);
    work();
    log::stop();
    std::vector<std::string> lines;
    std::ifstream in(dir.file("log"));
    for (std::string line; std::getline(in, line);) lines.push_back(line);
    return lines;
}

}  // namespace

TEST_CASE("text from outside stays inside its line and its quotes") {
    CHECK(log::quoted("plain") == "\"plain\"");
    CHECK(log::quoted("a\"b\\c") == "\"a\\\"b\\\\c\"");
    CHECK(log::quoted("a\r\nb\x1b[31m\x7f") == "\"a\\u000d\\u000ab\\u001b[31m\\u007f\"");
    CHECK(log::quoted(std::string_view("\0", 1)) == "\"\\u0000\"");
    CHECK(log::quoted("Zo\xC3\xAB \xF0\x9F\x98\x80") == "\"Zo\xC3\xAB \xF0\x9F\x98\x80\"");
    CHECK(log::quoted("\xC2\x9B") == "\"\\u009b\"");
    CHECK(log::quoted("\xFFx\xC3") == "\"\xEF\xBF\xBDx\xEF\xBF\xBD\"");
}

TEST_CASE("a line is one JSON object with time, level, event and detail") {
    auto const lines = logged(log::level::info, true, [] {
        log::info("started", "on {} \"{}\"\n", 80, "x");
        log::write(log::level::debug, "below", "the threshold");
        log::error("broken", "{{}}");
    });
    REQUIRE(lines.size() == 2);
    CHECK(lines[0].starts_with("{\"time\":\"2"));
    CHECK(lines[0].ends_with(",\"level\":\"info\",\"event\":\"started\",\"detail\":\"on 80 \\\"x\\\"\\u000a\"}"));
    CHECK(lines[1].ends_with("\"level\":\"error\",\"event\":\"broken\",\"detail\":\"{}\"}"));
}

TEST_CASE("plain lines keep text from outside inside its line too") {
    auto const lines = logged(log::level::info, false, [] { log::warn("odd", "first\r\nforged {}", "\x1b[2J Zo\xC3\xAB"); });
    REQUIRE(lines.size() == 1);
    CHECK(lines[0].find('\r') == std::string::npos);
    CHECK(lines[0].find('\x1b') == std::string::npos);
    CHECK(lines[0].find("Zo\xC3\xAB") != std::string::npos);
}

TEST_CASE("nothing is logged before the start, after the stop or when it is off") {
    log::info("early", "x");
    CHECK(logged(log::level::off, true, [] { log::error("quiet", "x"); }).empty());
    log::info("late", "x");
}

TEST_CASE("a log that cannot be written is said at the start") {
    std::string said;
    try {
        log::start(log::level::info, "/dev/null/log", true);
    } catch (std::runtime_error const& e) {
        said = e.what();
    }
    CHECK(said.find("/dev/null/log") != std::string::npos);
}

TEST_CASE("many threads write whole lines") {
    auto const lines = logged(log::level::info, true, [] {
        std::vector<std::thread> writers;
        for (int t = 0; t < 4; ++t)
            writers.emplace_back([t] {
                for (int i = 0; i < 200; ++i) log::info("busy", "{}-{}", t, i);
            });
        for (auto& w : writers) w.join();
    });
    CHECK(lines.size() == 800);
    CHECK(
        std::all_of(lines.begin(), lines.end(), [](auto const& l) { return l.starts_with("{\"time\"") && l.ends_with("\"}"); }));
}
