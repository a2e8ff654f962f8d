#include "gateway/upstream.hpp"

#include <algorithm>
#include <array>
#include <optional>
#include <string>
#include <vector>

#include "base/clock.hpp"
#include "tests/gateway/loop.hpp"
#include "tests/gateway/world.hpp"

using namespace latchkey;
using namespace latchkey::gateway;
using namespace latchkey::gateway::test;

namespace {

constexpr std::int64_t second = 1'000'000'000;

conf::target on(std::uint16_t port, std::string base_path = {}) {
    conf::target t;
    t.at.port = port;
    t.base_path = std::move(base_path);
    return t;
}

conf::api with_targets(std::vector<conf::target> targets) {
    conf::api a;
    a.upstreams = std::move(targets);
    return a;
}

tcp_endpoint at(std::uint16_t port) { return {asio::ip::address_v4::loopback(), port}; }

detached connect(upstream_pool& p, std::int64_t now, std::optional<upstream_pool::connected>& out) {
    out = co_await p.connect(now);
}

detached read_next(upstream_connection& c, buffer_pool& pool, std::optional<io_result>& out) {
    out = co_await c.io.read_next(pool, c.in);
}

struct fixture {
    listener behind;
    loop l;
    conf::api api;
    upstream_pool t;

    explicit fixture(std::function<void(conf::api&)> const& adjust = {})
        : api([&] {
              auto a = with_targets({{{"127.0.0.1", behind.port()}, "/base"}});
              if (adjust) adjust(a);
              return a;
          }()),
          t(l.poller, server_of(api, api.upstreams[0])) {
        t.set_addresses({at(behind.port())});
    }
    ~fixture() {
        t.close_all();
        CHECK(l.until([&] { return t.count() == 0; }));
    }
    // The end comes in one event with the last bytes: there is none of its own.
    void ends_with_its_answer(upstream_connection& c, wire other) {
        buffer_pool pool(4096, 4096, 1U << 20U);
        std::optional<io_result> read;
        (void)read_next(c, pool, read);
        other.send("last");
        other = wire();
        REQUIRE(l.until([&] { return read.has_value(); }));
        REQUIRE(read->n == 4);
        c.in.reset();
    }
    upstream_pool::connected made() {
        std::optional<upstream_pool::connected> out;
        (void)connect(t, steady_ns(), out);
        REQUIRE(l.until([&] { return out.has_value(); }));
        return *out;
    }
};

std::uint16_t closed_port() { return listener().port(); }

}  // namespace

TEST_CASE("a server's authority is what a Host field needs") {
    loop l;
    auto const authority = [&](std::string const& host, std::uint16_t port) {
        auto const a = with_targets({{{host, port}, ""}});
        return std::string(upstream_pool(l.poller, server_of(a, a.upstreams[0])).authority());
    };
    CHECK(authority("h.example", 80) == "h.example");
    CHECK(authority("h.example", 8080) == "h.example:8080");
    CHECK(authority("::1", 80) == "[::1]");
    CHECK(authority("::1", 81) == "[::1]:81");
}

TEST_CASE("a connection is made, pooled, and the newest is taken again") {
    fixture f;
    auto const a = f.made();
    auto const b = f.made();
    REQUIRE(a.connection);
    REQUIRE(b.connection);
    CHECK_FALSE(a.connection->reused);
    CHECK(f.t.count() == 2);
    CHECK(f.t.take_idle() == nullptr);
    f.t.give_back(a.connection, 0);
    f.t.give_back(b.connection, 0);
    auto* const taken = f.t.take_idle();
    CHECK(taken == b.connection);
    CHECK(taken->reused);
    f.t.discard(taken);
    CHECK(f.t.take_idle() == a.connection);
    CHECK(f.t.take_idle() == nullptr);
    f.t.discard(a.connection);
    CHECK(f.l.until([&] { return f.t.count() == 0; }));
}

TEST_CASE("an idle connection that the other side closes leaves the pool by itself") {
    fixture f;
    auto const c = f.made();
    REQUIRE(c.connection);
    wire other = f.behind.accept();
    f.t.give_back(c.connection, steady_ns());
    other = wire();
    CHECK(f.l.until([&] { return f.t.count() == 0; }));
    CHECK(f.t.take_idle() == nullptr);
}

TEST_CASE("an idle connection on which bytes come unasked is not used again") {
    fixture f;
    auto const c = f.made();
    REQUIRE(c.connection);
    wire const other = f.behind.accept();
    f.t.give_back(c.connection, steady_ns());
    other.send("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n");  // the answer to a request that nobody sent
    CHECK(f.l.until([&] { return f.t.count() == 0; }));
}

