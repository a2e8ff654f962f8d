#include "gateway/frame.hpp"

#include <string>
#include <vector>

#include "tests/gateway/support.hpp"

using namespace latchkey::gateway;
using namespace latchkey::gateway::test;

TEST_CASE("the only transfer coding taken is exactly `chunked`") {
    for (char const* const fine :
         {"Transfer-Encoding: chunked\r\n", "transfer-encoding: CHUNKED\r\n", "Transfer-Encoding:\t chunked \t\r\n"}) {
        CAPTURE(fine);
        request_frame f;
        CHECK(judge(post(fine), f) == refusal::none);
        CHECK(f.body.kind == body_kind::chunked);
    }
}

TEST_CASE("obscured transfer codings are refused, never read one way or the other") {
    for (std::string const fields : {
             "Transfer-Encoding: xchunked\r\n",
             "Transfer-Encoding: chunked, chunked\r\n",
             "Transfer-Encoding: gzip, chunked\r\n",
             "Transfer-Encoding: chunked, gzip\r\n",
             "Transfer-Encoding: chunked,\r\n",
             "Transfer-Encoding: , chunked\r\n",
             "Transfer-Encoding: \"chunked\"\r\n",
             "Transfer-Encoding: chunked;q=1\r\n",
             "Transfer-Encoding: chunked foo\r\n",
             "Transfer-Encoding: chun\tked\r\n",
             "Transfer-Encoding: identity\r\n",
             "Transfer-Encoding: identity, chunked\r\n",
             "Transfer-Encoding:\r\n",
             "Transfer-Encoding: \xe3\x83\x81hunked\r\n",
             "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n",
             "Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n",
             "Transfer-Encoding: identity\r\nTransfer-Encoding: chunked\r\n",
             "Transfer-Encoding: chunked\r\nTransfer-Encoding:\r\n",
             "Transfer-Encoding : chunked\r\n",
             " Transfer-Encoding: chunked\r\n",
             "X: y\r\n Transfer-Encoding: chunked\r\n",
             "Transfer-Encoding:\x0b chunked\r\n",
             "Transfer-Encoding: chunked\x0b\r\n",
             "Transfer-Encoding:\r\n chunked\r\n",
             "Transfer-Encoding: chunked\nX: y\r\n",
             "Transfer-Encoding: chunked\rX: y\r\n",
             "Transfer_Encoding: chunked\r\n",
             "Transfer-Encoding: chunked\r\nTransfer_Encoding: chunked\r\n",
         }) {
        CAPTURE(shown(fields));
        auto const why = judge(post(fields));
        CHECK((text_of(why).status == 400 || text_of(why).status == 501));
        CHECK(text_of(why).close);
    }
    CHECK(judge(post("Transfer-Encoding: gzip\r\n")) == refusal::unknown_transfer_coding);
    CHECK(judge(post("Transfer-Encoding: gzip, chunked\r\n")) == refusal::unknown_transfer_coding);
    CHECK(judge(post("Transfer-Encoding: chunked, chunked\r\n")) == refusal::ambiguous_framing);
}

TEST_CASE("two lengths in one request are refused, in any order and any spelling") {
    for (std::string const fields : {
             "Content-Length: 5\r\nTransfer-Encoding: chunked\r\n",
             "Transfer-Encoding: chunked\r\nContent-Length: 5\r\n",
             "Content-Length: 0\r\nTransfer-Encoding: chunked\r\n",
             "Content-Length: 5\r\nTransfer-Encoding: identity\r\n",
             "Content-Length: 5\r\nContent-Length: 6\r\n",
             "Content-Length: 5\r\nContent-Length: 5\r\n",
             "Content-Length: 5\r\nContent_Length: 6\r\n",
             "Content-Length: 5\r\nContent-Length:\r\n",
         }) {
        CAPTURE(shown(fields));
        auto const why = judge(post(fields));
        CHECK(text_of(why).status == 400);
        CHECK(text_of(why).close);
    }
}

TEST_CASE("a transfer coding in HTTP/1.0 is refused") {
    CHECK(judge("POST / HTTP/1.0\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n") == refusal::ambiguous_framing);
    message m("HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n");
    REQUIRE(m.response() == parsed::whole);
    response_frame f;
    CHECK_FALSE(check_response(*m, false, f));
}

