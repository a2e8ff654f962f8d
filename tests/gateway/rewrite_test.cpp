#include "gateway/rewrite.hpp"

#include <algorithm>
#include <array>
#include <string>
#include <vector>

#include "tests/gateway/support.hpp"

using namespace latchkey;
using namespace latchkey::gateway;
using namespace latchkey::gateway::test;

namespace {

constexpr std::string_view parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

struct rewriting {
    conf::api api;
    keystore::key_view key;
    request_frame frame;
    forward_context c;

    rewriting() {
        key.key_id = "key_1";
        key.application_id = "app_1";
        key.username = "Orders%20app";
        c.api = &api;
        c.frame = &frame;
        c.key = &key;
        c.request_id = "made-id";
        c.client_address = "192.0.2.17";
        c.listener_port = "8080";
        c.trace_id = "11111111111111111111111111111111";
        c.span_id = "2222222222222222";
    }

    // The fields as the upstream sees them, one "Name: value" a line, without the line ends.
    std::vector<std::string> of(std::string const& text) {
        message m(text);
        REQUIRE(m.request() == parsed::whole);
        REQUIRE(check_request(*m, frame) == refusal::none);
        std::vector<char> memory(16 * 1024);
        writer w(memory.data(), memory.size());
        write_request_fields(w, *m, c);
        REQUIRE_FALSE(w.overflowed());
        REQUIRE(w.view().ends_with("\r\n\r\n"));
        std::vector<std::string> lines;
        for (std::string_view rest = w.view(); !rest.empty();) {
            auto const end = rest.find("\r\n");
            lines.emplace_back(rest.substr(0, end));
            rest.remove_prefix(end + 2);
        }
        lines.pop_back();
        frame.host = {};  // its text is gone
        return lines;
    }
};

bool has(std::vector<std::string> const& lines, std::string_view line) {
    return std::count(lines.begin(), lines.end(), line) == 1;
}
// How many lines have this name, in any spelling.
long named(std::vector<std::string> const& lines, std::string_view name) {
    return std::count_if(lines.begin(), lines.end(),
                         [&](std::string const& l) { return equals_blind(l.substr(0, l.find(':')), name); });
}

}  // namespace

TEST_CASE("the request line is the target's base, the path and the query, and Host comes first") {
    std::array<char, 256> memory;
    writer w(memory.data(), memory.size());
    write_request_lines(w, "GET", "/base", "/a", "?b", "h:81");
    CHECK(w.view() == "GET /base/a?b HTTP/1.1\r\nHost: h:81\r\n");
}

TEST_CASE("end-to-end fields go on unchanged, in order, repeated ones too") {
    rewriting r;
    auto const lines = r.of(get("B: 1\r\na:2\r\nB: 3\r\nEmpty:\r\nCookie: x=y\r\nAuthorization: Basic abc\r\n"));
    CHECK(lines[0] == "B: 1");
    CHECK(lines[1] == "a: 2");
    CHECK(lines[2] == "B: 3");
    CHECK(lines[3] == "Empty: ");
    CHECK(lines[4] == "Cookie: x=y");
    CHECK(lines[5] == "Authorization: Basic abc");
}

// Those that stand side by side are one copy: what is left out between them, and what is not in the usual form, must not show.
TEST_CASE("fields go on the same whatever stands between them and however they are spaced") {
    std::vector<std::string> const kept{"A: 1", "B:2", "C:   3", "D: 4  ", "E:", "F: ", "G:\t5", "H: 6"};
    std::vector<std::string> const gone{"Connection: close", "Keep-Alive: x", "X-Request-Id: 7", "X-Consumer-Id: 8"};
    for (unsigned mask = 0; mask < 1U << kept.size(); ++mask) {
        CAPTURE(mask);
        std::string text;
        std::vector<std::string> expected;
        for (std::size_t i = 0; i < kept.size(); ++i) {
            text += kept[i] + "\r\n";
            if ((mask >> i & 1U) != 0) text += gone[i % gone.size()] + "\r\n";
            auto const value = trimmed(std::string_view(kept[i]).substr(2));
            expected.push_back(kept[i].substr(0, 1) + ": " + std::string(value));
        }
        // (X-Request-Id may come once only: which of them goes on is another test's.)
        rewriting r;
        auto const lines = r.of(get(text));
        REQUIRE(lines.size() > kept.size());
        REQUIRE(std::equal(expected.begin(), expected.end(), lines.begin()));
        REQUIRE(
            std::none_of(lines.begin(), lines.end(), [](std::string const& l) { return l.ends_with("x") || l.ends_with(" 8"); }));
    }
}

