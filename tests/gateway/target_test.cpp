#include "gateway/target.hpp"

#include <array>
#include <string>
#include <vector>

#include "tests/gateway/support.hpp"

using namespace latchkey::gateway;

namespace {

struct normal {
    refusal why;
    std::string path;
    std::string query;
    std::string authority;
    bool encoded_slash = false;
    bool escapes = false;
    bool parameters = false;
};

normal normalise(std::string_view target, std::string_view method = "GET") {
    std::vector<char> bytes(target.begin(), target.end());  // exactly its size: nothing beyond may be read
    request_target t;
    auto const why = normalise_target(bytes.data(), bytes.size(), method, t);
    if (why != refusal::none) return {why, "", "", ""};
    return {why, std::string(t.path), std::string(t.query), std::string(t.authority), t.encoded_slash, t.escapes, t.parameters};
}

}  // namespace

TEST_CASE("each rule of normalisation, and what comes of it") {
    struct row {
        std::string_view target;
        std::string_view path;
    };
    for (auto const& r : std::vector<row>{
             {"/", "/"},
             {"/a/b", "/a/b"},
             {"/a/b/", "/a/b/"},
             {"//", "/"},
             {"//a///b//", "/a/b/"},
             {"/./a", "/a"},
             {"/a/./b", "/a/b"},
             {"/a/.", "/a/"},
             {"/a/..", "/"},
             {"/a/../", "/"},
             {"/a/../b", "/b"},
             {"/a/b/../../c", "/c"},
             {"/a//../b", "/b"},  // merged before resolved: what common servers do
             {"/a/%2e%2e/b", "/b"},
             {"/a/%2E./b", "/b"},
             {"/a/.%2e/b", "/b"},
             {"/%61%62%63", "/abc"},
             {"/%7Euser", "/~user"},
             {"/%41%2D%2e%5F%7e", "/A-._~"},
             {"/a%20b", "/a%20b"},
             {"/a%2fb", "/a%2fb"},
             {"/%25%32%65", "/%252e"},  // decoded once, never twice
             {"/%252e%252e/a", "/%252e%252e/a"},
             {"/a;b=c/d", "/a;b=c/d"},
             {"/a..b/c...", "/a..b/c..."},
             {"/.../a", "/.../a"},
             {"/.hidden/a", "/.hidden/a"},
             {"/..a", "/..a"},
             {"/a|b^c{d}\"e", "/a|b^c{d}\"e"},
             {"/%e2%82%ac", "/%e2%82%ac"},
             {"/%01", "/%01"},
         }) {
        CAPTURE(r.target);
        auto const n = normalise(r.target);
        CHECK(n.why == refusal::none);
        CHECK(n.path == r.path);
        auto const again = normalise(n.path);  // what is normal stays as it is
        CHECK(again.path == n.path);
    }
}

TEST_CASE("targets that servers read in different ways are refused") {
    for (std::string const target : {"",
                                     "*",
                                     "a",
                                     "/..",
                                     "/../a",
                                     "/a/../..",
                                     "/%2e%2e",
                                     "/a/../../b",
                                     "/%00",
                                     "/a%5Cb",
                                     "/a\\b",
                                     "/a#b",
                                     "/a b",
                                     "/a\tb",
                                     "/%",
                                     "/%4",
                                     "/%zz",
                                     "/a%2",
                                     "/..;/a",
                                     "/a/..;x=y/b",
                                     "/.;/a",
                                     "/;/a",
                                     "/a/%2e%2e;/b",
                                     "/a/..%3b/b",
                                     "/a/..%3Bx=y/b",
                                     "/a/.%3b",
                                     "/a/%2e.%3b%2f",
                                     "/%c0%ae/a",
                                     "/%c1%9c",
                                     "/%e0%80%af",
                                     "/%f0%80%80%af",
                                     "/%f5%80%80%80",
                                     "/\x80",
                                     "/\x7f",
                                     "/a?b#c",
                                     "/a?b c",
                                     "/a?b\x80",
                                     "https://h/a",
                                     "http:/h",
                                     "http://",
                                     "http:///a",
                                     "ftp://h/",
                                     "h:443",
                                     "//..",
                                     "/./..",
                                     "/a/%2e%2e/..",
                                     "?a",
                                     "/a?\x01",
                                     "/a\r\nB: c",
                                     "/%c0%af",
                                     "/%C0%AE%C0%AE"}) {
        CAPTURE(latchkey::gateway::test::shown(target));
        CHECK(normalise(target).why == refusal::invalid_target);
    }
    CHECK(normalise(std::string_view("/a\0b", 4)).why == refusal::invalid_target);
}

