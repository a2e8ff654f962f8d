#include "gateway/admission.hpp"

#include <string>
#include <vector>

#include "tests/gateway/support.hpp"

using namespace latchkey;
using namespace latchkey::gateway;
using namespace latchkey::gateway::test;

namespace {

constexpr std::int64_t now_ms = 1'790'000'000'000;

struct fixture {
    keystore::key_table table;
    conf::key_settings settings;
    std::string good = keystore::make_key("lk");
    std::string revoked = keystore::make_key("lk");
    std::string disabled = keystore::make_key("lk");
    std::string expired = keystore::make_key("lk");
    std::string expires_later = keystore::make_key("lk");
    std::string foreign = "a-key-from-elsewhere!";
    identity who;
    keystore::key_view found;

    fixture() {
        add(good, "key_good", keystore::key_state::active, 0);
        add(revoked, "key_revoked", keystore::key_state::revoked, 0);
        add(disabled, "key_disabled", keystore::key_state::disabled, 0);
        add(expired, "key_expired", keystore::key_state::active, now_ms);
        add(expires_later, "key_later", keystore::key_state::active, now_ms + 1);
        add(foreign, "key_foreign", keystore::key_state::active, 0);
    }
    void add(std::string const& key, std::string const& id, keystore::key_state state, std::int64_t expires_ms) {
        keystore::key_entry e;
        e.hash = keystore::digest_of(key);
        e.key_id = id;
        e.application_id = "app_1";
        e.application = "Orders app";
        e.state = state;
        e.expires_ms = expires_ms;
        // Each key has its own shard but for a chance of 1 in 70: then both go in.
        auto const index = keystore::shard_of(e.hash);
        std::vector<keystore::key_entry> in_shard{e};
        for (auto const& other : entries)
            if (keystore::shard_of(other.hash) == index) in_shard.push_back(other);
        entries.push_back(e);
        table.apply({{index, std::make_shared<keystore::key_shard const>(in_shard)}});
    }
    refusal ask(std::string const& fields) {
        who.clear();
        message m(get(fields));
        REQUIRE(m.request() == parsed::whole);
        return admit(read_credential(*m, settings), table, now_ms, who, found);
    }
    std::vector<keystore::key_entry> entries;
};

}  // namespace

TEST_CASE("a good key is admitted and says who asks") {
    fixture f;
    CHECK(f.ask("X-API-KEY: " + f.good + "\r\n") == refusal::none);
    CHECK(f.who.known());
    CHECK(f.who.key_id() == "key_good");
    CHECK(f.who.application_id() == "app_1");
    CHECK(f.who.application() == "Orders app");
    CHECK(f.found.username == "Orders%20app");
    CHECK(f.ask("x-api-key:\t" + f.good + " \r\n") == refusal::none);
    CHECK(f.ask("X-API-KEY: " + f.foreign + "\r\n") == refusal::none);
    CHECK(f.ask("X-API-KEY: " + f.expires_later + "\r\n") == refusal::none);
}

TEST_CASE("every bad key gets the same answer, and a known one is told to the account") {
    fixture f;
    for (auto const& key : {f.revoked, f.disabled, f.expired}) {
        CHECK(f.ask("X-API-KEY: " + key + "\r\n") == refusal::key_invalid);
        CHECK(f.who.known());
    }
    std::string bad_check = f.good;
    bad_check.back() = bad_check.back() == 'a' ? 'b' : 'a';
    std::string other_case = f.good;
    other_case[0] = 'L';
    for (std::string const& key : std::vector<std::string>{bad_check, other_case, keystore::make_key("lk"), f.good + "x",
                                                           f.good.substr(1), std::string("short"), std::string(300, 'x'),
                                                           "a key with spaces in it", f.good + ", " + f.good}) {
        CAPTURE(key);
        CHECK(f.ask("X-API-KEY: " + key + "\r\n") == refusal::key_invalid);
        CHECK_FALSE(f.who.known());
    }
}

TEST_CASE("no key, an empty key and two keys are told apart") {
    fixture f;
    std::string const line = "X-API-KEY: " + f.good + "\r\n";
    CHECK(f.ask("") == refusal::key_missing);
    CHECK(f.ask("X-API-KEY:\r\n") == refusal::key_missing);
    CHECK(f.ask(line + line) == refusal::duplicate_key);
    CHECK(f.ask(line + "X-API-KEY:\r\n") == refusal::duplicate_key);
    CHECK(f.ask("X-API-KEY:\r\n" + line) == refusal::duplicate_key);
}

