#include "bench/load/cpu_time.hpp"

#include <filesystem>
#include <fstream>
#include <string>

namespace load {

std::int64_t cpu_ns_of(std::vector<int> const& pids) {
    std::int64_t sum = 0;
    for (int const pid : pids) {
        std::error_code gone;
        std::filesystem::directory_iterator const tasks{"/proc/" + std::to_string(pid) + "/task", gone};
        if (gone) continue;
        for (auto const& task : tasks) {
            std::ifstream account{task.path() / "schedstat"};
            std::int64_t on_cpu_ns = 0;
            if (account >> on_cpu_ns) sum += on_cpu_ns;
        }
    }
    return sum;
}

}  // namespace load