TEST_CASE("a Content-Length is 1 to 18 digits and nothing else") {
    struct row {
        std::string_view value;
        std::uint64_t length;
    };
    for (auto const& r :
         std::vector<row>{{"0", 0}, {"1", 1}, {"007", 7}, {" 5\t", 5}, {"999999999999999999", 999999999999999999ULL}}) {
        CAPTURE(r.value);
        request_frame f;
        CHECK(judge(post("Content-Length:" + std::string(r.value) + "\r\n"), f) == refusal::none);
        CHECK(f.body.length == r.length);
        CHECK(f.body.kind == (r.length == 0 ? body_kind::none : body_kind::length));
    }
    for (std::string const value :
         {"", "+5", "-5", "0x5", "5 5", "5,5", "5, 5", "5,", "5.0", "5e1", "five", "1000000000000000000", "18446744073709551616",
          "18446744073709551621", "\"5\"", "5;", "\xef\xbc\x95", "5\x0b"}) {
        CAPTURE(shown(value));
        auto const why = judge(post("Content-Length: " + value + "\r\n"));
        CHECK(text_of(why).status == 400);
        CHECK(text_of(why).close);
    }
}

TEST_CASE("Host comes once in HTTP/1.1, and may be missing in HTTP/1.0 only") {
    CHECK(judge("GET / HTTP/1.1\r\n\r\n") == refusal::invalid_host);
    CHECK(judge("GET / HTTP/1.1\r\nHost: a\r\nHost: a\r\n\r\n") == refusal::invalid_host);
    CHECK(judge("GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n") == refusal::invalid_host);
    CHECK(judge("GET / HTTP/1.0\r\nHost: a\r\nHost: b\r\n\r\n") == refusal::invalid_host);
    request_frame f;
    CHECK(judge("GET / HTTP/1.0\r\n\r\n", f) == refusal::none);
    CHECK(f.host.empty());
}

TEST_CASE("spellings of our names that make the same variable are refused") {
    for (char const* const name : {"X_API_KEY", "X-Api_Key", "X_Consumer_Id", "X-Consumer_Username", "X_Credential_Identifier",
                                   "X_Request_Id", "Content_Length", "X_Forwarded_For", "X_Forwarded_Host", "X.Consumer.Id",
                                   "X-Consumer!Id", "X~API~KEY", "Transfer.Encoding", "X.Forwarded-For"}) {
        CAPTURE(name);
        CHECK(judge(get(std::string(name) + ": x\r\n")) == refusal::forbidden_field);
    }
    CHECK(judge(get("X_Other: y\r\nX.Other: y\r\n")) == refusal::none);
}

TEST_CASE("Connection decides on keep-alive and nominates fields") {
    struct row {
        std::string text;
        bool keep_alive;
        bool nominates;
    };
    for (auto const& r : std::vector<row>{
             {"GET / HTTP/1.1\r\nHost: h\r\n\r\n", true, false},
             {"GET / HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n", false, false},
             {"GET / HTTP/1.1\r\nHost: h\r\nConnection: keep-alive, CLOSE\r\n\r\n", false, false},
             {"GET / HTTP/1.1\r\nHost: h\r\nConnection: keep-alive\r\nConnection: close\r\n\r\n", false, false},
             {"GET / HTTP/1.0\r\nHost: h\r\n\r\n", false, false},
             {"GET / HTTP/1.0\r\nHost: h\r\nConnection: Keep-Alive\r\n\r\n", true, false},
             {"GET / HTTP/1.1\r\nHost: h\r\nConnection: X-Foo\r\n\r\n", true, true},
             {"GET / HTTP/1.1\r\nHost: h\r\nConnection: upgrade, ,\r\n\r\n", true, false},
         }) {
        CAPTURE(shown(r.text));
        request_frame f;
        CHECK(judge(r.text, f) == refusal::none);
        CHECK(f.keep_alive == r.keep_alive);
        CHECK(f.nominates == r.nominates);
    }
    for (char const* const name : {"host", "Content-Length", "transfer-encoding", "Content_Length"}) {
        CAPTURE(name);
        CHECK(judge(get("Connection: close, " + std::string(name) + "\r\n")) == refusal::ambiguous_framing);
    }
    for (char const* const list :
         {"a b", "close x", "\"close\"", "x;y", "close, a/b"}) {  // who takes them apart otherwise removes others
        CAPTURE(list);
        CHECK(judge(get("Connection: " + std::string(list) + "\r\n")) == refusal::malformed_request);
    }
    for (char const* const list :
         {"keep-alive, timeout=5", "keep-alive;"}) {  // from an upstream it costs the connection, no more
        CAPTURE(list);
        message answer("HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: " + std::string(list) + "\r\n\r\n");
        REQUIRE(answer.response() == parsed::whole);
        response_frame f;
        CHECK(check_response(*answer, false, f));
        CHECK_FALSE(f.keep_alive);
    }
    message m(get("Connection: a, X-Foo\r\nconnection:\tbar\r\n"));
    REQUIRE(m.request() == parsed::whole);
    nominations const named(*m);
    CHECK(named.has("x-foo"));
    CHECK(named.has("BAR"));
    CHECK_FALSE(named.has("x-fo"));
    CHECK_FALSE(named.has("connection"));
    CHECK_FALSE(nominations().has("x-foo"));
}