TEST_CASE("a connection whose end came with its last answer leaves the pool by itself") {
    fixture f;
    auto const stays = f.made();
    wire const other = f.behind.accept();
    auto const c = f.made();
    REQUIRE((stays.connection && c.connection));
    wire its = f.behind.accept();
    bool const used_before = GENERATE(false, true);
    if (used_before) {
        f.t.give_back(c.connection, 10 * second);
        f.l.turn();
        REQUIRE(f.t.take_idle() == c.connection);
    }
    f.ends_with_its_answer(*c.connection, std::move(its));
    f.t.give_back(c.connection, 10 * second);
    f.t.give_back(stays.connection, 10 * second);
    CHECK(f.l.until([&] { return f.t.count() == 1; }));
    CHECK(f.t.take_idle() == stays.connection);
    f.t.discard(stays.connection);
}

TEST_CASE("a server that answers and ends before its connection is known to be made is not kept") {
    fixture f;
    std::optional<upstream_pool::connected> out;
    (void)connect(f.t, steady_ns(), out);
    wire other = f.behind.accept();
    other.send("last");
    other = wire();
    REQUIRE(f.l.until([&] { return out.has_value(); }));
    REQUIRE(out->connection);
    buffer_pool pool(4096, 4096, 1U << 20U);
    std::optional<io_result> read;
    (void)read_next(*out->connection, pool, read);
    REQUIRE(f.l.until([&] { return read.has_value(); }));
    CHECK(read->n == 4);
    out->connection->in.reset();
    f.t.give_back(out->connection, steady_ns());
    CHECK(f.l.until([&] { return f.t.count() == 0; }));
}

TEST_CASE("an idle connection that has ended is not taken, though it has not left the pool yet") {
    fixture f;
    auto const stays = f.made();
    wire const kept = f.behind.accept();
    auto const ends = f.made();
    wire other = f.behind.accept();
    f.t.give_back(stays.connection, steady_ns());
    other = wire();
    f.t.give_back(ends.connection, steady_ns());  // it looks at once, and will be told of what it finds
    CHECK(f.t.take_idle() == stays.connection);
    CHECK(f.t.take_idle() == nullptr);
    f.t.discard(stays.connection);
}

// Requests that found no idle connection, and what each was given.
struct waiters {
    upstream_pool& pool;
    std::vector<std::optional<upstream_connection*>> got;

    void wait(std::size_t n, std::int64_t since_ns) {
        std::size_t const first = got.size();
        got.resize(first + n);
        for (std::size_t i = first; i < got.size(); ++i)
            [](waiters& w, std::size_t at, std::int64_t since) -> detached {
                w.got[at] = co_await upstream_pool::returned(w.pool, since);
            }(*this, i, since_ns);
    }
    std::ptrdiff_t told() const {
        return std::count_if(got.begin(), got.end(), [](auto const& g) { return g.has_value(); });
    }
};

TEST_CASE("who finds a pool with nothing to come back makes a connection at once") {
    fixture f;
    waiters w{f.t, {}};
    w.wait(1, steady_ns());
    REQUIRE(w.told() == 1);
    CHECK(*w.got[0] == nullptr);
}

TEST_CASE("where none comes back within a look of the loop, a few connections are made a look") {
    fixture f;
    auto const busy = f.made();
    waiters w{f.t, {}};
    constexpr std::ptrdiff_t few = upstream_pool::made_a_look;
    w.wait(2 * few + 1, steady_ns());
    for (std::ptrdiff_t const told : {std::ptrdiff_t{0}, few, 2 * few, 2 * few + 1}) {
        CHECK(w.told() == told);
        f.l.turn();
    }
    CHECK(std::all_of(w.got.begin(), w.got.end(), [](auto const& g) { return *g == nullptr; }));
    f.t.discard(busy.connection);
}

TEST_CASE("connections that come back go to who waits longest, and while they do, nobody makes one") {
    fixture f;
    auto const a = f.made();
    auto const b = f.made();
    waiters w{f.t, {}};
    w.wait(3, steady_ns() + 60 * second);
    for (std::size_t n = 0; auto* const back : {a.connection, b.connection, a.connection}) {
        f.t.give_back(back, steady_ns());
        CHECK(f.t.take_idle() == nullptr);
        f.l.turn();
        REQUIRE(w.told() == static_cast<std::ptrdiff_t>(n + 1));
        CHECK(w.got[n++] == back);
        CHECK(back->reused);
    }
    f.t.discard(a.connection);
    f.t.discard(b.connection);
}

