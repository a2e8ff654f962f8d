// The steps of a look: messages that came together are decided together, then sent together.
#include "gateway/reactor.hpp"

#include <cstddef>
#include <deque>
#include <stdexcept>
#include <string>
#include <vector>

#include "tests/gateway/reactor_stage.hpp"

using namespace latchkey;
using namespace latchkey::gateway;
using namespace latchkey::gateway::test;

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
