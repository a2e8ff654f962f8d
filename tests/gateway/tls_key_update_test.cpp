// Key updates and renegotiation, with which a client makes a reader write.

#include "tests/gateway/tls_fixture.hpp"

using namespace latchkey;
using namespace latchkey::gateway;
using namespace latchkey::gateway::test;
using namespace latchkey::gateway::test::tls;

TEST_CASE("a key update of the client is answered with the next write") {
    fixture f;
    f.connect();
    REQUIRE(SSL_key_update(f.peer.ssl, SSL_KEY_UPDATE_REQUESTED) == 1);
    read_next(f.s, f.pool, f.into, f.got);
    f.to_server(f.exchange("new keys"));
    CHECK(f.got.text == "new keys");
    CHECK(f.s.write_now("answer", 6).n == 6);
    CHECK(f.taken() == "answer");
    f.to_server(f.exchange("again"));
    CHECK(f.next().text == "again");
}

TEST_CASE("a key update while the client reads nothing costs neither side a byte") {
    fixture f;
    int const small = 4096;
    ::setsockopt(f.p.ours, SOL_SOCKET, SO_SNDBUF, &small, sizeof small);
    f.connect();
    auto const down = noise(200'000);
    std::vector<std::string> const parts{down};
    seen sent;
    send_all(f.s, parts, sent);
    CHECK_FALSE(sent.done);
    std::string up;
    std::string arrived;
    auto const text = noise(3000);
    read_next(f.s, f.pool, f.into, f.got);
    for (int round = 0; round < 20; ++round) {
        REQUIRE(SSL_key_update(f.peer.ssl, SSL_KEY_UPDATE_REQUESTED) == 1);
        f.to_server(f.exchange(text));
        arrived += f.taken(3000);
        REQUIRE(f.l.until([&] {
            if (!f.got.done) {
                arrived += f.taken(3000);
                return false;
            }
            return true;
        }));
        REQUIRE_FALSE(f.got.ec);
        up += f.got.text;
        f.got = {};
        f.into.reset();
        read_next(f.s, f.pool, f.into, f.got);
    }
    REQUIRE(f.l.until([&] {
        arrived += f.taken();
        return sent.done && arrived.size() == down.size();
    }));
    CHECK(arrived == down);
    std::string all;
    for (int i = 0; i < 20; ++i) all += text;
    CHECK(up == all);
}

TEST_CASE("key updates without end end the connection") {
    for (auto const& [updates, ends] : {std::pair{32, false}, std::pair{33, true}}) {
        fixture f;
        f.connect();
        std::string said;
        for (int i = 0; i < updates; ++i) {
            REQUIRE(SSL_key_update(f.peer.ssl, SSL_KEY_UPDATE_NOT_REQUESTED) == 1);
            REQUIRE(SSL_do_handshake(f.peer.ssl) == 1);
            said += f.peer.said();
        }
        said += f.exchange("text");
        read_next(f.s, f.pool, f.into, f.got);
        f.to_server(said);
        REQUIRE(f.got.done);
        CHECK(f.got.text == (ends ? "" : "text"));
        CHECK((f.got.ec == boost::system::errc::protocol_error) == ends);
    }
}

TEST_CASE("a key update that comes while the socket takes nothing is read, and answered with the next write") {
    fixture f;
    int const small = 4096;
    ::setsockopt(f.p.ours, SOL_SOCKET, SO_SNDBUF, &small, sizeof small);
    f.connect();
    f.from_server();
    // So many records fill the socket: counted on a second one, for the last must leave whole.
    pair like_it;
    ::setsockopt(like_it.ours, SOL_SOCKET, SO_SNDBUF, &small, sizeof small);
    auto const text = noise(100);
    auto const record = text + std::string(22, '-');
    std::size_t count = 0;
    while (::send(like_it.ours, record.data(), record.size(), MSG_NOSIGNAL | MSG_DONTWAIT) > 0) ++count;
    ::close(like_it.ours);
    std::string said;
    for (std::size_t i = 0; i < count; ++i, said += text) REQUIRE(f.s.write_now(text.data(), text.size()).n == text.size());
    REQUIRE(::send(f.p.ours, "x", 1, MSG_NOSIGNAL | MSG_DONTWAIT) < 0);

    REQUIRE(SSL_key_update(f.peer.ssl, SSL_KEY_UPDATE_REQUESTED) == 1);
    read_next(f.s, f.pool, f.into, f.got);
    f.to_server(f.exchange("next"));
    REQUIRE(f.got.done);
    CHECK(f.got.text == "next");
    std::vector<std::string> const answer{"answer"};
    seen sent;
    send_all(f.s, answer, sent);
    CHECK_FALSE(sent.done);
    f.got = {};
    f.into.reset();
    read_next(f.s, f.pool, f.into, f.got);
    f.to_server(f.exchange("more"));
    std::string arrived;
    REQUIRE(f.l.until([&] {
        arrived += f.taken();
        return sent.done && f.got.done;
    }));
    CHECK(arrived + f.taken() == said + "answer");
    CHECK(f.got.text == "more");
}

TEST_CASE("a read that waits for our own write behind a key update is held to the write's deadline") {
    fixture f;
    int const small = 4096;
    ::setsockopt(f.p.ours, SOL_SOCKET, SO_SNDBUF, &small, sizeof small);
    f.connect();
    std::vector<std::string> const down{noise(100'000)};
    seen sent;
    send_all(f.s, down, sent);
    REQUIRE_FALSE(sent.done);
    REQUIRE(SSL_key_update(f.peer.ssl, SSL_KEY_UPDATE_REQUESTED) == 1);
    read_next(f.s, f.pool, f.into, f.got);
    f.to_server(f.exchange("one"));
    CHECK(f.got.text == "one");
    f.got = {};
    f.into.reset();
    read_next(f.s, f.pool, f.into, f.got);
    f.s.read_until(5);
    f.s.write_until(10);
    f.to_server(f.exchange("two"));
    REQUIRE_FALSE(f.got.done);  // the client has said it in time, and it is for the write that it waits
    CHECK_FALSE(f.s.expire(6));
    std::string arrived;
    REQUIRE(f.l.until([&] {
        arrived += f.taken();
        return sent.done && f.got.done;
    }));
    CHECK_FALSE(f.got.ec);
    CHECK(f.got.text == "two");
    CHECK(arrived + f.taken() == down.front());
    f.got = {};
    f.into.reset();
    read_next(f.s, f.pool, f.into, f.got);
    CHECK(f.s.expire(6));  // now it is the client's turn
    REQUIRE(f.l.until([&] { return f.got.done; }));
    CHECK(f.got.ec == asio::error::timed_out);
}

TEST_CASE("asking for renegotiation again and again ends the connection") {
    fixture f(TLS1_2_VERSION);
    f.connect();
    read_next(f.s, f.pool, f.into, f.got);
    // One refused request to renegotiate, as a record that can be sent again with new keys: the client state is dropped each
    // time.
    for (int i = 0; i < 10 && !f.got.done; ++i) {
        SSL_renegotiate(f.peer.ssl);
        f.peer.shake_hands();
        auto const said = f.peer.said();
        if (said.empty()) break;
        f.to_server(said);
    }
    CHECK(f.s.tls()->sent() > 0);
    f.peer.hear(f.from_server());
    char c = 0;
    CHECK(SSL_read(f.peer.ssl, &c, 1) <= 0);  // no_renegotiation, which OpenSSL's client takes for the end
}
