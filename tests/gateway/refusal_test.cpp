#include "gateway/refusal.hpp"

#include <boost/json/src.hpp>  // compiled here: nothing else of this room needs the library
#include <set>
#include <string>
#include <vector>

#include "tests/gateway/support.hpp"

using namespace latchkey::gateway;
using namespace latchkey::gateway::test;

namespace {

std::vector<refusal> all_refusals() {
    std::vector<refusal> out;
    for (auto i = 1U; i < static_cast<unsigned>(refusal::count_); ++i) out.push_back(static_cast<refusal>(i));
    return out;
}

std::string render(refusal r, refusal_context const& c) {
    std::string out(refusal_bytes_max, '\0');
    out.resize(write_refusal(out.data(), r, c));
    return out;
}

refusal_context usual() {
    refusal_context c;
    c.request_id = "0123456789abcdef0123456789abcdef";
    c.realm = "latchkey";
    c.date = "Thu, 01 Jan 2026 00:00:00 GMT";
    return c;
}

std::string_view value_of(head const& h, std::string_view name) {
    std::string_view out;
    for (field const& f : h)
        if (std::string_view(f.name) == name) {
            CHECK(out.empty());
            out = f.value;
        }
    return out;
}

}  // namespace

TEST_CASE("every refusal is a valid response with the right length and a problem that parses") {
    auto c = usual();
    for (refusal const r : all_refusals()) {
        auto const& t = text_of(r);
        CAPTURE(t.code);
        std::string const text = render(r, c);
        message m(text);
        REQUIRE(m.response() == parsed::whole);
        response_frame frame;
        REQUIRE(check_response(*m, false, frame));
        CHECK(m->status == t.status);
        CHECK(m->reason == t.reason);
        CHECK(frame.keep_alive == !t.close);
        REQUIRE(frame.body.kind == body_kind::length);
        CHECK(m->bytes + frame.body.length == text.size());
        CHECK(value_of(*m, "Content-Type") == "application/problem+json");
        CHECK(value_of(*m, "Cache-Control") == "no-store");
        CHECK(value_of(*m, "X-Request-Id") == c.request_id);
        CHECK(value_of(*m, "Date") == c.date);
        CHECK(value_of(*m, "WWW-Authenticate").empty() == (t.status != 401));
        CHECK(value_of(*m, "Retry-After").empty() == (t.status != 503));
        CHECK(value_of(*m, "Allow").empty() == (t.status != 405));

        auto const problem = boost::json::parse(text.substr(m->bytes)).as_object();
        CHECK(problem.at("status").as_int64() == t.status);
        CHECK(problem.at("code").as_string() == t.code);
        CHECK(problem.at("title").as_string() == t.reason);
        CHECK(problem.at("request_id").as_string() == c.request_id);
        CHECK_FALSE(problem.at("detail").as_string().empty());
        CHECK(std::string(problem.at("instance").as_string()).ends_with(c.request_id));
        CHECK(std::string(problem.at("type").as_string()).starts_with("urn:"));
    }
}

TEST_CASE("the answer to HEAD has the same fields and no body") {
    auto c = usual();
    for (refusal const r : all_refusals()) {
        c.head_only = false;
        std::string const full = render(r, c);
        c.head_only = true;
        CHECK(render(r, c) == full.substr(0, full.find("\r\n\r\n") + 4));
    }
}

TEST_CASE("the largest texts still fit") {
    auto c = usual();
    std::string const id(128, 'i');
    std::string const realm(64, 'r');
    c.request_id = id;
    c.realm = realm;
    c.bearer = c.http_1_0 = true;
    for (refusal const r : all_refusals()) {
        std::string const text = render(r, c);
        CHECK(text.ends_with("\"}\n"));
        CHECK(text.size() < refusal_bytes_max);
    }
}

TEST_CASE("challenges name what is taken") {
    auto c = usual();
    CHECK(render(refusal::key_missing, c).find("WWW-Authenticate: ApiKey realm=\"latchkey\"\r\n") != std::string::npos);
    c.bearer = true;
    CHECK(render(refusal::key_invalid, c).find("ApiKey realm=\"latchkey\", Bearer realm=\"latchkey\"\r\n") != std::string::npos);
}

TEST_CASE("connections end where the table or the caller says so, and HTTP/1.0 is told that it may go on") {
    auto c = usual();
    CHECK(render(refusal::no_route, c).find("Connection:") == std::string::npos);
    CHECK(render(refusal::ambiguous_framing, c).find("\r\nConnection: close\r\n") != std::string::npos);
    c.http_1_0 = true;
    CHECK(render(refusal::no_route, c).find("\r\nConnection: keep-alive\r\n") != std::string::npos);
    c.close = true;
    CHECK(render(refusal::no_route, c).find("\r\nConnection: close\r\n") != std::string::npos);
}

TEST_CASE("statuses are those of the conventions, codes are unique, framing errors close") {
    struct row {
        refusal r;
        unsigned status;
    };
    for (auto const& [r, status] : std::vector<row>{{refusal::malformed_request, 400},
                                                    {refusal::unknown_transfer_coding, 501},
                                                    {refusal::head_too_large, 431},
                                                    {refusal::target_too_long, 414},
                                                    {refusal::body_too_large, 413},
                                                    {refusal::head_timeout, 408},
                                                    {refusal::key_missing, 401},
                                                    {refusal::duplicate_key, 401},
                                                    {refusal::no_route, 404},
                                                    {refusal::upstream_unreachable, 502},
                                                    {refusal::upstream_timeout, 504},
                                                    {refusal::overloaded, 503}})
        CHECK(text_of(r).status == status);
    std::set<std::string_view> codes;
    for (refusal const r : all_refusals()) {
        CHECK(codes.insert(text_of(r).code).second);
        if (text_of(r).status == 400 || text_of(r).status == 501) CHECK(text_of(r).close);
    }
}