TEST_CASE("every Connection option of a head with as many as are taken is found, and no other name of its length") {
    std::string fields;
    for (int i = 0; i < 16; ++i) {
        if (i % 4 == 0) fields += i == 0 ? "Connection: " : "\r\nConnection: ";
        fields += (i % 4 == 0 ? "" : ", ") + std::string(static_cast<std::size_t>(i) * 4 + 1, static_cast<char>('A' + i));
    }
    message m(get(fields + "\r\n"));
    REQUIRE(m.request() == parsed::whole);
    request_frame f;
    REQUIRE(check_request(*m, f) == refusal::none);
    nominations const named(*m);
    for (int i = 0; i < 16; ++i) {
        auto const size = static_cast<std::size_t>(i) * 4 + 1;
        CHECK(named.has(std::string(size, static_cast<char>('a' + i))));
        CHECK_FALSE(named.has(std::string(size, 'z')));
        CHECK_FALSE(named.has(std::string(size + 64, static_cast<char>('a' + i))));
    }
    // Two names of one FNV-1a hash (found by search): only one is nominated.
    message twins(get("Connection: bgjpjidz\r\n"));
    REQUIRE(twins.request() == parsed::whole);
    CHECK(nominations(*twins).has("bgjpjidz"));
    CHECK_FALSE(nominations(*twins).has("yprixkjc"));
}

TEST_CASE("methods that open tunnels or echo requests are not passed on") {
    CHECK(judge("CONNECT h:443 HTTP/1.1\r\nHost: h\r\n\r\n") == refusal::method_not_allowed);
    CHECK(judge("TRACE / HTTP/1.1\r\nHost: h\r\n\r\n") == refusal::method_not_allowed);
    CHECK(judge(std::string(33, 'A') + " / HTTP/1.1\r\nHost: h\r\n\r\n") == refusal::malformed_request);
    CHECK(judge("PROPFIND / HTTP/1.1\r\nHost: h\r\n\r\n") == refusal::none);
}

TEST_CASE("the only expectation taken is 100-continue, and it needs a body and HTTP/1.1") {
    request_frame f;
    CHECK(judge(post("Content-Length: 5\r\nExpect: 100-Continue\r\n"), f) == refusal::none);
    CHECK(f.expects_continue);
    CHECK(judge(get("Expect: 100-continue\r\n"), f) == refusal::none);
    CHECK_FALSE(f.expects_continue);
    CHECK(judge(post("Content-Length: 5\r\nExpect: tea\r\n")) == refusal::expectation_failed);
    CHECK(judge(post("Content-Length: 5\r\nExpect: 100-continue, x\r\n")) == refusal::expectation_failed);
    CHECK(judge("POST / HTTP/1.0\r\nContent-Length: 5\r\nExpect: tea\r\n\r\n", f) == refusal::none);
    CHECK_FALSE(f.expects_continue);
}

namespace {

struct answer {
    bool valid;
    response_frame frame;
};
answer judge_response(std::string const& text, bool to_head = false) {
    message m(text);
    if (m.response() != parsed::whole) return {false, {}};
    answer a{};
    a.valid = check_response(*m, to_head, a.frame);
    return a;
}

}  // namespace