TEST_CASE("of those who have waited too long one a look makes a connection, while others come back") {
    fixture f;
    auto const a = f.made();
    waiters w{f.t, {}};
    w.wait(4, steady_ns() - upstream_pool::wait_for_returned_ns);
    f.t.give_back(a.connection, steady_ns());
    f.l.turn();
    REQUIRE(w.told() == 2);
    CHECK(w.got[0] == a.connection);
    CHECK(w.got[1] == nullptr);
    f.l.turn();  // and nothing came back any more
    CHECK(w.told() == 4);
    f.t.discard(a.connection);
}

TEST_CASE("a connection that has ended is not handed on") {
    fixture f;
    auto const a = f.made();
    waiters w{f.t, {}};
    w.wait(1, steady_ns() + 60 * second);
    a.connection->io.close();
    f.t.give_back(a.connection, steady_ns());
    REQUIRE(f.l.until([&] { return w.told() == 1; }));
    CHECK(w.got[0] == nullptr);
}

TEST_CASE("a connection on which something lies that no request asked for, or that has ended, is not handed on") {
    fixture f;
    auto const a = f.made();
    wire other = f.behind.accept();
    waiters w{f.t, {}};
    w.wait(1, steady_ns() + 60 * second);
    bool const before = GENERATE(true, false);
    bool const ends = GENERATE(true, false);
    if (!before) f.t.give_back(a.connection, steady_ns());
    if (ends)
        other = wire();
    else
        other.send("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n");  // the next client would take it for its answer
    if (before) f.t.give_back(a.connection, steady_ns());
    REQUIRE(f.l.until([&] { return w.told() == 1; }));
    CHECK(w.got[0] == nullptr);
    CHECK(f.l.until([&] { return f.t.count() == 0; }));
}

TEST_CASE("a connection with more on it than its answer had is not kept, though that was read to its last byte and no further") {
    fixture f;
    auto const a = f.made();
    wire const other = f.behind.accept();
    buffer_pool pool(4096, 4096, 1U << 20U);
    std::array<char, 4> rest{};
    std::optional<io_result> read;
    [](stream& s, buffer_pool& from, lease& in, std::array<char, 4>& last, std::optional<io_result>& to) -> detached {
        (void)co_await s.read_next(from, in);  // all that is there: the next wait is for an event
        to = co_await s.read_more(last.data(), last.size());
    }(a.connection->io, pool, a.connection->in, rest, read);
    other.send("head");
    REQUIRE(f.l.until([&] { return a.connection->in.data() != nullptr; }));
    other.send("bodysurplus");
    REQUIRE(f.l.until([&] { return read.has_value(); }));
    REQUIRE(read->n == 4);
    f.t.give_back(a.connection, steady_ns());
    CHECK(f.t.take_idle() == nullptr);
    CHECK(f.l.until([&] { return f.t.count() == 0; }));
}

// The time of a step is read for several messages, and so one connection's can be behind that of another before it.
TEST_CASE("a connection that is given back with a time before the last one's ends no sooner than that one") {
    fixture f([](conf::api& a) { a.deadlines.idle = std::chrono::seconds(10); });
    auto const first = f.made();
    auto const next = f.made();
    REQUIRE((first.connection && next.connection));
    f.t.give_back(first.connection, 10 * second);
    f.t.give_back(next.connection, 9 * second);
    f.t.sweep(20 * second - 1);
    f.l.turn();
    CHECK(f.t.count() == 2);
    f.t.sweep(20 * second);
    CHECK(f.l.until([&] { return f.t.count() == 0; }));
}

TEST_CASE("a connection that was closed before it is given back is not kept") {
    fixture f;
    auto const c = f.made();
    REQUIRE(c.connection);
    c.connection->io.close();
    f.t.give_back(c.connection, steady_ns());
    CHECK(f.t.take_idle() == nullptr);
    CHECK(f.l.until([&] { return f.t.count() == 0; }));
}

TEST_CASE("idle connections end at their time-out, the oldest first, and no more are kept than the limit") {
    fixture f([](conf::api& a) {
        a.idle_per_target = 2;
        a.deadlines.idle = std::chrono::seconds(10);
    });
    auto const a = f.made();
    auto const b = f.made();
    auto const c = f.made();
    REQUIRE((a.connection && b.connection && c.connection));
    f.t.give_back(a.connection, 1 * second);
    f.t.give_back(b.connection, 5 * second);
    f.t.give_back(c.connection, 6 * second);  // beyond the limit: closed
    f.t.sweep(10 * second);
    CHECK(f.l.until([&] { return f.t.count() == 2; }));
    f.t.sweep(11 * second);
    CHECK(f.l.until([&] { return f.t.count() == 1; }));
    CHECK(f.t.take_idle() == b.connection);
    f.t.discard(b.connection);
}

