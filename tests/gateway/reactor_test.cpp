#include "gateway/reactor.hpp"

#include <algorithm>
#include <array>
#include <deque>
#include <functional>
#include <stdexcept>
#include <string>
#include <vector>

#include "gateway/task.hpp"
#include "tests/gateway/loop.hpp"
#include "tests/gateway/tls_fixture.hpp"

using namespace latchkey;
using namespace latchkey::gateway;
using namespace latchkey::gateway::test;

namespace {

// One who reads a message, decides, and sends; what it does is noted in `diary`.
struct actor {
    actor(loop& l, buffer_pool& buffers, std::vector<std::string>& d, std::string n)
        : poller(l.poller), pool(buffers), diary(d), s(l.poller), name(std::move(n)) {
        REQUIRE_FALSE(s.open(p.ours, name.starts_with("r") ? reactor::message::request : reactor::message::answer));
    }
    detached act(bool answer, bool large, bool looks) {
        promise room;
        if (answer) REQUIRE(pool.promise_small(room));
        io_result const r = co_await s.read_next(pool, into, large, answer ? &room : nullptr);
        got = r;
        text.assign(into ? into.data() : "", r.n);
        if (looks && !answer) {
            diary.push_back("look " + name);
            waited_to_decide = co_await reactor::turn(poller, reactor::part::decide);
        }
        decided_ns = poller.now();
        diary.push_back("decide " + name);
        waited = co_await reactor::turn(poller, reactor::part::send);
        sent_ns = poller.now();
        diary.push_back("send " + name);
    }
    reactor& poller;
    buffer_pool& pool;
    std::vector<std::string>& diary;
    pair p;
    stream s;
    lease into;
    std::string name;
    std::string text;
    io_result got{asio::error::would_block, 0};
    bool waited = false;  // for others, before it sent
    bool waited_to_decide = false;
    std::int64_t decided_ns = 0;
    std::int64_t sent_ns = 0;
};

// One that is sent with others', if it may be.
struct letter : reactor::outgoing {
    letter(actor& a, std::string text) : from(a), bytes(std::move(text)), piece{bytes.data(), bytes.size()} {}
    bool begin(call_batch& calls) noexcept override {
        begun = from.s.queue_write(calls, {&piece, 1}, result);
        from.diary.push_back("begin " + from.name);
        return begun;
    }
    void end() noexcept override {
        from.s.written(result);
        from.diary.push_back("end " + from.name);
    }
    actor& from;
    std::string bytes;
    iovec piece;
    bool begun = false;
    io_result result{asio::error::fault, 0};
};

struct stage {
    loop l;
    buffer_pool pool{16384, 65536, 4};
    std::vector<std::string> diary;
    std::deque<actor> actors;
    bool large = false;
    bool looks = false;
    ~stage() {
        for (auto& a : actors) a.s.close();
        CHECK(l.until([&] { return std::none_of(actors.begin(), actors.end(), [](auto& a) { return a.s.read_pending(); }); }));
        l.turn();
    }
    // They wait in earnest from here on.
    void enter(std::size_t requests, std::size_t answers = 0) {
        for (std::size_t i = 0; i < requests + answers; ++i) {
            bool const answer = i >= requests;
            actors.emplace_back(l, pool, diary, (answer ? "a" : "r") + std::to_string(answer ? i - requests : i))
                .act(answer, large, looks);
        }
        l.turn();
        REQUIRE(diary.empty());
    }
    void say(std::size_t i, std::string const& text) {
        REQUIRE(::send(actors[i].p.theirs, text.data(), text.size(), MSG_NOSIGNAL) == static_cast<ssize_t>(text.size()));
    }
    void say_to_all() {
        for (std::size_t i = 0; i < actors.size(); ++i) say(i, "for " + actors[i].name);
    }
    bool all_got_theirs() {
        return std::all_of(actors.begin(), actors.end(), [](auto& a) { return a.text == "for " + a.name; });
    }
    std::size_t at(std::string const& what) {
        return static_cast<std::size_t>(std::find(diary.begin(), diary.end(), what) - diary.begin());
    }
    // Where the last line of the diary that begins so stands, and the first.
    std::size_t last(std::string_view begin) {
        std::size_t found = diary.size();
        for (std::size_t i = 0; i < diary.size(); ++i)
            if (diary[i].starts_with(begin)) found = i;
        return found;
    }
    std::size_t first(std::string_view begin) {
        for (std::size_t i = 0; i < diary.size(); ++i)
            if (diary[i].starts_with(begin)) return i;
        return diary.size();
    }
};

}  // namespace

