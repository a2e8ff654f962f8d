#pragma once
// What processes have cost so far, from the kernel's own account (/proc/PID/task/*/schedstat): time on a CPU, user and system
// together, of all threads that are alive. Exact but for the slice that a thread is running at this moment (a tick at most).

#include <cstdint>
#include <vector>

namespace load {

// Nanoseconds; processes that are gone count 0.
std::int64_t cpu_ns_of(std::vector<int> const& pids);

}  // namespace load
