// Handshakes: how they end, and what is no TLS.

#include "tests/gateway/tls_fixture.hpp"

using namespace latchkey;
using namespace latchkey::gateway;
using namespace latchkey::gateway::test;
using namespace latchkey::gateway::test::tls;

TEST_CASE("a handshake whose bytes drip is done like any other") {
    fixture f;
    f.connect(1);
    f.to_server(f.exchange("hello"));
    CHECK(f.next().text == "hello");
}

TEST_CASE("an accepted connection holds nothing of TLS before its first byte") {
    fixture f;
    shake(f.s, *f.rules, f.got);
    f.l.turn();
    CHECK_FALSE(f.s.tls());
    f.peer.shake_hands();
    f.to_server(f.peer.said());
    CHECK(f.s.tls());
}

TEST_CASE("a request that comes with the end of the handshake is read without an event of its own") {
    fixture f;
    shake(f.s, *f.rules, f.got);
    f.peer.shake_hands();
    f.to_server(f.peer.said());
    f.peer.hear(f.from_server());
    REQUIRE(f.peer.shake_hands());
    f.to_server(f.exchange("early"));  // Finished, and the request, in one
    REQUIRE(f.got.done);
    CHECK(f.next().text == "early");
}

TEST_CASE("an end that comes with half a ClientHello ends the handshake") {
    fixture f;
    shake(f.s, *f.rules, f.got);
    f.peer.shake_hands();
    auto const half = f.peer.said().substr(0, 40);
    REQUIRE(::send(f.p.theirs, half.data(), half.size(), MSG_NOSIGNAL) == 40);
    f.p.close();
    REQUIRE(f.l.until([&] { return f.got.done; }));
    CHECK(f.got.ec);
}

TEST_CASE("plain bytes are known as such, and can be answered in clear") {
    fixture f;
    shake(f.s, *f.rules, f.got);
    f.to_server("GET / HTTP/1.1\r\n");
    REQUIRE(f.got.done);
    CHECK(f.got.ec == stream::plain_bytes());
    CHECK(f.s.tls()->received() == 16);
    f.s.drop_tls();
    CHECK(f.s.write_now("400", 3).n == 3);
    CHECK(f.from_server() == "400");
}

TEST_CASE("what is no TLS is told so by an alert") {
    fixture f;
    shake(f.s, *f.rules, f.got);
    f.to_server(std::string("\x00\x01\x02\x03\x04\x05\x06\x07", 8));
    REQUIRE(f.got.done);
    CHECK(f.got.ec);
    CHECK(f.from_server() == std::string("\x15\x03\x01\x00\x02\x02\x0a", 7));
}

TEST_CASE("a first message that says it is longer than we keep is refused before it comes") {
    fixture f;
    shake(f.s, *f.rules, f.got);
    for (char const c : std::string("\x16\x03\x01\x40\x00\x01\x00\x40\x01", 9)) f.to_server({&c, 1});
    REQUIRE(f.got.done);
    CHECK(f.got.ec);
    CHECK(f.from_server() == std::string("\x15\x03\x01\x00\x02\x02\x32", 7));
}

TEST_CASE("so is the one that is sent once more, for other keys") {
    fixture f(TLS1_3_VERSION, "P-521:P-256");  // its key is for the first, which is not ours: we ask for another
    shake(f.s, *f.rules, f.got);
    f.peer.shake_hands();
    f.to_server(f.peer.said());
    REQUIRE_FALSE(f.got.done);
    auto const asked = f.from_server();
    REQUIRE(asked.size() > 20);
    f.to_server(std::string("\x14\x03\x03\x00\x01\x01\x16\x03\x03\x40\x00\x01\x01\x00\x00", 15));
    REQUIRE(f.got.done);
    CHECK(f.got.ec);
    CHECK(f.from_server() == std::string("\x15\x03\x01\x00\x02\x02\x32", 7));
}

TEST_CASE("a handshake that needs other keys is done") {
    fixture f(TLS1_3_VERSION, "P-521:P-256");
    f.connect();
    f.to_server(f.exchange("hello"));
    CHECK(f.next().text == "hello");
}

TEST_CASE("a handshake ends at its deadline, when it is cancelled and when the stream is closed") {
    for (int how = 0; how < 3; ++how) {
        fixture f;
        shake(f.s, *f.rules, f.got);
        f.peer.shake_hands();
        f.to_server(std::string_view(f.peer.said()).substr(0, 20));
        f.s.read_until(5);
        if (how == 0) CHECK(f.s.expire(5));
        if (how == 1) f.s.cancel_read();
        if (how == 2) f.s.close();
        REQUIRE(f.l.until([&] { return f.got.done; }));
        CHECK(f.got.ec == (how == 0 ? asio::error::timed_out : error_code(asio::error::operation_aborted)));
    }
}
