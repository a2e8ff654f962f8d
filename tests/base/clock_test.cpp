#include "base/clock.hpp"

#include <array>

#include "tests/base/scratch.hpp"

using namespace latchkey;

TEST_CASE("times are written as RFC 3339 with milliseconds in UTC") {
    CHECK(format_time(0) == "1970-01-01T00:00:00.000Z");
    CHECK(format_time(1'787'393'472'345) == "2026-08-22T10:11:12.345Z");
    CHECK(format_time(951'782'400'000) == "2000-02-29T00:00:00.000Z");
    CHECK(format_time(-1) == "1969-12-31T23:59:59.999Z");
    CHECK(format_time(INT64_MIN) == "0000-01-01T00:00:00.000Z");
    CHECK(format_time(INT64_MAX) == "9999-12-31T23:59:59.999Z");
    std::array<char, 25> out{};
    out[24] = '#';
    CHECK(format_time_to(out.data(), 0) == out.data() + 24);
    CHECK(out[24] == '#');
}

TEST_CASE("what is written is read back") {
    for (std::int64_t const ms : {std::int64_t{0}, std::int64_t{-1}, std::int64_t{1'787'393'472'345},
                                  std::int64_t{253'402'300'799'999}, std::int64_t{-62'167'219'200'000}})
        CHECK(parse_time(format_time(ms)).value() == ms);
}

TEST_CASE("the accepted forms of a time") {
    auto const expected = 1'787'393'472'000;
    for (auto const* text : {"2026-08-22T10:11:12Z", "2026-08-22t10:11:12z", "2026-08-22 10:11:12Z", "2026-08-22T12:11:12+02:00",
                             "2026-08-22T04:41:12-05:30", "2026-08-22T10:11:12.0000000001Z"}) {
        CAPTURE(text);
        REQUIRE(parse_time(text));
        CHECK(*parse_time(text) == expected);
    }
    CHECK(parse_time("2026-08-22").value() == 1'787'356'800'000);
    CHECK(parse_time("2026-08-22T10:11:12.3Z").value() == expected + 300);
    CHECK(parse_time("2026-08-22T10:11:12.3459999999999Z").value() == expected + 345);
    CHECK(parse_time("2016-12-31T23:59:60Z").value() == parse_time("2016-12-31T23:59:59Z").value());  // a leap second
}

TEST_CASE("what is no time is refused with the text and the accepted forms") {
    for (auto const* text : {"",
                             "now",
                             "2026",
                             "2026-8-2",
                             "2026-02-29",
                             "2026-13-01",
                             "2026-00-10",
                             "2026-01-32",
                             "2026-08-22T",
                             "2026-08-22T10:11Z",
                             "2026-08-22T24:00:00Z",
                             "2026-08-22T10:60:00Z",
                             "2026-08-22T10:11:61Z",
                             "2026-08-22T10:11:12",
                             "2026-08-22T10:11:12.Z",
                             "2026-08-22T10:11:12Zx",
                             "2026-08-22T10:11:12+2",
                             "2026-08-22T10:11:12+24:00",
                             "2026-08-22T10:11:12+01:60",
                             "2026-08-22x",
                             "-026-08-22",
                             "2026-08-22T10:11:12+02:00x"}) {
        CAPTURE(text);
        auto const r = parse_time(text);
        REQUIRE(r.has_error());
        CHECK(r.error().code == errc::invalid_argument);
        CHECK(r.error().message.find("RFC") == std::string::npos);
        CHECK(r.error().message.find(std::string("'") + text + "'") != std::string::npos);
    }
}

TEST_CASE("the monotonic clock does not go back, and the wall clock is after 2020") {
    auto last = steady_ns();
    for (int i = 0; i < 1000; ++i) {
        auto const now = steady_ns();
        REQUIRE(now >= last);
        last = now;
    }
    CHECK(wall_ms() > 1'577'836'800'000);
}