TEST_CASE("hop-by-hop fields and those that Connection names stay here") {
    rewriting r;
    auto const lines =
        r.of(get("Connection: close, X-Foo, Authorization\r\nX-Foo: 1\r\nx-foo: 2\r\nX-Bar: 3\r\nKeep-Alive: timeout=5\r\n"
                 "Proxy-Connection: x\r\nProxy-Authorization: Basic x\r\nTE: trailers\r\nTrailer: X\r\nUpgrade: h2c\r\n"
                 "HTTP2-Settings: AAA\r\nAuthorization: Basic abc\r\n"));
    for (auto const* const name : {"Connection", "X-Foo", "Keep-Alive", "Proxy-Connection", "Proxy-Authorization", "TE",
                                   "Trailer", "Upgrade", "HTTP2-Settings", "Authorization"}) {
        CAPTURE(name);
        CHECK(named(lines, name) == 0);
    }
    CHECK(has(lines, "X-Bar: 3"));
}

TEST_CASE("identity is ours alone, and no Connection field takes it away") {
    rewriting r;
    auto const lines =
        r.of(get("Connection: X-Consumer-Id, X-Request-Id, X-Forwarded-For, traceparent\r\nX-Consumer-Id: evil\r\n"
                 "x-consumer-username: evil\r\nX-Credential-Identifier: evil\r\nX-Consumer-Id: evil2\r\n"
                 "X-Request-Id: evil\r\n"));
    CHECK(has(lines, "X-Consumer-Id: app_1"));
    CHECK(has(lines, "X-Consumer-Username: Orders%20app"));
    CHECK(has(lines, "X-Credential-Identifier: key_1"));
    CHECK(has(lines, "X-Request-Id: made-id"));
    CHECK(named(lines, "X-Consumer-Id") == 1);
    CHECK(named(lines, "X-Consumer-Username") == 1);
    CHECK(named(lines, "X-Credential-Identifier") == 1);
    CHECK(named(lines, "X-Request-Id") == 1);
    CHECK(named(lines, "X-Forwarded-For") == 1);
    CHECK(named(lines, "traceparent") == 1);

    r.c.key = nullptr;  // an open api: nobody is known, and nobody can claim to be
    auto const open = r.of(get("X-Consumer-Id: evil\r\nX-API-KEY: k\r\n"));
    CHECK(named(open, "X-Consumer-Id") == 0);
    CHECK(named(open, "X-API-KEY") == 0);
}

TEST_CASE("no client speaks for another gateway either") {
    rewriting r;
    for (char const* const name :
         {"X-Consumer-Groups", "x-consumer-custom-id", "X_Consumer_Groups", "X-Consumer_Custom-Id", "X-Credential-Username",
          "X-Anonymous-Consumer", "x_anonymous_consumer", "X.Consumer.Groups", "x!consumer~custom_id", "X-Anonymous.Consumer"}) {
        CAPTURE(name);
        CHECK(named(r.of(get(std::string(name) + ": admin\r\n")), name) == 0);
    }
    CHECK(has(r.of(get("X-Consumers: admin\r\n")), "X-Consumers: admin"));
}

