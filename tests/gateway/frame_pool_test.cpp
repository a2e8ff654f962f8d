#include "gateway/frame_pool.hpp"

#include <cstring>
#include <set>
#include <thread>
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

TEST_CASE("a freed frame serves the next one of its class") {
    void* const p = frame_pool::allocate(300);
    frame_pool::release(p, 300);
    void* const q = frame_pool::allocate(260);  // 257..384 share a class
    CHECK(q == p);
    void* const other = frame_pool::allocate(385);
    CHECK(other != p);
    frame_pool::release(q, 260);
    frame_pool::release(other, 385);
}

TEST_CASE("frames that live at once do not share memory, and trimming spares them") {
    std::set<void*> seen;
    std::vector<void*> all;
    for (int i = 0; i < 100; ++i) {
        all.push_back(frame_pool::allocate(200));
        seen.insert(all.back());
        std::memset(all.back(), i, 200);
    }
    CHECK(seen.size() == all.size());
    for (std::size_t i = 50; i < 100; ++i) frame_pool::release(all[i], 200);
    frame_pool::trim(10);
    frame_pool::trim(0);
    for (std::size_t i = 0; i < 50; ++i) {
        CHECK(static_cast<unsigned char*>(all[i])[199] == i);
        frame_pool::release(all[i], 200);
    }
    frame_pool::trim(0);
}

TEST_CASE("threads have lists of their own, which end with them") {
    void* const mine = frame_pool::allocate(200);
    frame_pool::release(mine, 200);
    void* theirs = nullptr;
    std::thread([&] {
        theirs = frame_pool::allocate(200);
        frame_pool::release(theirs, 200);
    }).join();
    void* const again = frame_pool::allocate(200);
    CHECK(again == mine);
    frame_pool::release(again, 200);
}
