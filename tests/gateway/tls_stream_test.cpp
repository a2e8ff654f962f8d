// A stream that speaks TLS, over a socketpair. The other side is OpenSSL's client in memory, so that the test decides which bytes
// arrive when.

#include <fcntl.h>

#include <algorithm>
#include <deque>
#include <string>
#include <vector>

#include "gateway/pieces.hpp"
#include "gateway/stream.hpp"
#include "gateway/task.hpp"
#include "gateway/tls_session.hpp"
#include "tests/base/scratch.hpp"
#include "tests/gateway/certificates.hpp"
#include "tests/gateway/loop.hpp"

using namespace latchkey;
using namespace latchkey::gateway;
using namespace latchkey::gateway::test;

namespace {

struct seen {
    bool done = false;
    error_code ec;
    std::string text;
};

detached shake(stream& s, tls_context const& c, seen& out) {
    do {
        out.ec = co_await s.handshake(c);
        if (out.ec != asio::error::would_block) break;
        out.ec = co_await s.writable();
    } while (!out.ec);
    out.done = true;
}
detached read_next(stream& s, buffer_pool& pool, lease& into, seen& out) {
    io_result const r = co_await s.read_next(pool, into);
    out.ec = r.ec;
    out.text.assign(r.n > 0 ? into.data() : "", r.n);
    out.done = true;
}
detached read_all(stream& s, std::size_t size, seen& out) {
    std::vector<char> memory(64 * 1024);
    while (out.text.size() < size) {
        io_result const r = co_await s.read_more(memory.data(), std::min(memory.size(), size - out.text.size()));
        out.ec = r.ec;
        if (r.ec || r.n == 0) break;
        out.text.append(memory.data(), r.n);
    }
    out.done = true;
}
// All pieces, as a session sends them: what is left is tried again.
detached send_all(stream& s, std::vector<std::string> const& texts, seen& out) {
    for (std::size_t at = 0; at < texts.size(); at += 6) {
        pieces p;
        for (std::size_t i = at; i < std::min(at + 6, texts.size()); ++i) p.add(texts[i]);
        while (p.left() > 0) {
            io_result const r = s.write_now(p.rest());
            p.advance(r.n);
            if (r.ec && r.ec != asio::error::would_block) {
                out.ec = r.ec;
                co_return;
            }
            if (p.left() > 0) out.ec = co_await s.writable();
        }
    }
    out.done = true;
}

std::string noise(std::size_t size) {
    std::string out(size, '\0');
    std::uint32_t x = 2463534242U;
    for (char& c : out) {
        x ^= x << 13U;
        x ^= x >> 17U;
        x ^= x << 5U;
        c = static_cast<char>(x);
    }
    return out;
}

struct fixture {
    testing::scratch_dir folder;
    std::unique_ptr<tls_context> rules = load();
    loop l;
    pair p;
    buffer_pool pool{4096, 65536, 2};
    stream s{l.poller};
    lease into;
    seen got;
    tls_peer peer;

    explicit fixture(int version = TLS1_3_VERSION, char const* groups = nullptr) : peer(version, groups) {
        REQUIRE_FALSE(s.open(p.ours));
    }
    ~fixture() {
        s.close();
        l.until([&] { return !s.read_pending(); });
        l.turn();
    }
    std::unique_ptr<tls_context> load() const {
        auto const made = make_certificate(make_ec_key().get(), "localhost");
        testing::write_file(folder.file("c"), made.chain);
        testing::write_file(folder.file("k"), made.key);
        conf::tls_settings settings;
        settings.certificates = {{folder.file("c"), folder.file("k")}};
        std::vector<conf::finding> mistakes;
        std::vector<conf::finding> warnings;
        auto out = tls_context::load(settings, mistakes, warnings);
        REQUIRE(out);
        return out;
    }
    void to_server(std::string_view bytes) {
        while (!bytes.empty()) {
            ssize_t const n = ::send(p.theirs, bytes.data(), bytes.size(), MSG_NOSIGNAL);
            if (n > 0) bytes.remove_prefix(static_cast<std::size_t>(n));
            l.turn();
        }
    }
    // What the server has said, and nothing if it is silent. At most `most` bytes.
    std::string from_server(std::size_t most = SIZE_MAX) {
        std::string out;
        std::array<char, 4096> block;
        while (out.size() < most) {
            ssize_t const n = ::recv(p.theirs, block.data(), std::min(block.size(), most - out.size()), MSG_DONTWAIT);
            if (n <= 0) break;
            out.append(block.data(), static_cast<std::size_t>(n));
        }
        return out;
    }
    // Of that, what the client reads: plain text.
    std::string taken(std::size_t most = SIZE_MAX) {
        peer.hear(from_server(most));
        return peer.take();
    }
    // A handshake, and the ticket behind it. `step`: bytes that arrive at one time.
    void connect(std::size_t step = SIZE_MAX) {
        shake(s, *rules, got);
        REQUIRE(l.until([&] {
            peer.shake_hands();
            auto const said = peer.said();
            for (std::size_t at = 0; at < said.size(); at += std::min(step, said.size() - at)) {
                to_server(std::string_view(said).substr(at, step));
                if (step == 1) l.turn();
            }
            l.turn();
            peer.hear(from_server());
            return got.done && SSL_is_init_finished(peer.ssl) == 1;
        }));
        REQUIRE_FALSE(got.ec);
        REQUIRE(s.tls());
        got = {};
    }
    std::string exchange(std::string_view text) {  // the client's records that carry a text
        peer.say(text);
        return peer.said();
    }
    seen next() {
        got = {};
        into.reset();
        read_next(s, pool, into, got);
        l.turn();
        return got;
    }
};

}  // namespace

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
