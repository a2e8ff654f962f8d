#include "conf/load.hpp"
#include "conf/rules.hpp"
#include "tests/catch.hpp"

namespace conf = latchkey::conf;
using namespace std::chrono_literals;

TEST_CASE("parse_listen takes the four forms") {
    struct row {
        char const *text, *host;
        std::uint16_t port;
    };
    for (auto const& r : {row{"127.0.0.1:8080", "127.0.0.1", 8080}, row{"[::1]:8080", "::1", 8080}, row{":8080", "0.0.0.0", 8080},
                          row{"8080", "127.0.0.1", 8080}, row{"127.0.0.1:0", "127.0.0.1", 0}, row{"[::]:65535", "::", 65535}}) {
        auto const got = conf::parse_listen(r.text);
        INFO(r.text);
        REQUIRE(got.has_value());
        CHECK(got->host == r.host);
        CHECK(got->port == r.port);
    }
}

TEST_CASE("parse_listen refuses names, missing ports and half addresses") {
    for (auto const* text :
         {"",       ":",   "localhost:80", "127.0.0.1", "127.0.0.1:", "127.0.0.1:65536", "127.0.0.1:-1",    "127.0.0.1:+1",
          "::1:80", "::1", "[::1]",        "[::1",      "[::1]80",    "[127.0.0.1]:80",  "[fe80::1%lo]:80", "1.2.3:80",
          " 80",    "80 ", "0x50",         "*:80"}) {
        INFO(text);
        auto const got = conf::parse_listen(text);
        REQUIRE_FALSE(got.has_value());
        CHECK(got.error().code == latchkey::errc::invalid_argument);
        CHECK(got.error().message.find("[::1]:8080") != std::string::npos);
    }
}

TEST_CASE("parse_target takes host, port and base") {
    struct row {
        char const *url, *host;
        std::uint16_t port;
        char const* base;
    };
    for (auto const& r :
         {row{"http://127.0.0.1:9000", "127.0.0.1", 9000, ""}, row{"http://Api.Example", "api.example", 80, ""},
          row{"HTTP://a:1/", "a", 1, ""}, row{"http://a/b/c/", "a", 80, "/b/c"}, row{"http://[::1]:9/x", "::1", 9, "/x"}}) {
        auto const got = conf::parse_target(r.url);
        INFO(r.url);
        REQUIRE(got.has_value());
        CHECK(got->at.host == r.host);
        CHECK(got->at.port == r.port);
        CHECK(got->base_path == r.base);
    }
}

TEST_CASE("parse_target refuses what would be read in two ways") {
    for (auto const* url : {"",
                            "a",
                            "127.0.0.1:9000",
                            "ftp://a",
                            "http://",
                            "http:///x",
                            "http://:80",
                            "http://a:0",
                            "http://a:65536",
                            "http://a:",
                            "http://a?b",
                            "http://a#b",
                            "http://a/../b",
                            "http://a//b",
                            "http://a/%2e",
                            "http://[::1",
                            "http://[x]",
                            "http://a b",
                            "http://*.a",
                            "http://a\r\nb",
                            "http://::1",
                            "http://a:1:2",
                            "unix:/x"}) {
        INFO(url);
        CHECK_FALSE(conf::parse_target(url).has_value());
    }
}

TEST_CASE("parse_target says why https and user information are refused, without echoing the password") {
    CHECK(conf::parse_target("https://a").error().message.find("https") != std::string::npos);
    auto const secret = conf::parse_target("http://me:hunter2@a/");
    REQUIRE_FALSE(secret.has_value());
    CHECK(secret.error().message.find("hunter2") == std::string::npos);
}

TEST_CASE("parse_duration needs a unit and keeps to 64 bits") {
    CHECK(*conf::parse_duration("250ms") == 250ms);
    CHECK(*conf::parse_duration("30s") == 30s);
    CHECK(*conf::parse_duration("5m") == 5min);
    CHECK(*conf::parse_duration("1h") == 1h);
    CHECK(*conf::parse_duration("1d") == 24h);
    CHECK(*conf::parse_duration("0") == 0ms);
    for (auto const* text :
         {"", "30", "s", "-1s", "+1s", "1.5s", "1 s", "1S", "1h30m", "99999999999999999999s", "9223372036854775807s"}) {
        INFO(text);
        CHECK_FALSE(conf::parse_duration(text).has_value());
    }
}

TEST_CASE("parse_bytes knows binary and decimal units and keeps to 64 bits") {
    CHECK(*conf::parse_bytes("16KiB") == 16384);
    CHECK(*conf::parse_bytes("1MiB") == 1048576);
    CHECK(*conf::parse_bytes("2GiB") == 2147483648ULL);
    CHECK(*conf::parse_bytes("64MB") == 64000000);
    CHECK(*conf::parse_bytes("4096") == 4096);
    CHECK(*conf::parse_bytes("1B") == 1);
    CHECK(*conf::parse_bytes("18446744073709551615") == UINT64_MAX);
    for (auto const* text : {"", "K", "1k", "1Kib", "-1", "1.5MiB", "1 MiB", "18446744073709551616", "16777216TiB"}) {
        INFO(text);
        CHECK_FALSE(conf::parse_bytes(text).has_value());
    }
}

TEST_CASE("a host name in upper case is told the mistake that stays in lower case") {
    for (char const* host : {"api.example.com:80", "api..example.com", "api_/x"}) {
        std::string upper(host);
        upper.front() = 'A';
        INFO(host);
        REQUIRE(conf::host_problem(host));
        REQUIRE(conf::host_problem(upper));
        CHECK(conf::host_problem(upper)->remedy == conf::host_problem(host)->remedy);
    }
    REQUIRE(conf::host_problem("API.example.com"));
    CHECK(conf::host_problem("API.example.com")->remedy == "write it in lower case: 'api.example.com'");
}
