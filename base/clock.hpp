#pragma once
// The two clocks. Deadlines and durations use the monotonic one, records and expiry the wall clock. Any thread.

#include <cstdint>
#include <string>
#include <string_view>

#include "base/error.hpp"

namespace latchkey {

// Nanoseconds on CLOCK_MONOTONIC. About 20 ns a call (vDSO, no system call).
std::int64_t steady_ns() noexcept;

// Milliseconds since 1970-01-01T00:00:00Z on CLOCK_REALTIME.
std::int64_t wall_ms() noexcept;

// "2026-08-22T10:11:12.345Z" (RFC 3339, UTC, always milliseconds). Out of range (years 0..9999) is clamped.
std::string format_time(std::int64_t wall_ms);

// Writes the 24 bytes of format_time() to `out` and returns out + 24.
char* format_time_to(char* out, std::int64_t wall_ms) noexcept;

// Accepts RFC 3339 date-times ("2026-08-22T10:11:12Z", fractions, "+02:00", lower-case t and z) and plain dates
// ("2026-08-22", midnight UTC). Error: invalid_argument, naming the text and the accepted forms.
result<std::int64_t> parse_time(std::string_view text);

}  // namespace latchkey