TEST_CASE("many messages that came together are all decided before any is sent, in the order in which they came", "[reactor]") {
    stage s;
    s.enter(reactor::many);
    s.say_to_all();
    s.l.turn();
    REQUIRE(s.diary.size() == 2 * reactor::many);
    CHECK(s.all_got_theirs());
    for (std::size_t i = 0; i < reactor::many; ++i) {
        CHECK(s.actors[i].waited);
        CHECK(s.diary[i] == "decide r" + std::to_string(i));
        CHECK(s.diary[reactor::many + i] == "send r" + std::to_string(i));
    }
}

TEST_CASE("what looks first is looked at for all requests before one is decided", "[reactor]") {
    stage s;
    s.looks = true;
    s.enter(reactor::many, reactor::many);
    s.say_to_all();
    s.l.turn();
    REQUIRE(s.diary.size() == 5 * reactor::many);
    CHECK(s.all_got_theirs());
    CHECK(s.last("decide a") < s.first("send a"));
    CHECK(s.last("send a") < s.first("look r"));
    CHECK(s.last("look r") < s.first("decide r"));
    CHECK(s.last("decide r") < s.first("send r"));
    for (auto const& a : s.actors) {
        CHECK(a.waited);
        CHECK(a.waited_to_decide == a.name.starts_with("r"));
    }
}

TEST_CASE("a request alone in its step looks, decides and sends without a wait", "[reactor]") {
    stage s;
    s.looks = true;
    s.enter(1, reactor::many);
    s.say_to_all();
    s.l.turn();
    CHECK(s.all_got_theirs());
    CHECK(std::vector<std::string>(s.diary.end() - 3, s.diary.end()) ==
          std::vector<std::string>{"look r0", "decide r0", "send r0"});
    CHECK_FALSE(s.actors[0].waited);
    CHECK_FALSE(s.actors[0].waited_to_decide);
}

TEST_CASE("messages of a step share a look at the clock, a few at a time, and who goes on alone has its own", "[reactor]") {
    stage s;
    std::size_t const messages = GENERATE(std::size_t{1}, reactor::many - 1, 3 * reactor::many);
    std::size_t const shared_by = messages < reactor::many ? 1 : reactor::clock_shared_by;
    s.enter(messages);
    s.say_to_all();
    auto const before = steady_ns();
    s.l.turn();
    auto const after = steady_ns();
    for (std::size_t i = 0; i < messages; ++i) {
        auto const& a = s.actors[i];
        CHECK(before <= a.decided_ns);
        CHECK(a.decided_ns <= a.sent_ns);
        CHECK(a.sent_ns <= after);
        if (i == 0) continue;
        CHECK((a.decided_ns == s.actors[i - 1].decided_ns) == (i % shared_by != 0));
        CHECK((a.sent_ns == s.actors[i - 1].sent_ns) == (i % shared_by != 0));
    }
    CHECK(s.l.poller.now() >= after);  // no step runs
}

TEST_CASE("a message that is alone in its step has the clock for itself", "[reactor]") {
    stage s;
    s.enter(1, reactor::many);
    s.say_to_all();
    s.l.turn();
    CHECK(s.all_got_theirs());
    CHECK(s.actors[0].decided_ns < s.actors[0].sent_ns);
}

