#pragma once
// Memory for coroutine frames: free lists by size class, one set per thread, so that a warm request allocates nothing (law 2).
// A frame is freed by the thread that made it: workers share no coroutines.

#include <cstddef>

namespace latchkey::gateway {

class frame_pool {
  public:
    static void* allocate(std::size_t bytes);
    static void release(void* memory, std::size_t bytes) noexcept;

    // Gives back to the system what lies unused beyond `keep` frames of each class. The worker's sweep calls it.
    static void trim(std::size_t keep) noexcept;
};

}  // namespace latchkey::gateway
