#include "base/clock.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <ctime>

namespace latchkey {
namespace {

constexpr std::int64_t day_ms = 86'400'000;
constexpr std::int64_t first_ms = -62'167'219'200'000;  // 0000-01-01T00:00:00.000Z
constexpr std::int64_t last_ms = 253'402'300'799'999;   // 9999-12-31T23:59:59.999Z

char* put_digits(char* out, unsigned value, int digits) noexcept {
    for (int i = digits - 1; i >= 0; --i) {
        out[i] = static_cast<char>('0' + value % 10);
        value /= 10;
    }
    return out + digits;
}

// Reads exactly `digits` digits at `at` and moves past them; -1 if something else stands there.
int take_digits(std::string_view text, std::size_t& at, std::size_t digits) {
    if (text.size() < at + digits) return -1;
    int value = 0;
    for (std::size_t i = 0; i < digits; ++i) {
        char const c = text[at + i];
        if (c < '0' || c > '9') return -1;
        value = value * 10 + (c - '0');
    }
    at += digits;
    return value;
}

bool take(std::string_view text, std::size_t& at, char wanted) {
    if (at >= text.size() || text[at] != wanted) return false;
    ++at;
    return true;
}

std::int64_t floor_div(std::int64_t a, std::int64_t b) { return a / b - (a % b < 0 ? 1 : 0); }

error bad_time(std::string_view text) {
    return {errc::invalid_argument,
            fmt::format("'{}' is not a time: use 2026-08-22 or 2026-08-22T10:11:12Z (fractions and +02:00 are fine)", text)};
}

}  // namespace

std::int64_t steady_ns() noexcept {
    timespec t{};
    clock_gettime(CLOCK_MONOTONIC, &t);
    return static_cast<std::int64_t>(t.tv_sec) * 1'000'000'000 + t.tv_nsec;
}

std::int64_t wall_ms() noexcept {
    timespec t{};
    clock_gettime(CLOCK_REALTIME, &t);
    return static_cast<std::int64_t>(t.tv_sec) * 1000 + t.tv_nsec / 1'000'000;
}

char* format_time_to(char* out, std::int64_t wall_ms) noexcept {
    using namespace std::chrono;
    wall_ms = std::clamp(wall_ms, first_ms, last_ms);
    auto const days_since = floor_div(wall_ms, day_ms);
    year_month_day const date{sys_days{days{days_since}}};
    auto rest = static_cast<unsigned>(wall_ms - days_since * day_ms);
    out = put_digits(out, static_cast<unsigned>(static_cast<int>(date.year())), 4);
    *out++ = '-';
    out = put_digits(out, static_cast<unsigned>(date.month()), 2);
    *out++ = '-';
    out = put_digits(out, static_cast<unsigned>(date.day()), 2);
    *out++ = 'T';
    out = put_digits(out, rest / 3'600'000, 2);
    *out++ = ':';
    out = put_digits(out, rest / 60'000 % 60, 2);
    *out++ = ':';
    out = put_digits(out, rest / 1000 % 60, 2);
    *out++ = '.';
    out = put_digits(out, rest % 1000, 3);
    *out++ = 'Z';
    return out;
}

std::string format_time(std::int64_t wall_ms) {
    std::string text(24, '\0');
    format_time_to(text.data(), wall_ms);
    return text;
}

result<std::int64_t> parse_time(std::string_view text) {
    using namespace std::chrono;
    std::size_t at = 0;
    int const y = take_digits(text, at, 4);
    if (y < 0 || !take(text, at, '-')) return bad_time(text);
    int const mo = take_digits(text, at, 2);
    if (mo < 0 || !take(text, at, '-')) return bad_time(text);
    int const d = take_digits(text, at, 2);
    year_month_day const date{year{y}, month{static_cast<unsigned>(mo)}, day{static_cast<unsigned>(d)}};
    if (d < 0 || !date.ok()) return bad_time(text);
    std::int64_t ms = static_cast<std::int64_t>(sys_days{date}.time_since_epoch().count()) * day_ms;
    if (at == text.size()) return ms;
    if (!take(text, at, 'T') && !take(text, at, 't') && !take(text, at, ' ')) return bad_time(text);
    int const h = take_digits(text, at, 2);
    if (h < 0 || h > 23 || !take(text, at, ':')) return bad_time(text);
    int const mi = take_digits(text, at, 2);
    if (mi < 0 || mi > 59 || !take(text, at, ':')) return bad_time(text);
    int const s = take_digits(text, at, 2);
    if (s < 0 || s > 60) return bad_time(text);
    ms += (h * 3600 + mi * 60 + std::min(s, 59)) * 1000LL;
    if (take(text, at, '.')) {
        int scale = 100;
        std::size_t const from = at;
        for (int digit = take_digits(text, at, 1); digit >= 0; digit = take_digits(text, at, 1)) {
            ms += digit * scale;
            scale /= 10;
        }
        if (at == from) return bad_time(text);
    }
    if (take(text, at, 'Z') || take(text, at, 'z')) return at == text.size() ? result<std::int64_t>(ms) : bad_time(text);
    if (at >= text.size() || (text[at] != '+' && text[at] != '-')) return bad_time(text);
    int const sign = text[at++] == '+' ? 1 : -1;
    int const oh = take_digits(text, at, 2);
    if (oh < 0 || oh > 23 || !take(text, at, ':')) return bad_time(text);
    int const om = take_digits(text, at, 2);
    if (om < 0 || om > 59 || at != text.size()) return bad_time(text);
    return ms - sign * (oh * 60 + om) * 60'000LL;
}

}  // namespace latchkey
