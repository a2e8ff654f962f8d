#pragma once
// Asks the processor for memory that will be needed some hundred instructions later, so that it has come by then. Worth it where
// a request meets memory that the requests before it did not touch.

#include <cstddef>
#include <type_traits>

namespace latchkey {

inline constexpr std::size_t cache_line_bytes = 64;

// Of `Bytes` from `at` on; to be written to, where it is not const.
template <std::size_t Bytes, class T>
inline void prefetch_bytes(T* at) noexcept {
    constexpr int writes = std::is_const_v<T> ? 0 : 1;
    auto const* const begin = reinterpret_cast<char const*>(at);
#pragma GCC unroll 16
    for (std::size_t i = 0; i < Bytes; i += cache_line_bytes) __builtin_prefetch(begin + i, writes);
    if constexpr (Bytes % cache_line_bytes != 1) __builtin_prefetch(begin + Bytes - 1, writes);
}

template <class T>
inline void prefetch(T* at) noexcept {
    prefetch_bytes<sizeof(T)>(at);
}

}  // namespace latchkey