TEST_CASE("few messages go on at once, each by itself", "[reactor]") {
    stage s;
    s.enter(reactor::many - 1);
    s.say_to_all();
    s.l.turn();
    REQUIRE(s.diary.size() == 2 * (reactor::many - 1));
    CHECK(s.all_got_theirs());
    for (std::size_t i = 0; i < reactor::many - 1; ++i) {
        CHECK_FALSE(s.actors[i].waited);
        CHECK(s.diary[2 * i] == "decide r" + std::to_string(i));
        CHECK(s.diary[2 * i + 1] == "send r" + std::to_string(i));
    }
}

TEST_CASE("answers are decided and sent before requests are decided", "[reactor]") {
    stage s;
    s.enter(reactor::many, reactor::many);
    s.say_to_all();
    s.l.turn();
    REQUIRE(s.diary.size() == 4 * reactor::many);
    CHECK(s.all_got_theirs());
    CHECK(s.last("decide a") < s.first("send a"));
    CHECK(s.last("send a") < s.first("decide r"));
    CHECK(s.last("decide r") < s.first("send r"));
    CHECK(s.l.poller.put_off_total() == 0);
}

// More than a look shows: so many requests, before so many answers.
struct crowd : stage {
    static constexpr std::size_t requests = 300;
    static constexpr std::size_t answers = 4;
    crowd() {
        enter(requests, answers);
        say_to_all();
    }
    std::size_t decided(std::string_view begin) {
        return static_cast<std::size_t>(
            std::count_if(diary.begin(), diary.end(), [&](auto const& line) { return line.starts_with(begin); }));
    }
};

TEST_CASE("an answer waits for no more requests than are taken on after a look, however many came before it", "[reactor]") {
    crowd s;
    while (s.decided("decide a") == 0) {
        std::size_t const before = s.decided("decide r");
        s.l.turn();
        REQUIRE(s.decided("decide r") <= before + reactor::requests_a_look);
    }
    CHECK(s.decided("decide a") == crowd::answers);
    CHECK(s.decided("decide r") <= 3 * reactor::requests_a_look);  // the third look shows them
    while (s.decided("send") < crowd::requests + crowd::answers) {
        std::size_t const before = s.diary.size();
        s.l.turn();
        REQUIRE(s.diary.size() > before);
    }
    CHECK(s.all_got_theirs());
    CHECK(s.at("decide r0") < s.at("decide r299"));
    CHECK(s.l.poller.put_off_total() > 0);
    CHECK(s.l.poller.put_off_total() < crowd::requests);
}

TEST_CASE("of requests that are put off few are taken on while those before them are held up, but never none", "[reactor]") {
    crowd s;
    constexpr std::size_t held = 10 * reactor::requests_a_look;
    for (std::size_t i = 0; i < held; ++i) s.l.poller.held_up();
    for (std::size_t look = 1; look <= 6; ++look) {
        s.l.turn();
        CHECK(s.decided("decide r") == look * reactor::requests_a_look_min);
    }
    CHECK(s.l.poller.put_off_total() ==
          crowd::requests - reactor::requests_a_look_min);  // each once, but those of the first look
    CHECK(s.decided("send a") == crowd::answers);
    for (std::size_t i = reactor::requests_a_look / 2; i < held; ++i) s.l.poller.goes_on();
    std::size_t const before = s.decided("decide r");
    s.l.turn();
    CHECK(s.decided("decide r") == before + reactor::requests_a_look / 2);
    while (s.decided("send r") < crowd::requests) s.l.turn();
    CHECK(s.all_got_theirs());
}

TEST_CASE("what comes while a client is put off is not lost, and an end is seen behind it", "[reactor]") {
    crowd s;
    auto& last = s.actors[crowd::requests - 1];
    for (int i = 0; i < 3; ++i) s.l.turn();
    REQUIRE(last.text.empty());
    s.say(crowd::requests - 1, ", and more");
    REQUIRE(::shutdown(last.p.theirs, SHUT_WR) == 0);
    while (s.decided("send r") < crowd::requests) s.l.turn();
    CHECK(last.text == "for r299, and more");
    io_result end{asio::error::would_block, 0};
    char byte = 0;
    [](stream& of, char& into, io_result& r) -> detached { r = co_await of.read_more(&into, 1); }(last.s, byte, end);
    REQUIRE(s.l.until([&] { return !end.ec; }));
    CHECK(end.n == 0);
}