TEST_CASE("a bearer token is a key where the settings say so") {
    fixture f;
    std::string const bearer = "Authorization: Bearer " + f.good + "\r\n";
    std::string const line = "X-API-KEY: " + f.good + "\r\n";
    CHECK(f.ask(bearer) == refusal::key_missing);
    CHECK(f.ask(bearer + line) == refusal::none);  // somebody else's token
    f.settings.bearer = true;
    CHECK(f.ask(bearer) == refusal::none);
    CHECK(f.ask("authorization:  bEARER   " + f.good + "\r\n") == refusal::none);
    CHECK(f.ask(bearer + line) == refusal::duplicate_key);
    CHECK(f.ask(bearer + bearer) == refusal::duplicate_key);
    CHECK(f.ask("Authorization: Basic dXNlcjpwYXNz\r\n") == refusal::key_missing);
    CHECK(f.ask("Authorization: Basic dXNlcjpwYXNz\r\n" + line) == refusal::none);
    CHECK(f.ask("Authorization: Bearer\r\n") == refusal::key_missing);
    CHECK(f.ask("Authorization: Bearer" + f.good + "\r\n") == refusal::key_missing);
    CHECK(f.ask("Authorization: Bearer nope-nope-nope-nope\r\n") == refusal::key_invalid);
}