TEST_CASE("an escaped semicolon goes on as it came, and may begin parameters") {
    CHECK(normalise("/a%3bb/..c%3Bd/%3b").path == "/a%3bb/..c%3Bd/%3b");
    CHECK(normalise("/a%3bb").parameters);
    CHECK(normalise("/a%20b%3B").parameters);
    CHECK_FALSE(normalise("/a%3a%2b%253b").parameters);
    std::array<char, 8> room;
    CHECK(read_otherwise("/a%3bb/c%3B", true, false, room) == "/a/c");
    CHECK(read_otherwise("/a%3bb;c/%20", true, false, room) == "/a/%20");
    CHECK(read_otherwise("/a%3b%2fc", true, true, room) == "/a/c");
    CHECK(read_otherwise("/a%3bb", false, true, room) == "/a;b");
}

TEST_CASE("parameters are seen, and a path can be read as other servers read it") {
    CHECK(normalise("/a;b").parameters);
    CHECK(normalise("/./a/b;").parameters);
    CHECK_FALSE(normalise("/a/b?c;d").parameters);
    CHECK_FALSE(normalise("/a;b/../c").parameters);
    std::array<char, 8> room;
    CHECK(read_otherwise("/a;b=c;d/e;", true, false, room) == "/a/e");
    CHECK(read_otherwise("/a", true, true, room) == "/a");
    CHECK(read_otherwise("/a%2Fb%2f", false, true, room) == "/a/b/");
    CHECK(read_otherwise("/%2fa%2F/%2fb", false, true, room) == "/a/b");
    CHECK(read_otherwise("/a%2F%3a%40%7b", false, false, room) == "/a%2F:@{");
    CHECK(read_otherwise("/%25%20%ff", false, true, room) == "/%25%20%");
    CHECK(normalise("/a%3ab").escapes);
    CHECK_FALSE(normalise("/%61/b?%3a").escapes);
    CHECK(read_otherwise("/a;b%2fc", true, false, room) == "/a");
    CHECK(read_otherwise("/a;b%2fc", true, true, room) == "/a/c");
    CHECK(read_otherwise("/a;b%2fc", false, true, room) == "/a;b/c");
    CHECK(read_otherwise("/12345678;x/9", true, false, room) == "/1234567");
}

TEST_CASE("a query goes on as it was sent") {
    auto const n = normalise("/a/../b?c=/../%2e%2e//%00&d=?");
    CHECK(n.path == "/b");
    CHECK(n.query == "?c=/../%2e%2e//%00&d=?");
    CHECK(normalise("/a?").query == "?");
}

TEST_CASE("an absolute form is taken apart") {
    auto const n = normalise("HTTP://Example.org:81/a/./b?q");
    CHECK(n.authority == "Example.org:81");
    CHECK(n.path == "/a/b");
    CHECK(n.query == "?q");
    CHECK(normalise("http://h").path == "/");
    CHECK(normalise("http://h?q").path == "/");
    CHECK(normalise("http://h?q").query == "?q");
}

TEST_CASE("the asterisk form is for OPTIONS") {
    CHECK(normalise("*", "OPTIONS").path == "*");
    CHECK(normalise("*", "GET").why == refusal::invalid_target);
    CHECK(normalise("*a", "OPTIONS").why == refusal::invalid_target);
}

TEST_CASE("an encoded slash is told, in either case") {
    CHECK(normalise("/a%2Fb").encoded_slash);
    CHECK(normalise("/a%2fb").encoded_slash);
    CHECK_FALSE(normalise("/a/b").encoded_slash);
    CHECK_FALSE(normalise("/a%252fb").encoded_slash);
    CHECK_FALSE(normalise("/a?%2f").encoded_slash);
}