TEST_CASE("a read that was put off does not end by its deadline before it is served", "[reactor]") {
    crowd s;
    for (std::size_t i = 0; i < reactor::requests_a_look; ++i) s.l.poller.held_up();
    for (int i = 0; i < 4; ++i) s.l.turn();
    auto& last = s.actors[crowd::requests - 1];
    last.s.read_until(1);
    CHECK_FALSE(last.s.expire(2));
    for (std::size_t i = 0; i < reactor::requests_a_look; ++i) s.l.poller.goes_on();
    while (s.decided("send r") < crowd::requests) s.l.turn();
    CHECK(s.all_got_theirs());
}

TEST_CASE("a handshake that was put off keeps its deadline, and so does a write of who was", "[reactor]") {
    crowd s;
    for (std::size_t i = 0; i < reactor::requests_a_look; ++i) s.l.poller.held_up();
    auto& last = s.actors[crowd::requests - 1];
    std::string const much(1U << 20U, 'x');
    while (!last.s.write_now(much.data(), much.size()).ec) {
    }
    error_code written;
    [](stream& of, error_code& ec) -> detached { ec = co_await of.writable(); }(last.s, written);
    tls::fixture const any;
    pair p;
    stream shaking(s.l.poller);
    REQUIRE_FALSE(shaking.open(p.ours, reactor::message::request));
    tls::seen shaken;
    tls::shake(shaking, *any.rules, shaken);
    REQUIRE(::send(p.theirs, "\x16\x03\x01", 3, MSG_NOSIGNAL) == 3);  // a record's first bytes
    for (int i = 0; i < 6; ++i) s.l.turn();
    shaking.read_until(1);
    last.s.read_until(1);
    last.s.write_until(1);
    CHECK(shaking.expire(2));
    CHECK(last.s.expire(2));
    for (std::size_t i = 0; i < reactor::requests_a_look; ++i) s.l.poller.goes_on();
    while (s.decided("send r") < crowd::requests) s.l.turn();
    CHECK(shaken.done);
    CHECK(shaken.ec == asio::error::timed_out);
    CHECK(written == asio::error::timed_out);
    CHECK(s.all_got_theirs());
    shaking.close();
}

TEST_CASE("who takes the place of a client that was put off and closed does not wait in its stead", "[reactor]") {
    crowd s;
    for (std::size_t i = 0; i < reactor::requests_a_look; ++i) s.l.poller.held_up();
    for (int i = 0; i < 4; ++i) s.l.turn();
    auto& last = s.actors[crowd::requests - 1];
    last.s.close();
    s.l.turn();
    REQUIRE(last.got.ec);
    auto& next = s.actors.emplace_back(s.l, s.pool, s.diary, "a-new");
    next.act(true, false, false);
    s.say(s.actors.size() - 1, "for a-new");
    s.l.turn();
    CHECK(next.text == "for a-new");
    CHECK(s.decided("send r") < crowd::requests / 2);
    while (s.decided("send r") < crowd::requests) s.l.turn();
}

TEST_CASE("an end among many descriptors is no message, and a single one waits for nobody", "[reactor]") {
    stage s;
    s.enter(reactor::many);
    for (std::size_t i = 1; i < reactor::many; ++i) s.actors[i].p.close();
    s.say(0, "for r0");
    s.l.turn();
    REQUIRE(s.diary.size() == 2 * reactor::many);
    CHECK(s.actors[0].text == "for r0");
    for (std::size_t i = 0; i < reactor::many; ++i) CHECK_FALSE(s.actors[i].waited);
    for (std::size_t i = 1; i < reactor::many; ++i) {
        CHECK_FALSE(s.actors[i].got.ec);
        CHECK(s.actors[i].got.n == 0);
    }
}

