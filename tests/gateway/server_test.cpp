#include "gateway/server.hpp"

#include <chrono>
#include <future>
#include <string>
#include <thread>
#include <vector>

#include "tests/gateway/support.hpp"
#include "tests/gateway/world.hpp"

using namespace latchkey;
using namespace latchkey::gateway;
using namespace latchkey::gateway::test;
using latchkey::testing::eventually;
using std::chrono::milliseconds;

namespace {
bool status_is(std::string const& response, int status) {
    return response.starts_with("HTTP/1.1 " + std::to_string(status) + " ");
}
// What a second gateway says that is to listen there, beside the first.
std::string refusal_to_start(world& w, conf::endpoint const& at) {
    auto settings = w.settings;
    settings.listen = {at};
    server second(settings, {}, *w.recorder);
    try {
        second.start();
    } catch (std::runtime_error const& e) {
        return e.what();
    }
    return {};
}

}  // namespace

TEST_CASE("a request goes through, and refused, broken and forwarded ones leave one record each") {
    world w;
    wire client = wire::to(w.port);
    for (int i = 0; i < 20; ++i) {
        client.send(w.request());
        CHECK(status_is(client.message(), 200));
    }
    client.send("GET / HTTP/1.1\r\nHost: h\r\n\r\n");
    CHECK(status_is(client.message(), 401));
    client.send("GET / HTTP/1.1\r\nHost: h\r\nX-API-KEY: " + w.key + "\r\n\r\n" + w.request());  // pipelined
    auto both = client.message();
    if (both.find("\r\n\r\nok") + 6 == both.size()) both += client.message();
    CHECK(status_is(both, 200));
    client.send("GET / HTTP/1.1\r\nHost: h\r\nContent-Length: x\r\n\r\n");
    CHECK(status_is(client.message(), 400));
    CHECK(client.rest().empty());
    {
        wire half = wire::to(w.port);  // gone in the middle of its head
        half.send("GET / HT");
    }
    CHECK(eventually([&] { return w.gateway->counters().requests == 25; }));
    auto const c = w.gateway->counters();
    CHECK(c.forwarded == 22);
    CHECK(c.refused == 2);
    CHECK(c.client_aborts == 1);
    CHECK(c.status_class[2] == 22);
    CHECK(c.status_class[4] == 2);
    CHECK(c.status_class[0] == 1);
    CHECK(eventually([&] { return w.gateway->counters().requests_in_flight == 0; }));
    CHECK(w.records() == 25);
}

TEST_CASE("when publish returns, a revoked key is dead and a given-back one lives, during traffic") {
    world w([](conf::settings& s) { s.workers = 2; });
    std::atomic<bool> stop{false};
    std::atomic<unsigned> others{0};
    std::thread traffic([&] {
        wire c = wire::to(w.port);
        while (!stop) {
            c.send(w.request());
            auto const r = c.message();
            if (!status_is(r, 200) && !status_is(r, 401)) ++others;
        }
    });
    // Some connections before, so that more than one worker is very likely to be asked.
    std::vector<wire> clients;
    for (int i = 0; i < 16; ++i) clients.push_back(wire::to(w.port));
    for (int round = 0; round < 5; ++round) {
        REQUIRE(w.gateway->publish(shard_with(w.key, keystore::key_state::revoked)));
        for (auto& c : clients) {
            c.send(w.request());
            CHECK(status_is(c.message(), 401));
        }
        REQUIRE(w.gateway->publish(shard_with(w.key, keystore::key_state::active)));
        for (auto& c : clients) {
            c.send(w.request());
            CHECK(status_is(c.message(), 200));
        }
    }
    stop = true;
    traffic.join();
    CHECK(others == 0);
}

TEST_CASE("a port that is taken stops the start, naming the address and the remedy") {
    listener taken;
    world w;
    for (std::uint16_t const port : {taken.port(), w.port}) {  // another program's, and another gateway's
        auto const said = refusal_to_start(w, {"127.0.0.1", port});
        CHECK(said.find("cannot listen on 127.0.0.1:" + std::to_string(port)) != std::string::npos);
        CHECK(said.find("Address already in use") != std::string::npos);
        CHECK(said.find("--listen") != std::string::npos);
    }
}

TEST_CASE("an address that this machine has not stops the start with another remedy") {
    world w;
    auto const said = refusal_to_start(w, {"192.0.2.1", 1});
    CHECK(said.find("this machine has no such address") != std::string::npos);
}