TEST_CASE("all short paths over the awkward characters come out normal and stay so") {
    std::string_view const alphabet = "/.;%2ea";
    std::string target = "/";
    std::size_t taken = 0;
    for (std::size_t n = 0; n < 7 * 7 * 7 * 7 * 7 * 7; ++n) {
        target.resize(1);
        for (std::size_t i = 0, m = n; i < 6; ++i, m /= 7) target += alphabet[m % 7];
        auto const first = normalise(target);
        if (first.why != refusal::none) continue;
        ++taken;
        bool good = first.path.front() == '/' && first.path.size() <= target.size() &&
                    first.path.find("//") == std::string::npos && (first.path + "/").find("/./") == std::string::npos &&
                    (first.path + "/").find("/../") == std::string::npos;
        good = good && normalise(first.path).path == first.path;
        if (!good) {
            CAPTURE(target, first.path);
            CHECK(good);
        }
    }
    CHECK(taken > 1000);
}

TEST_CASE("a host is a name, an IPv4 or an IPv6 literal, with or without a port") {
    struct row {
        std::string_view text;
        std::string_view name;
    };
    for (auto const& r : std::vector<row>{{"example.org", "example.org"},
                                          {"EXAMPLE.org:8080", "example.org"},
                                          {"example.org.", "example.org"},
                                          {"example.org.:80", "example.org"},
                                          {"example.org:", "example.org"},
                                          {"127.0.0.1:1", "127.0.0.1"},
                                          {"[::1]", "[::1]"},
                                          {"[2001:DB8::1]:443", "[2001:db8::1]"},
                                          {"[::ffff:1.2.3.4]", "[::ffff:1.2.3.4]"},
                                          {"a_b-c", "a_b-c"},
                                          {"h:65535", "h"}}) {
        CAPTURE(r.text);
        host_name n;
        REQUIRE(parse_host(r.text, n));
        CHECK(n.view() == r.name);
    }
    for (std::string const text :
         {"",        ".",   "..",   ".a",    "a..b",  "a..",  ":80",  "a:b", "a:80:80", "a:65536", "a:123456",   "a:-1",
          "a: 80",   "a b", "a@b",  "u:p@h", "a/b",   "a?b",  "a#b",  "a,b", "a%41",    "[::1",    "::1",        "[::1]x",
          "[::1]80", "[]",  "[:]x", "[::g]", "[a]b]", "a\\b", "a\"b", "a<b", "\x80",    "a\tb",    "[::1]:99999"}) {
        CAPTURE(latchkey::gateway::test::shown(text));
        host_name n;
        CHECK_FALSE(parse_host(text, n));
    }
    host_name n;
    CHECK(parse_host(std::string(255, 'a'), n));
    CHECK_FALSE(parse_host(std::string(256, 'a'), n));
    for (std::string const port : {"", ":80"}) {  // the dot behind a name is none of it
        CAPTURE(port);
        REQUIRE(parse_host(std::string(255, 'a') + "." + port, n));
        CHECK(n.view() == std::string(255, 'a'));
        CHECK_FALSE(parse_host(std::string(255, 'a') + ".." + port, n));
        CHECK_FALSE(parse_host(std::string(256, 'a') + port, n));
        CHECK_FALSE(parse_host(std::string(256, 'a') + "." + port, n));
        CHECK_FALSE(parse_host(std::string(300, 'a') + port, n));
        CHECK_FALSE(parse_host("[" + std::string(300, ':') + "]" + port, n));
    }
}

TEST_CASE("authorities are the same where host and port are") {
    CHECK(same_authority("Example.ORG", "example.org:80"));
    CHECK(same_authority("example.org.", "example.org"));
    CHECK(same_authority("example.org:", "example.org"));
    CHECK(same_authority("a:080", "a"));
    CHECK(same_authority("[::1]", "[::1]:80"));
    CHECK_FALSE(same_authority("a", "b"));
    CHECK_FALSE(same_authority("a:81", "a"));
    CHECK_FALSE(same_authority("a:81", "a:82"));
    CHECK_FALSE(same_authority("[::1]:81", "[::1]"));
    CHECK_FALSE(same_authority("", ""));
    CHECK_FALSE(same_authority("a b", "a b"));
    CHECK(same_authority("a:443", "a", true));
    CHECK_FALSE(same_authority("a:80", "a", true));
}

TEST_CASE("the scheme of an absolute form must be the connection's") {
    auto const taken = [](std::string text, bool tls) {
        request_target t;
        return normalise_target(text.data(), text.size(), "GET", t, tls) == refusal::none && t.authority == "h";
    };
    CHECK(taken("http://h/a", false));
    CHECK(taken("HTTPS://h/a", true));
    CHECK_FALSE(taken("https://h/a", false));
    CHECK_FALSE(taken("http://h/a", true));
}