TEST_CASE("a limit of connections is told") {
    fixture f([](conf::api& a) { a.connections_per_target = 1; });
    CHECK_FALSE(f.t.at_limit());
    auto const a = f.made();
    REQUIRE(a.connection);
    CHECK(f.t.at_limit());
    f.t.discard(a.connection);
    CHECK_FALSE(f.t.at_limit());
}

TEST_CASE("a refused connection says so, and leaves nothing") {
    fixture f;
    f.t.set_addresses({at(closed_port())});
    auto const c = f.made();
    CHECK(c.connection == nullptr);
    CHECK(c.ec == asio::error::connection_refused);
    CHECK(f.l.until([&] { return f.t.count() == 0; }));
}

TEST_CASE("addresses are tried in turn until one takes the connection") {
    fixture f;
    f.t.set_addresses({at(closed_port()), at(f.behind.port())});
    for (int i = 0; i < 2; ++i) {  // the second time from the one that worked
        auto const c = f.made();
        REQUIRE(c.connection);
        f.t.discard(c.connection);
    }
}

TEST_CASE("a name that could not be resolved is no connection") {
    fixture f;
    f.t.set_addresses({});
    CHECK_FALSE(f.t.resolved());
    auto const c = f.made();
    CHECK(c.connection == nullptr);
    CHECK(c.ec == asio::error::host_not_found);
}

TEST_CASE("whether the other side has bytes of a request is known") {
    fixture f;
    auto const c = f.made();
    REQUIRE(c.connection);
    wire const other = f.behind.accept();
    CHECK_FALSE(c.connection->peer_has_bytes());
    REQUIRE(c.connection->io.write_now("GET", 3).n == 3);
    CHECK(testing::eventually([&] { return c.connection->peer_has_bytes(); }));
    c.connection->sent += 3;  // those belonged to the exchange before
    CHECK_FALSE(c.connection->peer_has_bytes());
    c.connection->io.close();
    CHECK(c.connection->peer_has_bytes());  // not known: the careful answer
    f.t.discard(c.connection);
}

TEST_CASE("a server that fails is passed over for 1 s, doubling up to 30 s, until it succeeds") {
    fixture f;
    std::int64_t now = 100 * second;
    for (int const seconds : {1, 2, 4, 8, 16, 30, 30}) {
        f.t.failed(now, asio::error::connection_refused);
        CHECK_FALSE(f.t.usable(now + seconds * second - 1));
        CHECK(f.t.usable(now + seconds * second));
        now += 60 * second;
    }
    f.t.failed(now, asio::error::connection_refused);
    f.t.succeeded();
    CHECK(f.t.usable(now));
    f.t.failed(now, asio::error::connection_refused);
    CHECK(f.t.usable(now + second));
}

TEST_CASE("targets take turns, those that are down are passed over, and where all are, the one down longest is asked") {
    loop l;
    upstreams all(l.poller, {with_targets({on(1), on(2), on(3)})});
    target_group& g = all.group(0);
    auto const* const one = &g.targets()[0];
    auto const* const two = &g.targets()[1];
    auto const* const three = &g.targets()[2];
    CHECK(g.choose(0, 0) == one);
    CHECK(g.choose(0, 0) == two);
    CHECK(g.choose(0, 0) == three);
    CHECK(g.choose(0, 0) == one);
    two->pool->failed(0, asio::error::connection_refused);
    CHECK(g.choose(0, 0) == three);
    CHECK(g.choose(0, g.bits_of(*one)) == three);
    CHECK(g.choose(0, g.bits_of(*one) | g.bits_of(*three)) == two);  // better than none
    CHECK(g.choose(0, 7) == nullptr);
    one->pool->failed(second / 2, asio::error::connection_refused);
    three->pool->failed(second / 4, asio::error::connection_refused);
    CHECK(g.choose(second / 2, 0) == two);
    CHECK(g.choose(second / 2, g.bits_of(*two)) == three);
    CHECK(g.bits_of(*three) == 4);
    CHECK(g.choose(second, 0) == two);  // its time is over
}