TEST_CASE("what proxies tell of a client comes from trusted ones only") {
    rewriting r;
    for (char const* const name : {"X-Forwarded-Prefix", "x-forwarded-user", "X-Forwarded-Ssl",
                                   "X_Forwarded_Server", "X-Forwarded-",     "X-Real-IP",
                                   "X.Real.IP",          "X-Original-URL",   "X-Original-Forwarded-For",
                                   "X_Original_Method",  "X-Original-Host",  "x-original.remote-addr",
                                   "X-Rewrite-URL",      "X-Client-IP",      "X-Cluster-Client-Ip",
                                   "True-Client-IP",     "CF-Connecting-IP", "Fastly_Client-IP",
                                   "Client-IP",          "client_ip",        "X-Forwarded",
                                   "Forwarded-For",      "Proxy-Client-IP",  "WL-Proxy-Client-IP",
                                   "X-Appengine-User-IP"}) {
        CAPTURE(name);
        r.c.trusted_peer = false;
        CHECK(named(r.of(get(std::string(name) + ": 1\r\n")), name) == 0);
        CHECK_FALSE(allowed_in_trailer(name));
        r.c.trusted_peer = true;
        bool const plain = std::string_view(name).find_first_of("_.") == std::string_view::npos;
        CHECK(named(r.of(get(std::string(name) + ": 1\r\n")), name) == (plain ? 1 : 0));
    }
    r.c.trusted_peer = false;
    for (char const* const name :
         {"X-Forward", "X-Forwardeds", "X-Origin", "X-Real-Ip2", "Skip", "X-Ship", "Accept-Language", "Some-Client-IP",
          "Clientip", "Forwarded-Far", "R", "P", "X-Original-Filename", "X-Original-"}) {
        CAPTURE(name);
        CHECK(named(r.of(get(std::string(name) + ": 1\r\n")), name) == 1);
    }
}

TEST_CASE("the credential is removed wherever it stood, unless the api asks for it") {
    rewriting r;
    CHECK(named(r.of(get("x-api-key: secret\r\n")), "X-API-KEY") == 0);
    CHECK(named(r.of(get("Authorization: Bearer t\r\n")), "Authorization") == 1);
    r.c.bearer_is_key = true;
    CHECK(named(r.of(get("Authorization: bEARER t\r\n")), "Authorization") == 0);
    CHECK(named(r.of(get("Authorization: Basic t\r\n")), "Authorization") == 1);
    r.api.forward_key = true;
    CHECK(has(r.of(get("X-API-KEY: secret\r\n")), "X-API-KEY: secret"));
}

TEST_CASE("of a preflight's own fields only a browser's go on, and no identity") {
    rewriting r;
    r.c.key = nullptr;
    r.c.preflight = true;
    auto const lines = r.of(
        "OPTIONS /x HTTP/1.1\r\nHost: h\r\nOrigin: https://app.example\r\nAccess-Control-Request-Method: PUT\r\n"
        "Access-Control-Request-Headers: x-api-key\r\nUser-Agent: u\r\nCookie: session=1\r\nX-HTTP-Method-Override: DELETE\r\n"
        "Access_Control_Request_Method: PUT\r\nX-Other: 1\r\nProxy-Authenticate: x\r\nX-Consumer-Groups: g\r\n\r\n");
    for (char const* const line : {"Origin: https://app.example", "Access-Control-Request-Method: PUT",
                                   "Access-Control-Request-Headers: x-api-key", "User-Agent: u", "X-Request-Id: made-id"})
        CHECK(has(lines, line));
    CHECK(lines.size() == 11);  // with traceparent, four of X-Forwarded-, Forwarded
    r.c.preflight = false;
    CHECK(has(r.of("OPTIONS /x HTTP/1.1\r\nHost: h\r\nCookie: session=1\r\n\r\n"), "Cookie: session=1"));
}

