// Messages that are read, and sent, together before the first goes on: by one system call, where those may serve many sockets.
#include <array>
#include <cstddef>
#include <deque>
#include <functional>
#include <string>

#include "tests/gateway/reactor_stage.hpp"

using namespace latchkey;
using namespace latchkey::gateway;
using namespace latchkey::gateway::test;

namespace {

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
