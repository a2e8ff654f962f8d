#include "gateway/request_limit.hpp"

#include <atomic>
#include <list>
#include <random>
#include <thread>
#include <vector>

#include "tests/catch.hpp"

using latchkey::gateway::request_limit;

namespace {

std::uint64_t entered(request_limit::part& p, std::uint64_t most) {
    std::uint64_t n = 0;
    while (n < most && p.enter()) ++n;
    return n;
}
void leave(request_limit::part& p, std::uint64_t n) {
    for (; n != 0; --n) p.leave();
}

}  // namespace

TEST_CASE("few places are for whoever asks, one worker or another") {
    request_limit all(4, 2);
    request_limit::part a(all);
    request_limit::part b(all);
    CHECK(entered(a, 9) == 4);
    CHECK_FALSE(b.enter());
    a.leave();
    CHECK(b.enter());
    CHECK_FALSE(a.enter());
    leave(a, 3);
    CHECK(entered(b, 9) == 3);
    CHECK_FALSE(a.enter());
    leave(b, 4);
    CHECK(entered(a, 9) == 4);
    leave(a, 4);
}

TEST_CASE("one place is one, for however many workers") {
    request_limit all(1, 64);
    std::list<request_limit::part> workers;
    for (int i = 0; i < 64; ++i) workers.emplace_back(all);
    for (auto& w : workers) {
        REQUIRE(w.enter());
        for (auto& other : workers) CHECK_FALSE(other.enter());
        w.leave();
    }
}

TEST_CASE("of many places a worker gets all but those that others keep ready, a sixteenth") {
    constexpr std::uint64_t most = 4096;
    for (unsigned const count : {1U, 2U, 16U, 128U}) {
        request_limit all(most, count);
        std::list<request_limit::part> workers;
        for (unsigned i = 0; i < count; ++i) workers.emplace_back(all);
        for (auto& w : workers) leave(w, entered(w, most / 128));  // each has been busy, and is not any more
        auto& last = workers.back();
        std::uint64_t const n = entered(last, 2 * most);
        CHECK(n <= most);
        CHECK(n >= most - most / 16);
        leave(last, n);
    }
}

TEST_CASE("what a worker held is there for others when it ends") {
    request_limit all(1000, 2);
    request_limit::part a(all);
    {
        request_limit::part b(all);
        leave(b, entered(b, 1000));
    }
    CHECK(entered(a, 2000) == 1000);
    leave(a, 1000);
}

TEST_CASE("no limit is none") {
    request_limit all(0, 2);
    request_limit::part a(all);
    CHECK(entered(a, 100'000) == 100'000);
    leave(a, 100'000);
    CHECK(a.enter());
    a.leave();
}

TEST_CASE("workers that come and go at once never have more than there are, and lose none") {
    for (std::uint64_t const most : {3U, 200U, 2000U}) {
        constexpr unsigned count = 4;
        request_limit all(most, count);
        std::atomic<std::uint64_t> inside{0};
        std::atomic<bool> too_many{false};
        std::vector<std::thread> threads;
        for (unsigned t = 0; t < count; ++t)
            threads.emplace_back([&, t] {
                std::minstd_rand draw(t + 1);
                request_limit::part mine(all);
                std::uint64_t n = 0;
                for (int i = 0; i < 50'000; ++i) {
                    if (draw() % 2 == 0) {
                        if (!mine.enter()) continue;
                        ++n;
                        if (inside.fetch_add(1) + 1 > most) too_many = true;
                    } else if (n != 0) {
                        --n;
                        inside.fetch_sub(1);
                        mine.leave();
                    }
                }
                inside.fetch_sub(n);
                leave(mine, n);
            });
        for (auto& t : threads) t.join();
        CHECK_FALSE(too_many);
        request_limit::part after(all);
        CHECK(entered(after, 2 * most) == most);
        leave(after, most);
    }
}
