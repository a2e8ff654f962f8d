#include "gateway/connection_limit.hpp"

#include <thread>
#include <vector>

#include "tests/catch.hpp"

using namespace latchkey::gateway;

namespace {

address_bytes v4(unsigned char a, unsigned char b) {
    address_bytes out{};
    out[10] = out[11] = 0xff;
    out[12] = 10;
    out[14] = a;
    out[15] = b;
    return out;
}
address_bytes v6(unsigned char net, unsigned char host) {
    address_bytes out{};
    out[0] = 0x20;
    out[7] = net;
    out[15] = host;
    return out;
}

}  // namespace

TEST_CASE("no more connections than the limit, and a place that is left can be taken again") {
    connection_limit l(3, 0);
    for (unsigned char i = 0; i < 3; ++i) CHECK(l.enter(v4(0, i)));
    CHECK_FALSE(l.enter(v4(0, 9)));
    CHECK(l.open() == 3);
    l.leave(v4(0, 0));
    CHECK(l.open() == 2);
    CHECK(l.enter(v4(0, 9)));
    CHECK_FALSE(l.enter(v4(0, 9)));
}

TEST_CASE("one address has its own limit, and a refused one is not counted") {
    connection_limit l(100'000, 2);
    CHECK(l.enter(v4(1, 1)));
    CHECK(l.enter(v4(1, 1)));
    for (int i = 0; i < 5; ++i) CHECK_FALSE(l.enter(v4(1, 1)));
    CHECK(l.open() == 2);
    l.leave(v4(1, 1));
    CHECK(l.enter(v4(1, 1)));
}

TEST_CASE("an IPv6 client counts as its /64") {
    connection_limit l(100'000, 2);
    CHECK(l.enter(v6(1, 1)));
    CHECK(l.enter(v6(1, 2)));
    CHECK_FALSE(l.enter(v6(1, 3)));
    CHECK(l.enter(v6(2, 1)));
}

TEST_CASE("distinct IPv4 addresses rarely share a limit") {
    connection_limit l(100'000, 1);
    unsigned refused = 0;
    for (int i = 0; i < 1000; ++i)
        if (!l.enter(v4(static_cast<unsigned char>(i / 256), static_cast<unsigned char>(i % 256)))) ++refused;
    CHECK(refused < 20);  // 1000 in 2^20 slots: half a collision is to be expected
}

TEST_CASE("counts hold under threads") {
    connection_limit l(64, 8);
    std::vector<std::thread> threads;
    std::atomic<int> inside{0};
    std::atomic<int> most{0};
    for (int t = 0; t < 4; ++t)
        threads.emplace_back([&] {
            for (int i = 0; i < 20'000; ++i) {
                if (!l.enter(v4(2, 2))) continue;
                int const n = ++inside;
                int seen = most.load();
                while (n > seen && !most.compare_exchange_weak(seen, n)) {
                }
                --inside;
                l.leave(v4(2, 2));
            }
        });
    for (auto& t : threads) t.join();
    CHECK(most.load() <= 8);
    CHECK(most.load() >= 1);
    CHECK(l.open() == 0);
    for (int i = 0; i < 8; ++i) CHECK(l.enter(v4(2, 2)));
    CHECK_FALSE(l.enter(v4(2, 2)));
}