TEST_CASE("framing is written anew") {
    rewriting r;
    CHECK(has(r.of(post("Content-Length: 007\r\n")), "Content-Length: 7"));
    CHECK(has(r.of(post("Content-Length: 0\r\n")), "Content-Length: 0"));
    CHECK(named(r.of(get("")), "Content-Length") == 0);
    auto const chunked = r.of(post("transfer-encoding: CHUNKED\r\n"));
    CHECK(has(chunked, "Transfer-Encoding: chunked"));
    CHECK(named(chunked, "Content-Length") == 0);
    CHECK(has(r.of(post("Content-Length: 5\r\nExpect: 100-Continue\r\n")), "Expect: 100-continue"));
    CHECK(named(r.of(get("Expect: 100-continue\r\n")), "Expect") == 0);
}

namespace {
constexpr std::string_view claimed =
    "X-Forwarded-For: 198.51.100.1\r\nX-Forwarded-For: 198.51.100.2\r\nX-Forwarded-Proto: https\r\nX-Forwarded-Host: "
    "shop.example\r\n"
    "X-Forwarded-Port: 443\r\nForwarded: for=198.51.100.1\r\n";
}  // namespace

TEST_CASE("forwarding fields of a peer that is not trusted are replaced") {
    rewriting r;
    auto const lines = r.of(get(claimed));
    CHECK(has(lines, "X-Forwarded-For: 192.0.2.17"));
    CHECK(has(lines, "X-Forwarded-Proto: http"));
    CHECK(has(lines, "X-Forwarded-Host: h"));
    CHECK(has(lines, "X-Forwarded-Port: 8080"));
    CHECK(has(lines, "Forwarded: for=192.0.2.17;host=\"h\";proto=http"));
    for (auto const* const name : {"X-Forwarded-For", "X-Forwarded-Proto", "X-Forwarded-Host", "X-Forwarded-Port", "Forwarded"})
        CHECK(named(lines, name) == 1);
}

TEST_CASE("forwarding fields of a trusted peer are kept and appended to") {
    rewriting r;
    r.c.trusted_peer = true;
    auto const lines = r.of(get(claimed));
    CHECK(has(lines, "X-Forwarded-For: 198.51.100.1, 198.51.100.2, 192.0.2.17"));
    CHECK(has(lines, "X-Forwarded-Proto: https"));
    CHECK(has(lines, "X-Forwarded-Host: shop.example"));
    CHECK(has(lines, "X-Forwarded-Port: 443"));
    CHECK(has(lines, "Forwarded: for=198.51.100.1, for=192.0.2.17;host=\"h\";proto=http"));
    auto const fresh = r.of(get(""));
    CHECK(has(fresh, "X-Forwarded-For: 192.0.2.17"));
    CHECK(has(fresh, "X-Forwarded-Proto: http"));
}

TEST_CASE("an IPv6 client is quoted in Forwarded and bare in X-Forwarded-For") {
    rewriting r;
    r.c.client_address = "2001:db8::1";
    auto const lines = r.of("GET / HTTP/1.0\r\n\r\n");  // no Host either
    CHECK(has(lines, "X-Forwarded-For: 2001:db8::1"));
    CHECK(has(lines, "Forwarded: for=\"[2001:db8::1]\";proto=http"));
    CHECK(named(lines, "X-Forwarded-Host") == 0);
}

TEST_CASE("a valid trace goes on, an invalid or double one is replaced and loses its state") {
    rewriting r;
    auto const kept = r.of(get("traceparent: " + std::string(parent) + "\r\ntracestate: a=1\r\nTraceState: b=2\r\n"));
    CHECK(has(kept, "traceparent: " + std::string(parent)));
    CHECK(has(kept, "tracestate: a=1"));
    CHECK(has(kept, "TraceState: b=2"));
    std::string const ours = "traceparent: 00-11111111111111111111111111111111-2222222222222222-01";
    for (std::string const& fields :
         std::vector<std::string>{"", "tracestate: a=1\r\n", "traceparent: 00-x\r\ntracestate: a=1\r\n",
                                  "traceparent: " + std::string(parent) + "\r\ntraceparent: " + std::string(parent) + "\r\n"}) {
        CAPTURE(shown(fields));
        auto const lines = r.of(get(fields));
        CHECK(has(lines, ours));
        CHECK(named(lines, "traceparent") == 1);
        CHECK(named(lines, "tracestate") == 0);
    }
}

