#pragma once
// What the tests of the reactor share: clients whose messages come together, and what they did, in its order.

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "gateway/reactor.hpp"
#include "gateway/task.hpp"
#include "tests/gateway/loop.hpp"

namespace latchkey::gateway::test {

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

}  // namespace latchkey::gateway::test