TEST_CASE("a long message among many waits for none, and those that wait go first", "[reactor]") {
    stage s;
    s.enter(reactor::many + 1);
    for (std::size_t i : {0U, 1U, 2U}) s.say(i, "for r" + std::to_string(i));
    s.say(reactor::many, std::string(8193, 'l'));
    for (std::size_t i = 3; i < reactor::many; ++i) s.say(i, "for r" + std::to_string(i));
    s.l.turn();
    CHECK(s.actors[reactor::many].text == std::string(8193, 'l'));
    CHECK_FALSE(s.actors[reactor::many].waited);
    CHECK(s.diary == std::vector<std::string>{"decide r0", "decide r1", "decide r2", "send r0", "send r1", "send r2", "decide r8",
                                              "send r8", "decide r3", "decide r4", "decide r5", "decide r6", "decide r7",
                                              "send r3", "send r4", "send r5", "send r6", "send r7"});
}

TEST_CASE("a message in a large buffer waits for none", "[reactor]") {
    stage s;
    s.large = true;
    s.enter(reactor::many);
    s.say_to_all();
    s.l.turn();
    CHECK(s.all_got_theirs());
    CHECK(s.actors[0].into.size() == 65536);
    CHECK_FALSE(s.actors[0].waited);
    CHECK_FALSE(s.actors[1].waited);
    CHECK(s.actors[2].into.size() == 16384);  // of four large ones two are to spare
    CHECK(s.actors[2].waited);
}

TEST_CASE("a write that goes on serves first who waits", "[reactor]") {
    stage s;
    s.enter(reactor::many);
    s.say_to_all();
    pair p;
    stream writer(s.l.poller);
    REQUIRE_FALSE(writer.open(p.ours));
    [](stream& w, std::vector<std::string>& diary) -> detached {
        co_await w.writable();
        diary.emplace_back("write");
    }(writer, s.diary);
    s.l.turn();
    REQUIRE(s.diary.size() == 2 * reactor::many + 1);
    CHECK(s.all_got_theirs());
    CHECK(s.diary.back() == "write");
    writer.close();
    s.l.turn();
}

TEST_CASE("as many messages wait as they may, then these are served", "[reactor]") {
    stage s;
    s.l.poller.wait_at_most(3);
    s.enter(reactor::many);
    s.say_to_all();
    s.l.turn();
    REQUIRE(s.diary.size() == 2 * reactor::many);
    CHECK(s.all_got_theirs());
    std::vector<std::string> wanted;
    for (std::size_t begin = 0; begin < reactor::many; begin += 3) {
        std::size_t const end = std::min(begin + 3, reactor::many);
        for (std::size_t i = begin; i < end; ++i) wanted.push_back("decide r" + std::to_string(i));
        for (std::size_t i = begin; i < end; ++i) wanted.push_back("send r" + std::to_string(i));
    }
    CHECK(s.diary == wanted);
}

TEST_CASE("where none may wait for another, each message goes on by itself", "[reactor]") {
    std::size_t const most = GENERATE(0U, 1U);
    stage s;
    s.l.poller.wait_at_most(most);
    s.enter(reactor::many);
    s.say_to_all();
    s.l.turn();
    REQUIRE(s.diary.size() == 2 * reactor::many);
    for (std::size_t i = 0; i < reactor::many; ++i) CHECK(s.at("send r" + std::to_string(i)) == 2 * i + 1);
}

TEST_CASE("serve() serves those that wait, and the turn goes on", "[reactor]") {
    stage s;
    s.enter(reactor::many);
    s.say_to_all();
    asio::steady_timer timer(s.l.io, std::chrono::steady_clock::now());
    std::size_t decided_before = 0;
    std::size_t sent_after = 0;
    timer.async_wait([&](error_code const& ec) {  // its turn is behind the descriptors and before the end of the turn
        CHECK_FALSE(ec);
        CHECK(s.l.poller.gathering());
        decided_before = s.diary.size();
        s.l.poller.serve();
        sent_after = s.diary.size();
    });
    s.l.turn();
    CHECK(decided_before == 0);
    CHECK(sent_after == 2 * reactor::many);
    CHECK(s.diary.size() == 2 * reactor::many);
    CHECK(s.all_got_theirs());
}