TEST_CASE("a traceparent is what W3C says it is") {
    CHECK(good_traceparent(parent));
    CHECK(good_traceparent("cc-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"));
    CHECK(good_traceparent("cc-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01-what-the-future-brings"));
    for (std::string const& bad : std::vector<std::string>{
             "",
             "00",
             "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-0",
             "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01-",
             "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01x",
             "cc-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01x",
             "ff-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
             "00-00000000000000000000000000000000-b7ad6b7169203331-01",
             "00-0af7651916cd43dd8448eb211c80319c-0000000000000000-01",
             "00-0AF7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
             "00-0af7651916cd43dd8448eb211c80319c-b7ad6b716920333g-01",
             "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-0G",
             "0g-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
             "00_0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
             "00-0af7651916cd43dd8448eb211c80319-cb7ad6b7169203331-01",
         }) {
        CAPTURE(bad);
        CHECK_FALSE(good_traceparent(bad));
    }
}

TEST_CASE("a request id is kept where it is short and plain") {
    CHECK(good_request_id("a"));
    CHECK(good_request_id("A.b_c-9"));
    CHECK(good_request_id(std::string(128, 'x')));
    for (std::string const& bad :
         std::vector<std::string>{"", std::string(129, 'x'), "a b", "a\"b", "a\r\nb", "a/b", "\xc3\xa4", "a,b"}) {
        CAPTURE(shown(bad));
        CHECK_FALSE(good_request_id(bad));
    }
}

TEST_CASE("a head that does not fit is said, not cut") {
    rewriting r;
    message m(get("A: " + std::string(100, 'x') + "\r\n"));
    REQUIRE(m.request() == parsed::whole);
    REQUIRE(check_request(*m, r.frame) == refusal::none);
    std::array<char, 64> memory;
    writer w(memory.data(), memory.size());
    write_request_fields(w, *m, r.c);
    CHECK(w.overflowed());
    r.frame.host = {};
}

namespace {

std::string answered(std::string const& text, framing body, bool to_head = false, bool close = false, bool http_1_0 = false) {
    message m(text);
    REQUIRE(m.response() == parsed::whole);
    response_frame frame;
    REQUIRE(check_response(*m, to_head, frame));
    answer_context c;
    c.body = body;
    c.frame = &frame;
    c.request_id = "id-1";
    c.date = "now";
    c.close = close;
    c.http_1_0 = http_1_0;
    c.to_head = to_head;
    std::vector<char> memory(16 * 1024);
    writer w(memory.data(), memory.size());
    write_response_head(w, *m, c);
    REQUIRE_FALSE(w.overflowed());
    return std::string(w.view());
}
bool contains(std::string const& text, std::string const& part) { return text.find(part) != std::string::npos; }

}  // namespace

TEST_CASE("a response head keeps what is the upstream's and sets what is ours") {
    auto const text = answered(
        "HTTP/1.0 200 Fine\r\nServer: x\r\nSet-Cookie: a\r\nSet-Cookie: b\r\nX-Request-Id: theirs\r\nConnection: keep-alive, "
        "X-Hop\r\n"
        "X-Hop: 1\r\nKeep-Alive: 5\r\nContent-Length: 005\r\n\r\n",
        {body_kind::length, 5});
    CHECK(text ==
          "HTTP/1.1 200 Fine\r\nServer: x\r\nSet-Cookie: a\r\nSet-Cookie: b\r\nX-Request-Id: id-1\r\nDate: "
          "now\r\nContent-Length: 5\r\n\r\n");
}