TEST_CASE("a response's length follows RFC 9112 section 6.3") {
    struct row {
        std::string text;
        bool to_head;
        body_kind kind;
        std::uint64_t length;
        bool keep_alive;
    };
    for (auto const& r : std::vector<row>{
             {"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n", false, body_kind::length, 5, true},
             {"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", false, body_kind::none, 0, true},
             {"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", false, body_kind::chunked, 0, true},
             {"HTTP/1.1 200 OK\r\n\r\n", false, body_kind::until_close, 0, false},
             {"HTTP/1.0 200 OK\r\nConnection: keep-alive\r\nContent-Length: 1\r\n\r\n", false, body_kind::length, 1, true},
             {"HTTP/1.0 200 OK\r\nContent-Length: 1\r\n\r\n", false, body_kind::length, 1, false},
             {"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nConnection: close\r\n\r\n", false, body_kind::length, 5, false},
             {"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n", true, body_kind::none, 0, true},
             {"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", true, body_kind::none, 0, true},
             {"HTTP/1.1 204 No Content\r\n\r\n", false, body_kind::none, 0, true},
             {"HTTP/1.1 304 Not Modified\r\nContent-Length: 5\r\n\r\n", false, body_kind::none, 0, true},
             {"HTTP/1.1 103 Early Hints\r\n\r\n", false, body_kind::none, 0, true},
         }) {
        CAPTURE(shown(r.text));
        auto const a = judge_response(r.text, r.to_head);
        REQUIRE(a.valid);
        CHECK(a.frame.body.kind == r.kind);
        CHECK(a.frame.body.length == r.length);
        CHECK(a.frame.keep_alive == r.keep_alive);
    }
}

TEST_CASE("a response with two lengths or none that holds is invalid") {
    for (std::string const fields :
         {"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n", "Content-Length: 5\r\nContent-Length: 6\r\n",
          "Content-Length: 5, 6\r\n", "Content-Length: +5\r\n", "Content-Length:\r\n", "Content-Length: 99999999999999999999\r\n",
          "Transfer-Encoding: gzip\r\n", "Transfer-Encoding: gzip, chunked\r\n", "Transfer-Encoding: chunked, chunked\r\n",
          "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n", "Transfer-Encoding: identity\r\n",
          "Connection: Content-Length\r\nContent-Length: 5\r\n"}) {
        CAPTURE(shown(fields));
        CHECK_FALSE(judge_response("HTTP/1.1 200 OK\r\n" + fields + "\r\n").valid);
    }
    CHECK_FALSE(judge_response("HTTP/1.1 101 Switching Protocols\r\n\r\n").valid);
    CHECK_FALSE(judge_response("HTTP/1.1 099 X\r\n\r\n").valid);
    CHECK_FALSE(judge_response("HTTP/1.1 600 X\r\n\r\n").valid);
    CHECK_FALSE(judge_response("HTTP/2.0 200 OK\r\n\r\n").valid);
}

TEST_CASE("what frames, routes, authenticates or steers may not stand in a trailer") {
    for (char const* const name : {"Content-Length",
                                   "content_length",
                                   "Transfer-Encoding",
                                   "Host",
                                   "Trailer",
                                   "TE",
                                   "Connection",
                                   "X-API-KEY",
                                   "x_api_key",
                                   "Authorization",
                                   "X-Consumer-Id",
                                   "X-Consumer-Groups",
                                   "x_consumer_custom_id",
                                   "X-Credential-Username",
                                   "X-Anonymous-Consumer",
                                   "X-Forwarded-For",
                                   "Forwarded",
                                   "Set-Cookie",
                                   "Cookie",
                                   "Content-Type",
                                   "Expect",
                                   "Vary",
                                   "Cache-Control",
                                   "Location",
                                   "WWW-Authenticate",
                                   "Content-Encoding",
                                   "Content-Range",
                                   "Range",
                                   "X-Request-Id"}) {
        CAPTURE(name);
        CHECK_FALSE(allowed_in_trailer(name));
    }
    for (char const* const name : {"Digest", "Server-Timing", "X-Checksum", "Grpc-Status", "ETag"}) {
        CAPTURE(name);
        CHECK(allowed_in_trailer(name));
    }
}

TEST_CASE("more Connection options than anyone means are refused: each field is held against each") {
    auto const options = [](std::size_t n, std::string const& one) {
        std::string out = "Connection: ";
        for (std::size_t i = 0; i < n; ++i) out += (i == 0 ? "" : ",") + one;
        return out + "\r\n";
    };
    CHECK(judge(post(options(16, "x-a"))) == refusal::none);
    CHECK(judge(post(options(17, "x-a"))) == refusal::head_too_large);
    CHECK(judge(post(options(17, ""))) == refusal::head_too_large);
    CHECK(judge(post(options(10, "x-a") + options(7, "close"))) == refusal::head_too_large);
    CHECK(judge(post(options(1, std::string(1024, 'a')))) == refusal::none);
    CHECK(judge(post(options(1, std::string(1025, 'a')))) == refusal::head_too_large);
    CHECK(judge(post(options(1, std::string(600, 'a')) + options(1, std::string(600, 'b')))) == refusal::head_too_large);
}
