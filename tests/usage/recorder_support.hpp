#pragma once
// What the tests of the recorder share, whether it runs, recovers, or its ring files are looked at alone.

#include <algorithm>
#include <chrono>
#include <filesystem>
#include <memory>
#include <numeric>
#include <string>
#include <vector>

#include "tests/usage/support.hpp"
#include "usage/recorder.hpp"

namespace latchkey::usage::test {

inline constexpr std::uint64_t small_ring = 64 * 1024;

// Where a recorder of a test lives: its journal on a disk, its rings on tmpfs.
struct place {
    folder data{"/tmp"};
    folder shm;
    std::string journal_file = data / "usage.db";
    std::string rings = shm / "rings";

    recorder_options options(unsigned workers) const {
        return {.journal_file = journal_file,
                .ring_dir = rings,
                .workers = workers,
                .ring_bytes = small_ring,
                .flush_interval = std::chrono::milliseconds(10)};
    }
    std::unique_ptr<recorder> open(unsigned workers) const { return open(options(workers)); }
    static std::unique_ptr<recorder> open(recorder_options const& o) {
        auto opened = recorder::open(o);
        REQUIRE(opened);
        return std::move(*opened);
    }
    // Ring files, by their names' ends ("0.ring", "0.ring.damaged").
    std::vector<std::string> files(std::string const& in) const {
        std::vector<std::string> names;
        if (!std::filesystem::exists(in)) return names;
        for (auto const& e : std::filesystem::directory_iterator(in)) {
            auto const name = e.path().filename().string();
            names.push_back(name.substr(name.find('-') + 1));
        }
        std::sort(names.begin(), names.end());
        return names;
    }
    std::string file_of(std::string const& end) const {
        for (auto const& e : std::filesystem::directory_iterator(rings))
            if (e.path().string().ends_with("-" + end)) return e.path().string();
        return {};
    }
};

inline void append(recorder& r, unsigned worker, std::uint64_t from, std::uint64_t to) {
    for (auto n = from; n < to; ++n) {
        sample const s(n);
        REQUIRE(r.ring(worker).prepare(s.r));
        r.ring(worker).commit();
    }
}

inline std::vector<std::uint64_t> sorted(std::vector<std::uint64_t> v) {
    std::sort(v.begin(), v.end());
    return v;
}

inline std::vector<std::uint64_t> range(std::uint64_t from, std::uint64_t to) {
    std::vector<std::uint64_t> v(to - from);
    std::iota(v.begin(), v.end(), from);
    return v;
}

}  // namespace latchkey::usage::test
