#include "gateway/head.hpp"

#include <algorithm>
#include <string>
#include <vector>

#include "tests/gateway/second_reader.hpp"
#include "tests/gateway/support.hpp"

using namespace latchkey::gateway;
using namespace latchkey::gateway::test;

TEST_CASE("a request head is views into the bytes it was read into") {
    message m("POST /a?b HTTP/1.1\r\nHost: h\r\nX-A:\t one \r\nEmpty:\r\n\r\nbody");
    REQUIRE(m.request() == parsed::whole);
    CHECK(m->method == "POST");
    CHECK(m->target == "/a?b");
    CHECK(m->version == 11);
    CHECK(m->bytes == m.text().size() - 4);
    REQUIRE(m->count == 3);
    CHECK(m->fields[0].id == field_id::host);
    CHECK(m->fields[1].name == "X-A");
    CHECK(m->fields[1].value == "one");
    CHECK(m->fields[2].value.empty());
    CHECK(m->target.data() == m.text().data() + 5);
    CHECK(m->fields[1].value.data() == m.text().data() + m.text().find("one"));
}

TEST_CASE("a response head has its status, reason and version") {
    message m("HTTP/1.0 404 Not  Found\r\nServer: x\r\n\r\n");
    REQUIRE(m.response() == parsed::whole);
    CHECK(m->status == 404);
    CHECK(m->reason == "Not  Found");
    CHECK(m->version == 10);
    for (std::string const text : {"HTTP/1.1 200 \r\n\r\n", "HTTP/1.1 200\r\n\r\n"}) {  // the second is seen in the wild
        message bare(text);
        REQUIRE(bare.response() == parsed::whole);
        CHECK(bare->status == 200);
        CHECK(bare->reason.empty());
    }
}

namespace {

// Feeds growing prefixes with one `searched`, as a connection does.
parsed feed(std::string const& text, std::size_t step, parse_limits const& limits, head& h, std::size_t& stopped_at) {
    std::size_t searched = 0;
    auto why = refusal::none;
    for (std::size_t n = std::min(step, text.size());; n = std::min(n + step, text.size())) {
        std::vector<char> const exact(text.begin(), text.begin() + static_cast<std::ptrdiff_t>(n));
        stopped_at = n;
        parsed const p = parse_request_head(exact.data(), n, searched, limits, h, why);
        if (p != parsed::more || n == text.size()) return p;
    }
}

}  // namespace

TEST_CASE("a head that arrives in pieces of any size is the head that arrives at once") {
    std::string const text = "GET /path HTTP/1.1\r\nHost: example.org\r\nA: b\r\nC:  d \r\n\r\n";
    head h;
    for (std::size_t step = 1; step <= text.size(); ++step) {
        CAPTURE(step);
        std::size_t at = 0;
        REQUIRE(feed(text, step, wide_limits, h, at) == parsed::whole);
        CHECK(at == text.size());
        CHECK(h.bytes == text.size());
        CHECK(h.count == 3);
    }
}

