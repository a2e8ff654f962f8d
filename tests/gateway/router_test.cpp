#include "gateway/router.hpp"

#include "tests/catch.hpp"

using namespace latchkey;
using gateway::router;

namespace {

conf::api make(std::vector<std::string> hosts, std::vector<std::string> prefixes) {
    conf::api a;
    a.hosts = std::move(hosts);
    a.path_prefixes = std::move(prefixes);
    return a;
}

// "3+5": api 3, five bytes of prefix; "-": none.
std::string found(router const& r, std::string_view host, std::string_view path) {
    auto const m = r.find(host, path);
    return m ? std::to_string(m->api) + "+" + std::to_string(m->prefix) : "-";
}

}  // namespace

TEST_CASE("the most specific host wins, in it the longest prefix of whole segments") {
    router const r({
        make({}, {}),                                       // 0: any host, any path
        make({}, {"/v1"}),                                  // 1
        make({"api.example.com"}, {"/v1"}),                 // 2
        make({"*.example.com"}, {}),                        // 3
        make({"*.eu.example.com"}, {"/v1/a"}),              // 4
        make({"api.example.com"}, {"/v1/orders", "/v2/"}),  // 5
    });
    CHECK(found(r, "api.example.com", "/v1") == "2+3");
    CHECK(found(r, "api.example.com", "/v1/") == "2+3");
    CHECK(found(r, "api.example.com", "/v1/x/y") == "2+3");
    CHECK(found(r, "api.example.com", "/v1/orders/7") == "5+10");
    CHECK(found(r, "api.example.com", "/v1/ordersx") == "2+3");  // no whole segment
    CHECK(found(r, "api.example.com", "/v2") == "5+3");
    CHECK(found(r, "api.example.com", "/v2/x") == "5+3");
    CHECK(found(r, "api.example.com", "/v3") == "3+0");  // no prefix there: the wildcard is asked
    CHECK(found(r, "x.example.com", "/v1") == "3+0");
    CHECK(found(r, "x.eu.example.com", "/v1/a/b") == "4+5");
    CHECK(found(r, "x.y.eu.example.com", "/v1/a") == "4+5");
    CHECK(found(r, "x.eu.example.com", "/v1/b") == "3+0");
    CHECK(found(r, "example.com", "/v1") == "1+3");  // a wildcard stands for one label or more
    CHECK(found(r, "badexample.com", "/") == "0+0");
    CHECK(found(r, "other.org", "/v1/x") == "1+3");
    CHECK(found(r, "other.org", "/v10") == "0+0");
    CHECK(found(r, "", "/x") == "0+0");
}

TEST_CASE("where nothing fits, nothing is found") {
    router const r({make({"a.org"}, {"/v1"}), make({"*.b.org"}, {"/"})});
    CHECK(found(r, "a.org", "/") == "-");
    CHECK(found(r, "a.org", "/v") == "-");
    CHECK(found(r, "a.org", "/V1") == "-");  // paths are case-sensitive (RFC 3986 section 6.2.2.1)
    CHECK(found(r, "x.a.org", "/v1") == "-");
    CHECK(found(r, "", "/v1") == "-");
    CHECK(found(r, "b.org", "/") == "-");
    CHECK(found(r, ".b.org", "/") == "1+0");
    CHECK(found(r, "x.b.org", "/any") == "1+0");
    CHECK(found(router({}), "a.org", "/") == "-");
}

TEST_CASE("OPTIONS * goes to an api that takes every path") {
    router const r({make({"a.org"}, {"/v1"}), make({"a.org"}, {})});
    CHECK(found(r, "a.org", "*") == "1+0");
    CHECK(found(router({make({}, {"/v1"})}), "a.org", "*") == "-");
}

TEST_CASE("a path longer than any prefix is cut at a segment, not inside one") {
    router const r({make({}, {"/aa", "/aa/bbbb"})});
    CHECK(found(r, "h", "/aa/bbbb/" + std::string(8000, 'c')) == "0+8");
    CHECK(found(r, "h", "/aa/bbbbb") == "0+3");
    CHECK(found(r, "h", "/aa/bbb") == "0+3");
    CHECK(found(r, "h", "/" + std::string(8000, 'a')) == "-");
    std::string deep;
    for (int i = 0; i < 4000; ++i) deep += "/x";
    CHECK(found(r, "h", deep) == "-");
}
