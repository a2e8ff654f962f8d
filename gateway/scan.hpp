#pragma once
// Text looked at sixteen bytes at a time, by vectors that GCC and Clang give every processor (two or three instructions a test on
// x86-64 and ARM64): nothing is chosen at run time. What is left behind the last sixteen is the caller's, byte by byte. Pure.

#include <array>
#include <bit>
#include <cstdint>
#include <cstring>

namespace latchkey::gateway {

using sixteen = unsigned char __attribute__((vector_size(16)));
using chars = char __attribute__((vector_size(16)));
using verdicts = signed char __attribute__((vector_size(16)));  // all ones where a byte passes, else 0

template <unsigned char First, unsigned char Last>
verdicts between(sixteen bytes) noexcept {
    constexpr unsigned char span = Last - First;
    return bytes - First <= span;
}

// Letters and digits of ASCII.
inline verdicts alphanumeric(sixteen bytes) noexcept { return between<'a', 'z'>(bytes | 0x20) | between<'0', '9'>(bytes); }

// To the first byte that `passes` (a function of sixteen bytes) does not let pass, or to where fewer than sixteen are left.
template <class Passes>
char const* skip_sixteens(char const* p, char const* end, Passes passes) noexcept {
    if constexpr (std::endian::native == std::endian::little) {
        for (; end - p >= 16; p += 16) {
            sixteen bytes;
            std::memcpy(&bytes, p, sizeof bytes);
            verdicts const failed = ~passes(bytes);
#if defined(__SSE2__)
            auto const bits = static_cast<unsigned>(__builtin_ia32_pmovmskb128(reinterpret_cast<chars>(failed)));
            if (bits != 0) return p + std::countr_zero(bits);
#else
            auto const half = std::bit_cast<std::array<std::uint64_t, 2> >(failed);
            if (half[0] != 0) return p + std::countr_zero(half[0]) / 8;
            if (half[1] != 0) return p + 8 + std::countr_zero(half[1]) / 8;
#endif
        }
    }
    return p;
}

}  // namespace latchkey::gateway
