// More requests than are taken on after a look: those that are put off, and what becomes of them meanwhile.
#include <algorithm>
#include <cstddef>
#include <string>
#include <string_view>

#include "tests/gateway/reactor_stage.hpp"
#include "tests/gateway/tls_fixture.hpp"

using namespace latchkey;
using namespace latchkey::gateway;
using namespace latchkey::gateway::test;

namespace {

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

}  // namespace

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