TEST_CASE("a response without a date gets one, and one that has it keeps it") {
    framing const five{body_kind::length, 5};
    std::string const rest = "Content-Length: 5\r\n\r\n";
    CHECK(contains(answered("HTTP/1.1 200 OK\r\n" + rest, five), "\r\nDate: now\r\n"));
    CHECK(contains(answered("HTTP/1.1 304 Not Modified\r\n\r\n", {}), "\r\nDate: now\r\n"));
    auto const theirs = answered("HTTP/1.1 200 OK\r\ndAtE: then\r\n" + rest, five);
    CHECK(contains(theirs, "\r\ndAtE: then\r\n"));
    CHECK_FALSE(contains(theirs, "now"));
    auto const taken_out = answered("HTTP/1.1 200 OK\r\nDate: then\r\nConnection: date\r\n" + rest, five);
    CHECK(contains(taken_out, "\r\nDate: now\r\n"));
    CHECK_FALSE(contains(taken_out, "then"));
}

TEST_CASE("the length of a response is written as the client will see it") {
    std::string const chunked = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n";
    auto const text = answered(chunked, {body_kind::chunked, 0});
    CHECK(contains(text, "\r\nTransfer-Encoding: chunked\r\n"));
    CHECK_FALSE(contains(text, "Content-Length"));
    auto const old = answered(chunked, {body_kind::until_close, 0}, false, true, true);
    CHECK_FALSE(contains(old, "Transfer-Encoding"));
    CHECK_FALSE(contains(old, "Content-Length"));
    CHECK(contains(old, "\r\nConnection: close\r\n"));
    CHECK(contains(answered("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", {}), "\r\nContent-Length: 0\r\n"));
    CHECK(contains(answered("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", {}, false, false, true),
                   "\r\nConnection: keep-alive\r\n"));
}

TEST_CASE("HEAD and 304 keep the length of what was not sent, and 204 has none") {
    CHECK(contains(answered("HTTP/1.1 200 OK\r\nContent-Length: 12345\r\n\r\n", {}, true), "\r\nContent-Length: 12345\r\n"));
    CHECK_FALSE(contains(answered("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", {}, true), "Transfer-Encoding"));
    CHECK_FALSE(contains(answered("HTTP/1.1 200 OK\r\n\r\n", {}, true), "Content-Length"));
    CHECK(contains(answered("HTTP/1.1 304 Not Modified\r\nContent-Length: 7\r\n\r\n", {}), "\r\nContent-Length: 7\r\n"));
    CHECK_FALSE(contains(answered("HTTP/1.1 304 Not Modified\r\n\r\n", {}), "Content-Length"));
    CHECK_FALSE(contains(answered("HTTP/1.1 204 No Content\r\nContent-Length: 0\r\n\r\n", {}), "Content-Length"));
    auto const lying = answered("HTTP/1.1 204 No Content\r\nContent-Length: 5\r\n\r\n", {}, true);  // found by the fuzzer
    CHECK_FALSE(contains(lying, "Content-Length"));
}

TEST_CASE("an interim response goes on without framing and hop-by-hop fields") {
    message m(
        "HTTP/1.1 103 Early Hints\r\nLink: </a>\r\nContent-Length: 5\r\nConnection: X-Hop\r\nX-Hop: 1\r\nKeep-Alive: 5\r\n\r\n");
    REQUIRE(m.response() == parsed::whole);
    std::array<char, 512> memory;
    writer w(memory.data(), memory.size());
    write_interim_head(w, *m);
    CHECK(w.view() == "HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n");
}

TEST_CASE("the upstream is told that the client came by TLS") {
    rewriting r;
    r.c.tls = true;
    auto const lines = r.of(get("X-Forwarded-Proto: http\r\n"));
    CHECK(has(lines, "X-Forwarded-Proto: https"));
    CHECK(has(lines, "Forwarded: for=192.0.2.17;host=\"h\";proto=https"));
    r.c.trusted_peer = true;  // it knows better how its client came
    CHECK(has(r.of(get("X-Forwarded-Proto: http\r\n")), "X-Forwarded-Proto: http"));
}
