#include "gateway/frame_pool.hpp"

#include <cstdint>
#include <cstring>
#include <random>
#include <set>
#include <thread>
#include <utility>
#include <vector>

#include "tests/catch.hpp"

using namespace latchkey::gateway;

TEST_CASE("a frame's memory holds its size, for every class and beyond") {
    for (std::size_t const bytes : {1U, 127U, 128U, 129U, 1000U, 4095U, 4096U, 4097U, 100'000U}) {
        CAPTURE(bytes);
        void* const p = frame_pool::allocate(bytes);
        std::memset(p, 0x5a, bytes);
        frame_pool::release(p, bytes);
    }
}

TEST_CASE("a frame begins a cache line, and its neighbours of a power of two's size begin others of each page") {
    std::vector<void*> all;
    std::set<std::uintptr_t> places;
    for (int i = 0; i < 48; ++i) {
        all.push_back(frame_pool::allocate(1000));
        auto const at = reinterpret_cast<std::uintptr_t>(all.back());
        CHECK(at % 64 == 0);
        places.insert(at % 4096);
    }
    CHECK(places.size() == all.size());
    for (void* const p : all) frame_pool::release(p, 1000);
}

TEST_CASE("a freed frame serves the next one of its class") {
    void* const p = frame_pool::allocate(320);
    frame_pool::release(p, 320);
    void* const q = frame_pool::allocate(193);  // 193..320 share a class
    CHECK(q == p);
    void* const other = frame_pool::allocate(321);
    CHECK(other != p);
    frame_pool::release(q, 193);
    frame_pool::release(other, 321);
}

TEST_CASE("frames that live at once do not share memory, and trimming spares them") {
    std::set<void*> seen;
    std::vector<void*> all;
    for (int i = 0; i < 1000; ++i) {
        all.push_back(frame_pool::allocate(200));
        seen.insert(all.back());
        std::memset(all.back(), i, 200);
    }
    CHECK(seen.size() == all.size());
    for (std::size_t i = 500; i < 1000; ++i) frame_pool::release(all[i], 200);
    for (int i = 0; i < 3; ++i) frame_pool::trim();
    for (std::size_t i = 0; i < 500; ++i) {
        CHECK(static_cast<unsigned char*>(all[i])[199] == static_cast<unsigned char>(i));
        frame_pool::release(all[i], 200);
    }
    frame_pool::trim();
}

TEST_CASE("behind a rush frames are the kernel's again, though some were made among what stays") {
    std::thread([] {
        constexpr std::size_t rush = 5000;
        std::size_t const others = frame_pool::mapped_bytes();
        auto const mapped = [others] { return frame_pool::mapped_bytes() - others; };
        std::vector<std::pair<void*, void*>> all(rush);
        for (auto& [held, passing] : all) held = frame_pool::allocate(600), passing = frame_pool::allocate(1300);
        std::size_t const most = mapped();
        CHECK(most >= rush * 1900);
        for (auto& [held, passing] : all) frame_pool::release(passing, 1300);
        frame_pool::trim();  // all were wanted since the last
        CHECK(mapped() == most);
        frame_pool::trim();
        CHECK(mapped() < most);
        CHECK(mapped() > most / 2);  // not all at once
        for (int i = 0; i < 40; ++i) frame_pool::trim();
        CHECK(mapped() < rush * 600 * 5 / 4);
        CHECK(mapped() > rush * 600);
        for (auto& [held, passing] : all) frame_pool::release(held, 600);
        for (int i = 0; i < 40; ++i) frame_pool::trim();
        CHECK(mapped() == 2 * 65536);  // one of each
    }).join();
}

TEST_CASE("frames come and go at random, and nothing of one is another's") {
    std::thread([] {
        std::size_t const others = frame_pool::mapped_bytes();
        std::mt19937 random(20261130);  // NOLINT(cert-msc32-c, cert-msc51-cpp): the same each time
        struct lent {
            unsigned char* at;
            std::size_t bytes;
            unsigned char filling;
        };
        std::vector<lent> all;
        for (int i = 0; i < 200'000; ++i) {
            bool const grows = (i / 20'000) % 2 == 0;
            if (all.empty() || random() % 8 < (grows ? 5U : 3U)) {
                std::size_t const bytes = 1 + random() % (random() % 4 == 0 ? 4400 : 400);
                all.push_back(
                    {static_cast<unsigned char*>(frame_pool::allocate(bytes)), bytes, static_cast<unsigned char>(random())});
                std::memset(all.back().at, all.back().filling, bytes);
            } else {
                std::swap(all[random() % all.size()], all.back());
                lent const l = all.back();
                all.pop_back();
                bool const mine = l.at[0] == l.filling && l.at[l.bytes / 2] == l.filling && l.at[l.bytes - 1] == l.filling;
                if (!mine) FAIL("byte of another frame, at step " << i);
                frame_pool::release(l.at, l.bytes);
            }
            if (i % 1000 == 0) frame_pool::trim();
        }
        for (auto const& l : all) frame_pool::release(l.at, l.bytes);
        for (int i = 0; i < 40; ++i) frame_pool::trim();
        CHECK(frame_pool::mapped_bytes() - others <= std::size_t{33} * 65536);
    }).join();
}

TEST_CASE("threads have chunks of their own, which end with them") {
    void* const mine = frame_pool::allocate(200);
    frame_pool::release(mine, 200);
    void* theirs = nullptr;
    std::thread([&] {
        theirs = frame_pool::allocate(200);
        CHECK(theirs != mine);
        frame_pool::release(theirs, 200);
    }).join();
    void* const again = frame_pool::allocate(200);
    CHECK(again == mine);
    frame_pool::release(again, 200);
}

TEST_CASE("what a thread left behind another may free") {
    for (int i = 0; i < 40; ++i) frame_pool::trim();
    std::size_t const before = frame_pool::mapped_bytes();
    std::vector<void*> theirs;
    std::thread([&] {
        for (int i = 0; i < 1000; ++i) theirs.push_back(frame_pool::allocate(200));
        for (std::size_t i = 0; i < 1000; i += 3) frame_pool::release(theirs[i], 200);
    }).join();
    for (std::size_t i = 0; i < 1000; ++i) {
        if (i % 3 != 0) frame_pool::release(theirs[i], 200);
    }
    void* const p = frame_pool::allocate(200);
    std::memset(p, 1, 200);
    frame_pool::release(p, 200);
    for (int i = 0; i < 40; ++i) frame_pool::trim();
    CHECK(frame_pool::mapped_bytes() <= before + 65536);
}
