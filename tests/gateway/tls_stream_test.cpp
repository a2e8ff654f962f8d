// What a stream that speaks TLS reads, and how it ends.

#include "tests/gateway/tls_fixture.hpp"

using namespace latchkey;
using namespace latchkey::gateway;
using namespace latchkey::gateway::test;
using namespace latchkey::gateway::test::tls;

TEST_CASE("what TLS holds beyond a full buffer is handed over next") {
    fixture f;
    f.connect();
    auto const text = noise(10000);
    read_next(f.s, f.pool, f.into, f.got);
    f.to_server(f.exchange(text));
    REQUIRE(f.got.done);
    std::string all = f.got.text;
    CHECK(all.size() == 4096);
    all += f.next().text;
    all += f.next().text;
    CHECK(all == text);
    CHECK_FALSE(f.next().done);
    CHECK(f.pool.lent_bytes() == 0);
}

TEST_CASE("a record that has come in part gives nothing, holds no buffer, and is read when it is whole") {
    fixture f;
    f.connect();
    auto const record = f.exchange("whole");
    read_next(f.s, f.pool, f.into, f.got);
    for (std::size_t i = 0; i + 1 < record.size(); ++i) f.to_server(std::string_view(record).substr(i, 1));
    CHECK_FALSE(f.got.done);
    CHECK(f.pool.lent_bytes() == 0);
    f.to_server(std::string_view(record).substr(record.size() - 1));
    CHECK(f.got.text == "whole");
}

TEST_CASE("a nudge while a record has come in part changes nothing") {
    fixture f;
    f.connect();
    auto const record = f.exchange("whole");
    read_next(f.s, f.pool, f.into, f.got);
    f.to_server(std::string_view(record).substr(0, 10));
    auto const more = std::string_view(record).substr(10, 5);
    REQUIRE(::send(f.p.theirs, more.data(), more.size(), MSG_NOSIGNAL) == 5);
    f.s.nudge();  // bytes are there, but no request
    f.l.turn();
    f.l.turn();
    CHECK_FALSE(f.got.done);
    f.to_server(std::string_view(record).substr(15));
    REQUIRE(f.got.done);
    CHECK(f.got.text == "whole");
}

TEST_CASE("a wait that is cancelled right after a nudge ends") {
    fixture f;
    f.connect();
    auto const record = f.exchange("whole");
    read_next(f.s, f.pool, f.into, f.got);
    REQUIRE(::send(f.p.theirs, record.data(), 10, MSG_NOSIGNAL) == 10);
    f.s.nudge();
    f.s.cancel_read();
    f.l.turn();
    REQUIRE(f.got.done);
    CHECK(f.got.ec == asio::error::operation_aborted);
}

TEST_CASE("an end that comes with half a record, whole ones before it or not, is told by no other event, and is not missed") {
    fixture f;
    f.connect();
    std::string const whole = GENERATE("", "whole");
    std::string sent = whole.empty() ? "" : f.exchange(whole);
    sent += f.exchange("cut off").substr(0, 10);
    read_next(f.s, f.pool, f.into, f.got);
    REQUIRE(::send(f.p.theirs, sent.data(), sent.size(), MSG_NOSIGNAL) == static_cast<ssize_t>(sent.size()));
    f.p.close();
    REQUIRE(f.l.until([&] { return f.got.done; }));
    CHECK(f.got.text == whole);
    if (!whole.empty()) {
        f.next();
        REQUIRE(f.l.until([&] { return f.got.done; }));
    }
    CHECK(f.got.text.empty());
}

TEST_CASE("likewise where nobody read when they came") {
    fixture f;
    f.connect();
    auto const half = f.exchange("cut off").substr(0, 10);
    REQUIRE(::send(f.p.theirs, half.data(), half.size(), MSG_NOSIGNAL) == 10);
    f.p.close();
    f.l.turn();  // the one event of both
    f.next();
    REQUIRE(f.l.until([&] { return f.got.done; }));
    CHECK(f.got.text.empty());
}