// A value, a name and a target of each length, with each byte at each place: where sixteen bytes are looked at together, the
// seams and the neighbours of a bad byte are what can go wrong.
TEST_CASE("every byte at every place is taken or refused as the second reader does") {
    head h;
    std::size_t taken = 0;
    for (std::size_t length : {1, 2, 7, 8, 9, 15, 16, 17, 25, 32}) {
        for (std::size_t place = 0; place < length; ++place) {
            for (unsigned byte = 0; byte < 256; ++byte) {
                std::string part(length, 'x');
                part[place] = static_cast<char>(byte);
                for (std::string const& text :
                     {"GET / HTTP/1.1\r\nHost: h\r\nA: " + part + "\r\nB: c\r\n\r\n",
                      "GET / HTTP/1.1\r\nHost: h\r\n" + part + ": a\r\nB: c\r\n\r\n",
                      "GET /" + part + " HTTP/1.1\r\nHost: h\r\n\r\n", part + " / HTTP/1.1\r\nHost: h\r\n\r\n"}) {
                    std::size_t searched = 0;
                    auto why = refusal::none;
                    bool const ours =
                        parse_request_head(text.data(), text.size(), searched, wide_limits, h, why) == parsed::whole;
                    bool const folded = text.find("\r\n ") != std::string::npos || text.find("\r\n\t") != std::string::npos;
                    bool const theirs = !folded && second_reader<true>::read(text).has_value();  // it unfolds, we refuse
                    if (ours != theirs || (ours && !seen_alike<true>(h, text))) FAIL(shown(text) << " taken: " << ours);
                    taken += ours ? 1 : 0;
                }
            }
        }
    }
    CHECK(taken > 40'000);
}

TEST_CASE("a bad start is refused with the byte that makes it bad, in whatever parts it comes") {
    struct row {
        std::string start;
        std::size_t bad_at;  // the place of that byte
    };
    using namespace std::string_literals;
    for (auto const& r : std::vector<row>{{"GET / HTTP/1.1\n", 14},
                                          {"GE(", 2},
                                          {"GET\t/", 3},
                                          {"GET /a\0b"s, 6},
                                          {"GET / HTTP/1.1\r\nHost : h", 20},
                                          {"GET / HTTP/1.1\r\nA: b\r\n c", 22},
                                          {"GET / HTTP/1.1\r\nA: b\0"s, 20},
                                          {"GET / HTTP/1.1\r\nA: b\n", 20},
                                          {"GET / HTTP/1.1\r\nA: b\rc", 21},
                                          {"GET / HTTX", 9},
                                          {"GET / HTTP/1.1x", 14},
                                          {"\x16\x03\x01"s, 0},
                                          {"GET / HTTP/1.1\r\nA: b\r\nC: d\r\n\rx", 29}}) {
        for (std::size_t step = 1; step <= r.start.size(); ++step) {
            CAPTURE(shown(r.start), step);
            head h;
            std::size_t at = 0;
            CHECK(feed(r.start, step, wide_limits, h, at) == parsed::bad);
            CHECK(at <= (r.bad_at / step + 1) * step);  // with the part that the byte came in
        }
    }
}

TEST_CASE("every proper prefix of a head asks for more") {
    std::string const text = "GET /path HTTP/1.1\r\nHost: example.org\r\n\r\n";
    for (std::size_t n = 0; n < text.size(); ++n) {
        CAPTURE(n);
        message m(text.substr(0, n));
        if (n > 0) CHECK(m.request() == parsed::more);
    }
}

TEST_CASE("a request head that no reader should take is refused whole and byte by byte") {
    static std::vector<std::string> const bad{
        "GET / HTTP/1.1\nHost: h\n\n",                         // bare LF
        "GET / HTTP/1.1\r\nHost: h\n\r\n",                     // one bare LF
        "GET / HTTP/1.1\r\nHost: h\r\nA: b\rC: d\r\n\r\n",     // bare CR in a value
        "GET / HTTP/1.1\rHost: h\r\n\r\n",                     // bare CR in the request line
        "GET / HTTP/1.1\r\nHost: h\r\nA: b\r\n c\r\n\r\n",     // obs-fold
        "GET / HTTP/1.1\r\nHost: h\r\nA: b\r\n\tc\r\n\r\n",    // obs-fold with a tab
        "GET / HTTP/1.1\r\nHost: h\r\nA:\r\n b\r\n\r\n",       // obs-fold behind an empty value
        "GET / HTTP/1.1\r\n Host: h\r\n\r\n",                  // white space before the first field
        "GET / HTTP/1.1\r\nHost : h\r\n\r\n",                  // white space before the colon
        "GET / HTTP/1.1\r\nHost\t: h\r\n\r\n",                 //
        "GET / HTTP/1.1\r\nHost h\r\n\r\n",                    // no colon
        "GET / HTTP/1.1\r\n: h\r\n\r\n",                       // no name
        "GET / HTTP/1.1\r\nHo(st: h\r\n\r\n",                  // no token
        std::string("GET / HTTP/1.1\r\nA: b\0c\r\n\r\n", 26),  // NUL in a value
        "GET / HTTP/1.1\r\nA: b\x7f\r\n\r\n",                  // DEL in a value
        "GET / HTTP/1.1\r\nA: b\x01\r\n\r\n",                  // a control in a value
        "GET  / HTTP/1.1\r\nHost: h\r\n\r\n",                  // two spaces
        "GET /  HTTP/1.1\r\nHost: h\r\n\r\n",                  //
        "GET / HTTP/1.1 \r\nHost: h\r\n\r\n",                  // a space behind the version
        "GET\t/ HTTP/1.1\r\nHost: h\r\n\r\n",                  // a tab for a space
        " GET / HTTP/1.1\r\nHost: h\r\n\r\n",                  //
        "GET / http/1.1\r\nHost: h\r\n\r\n",                   // RFC 9112 section 2.3: case-sensitive
        "GET / HTTP/1.1x\r\nHost: h\r\n\r\n",                  //
        "GET / \r\n\r\n",                                      // whole, but too short for a version
        "G\r\n\r\n",                                           //
        "GET / HTTP/11\r\nHost: h\r\n\r\n",                    //
        "GET /\r\nHost: h\r\n\r\n",                            // HTTP/0.9
        "GE(T / HTTP/1.1\r\nHost: h\r\n\r\n",                  // no token
        "GET /\x01 HTTP/1.1\r\nHost: h\r\n\r\n",               // a control in the target
        "GET / HTTP/1.1\r\nTransfer-Encoding\x0b: chunked\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: h\r\nContent-Length: 3\r\n : x\r\n\r\n",
        std::string("\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", 15),  // a TLS client hello
    };
    head h;
    for (auto const& text : bad) {
        CAPTURE(shown(text));
        message m(text);
        CHECK(m.request() == parsed::bad);
        CHECK(text_of(m.why).status >= 400);
        CHECK(text_of(m.why).close);
        std::size_t at = 0;
        CHECK(feed(text, 1, wide_limits, h, at) == parsed::bad);
    }
}

TEST_CASE("versions that are not ours are told apart from nonsense") {
    for (char const* const version : {"HTTP/2.0", "HTTP/0.9", "HTTP/1.2", "HTTP/3.0"}) {
        CAPTURE(version);
        CHECK(judge("GET / " + std::string(version) + "\r\nHost: h\r\n\r\n") == refusal::version_not_supported);
    }
}

TEST_CASE("a bare line feed is refused as soon as it is there, not at the deadline") {
    head h;
    std::size_t at = 0;
    std::string const text = "GET / HTTP/1.1\nHost: h\n";
    CHECK(feed(text, 1, wide_limits, h, at) == parsed::bad);
    CHECK(at <= std::string_view("GET / HTTP/1.1\n").size());
}

TEST_CASE("the greatest head and target pass, one byte more does not") {
    std::string const frame = "GET / HTTP/1.1\r\nHost: h\r\nA: \r\n\r\n";
    parse_limits const limits{512, 100, 100};
    auto const with_value = [&](std::size_t n) {
        std::string s = frame;
        s.insert(s.find("A: ") + 3, std::string(n, 'x'));
        return s;
    };
    message fits(with_value(512 - frame.size()));
    CHECK(fits.request(limits) == parsed::whole);
    message beyond(with_value(513 - frame.size()));
    CHECK(beyond.request(limits) == parsed::bad);
    CHECK(beyond.why == refusal::head_too_large);
    message endless(with_value(4096).substr(0, 512));
    CHECK(endless.request(limits) == parsed::bad);
    CHECK(endless.why == refusal::head_too_large);

    message target("GET /" + std::string(99, 'a') + " HTTP/1.1\r\nHost: h\r\n\r\n");
    CHECK(target.request(limits) == parsed::whole);
    message long_target("GET /" + std::string(100, 'a') + " HTTP/1.1\r\nHost: h\r\n\r\n");
    CHECK(long_target.request(limits) == parsed::bad);
    CHECK(long_target.why == refusal::target_too_long);
    message endless_target("GET /" + std::string(600, 'a'));
    CHECK(endless_target.request(limits) == parsed::bad);
    CHECK(endless_target.why == refusal::target_too_long);
}

TEST_CASE("the greatest number of fields passes, one more does not") {
    std::string const line = "A: b\r\n";
    std::string eight = "GET / HTTP/1.1\r\n";
    for (int i = 0; i < 8; ++i) eight += line;
    parse_limits const limits{4096, 1024, 8};
    message fits(eight + "\r\n");
    CHECK(fits.request(limits) == parsed::whole);
    message beyond(eight + line + "\r\n");
    CHECK(beyond.request(limits) == parsed::bad);
    CHECK(beyond.why == refusal::too_many_fields);
    head h;
    std::size_t at = 0;
    for (std::size_t step : {1, 5, 6, 7, 40}) {  // seen with the field that is too many, before the head ends
        CHECK(feed(eight + line + line + line, step, limits, h, at) == parsed::bad);
        CHECK(at <= eight.size() + step);
        CHECK(feed(eight + "\r\n", step, limits, h, at) == parsed::whole);
    }
    message answer("HTTP/1.1 200 OK\r\n" + eight.substr(eight.find("A:")) + line + "\r\n");
    CHECK(answer.response(limits) == parsed::bad);
}

TEST_CASE("a response head that no reader should take is bad") {
    for (std::string const text :
         {"HTTP/1.1 200 OK\nServer: x\n\n", "HTTP/1.1 20 OK\r\n\r\n", "HTTP/1.1 2000 OK\r\n\r\n", "HTTP/1.1  200 OK\r\n\r\n",
          "HTTP/1.1 abc OK\r\n\r\n", "ICY 200 OK\r\n\r\n", "HTTP/1.1 200 OK\r\nA: b\r\n c\r\n\r\n",
          "HTTP/1.1 200 OK\r\nA b\r\n\r\n", "HTTP/1.1 200 OK\r\nA : b\r\n\r\n", "HTTP/1.1 -20 OK\r\n\r\n",
          "HTTP/1.1 200 O\x01K\r\n\r\n", "\r\nHTTP/1.1 200 OK\r\n\r\n", "http/1.1 200 OK\r\n\r\n"}) {
        CAPTURE(shown(text));
        message m(text);
        CHECK(m.response() == parsed::bad);
    }
}

// Known names are compared eight characters at a time: each byte at each place of each of them, by the definition.
TEST_CASE("a name that differs from a known one in any byte is told apart, or is its alias, by the definition") {
    for (std::string_view const known : {"host",
                                         "content-length",
                                         "transfer-encoding",
                                         "connection",
                                         "keep-alive",
                                         "proxy-connection",
                                         "proxy-authorization",
                                         "proxy-authenticate",
                                         "te",
                                         "trailer",
                                         "upgrade",
                                         "http2-settings",
                                         "expect",
                                         "x-api-key",
                                         "authorization",
                                         "x-consumer-id",
                                         "x-consumer-username",
                                         "x-credential-identifier",
                                         "x-request-id",
                                         "traceparent",
                                         "tracestate",
                                         "forwarded",
                                         "x-forwarded-for",
                                         "x-forwarded-proto",
                                         "x-forwarded-host",
                                         "x-forwarded-port"}) {
        bool alias = true;
        auto const id = identify(known, alias);
        REQUIRE(id != field_id::other);
        REQUIRE_FALSE(alias);
        for (std::size_t place = 0; place < known.size(); ++place) {
            for (unsigned byte = 0; byte < 256; ++byte) {
                std::string name(known);
                name[place] = static_cast<char>(byte);
                if (!is(name[place], char_class::token)) continue;
                CAPTURE(shown(name));
                auto const said = identify(name, alias);
                bool const folds = fold_name(name[place]) == fold_name(known[place]);
                bool const same = lower(name[place]) == known[place];
                if (said != (folds ? id : field_id::other) || (folds && alias == same)) FAIL("taken for another");
            }
        }
    }
}

TEST_CASE("names are identified without case, and spellings that variables cannot tell from them are marked") {
    struct row {
        std::string_view name;
        field_id id;
        bool alias;
    };
    for (auto const& r : std::vector<row>{
             {"host", field_id::host, false},
             {"HOST", field_id::host, false},
             {"Content-Length", field_id::content_length, false},
             {"Content_Length", field_id::content_length, true},
             {"TRANSFER_ENCODING", field_id::transfer_encoding, true},
             {"X-Api-Key", field_id::api_key, false},
             {"x_api_key", field_id::api_key, true},
             {"X-API_KEY", field_id::api_key, true},
             {"X-Consumer-Id", field_id::consumer_id, false},
             {"X_Consumer-Id", field_id::consumer_id, true},
             {"X-Credential_Identifier", field_id::credential_identifier, true},
             {"X_Forwarded_For", field_id::forwarded_for, true},
             {"X.Consumer.Id", field_id::consumer_id, true},
             {"X-API!KEY", field_id::api_key, true},
             {"Transfer~Encoding", field_id::transfer_encoding, true},
             {"Content|Length", field_id::content_length, true},
             {"X-Request'Id", field_id::request_id, true},
             {"X^Forwarded`Proto", field_id::forwarded_proto, true},
             {"X-Consumer0Id", field_id::other, false},
             {"X-ConsumerzId", field_id::other, false},
             {"Traceparent", field_id::traceparent, false},
             {"ContentLength", field_id::other, false},
             {"X-Api-Keys", field_id::other, false},
             {"Hos", field_id::other, false},
             {"", field_id::other, false},
             {"x-credential-identifiers", field_id::other, false},
         }) {
        CAPTURE(r.name);
        bool alias = false;
        CHECK(identify(r.name, alias) == r.id);
        CHECK(alias == r.alias);
    }
}