TEST_CASE("drain lets a running exchange finish, ends idle connections and takes no new ones") {
    world w;
    wire idle = wire::to(w.port);
    idle.send(w.request());
    REQUIRE(status_is(idle.message(), 200));
    w.behind.hold = true;
    wire busy = wire::to(w.port);
    busy.send(w.request());
    REQUIRE(eventually([&] { return w.behind.requests == 2; }));
    auto drained = std::async(std::launch::async, [&] { w.gateway->drain(milliseconds(10'000)); });
    CHECK(idle.rest().empty());
    CHECK(drained.wait_for(milliseconds(0)) == std::future_status::timeout);
    CHECK_THROWS_AS(wire::to(w.port), std::runtime_error);
    w.behind.hold = false;
    auto const answer = busy.rest();
    CHECK(status_is(answer, 200));
    CHECK(answer.find("\r\nConnection: close\r\n") != std::string::npos);
    CHECK(answer.ends_with("ok"));
    drained.get();
    CHECK(w.records() == 2);
    CHECK(w.gateway->counters().connections_open == 0);
    w.gateway->drain(milliseconds(0));  // idempotent
    CHECK(w.gateway->publish({}));
}

TEST_CASE("drain closes what is not done at its deadline, and that is on record too") {
    world w;
    w.behind.hold = true;
    wire busy = wire::to(w.port);
    busy.send(w.request());
    REQUIRE(eventually([&] { return w.behind.requests == 1; }));
    w.gateway->drain(milliseconds(50));
    CHECK(w.gateway->counters().requests_in_flight == 0);
    CHECK(w.gateway->counters().connections_open == 0);
    CHECK(w.records() == 1);
    CHECK_FALSE(status_is(busy.rest(), 200));
}

TEST_CASE("a server that was never started is drained and destroyed") {
    world w;
    server never(w.settings, {}, *w.recorder);
    CHECK(never.publish({}));
    CHECK(never.ports().empty());
    never.drain(milliseconds(0));
}

TEST_CASE("one address gets no more connections than its limit, and a place that is left is free again") {
    world w([](conf::settings& s) { s.limit.connections_per_address = 2; });
    constexpr unsigned char someone = 2;  // 127.0.0.2; 127.0.0.1 is this machine, which has no such limit
    wire first = wire::to(w.port, someone);
    first.send(w.request());
    CHECK(status_is(first.message(), 200));
    wire second = wire::to(w.port, someone);
    second.send(w.request());
    CHECK(status_is(second.message(), 200));
    wire third = wire::to(w.port, someone);
    CHECK(third.rest().empty());  // closed at once
    CHECK(eventually([&] { return w.gateway->counters().connections_shed == 1; }));
    first = wire();
    CHECK(eventually([&] { return w.gateway->counters().connections_open == 1; }));
    wire fourth = wire::to(w.port, someone);
    fourth.send(w.request());
    CHECK(status_is(fourth.message(), 200));
}

TEST_CASE("who speaks for others has no limit of its own: this machine, and trusted proxies") {
    world w([](conf::settings& s) {
        s.limit.connections_per_address = 1;
        s.trusted_proxies = {"127.0.0.3"};
    });
    for (unsigned char const from : std::initializer_list<unsigned char>{1, 3}) {
        std::vector<wire> kept;
        for (int i = 0; i < 4; ++i) {
            kept.push_back(wire::to(w.port, from));
            kept.back().send(w.request());
            CHECK(status_is(kept.back().message(), 200));
        }
    }
    wire one = wire::to(w.port, 2);
    one.send(w.request());
    CHECK(status_is(one.message(), 200));
    CHECK(wire::to(w.port, 2).rest().empty());
}

TEST_CASE("too little memory for the workers stops the start and says how much they need") {
    world w;
    auto settings = w.settings;
    settings.limit.memory = 4U << 20U;
    settings.workers = 2;
    CHECK_THROWS_WITH(server(settings, {}, *w.recorder),
                      "limits.memory: 4 MiB are too few for 2 workers; write \"8MiB\" or more");
}

TEST_CASE("a connection ends after its last request") {
    world w([](conf::settings& s) { s.limit.requests_per_connection = 2; });
    wire c = wire::to(w.port);
    c.send(w.request());
    CHECK(c.message().find("Connection: close") == std::string::npos);
    c.send(w.request());
    auto const last = c.rest();
    CHECK(status_is(last, 200));
    CHECK(last.find("\r\nConnection: close\r\n") != std::string::npos);
}

TEST_CASE("more requests at once than the limit get 503 and a time to try again") {
    world w([](conf::settings& s) { s.limit.requests_in_flight = 1; });
    w.behind.hold = true;
    wire first = wire::to(w.port);
    first.send(w.request());
    REQUIRE(eventually([&] { return w.behind.requests == 1; }));
    wire second = wire::to(w.port);
    second.send(w.request());
    auto const shed = second.message();
    w.behind.hold = false;
    CHECK(status_is(first.message(), 200));
    CHECK(status_is(shed, 503));
    CHECK(shed.find("\r\nRetry-After: 1\r\n") != std::string::npos);
}

TEST_CASE("no upstream is 502, and the next request is served when it is there") {
    std::uint16_t free_port = 0;
    {
        listener gone;
        free_port = gone.port();
    }
    world w([&](conf::settings& s) { s.apis[0].upstreams[0].at.port = free_port; });
    wire c = wire::to(w.port);
    c.send(w.request());
    auto const answer = c.message();
    CHECK(status_is(answer, 502));
    CHECK(answer.find("upstream_unreachable") != std::string::npos);
    c.send(w.request());  // the client's connection goes on
    CHECK(status_is(c.message(), 502));
    CHECK(eventually([&] { return w.gateway->counters().upstream_failures == 2; }));
    CHECK(w.records() == 2);
}