TEST_CASE("close_notify with the last bytes is an end, though the connection stays open") {
    fixture f;
    f.connect();
    f.peer.say("last");
    SSL_shutdown(f.peer.ssl);
    read_next(f.s, f.pool, f.into, f.got);
    f.to_server(f.peer.said());
    CHECK(f.got.text == "last");
    auto const end = f.next();
    REQUIRE(end.done);
    CHECK_FALSE(end.ec);
    CHECK(end.text.empty());
    // It can still be answered: only that side has ended.
    CHECK(f.s.write_now("answer", 6).n == 6);
    f.peer.hear(f.from_server());
}

TEST_CASE("an end without close_notify is an end, in the middle of a record too") {
    fixture f;
    f.connect();
    auto const record = f.exchange("never whole");
    read_next(f.s, f.pool, f.into, f.got);
    f.to_server(std::string_view(record).substr(0, 8));
    f.p.close();
    REQUIRE(f.l.until([&] { return f.got.done; }));
    CHECK(f.got.text.empty());
}

TEST_CASE("our own end is told before the connection ends") {
    fixture f;
    f.connect();
    CHECK_FALSE(f.s.close_notify());
    f.peer.hear(f.from_server());
    f.peer.take();
    CHECK(f.peer.told_of_end());
    CHECK_FALSE(f.s.close_notify());  // once is enough, and a second call takes nothing that the client still says
    f.to_server(f.exchange("late"));
    CHECK(f.s.tls()->received() > 0);
    CHECK(f.next().text == "late");
}

TEST_CASE("a break is told by an alert, whatever has come of the client's next record, and nothing is said after it") {
    for (int const version : {TLS1_2_VERSION, TLS1_3_VERSION}) {
        for (std::size_t const part : {std::size_t{0}, std::size_t{3}, std::size_t{40}, std::size_t{1000}}) {
            fixture f(version);
            f.connect();
            f.from_server();
            read_next(f.s, f.pool, f.into, f.got);
            f.to_server(std::string_view(f.exchange(noise(900))).substr(0, part));
            CHECK(f.s.write_now("half", 4).n == 4);
            f.s.tell_break();
            std::uint64_t const sent = f.s.tls()->sent();
            f.s.tell_break();
            CHECK_FALSE(f.s.close_notify());
            CHECK(f.s.write_now("x", 1).ec);
            CHECK(f.s.tls()->sent() == sent);
            CHECK(f.taken() == "half");
            CHECK(SSL_get_error(f.peer.ssl, -1) == SSL_ERROR_SSL);
        }
    }
}

TEST_CASE("a damaged record ends the connection with an alert, and what came before it counts") {
    fixture f;
    f.connect();
    auto const good = f.exchange("good");
    auto bad = f.exchange("bad");
    bad.back() = static_cast<char>(bad.back() ^ 1);
    read_next(f.s, f.pool, f.into, f.got);
    f.to_server(good + bad);
    CHECK(f.got.text == "good");
    auto const end = f.next();
    REQUIRE(end.done);
    CHECK(end.ec);
    CHECK(f.s.write_now("x", 1).ec);
    f.peer.hear(f.from_server());
    char c = 0;
    CHECK(SSL_read(f.peer.ssl, &c, 1) <= 0);
    CHECK(SSL_get_error(f.peer.ssl, -1) == SSL_ERROR_SSL);  // bad_record_mac
}

TEST_CASE("1 MiB comes in whole, whatever the pieces it arrives in") {
    auto const text = noise(1U << 20U);
    for (std::size_t const step : {std::size_t{1009}, std::size_t{16384 + 22}, std::size_t{200'000}}) {
        fixture f;
        f.connect();
        std::string records;
        for (std::size_t at = 0; at < text.size(); at += 50'000) records += f.exchange(std::string_view(text).substr(at, 50'000));
        read_all(f.s, text.size(), f.got);
        for (std::size_t at = 0; at < records.size(); at += step) f.to_server(std::string_view(records).substr(at, step));
        REQUIRE(f.l.until([&] { return f.got.done; }));
        CHECK(f.got.text == text);
    }
}

TEST_CASE("a body in records of one byte each comes in whole, and the loop gets its turns") {
    fixture f;
    f.connect();
    std::string records;
    auto const text = noise(4000);
    for (char const c : text) records += f.exchange({&c, 1});
    unsigned turns = 0;
    read_all(f.s, text.size(), f.got);
    f.to_server(records);
    REQUIRE(f.l.until([&] { return ++turns > 0 && f.got.done; }));
    CHECK(f.got.text == text);
}
