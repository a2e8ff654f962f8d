// What a stream that speaks TLS writes.

#include "tests/gateway/tls_fixture.hpp"

using namespace latchkey;
using namespace latchkey::gateway;
using namespace latchkey::gateway::test;
using namespace latchkey::gateway::test::tls;

TEST_CASE("1 MiB goes out whole through a small socket buffer, in pieces of every size") {
    fixture f;
    int const small = 4096;
    ::setsockopt(f.p.ours, SOL_SOCKET, SO_SNDBUF, &small, sizeof small);
    ::setsockopt(f.p.theirs, SOL_SOCKET, SO_RCVBUF, &small, sizeof small);
    f.connect();
    auto const text = noise(1U << 20U);
    std::vector<std::string> parts;
    constexpr std::array<std::size_t, 8> sizes{1, 300, 16384, 2, 40'000, 16383, 16385, 5};
    for (std::size_t at = 0, i = 0; at < text.size(); ++i) {
        parts.push_back(text.substr(at, sizes[i % sizes.size()]));
        at += parts.back().size();
    }
    send_all(f.s, parts, f.got);
    std::string arrived;
    for (int rounds = 0; rounds < 10'000 && arrived.size() < text.size(); ++rounds) {
        arrived += f.taken(777);
        f.l.turn();
    }
    CHECK(arrived == text);
    CHECK(f.got.done);
}

TEST_CASE("a short head and body leave in one record") {
    fixture f;
    f.connect();
    f.from_server();
    pieces p;
    p.add("head");
    p.add("body");
    std::uint64_t const before = f.s.tls()->sent();
    CHECK(f.s.write_now(p.rest()).n == 8);
    CHECK(f.s.tls()->sent() - before == 5 + 8 + 1 + 16);
}

TEST_CASE("a write that left in part goes on from memory that has moved") {
    fixture f;
    int const small = 4096;
    ::setsockopt(f.p.ours, SOL_SOCKET, SO_SNDBUF, &small, sizeof small);
    f.connect();
    auto const text = noise(100'000);
    auto copy = std::make_unique<std::string>(text);
    std::size_t at = 0;
    std::string arrived;
    bool blocked = false;
    REQUIRE(f.l.until([&] {
        while (at < text.size()) {
            io_result const r = f.s.write_now(copy->data() + at, copy->size() - at);
            at += r.n;
            if (r.ec) {
                REQUIRE(r.ec == asio::error::would_block);
                blocked = true;
                break;
            }
        }
        auto moved = std::make_unique<std::string>(text);
        std::fill(copy->begin(), copy->end(), '!');
        copy = std::move(moved);
        arrived += f.taken(5000);
        return arrived.size() == text.size();
    }));
    CHECK(blocked);
    CHECK(arrived == text);
}

TEST_CASE("nothing is said of an end behind a record that left in part") {
    fixture f;
    f.connect();
    std::string const text = noise(1U << 20U);
    io_result r;
    for (std::size_t at = 0; !r.ec; at += r.n) r = f.s.write_now(text.data() + at, text.size() - at);
    REQUIRE(r.ec == asio::error::would_block);
    std::uint64_t const sent = f.s.tls()->sent();
    f.from_server();
    CHECK_FALSE(f.s.close_notify());
    CHECK(f.s.tls()->sent() == sent);
}
