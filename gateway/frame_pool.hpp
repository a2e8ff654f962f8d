#pragma once
// Memory for coroutine frames and sessions: by size class, one set per thread, so that a warm request allocates nothing (law 2).
// It comes from the kernel in chunks of one class each. So what requests need lies apart from what connections hold, and goes
// back whole behind a rush; on the heap, idle connections that lie between would keep its pages.
//
// A frame is freed by the thread that made it: workers share no coroutines. (Of a thread that has ended, another may.)

#include <cstddef>

namespace latchkey::gateway {

class frame_pool {
  public:
    // Aligned to a cache line, up to 4 KiB. Throws std::bad_alloc.
    static void* allocate(std::size_t bytes);
    static void release(void* memory, std::size_t bytes) noexcept;

    // Gives back to the kernel some of the chunks that nobody wanted since the last call: an eighth of a class's, and 1 MiB at
    // least, but one of each stays. The worker's sweep calls it.
    static void trim() noexcept;

    // What the chunks of all threads take.
    static std::size_t mapped_bytes() noexcept;
};

}  // namespace latchkey::gateway