TEST_CASE("a message that waits for its step is pending, and past being cancelled", "[reactor]") {
    stage s;
    s.enter(reactor::many);
    s.say_to_all();
    asio::steady_timer timer(s.l.io, std::chrono::steady_clock::now());
    timer.async_wait([&](error_code const&) {
        CHECK(s.actors[0].s.read_pending());
        s.actors[0].s.cancel_read();
        CHECK(s.actors[1].s.read_pending());
        s.actors[1].s.close();
        CHECK(s.diary.empty());
    });
    s.l.turn();
    REQUIRE(s.diary.size() == 2 * reactor::many);
    CHECK(s.all_got_theirs());
    CHECK_FALSE(s.actors[0].s.read_pending());
    CHECK_FALSE(s.actors[1].s.read_pending());
}

TEST_CASE("a loop whose only work are messages that wait for their step does not end before it", "[reactor]") {
    stage s;
    s.enter(reactor::many);
    s.say_to_all();
    s.l.io.restart();
    s.l.io.run_for(std::chrono::seconds(10));
    CHECK(s.diary.size() == 2 * reactor::many);
    CHECK(s.l.io.stopped());  // it ended because nothing was left to do
}

TEST_CASE("events for which nobody waits are no end of the loop's work", "[reactor]") {
    stage s;
    s.enter(1);
    std::deque<pair> pairs(2 * reactor::many);
    std::deque<stream> silent;
    for (auto& p : pairs) REQUIRE_FALSE(silent.emplace_back(s.l.poller).open(p.ours));
    for (auto& p : pairs) REQUIRE(::send(p.theirs, "x", 1, MSG_NOSIGNAL) == 1);
    s.l.turn();
    CHECK_FALSE(s.l.io.stopped());
    CHECK(s.diary.empty());
    s.say(0, "for r0");
    s.l.io.run_for(std::chrono::seconds(10));
    CHECK(s.l.io.stopped());  // now nothing is left to do
    CHECK(s.all_got_theirs());
    for (auto& w : silent) w.close();
    s.l.turn();
}

TEST_CASE("where a handler throws, what was found besides is done nevertheless", "[reactor]") {
    std::size_t const messages = GENERATE(std::size_t{1}, std::size_t{reactor::many});
    stage s;
    s.enter(messages);
    s.say_to_all();
    asio::steady_timer thrower(s.l.io, std::chrono::steady_clock::now() - std::chrono::seconds(1));
    thrower.async_wait([](error_code const&) { throw std::runtime_error("thrown by a handler"); });
    asio::steady_timer behind(s.l.io, std::chrono::steady_clock::now() - std::chrono::milliseconds(1));
    bool done = false;
    behind.async_wait([&](error_code const& ec) { done = !ec; });
    CHECK_THROWS_AS(s.l.turn(), std::runtime_error);
    CHECK(s.diary.size() == 2 * messages);
    CHECK(s.all_got_theirs());
    CHECK_FALSE(done);
    CHECK_FALSE(s.l.poller.gathering());
    s.l.io.restart();
    s.l.io.run_for(std::chrono::seconds(10));
    CHECK(done);
    CHECK(s.l.io.stopped());
}

TEST_CASE("a reactor can be had only of a loop that has none yet, or this one", "[reactor]") {
    io_context ours{1};
    reactor& first = reactor::of(ours);
    CHECK(&reactor::of(ours) == &first);
    io_context other{1};
    asio::steady_timer timer(other);  // makes Asio's
    CHECK_THROWS_AS(reactor::of(other), std::logic_error);
}

namespace {

std::string received(int descriptor) {
    std::array<char, 256> text{};
    auto const n = ::recv(descriptor, text.data(), text.size(), MSG_DONTWAIT);
    return {text.data(), static_cast<std::size_t>(n < 0 ? 0 : n)};
}

detached answer(actor& a, letter& out) {
    a.got = co_await a.s.read_next(a.pool, a.into);
    a.diary.push_back("read " + a.name);
    a.waited = co_await reactor::turn(a.poller, reactor::part::send, &out);
    a.diary.push_back("resumed " + a.name);
}

}  // namespace