TEST_CASE("the next key is guessed where the last one stood, and only a guess that the head confirms counts") {
    fixture f;
    key_guess guess;
    bool looked = false;
    // A request in whose bytes a key was looked for, as far as they had come.
    auto const ask = [&](std::string const& text, std::size_t come = std::string::npos) {
        message m(text);
        looked = guess.look(m.text().substr(0, come));
        REQUIRE(m.request() == parsed::whole);
        return read_credential(*m, f.settings, &guess);
    };
    auto const with = [](std::string const& target, std::string const& key, std::string const& more = "") {
        return "GET " + target + " HTTP/1.1\r\nHost: h\r\nX-API-KEY: " + key + "\r\n" + more + "\r\n";
    };
    auto c = ask(with("/", f.good));
    CHECK_FALSE(looked);  // none was seen yet
    CHECK_FALSE(c.guessed);
    CHECK(c.hash == keystore::digest_of(f.good));

    SECTION("the same key, and another of its length, whatever the target") {
        for (auto const& key : {f.good, f.revoked, f.good})
            for (char const* const target : {"/", "/a/long/way?with=a&query", "http://h/x"}) {
                c = ask(with(target, key));
                CHECK(looked);
                CHECK(c.guessed);
                CHECK(c.why == refusal::none);
                CHECK(c.hash == keystore::digest_of(key));
            }
        c = ask("POST / HTTP/1.0\r\nHost: h\r\nX-API-KEY: " + f.good + "\r\nContent-Length: 1\r\n\r\nb");
        CHECK(c.guessed);
        CHECK(guess.hash() == keystore::digest_of(f.good));
    }
    SECTION("a longer and a shorter key are no guess") {
        for (auto const& key : {f.good + "x", f.good.substr(1), f.foreign}) {
            c = ask(with("/", key));
            CHECK_FALSE(looked);
            CHECK_FALSE(c.guessed);
            CHECK(c.hash == keystore::digest_of(key));
            ask(with("/", f.good));
        }
    }
    SECTION("a key elsewhere is none, and the next is guessed there") {
        for (int i = 0; i < 2; ++i) {
            c = ask("GET / HTTP/1.1\r\nHost: another\r\nAccept: */*\r\nx-api-key: " + f.good + "\r\n\r\n");
            CHECK(c.guessed == (i == 1));
            CHECK(c.hash == keystore::digest_of(f.good));
        }
    }
    SECTION("something else of a key's size in its place is not the key") {
        std::string const other(f.good.size(), 'v');
        c = ask("GET / HTTP/1.1\r\nHost: h\r\nX-API-KEx: " + other + "\r\nX-API-KEY: " + f.good + "\r\n\r\n");
        CHECK(looked);
        CHECK_FALSE(c.guessed);
        CHECK(c.hash == keystore::digest_of(f.good));
        ask(with("/", f.good));
        c = ask("GET / HTTP/1.1\r\nHost: h\r\nX-API-KEx: " + f.good + "\r\n\r\n");
        CHECK(looked);
        CHECK(c.why == refusal::key_missing);
    }
    SECTION("a second key is one too many, guessed or not") {
        c = ask(with("/", f.good, "X-API-KEY: " + f.good + "\r\n"));
        CHECK(looked);
        CHECK(c.why == refusal::duplicate_key);
    }
    SECTION("no guess beyond what has come") {
        auto const text = with("/", f.good);
        auto const key_end = text.find(f.good) + f.good.size();
        for (std::size_t come = 0; come <= key_end; ++come) {
            c = ask(text, come);
            CHECK_FALSE(looked);
            CHECK_FALSE(c.guessed);
            CHECK(c.hash == keystore::digest_of(f.good));
        }
        CHECK(ask(text, key_end + 1).guessed);
    }
    SECTION("a guess is good for one request, and for none once it is forgotten") {
        message m(with("/", f.good));
        REQUIRE(m.request() == parsed::whole);
        REQUIRE(guess.look(m.text()));
        CHECK(read_credential(*m, f.settings, &guess).guessed);
        CHECK_FALSE(read_credential(*m, f.settings, &guess).guessed);
        REQUIRE(guess.look(m.text()));
        guess.forget();
        CHECK_FALSE(read_credential(*m, f.settings, &guess).guessed);
    }
    SECTION("a key too far behind the request line is not remembered") {
        // Something of the key's size stands where it would, were its distance kept in sixteen bits.
        std::string const decoy = "X-API-KEx: " + std::string(f.good.size(), 'v') + "\r\n";
        auto const filler = 65536 - decoy.size() - std::string_view("X-F: \r\n").size();
        std::string const far = decoy + "X-F: " + std::string(filler, 'f') + "\r\n";
        for (int i = 0; i < 2; ++i) {
            message m("GET / HTTP/1.1\r\nHost: h\r\n" + far + "X-API-KEY: " + f.good + "\r\n\r\n");
            CHECK(guess.look(m.text()) == (i == 0));  // there stood the key before
            REQUIRE(m.request({100'000, 8192, 100}) == parsed::whole);
            REQUIRE(m->target.data() + 11 + 65536 + decoy.find('v') + std::string_view("Host: h\r\n").size() ==
                    m.text().data() + m.text().find(f.good) - 1);
            CHECK(read_credential(*m, f.settings, &guess).hash == keystore::digest_of(f.good));
        }
    }
}

TEST_CASE("an identity keeps a copy, and cuts what is longer than its room") {
    identity who;
    std::string application(500, 'n');
    {
        std::string id = "key_1";
        keystore::key_view v;
        v.key_id = id;
        v.application_id = "app_1";
        v.application = application;
        who.assign(v);
        id = "xxxxx";
        application[0] = 'y';
    }
    CHECK(who.key_id() == "key_1");
    CHECK(who.application_id() == "app_1");
    CHECK(who.application() == std::string(200, 'n'));
    who.clear();
    CHECK_FALSE(who.known());
}

TEST_CASE("only exactly a preflight passes for one") {
    std::string const origin = "Origin: https://app.example\r\n";
    std::string const method = "Access-Control-Request-Method: PUT\r\n";
    auto const passes = [](std::string const& line, std::string const& fields) {
        message m(line + " HTTP/1.1\r\nHost: h\r\n" + fields + "\r\n");
        request_frame frame;
        REQUIRE(m.request() == parsed::whole);
        return check_request(*m, frame) == refusal::none && is_preflight(*m, frame);
    };
    CHECK(passes("OPTIONS /x", origin + method));
    CHECK(passes("OPTIONS /x",
                 "origin: null\r\naccess-control-request-method: X-MINE\r\nAccess-Control-Request-Headers: x-api-key\r\n"));
    CHECK(passes("OPTIONS /x", origin + method + "Content-Length: 0\r\nCookie: a=b\r\nConnection: close\r\n"));
    for (char const* const line : {"GET /x", "POST /x", "HEAD /x", "options /x", "DELETE /x", "PUT /x"}) {
        CAPTURE(line);
        CHECK_FALSE(passes(line, origin + method));
    }
    for (std::string const& fields : std::vector<std::string>{
             "", origin, method, origin + "Access_Control_Request_Method: PUT\r\n", origin + method + method,
             origin + origin + method, "Origin:\r\n" + method, origin + "Access-Control-Request-Method:\r\n",
             origin + "Access-Control-Request-Method: PUT, GET\r\n", origin + method + "Content-Length: 1\r\n",
             origin + method + "Transfer-Encoding: chunked\r\n", origin + method + "X-API-KEY: k\r\n",
             origin + method + "X-API-KEY:\r\n", origin + method + "Authorization: Bearer k\r\n",
             origin + method + "Connection: Origin\r\n", origin + method + "Connection: access-control-request-method\r\n"}) {
        CAPTURE(shown(fields));
        CHECK_FALSE(passes("OPTIONS /x", fields));
    }
}