TEST_CASE("a server that stands twice in an api is tried once") {
    loop l;
    std::vector<conf::target> list(70, on(1));
    list[1].at.port = list[69].at.port = 2;
    upstreams all(l.poller, {with_targets(list)});
    target_group& g = all.group(0);
    CHECK(g.bits_of(g.targets()[1]) == 2);
    CHECK(g.bits_of(g.targets()[0]) == ~std::uint64_t{2});
    CHECK(g.bits_of(g.targets()[69]) == 0);  // beyond the 64th: no second round
    CHECK(all.pools() == 2);
}

TEST_CASE("apis that name one server and agree in its limits share it, and those that do not have it for themselves") {
    loop l;
    auto const one = with_targets({on(1, "/one")});
    auto two = with_targets({on(1, "/two"), on(2)});
    two.deadlines.response_head = std::chrono::seconds(1);  // these are the exchange's, not the connection's
    two.deadlines.body_stall = std::chrono::seconds(1);
    two.body_bytes = 1;
    auto const different = [&one](auto const& adjust) {
        auto a = one;
        adjust(a);
        return a;
    };
    std::vector<conf::api> const apis{one,
                                      two,
                                      different([](auto& a) { a.connections_per_target = 1; }),
                                      different([](auto& a) { a.idle_per_target = 1; }),
                                      different([](auto& a) { a.deadlines.connect = std::chrono::seconds(1); }),
                                      different([](auto& a) { a.deadlines.idle = std::chrono::seconds(1); }),
                                      different([](auto& a) { a.upstreams[0].at.host = "127.0.0.2"; })};
    upstreams all(l.poller, apis);
    auto const of = [&](std::size_t api) { return all.group(api).targets()[0].pool; };
    CHECK(of(0) == of(1));
    CHECK(all.group(1).targets()[0].base_path == "/two");
    CHECK(all.pools() == 7);  // one each, and port 2

    all.set_addresses("127.0.0.1", 1, {at(1)});
    for (std::size_t api = 0; api < 6; ++api) CHECK(of(api)->resolved());
    CHECK_FALSE(of(6)->resolved());
    CHECK_FALSE(all.group(1).targets()[1].pool->resolved());

    of(0)->failed(0, asio::error::connection_refused);
    CHECK(all.group(1).choose(0, 0) == &all.group(1).targets()[1]);  // so another api passes it over too
    CHECK(of(2)->usable(0));
}

TEST_CASE("a connection that one api gives back serves the next request of another") {
    loop l;
    listener const behind;
    auto const a = with_targets({on(behind.port(), "/a")});
    auto const b = with_targets({on(behind.port(), "/b")});
    upstreams all(l.poller, {a, b});
    all.set_addresses("127.0.0.1", behind.port(), {at(behind.port())});
    std::optional<upstream_pool::connected> made;
    (void)connect(*all.group(0).choose(0, 0)->pool, steady_ns(), made);
    REQUIRE(l.until([&] { return made.has_value(); }));
    REQUIRE(made->connection);
    made->connection->pool().give_back(made->connection, steady_ns());
    CHECK(all.count() == 1);
    auto* const taken = all.group(1).choose(0, 0)->pool->take_idle();
    CHECK(taken == made->connection);
    if (taken) taken->pool().give_back(taken, steady_ns());
    all.close_all();
    CHECK(l.until([&] { return all.count() == 0; }));
}

// Asio's state of a closed descriptor is the next one's, and what was found of the one can be told to the other.
TEST_CASE("an event of a connection that ended in the same turn does not end a connect") {
    fixture f;
    deaf_listener server;
    f.t.set_addresses({at(server.port())});
    pair one;
    pair other;
    stream closes(f.l.poller);
    stream closed(f.l.poller);
    REQUIRE_FALSE(closes.open(one.ours));
    REQUIRE_FALSE(closed.open(other.ours));
    f.l.turn();
    std::optional<upstream_pool::connected> out;
    struct context {
        stream& closed;
        upstream_pool& pool;
        std::optional<upstream_pool::connected>& out;
        bool ran = false;
    } c{closed, f.t, out};
    closes.watch(
        [](void* p) {
            auto& x = *static_cast<context*>(p);
            x.ran = true;
            x.closed.close();
            (void)connect(x.pool, steady_ns(), x.out);
        },
        &c);
    one.close();
    other.close();
    f.l.turn();
    REQUIRE(c.ran);
    f.l.turn();
    CHECK_FALSE(out);
    f.t.sweep(steady_ns() + 60 * second);
    REQUIRE(f.l.until([&] { return out.has_value(); }));
    CHECK(out->ec == asio::error::timed_out);
    closes.close();
    f.l.turn();
}