TEST_CASE("what is sent together begins, is sent and ends before the first goes on", "[reactor]") {
    stage s;
    std::deque<letter> letters;
    for (std::size_t i = 0; i < reactor::many; ++i) {
        auto& a = s.actors.emplace_back(s.l, s.pool, s.diary, "r" + std::to_string(i));
        answer(a, letters.emplace_back(a, "from " + a.name));
    }
    s.l.turn();
    bool const together = s.l.poller.calls().usable();
    s.say_to_all();
    s.l.turn();
    for (std::size_t i = 0; i < reactor::many; ++i) {
        CHECK(s.actors[i].waited);
        CHECK(letters[i].begun == together);
        CHECK(received(s.actors[i].p.theirs) == (together ? letters[i].bytes : ""));
        CHECK((!together || (!letters[i].result.ec && letters[i].result.n == letters[i].bytes.size())));
    }
    if (!together) return;
    CHECK(s.last("begin ") < s.first("end "));
    CHECK(s.last("end ") < s.first("resumed "));
    CHECK(s.diary.size() == 4 * reactor::many);
}

TEST_CASE("where calls may serve one socket only, all is read, and nothing is sent for others", "[reactor]") {
    stage s;
    s.l.poller.calls().never();
    std::deque<letter> letters;
    for (std::size_t i = 0; i < reactor::many; ++i) {
        auto& a = s.actors.emplace_back(s.l, s.pool, s.diary, "r" + std::to_string(i));
        answer(a, letters.emplace_back(a, "from " + a.name));
    }
    s.l.turn();
    s.say_to_all();
    s.l.turn();
    CHECK(s.first("begin ") == s.diary.size());
    CHECK(s.last("read ") < s.first("resumed "));
    for (auto& a : s.actors) CHECK(std::string(a.into.data(), a.got.n) == "for " + a.name);
}

namespace {

// The first one to be served, whose message makes it do something to another, which was read before its turn.
detached upon_message(actor& first, std::function<void()> deed) {
    first.got = co_await first.s.read_next(first.pool, first.into, true);  // a long one is served at once
    deed();
}

// One message that is served first and does the deed to each of the others, which are read before their turn where calls go
// together.
void meet(stage& s, bool together, std::size_t others, std::function<void(stream&)> const& deed) {
    if (!together) s.l.poller.calls().never();
    auto& first = s.actors.emplace_back(s.l, s.pool, s.diary, "first");
    upon_message(first, [&s, deed] {
        for (std::size_t i = 1; i < s.actors.size(); ++i) deed(s.actors[i].s);
    });
    for (std::size_t i = 0; i < others; ++i)
        s.actors.emplace_back(s.l, s.pool, s.diary, "r" + std::to_string(i)).act(false, false, false);
    s.l.turn();
}

void end_wait(stream& of, std::string const& how) {
    if (how == "cancelled") of.cancel_read();
    if (how == "closed") of.close();
    if (how == "expired") {
        of.read_until(1);
        CHECK(of.expire(2));
    }
}

// A reset between the kernel's events and the reads of all but the first, behind `text`: the events are of the descriptors'
// sockets of before, which stay until they are let go.
class replaced {
  public:
    replaced(stage& s, std::string const& text) {
        int const listening = ::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
        sockaddr_in at{};
        socklen_t size = sizeof at;
        at.sin_family = AF_INET;
        at.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
        auto* const address = reinterpret_cast<sockaddr*>(&at);
        REQUIRE((::bind(listening, address, size) == 0 && ::listen(listening, 16) == 0 &&
                 ::getsockname(listening, address, &size) == 0));
        linger const hard{1, 0};
        for (std::size_t i = 1; i < s.actors.size(); ++i) {
            int const theirs = ::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
            REQUIRE(::connect(theirs, address, size) == 0);
            int const ours = ::accept4(listening, nullptr, nullptr, SOCK_NONBLOCK | SOCK_CLOEXEC);
            REQUIRE(::send(theirs, text.data(), text.size(), 0) == static_cast<ssize_t>(text.size()));
            ::setsockopt(theirs, SOL_SOCKET, SO_LINGER, &hard, sizeof hard);
            ::close(theirs);
            before_.push_back(::dup(s.actors[i].p.ours));
            REQUIRE(::dup2(ours, s.actors[i].p.ours) >= 0);
            ::close(ours);
        }
        ::close(listening);
    }
    ~replaced() {
        for (int const d : before_) ::close(d);
    }
    replaced(replaced const&) = delete;
    replaced& operator=(replaced const&) = delete;

  private:
    std::deque<int> before_;
};

}  // namespace

TEST_CASE("a wait that is ended between its read and its turn has what came, unless it was closed", "[reactor]") {
    std::string const how = GENERATE(as<std::string>(), "cancelled", "expired", "closed");
    bool const together = GENERATE(true, false);
    CAPTURE(how, together);
    stage s;
    meet(s, together, 2 * reactor::many, [&](stream& other) { end_wait(other, how); });
    s.say_to_all();
    REQUIRE(s.l.until([&] { return s.last("send ") != s.diary.size() && s.diary.size() == 4 * reactor::many; }));
    for (std::size_t i = 1; i < s.actors.size(); ++i) {
        auto& a = s.actors[i];
        bool const whole = !a.got.ec && a.text == "for " + a.name;
        if (how == "closed") {
            CHECK(a.got.ec == asio::error::operation_aborted);
            CHECK_FALSE(a.into);
        } else if (how == "expired") {
            CHECK(whole);
        } else if (!whole) {  // what it did not read is there still
            CHECK(a.got.ec == asio::error::operation_aborted);
            CHECK(a.got.n == 0);
            CHECK_FALSE(a.into);
            std::array<char, 64> text{};
            auto const [ec, n] = a.s.read_now(text.data(), text.size());
            CHECK_FALSE(ec);
            CHECK(std::string(text.data(), n) == "for " + a.name);
        }
    }
}

TEST_CASE("an error that was found before its turn is told by the next read, where the wait was ended", "[reactor]") {
    std::string const how = GENERATE(as<std::string>(), "cancelled", "expired");
    bool const together = GENERATE(true, false);
    CAPTURE(how, together);
    stage s;
    meet(s, together, reactor::many, [&](stream& other) { end_wait(other, how); });
    s.say_to_all();
    {
        replaced const sockets(s, "");
        REQUIRE(s.l.until([&] { return s.diary.size() == 2 * reactor::many; }));
    }
    for (std::size_t i = 1; i < s.actors.size(); ++i) {
        auto& a = s.actors[i];
        CHECK(a.got.n == 0);
        if (how == "expired") {
            CHECK(a.got.ec == asio::error::connection_reset);
        } else {
            CHECK_FALSE(a.into);
            CHECK(a.got.ec == asio::error::operation_aborted);
            std::array<char, 64> text{};
            CHECK(a.s.read_now(text.data(), text.size()).ec == asio::error::connection_reset);
        }
    }
}

TEST_CASE("bytes that were read before their turn are told before the error of a write meanwhile", "[reactor]") {
    bool const together = GENERATE(true, false);
    CAPTURE(together);
    stage s;
    unsigned failed = 0;
    meet(s, together, reactor::many,
         [&](stream& other) { failed += other.write_now("x", 1).ec == asio::error::connection_reset ? 1 : 0; });
    s.say_to_all();
    {
        replaced const sockets(s, "early");
        REQUIRE(s.l.until([&] { return s.diary.size() == 2 * reactor::many; }));
    }
    CHECK(failed == reactor::many);
    for (std::size_t i = 1; i < s.actors.size(); ++i) {
        auto& a = s.actors[i];
        CHECK_FALSE(a.got.ec);
        CHECK(a.text == "early");
        std::array<char, 64> text{};
        CHECK(a.s.read_now(text.data(), text.size()).ec == asio::error::connection_reset);
    }
}
