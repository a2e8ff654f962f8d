#include "usage/export.hpp"

#include <unistd.h>

#include <fstream>
#include <random>

#include "base/sqlite.hpp"
#include "tests/usage/support.hpp"

using namespace latchkey;
using namespace latchkey::usage;
using test::sample;
using test::written;

namespace {

std::string csv(journal& j, filter const& f = {}) {
    std::string all;
    auto n = export_csv(j, f, [&](std::string_view piece) { return !all.append(piece).empty(); });
    REQUIRE(n);
    REQUIRE(*n + 1 == static_cast<std::uint64_t>(std::count(all.begin(), all.end(), '\n')));
    return all.substr(csv_columns.size() + 2);
}

std::string cell(std::string_view text) {
    std::string out;
    append_cell(out, text);
    return out;
}

std::string ip_cell(journal& j) {
    auto const all = csv(j);
    auto const from = all.rfind(',') + 1;
    return all.substr(from, all.size() - from - 2);
}

// Of the resident memory over an export of 50 MB. A sanitizer holds freed memory back for a while.
#ifdef LATCHKEY_SANITIZED
constexpr std::size_t growth_max = 40'000'000;
#else
constexpr std::size_t growth_max = 8'000'000;
#endif

std::size_t resident_bytes() {
    std::ifstream f("/proc/self/statm");
    std::size_t whole = 0;
    std::size_t resident = 0;
    f >> whole >> resident;
    return resident * static_cast<std::size_t>(::sysconf(_SC_PAGESIZE));
}

}  // namespace

TEST_CASE("cells are quoted by RFC 4180 and defused against formulas") {
    CHECK(cell("") == "");
    CHECK(cell("plain text") == "plain text");
    CHECK(cell("a,b") == "\"a,b\"");
    CHECK(cell("say \"hi\"") == "\"say \"\"hi\"\"\"");
    CHECK(cell("two\r\nlines") == "\"two\r\nlines\"");
    CHECK(cell("=1+2") == "'=1+2");
    CHECK(cell("+1") == "'+1");
    CHECK(cell("-1") == "'-1");
    CHECK(cell("@SUM(A1)") == "'@SUM(A1)");
    CHECK(cell("\tx") == "'\tx");
    CHECK(cell("\rx") == "\"'\rx\"");
    CHECK(cell("=a,\"b\"") == "\"'=a,\"\"b\"\"\"");
    CHECK(cell("a=b") == "a=b");
}

TEST_CASE("a cell is UTF-8 without controls beyond ASCII, whatever a client sent as its host") {
    CHECK(cell("J\u00f6rg \U0001f511") == "J\u00f6rg \U0001f511");
    CHECK(cell("a\xff"
               "b\xc3") == "a%FFb%C3");
    CHECK(cell("\xc0\xaf") == "%C0%AF");
    CHECK(cell("\xed\xa0\x80") == "%ED%A0%80");
    CHECK(cell("\xc2\x9b"
               "31m") == "%C2%9B31m");  // CSI: a terminal's escape
    CHECK(cell("\x9b,") == "\"%9B,\"");
}

TEST_CASE("the full-width forms of what begins a formula are defused as well") {
    CHECK(cell("\uff1d1") == "'\uff1d1");
    CHECK(cell("\uff0b1") == "'\uff0b1");
    CHECK(cell("\uff0d1") == "'\uff0d1");
    CHECK(cell("\uff20a") == "'\uff20a");
    CHECK(cell("\uff21") == "\uff21");
}

TEST_CASE("a row has every column, in order, in the stated form") {
    test::folder const dir("/tmp");
    written w(dir / "usage.db");
    sample s(1);
    s.r.time_ms = 1'787'393'472'345;
    s.r.application = "=cmd|, Inc.";
    s.r.path = "/v1/\"x\"";
    s.r.duration_us = 1234567;
    s.r.upstream_us = 9;
    s.r.response_bytes = 18'446'744'073'709'551'615ULL;
    s.r.end = outcome::upstream_aborted;
    record refused;
    refused.end = outcome::refused;
    refused.status = 401;
    w.block({s.r, refused});
    CHECK(
        csv(*w.j) ==
        "2026-08-22T10:11:12.345Z,00000000000000000000000000000001,\"'=cmd|, Inc.\",app_0123456789abcdef,key_odd0000000000000,"
        "default,GET,api.example.com,\"/v1/\"\"x\"\"\",200,upstream_aborted,301,18446744073709551615,1234.567,0.009,10.0.0.1\r\n"
        "1970-01-01T00:00:00.000Z,,,,,,,,,401,refused,0,0,0.000,,::\r\n");
}

TEST_CASE("every outcome has its name") {
    std::vector<std::string_view> names;
    for (int o = 0; o <= 6; ++o) names.push_back(to_string(static_cast<outcome>(o)));
    CHECK(names == std::vector<std::string_view>{"served", "refused", "upstream_failed", "upstream_aborted", "client_aborted",
                                                 "timed_out", "shut_down"});
}

TEST_CASE("addresses are written as RFC 5952 says") {
    struct known {
        std::array<unsigned, 8> groups;
        std::string text;
    };
    std::vector<known> const table = {
        {{0, 0, 0, 0, 0, 0xffff, 0xc000, 0x0201}, "192.0.2.1"},
        {{0x2001, 0xdb8, 0, 0, 0, 0, 0, 1}, "2001:db8::1"},
        {{0x2001, 0xdb8, 0, 1, 1, 1, 1, 1}, "2001:db8:0:1:1:1:1:1"},  // 4.2.2: one group is not shortened
        {{0x2001, 0, 0, 1, 0, 0, 0, 1}, "2001:0:0:1::1"},             // 4.2.3: the longest run
        {{0x2001, 0xdb8, 0, 0, 1, 0, 0, 1}, "2001:db8::1:0:0:1"},     // 4.2.3: the first of equals
        {{0, 0, 0, 0, 0, 0, 0, 1}, "::1"},
        {{0, 0, 0, 0, 0, 0, 0, 0}, "::"},
        {{0xfe80, 0, 0, 0, 0, 0, 0, 0}, "fe80::"},
        {{0, 0, 1, 0, 0, 0, 0, 0xABCD}, "0:0:1::abcd"},
        {{1, 2, 3, 4, 5, 6, 7, 8}, "1:2:3:4:5:6:7:8"},
        {{0, 0, 0, 0, 0, 0, 1, 2}, "::1:2"},
    };
    for (auto const& k : table) {
        test::folder const dir("/tmp");
        written w(dir / "usage.db");
        record r;
        for (std::size_t i = 0; i < 8; ++i) {
            r.client_ip[2 * i] = static_cast<unsigned char>(k.groups[i] >> 8U);
            r.client_ip[2 * i + 1] = static_cast<unsigned char>(k.groups[i]);
        }
        w.block({r});
        CHECK(ip_cell(*w.j) == k.text);
    }
}

TEST_CASE("filters choose by time, key and application, record by record") {
    test::folder const dir("/tmp");
    written w(dir / "usage.db");
    for (std::uint64_t b = 0; b < 4; ++b) w.numbers(b * 100, b * 100 + 100);
    auto const rows = [&](filter const& f) {
        auto const all = csv(*w.j, f);
        return std::count(all.begin(), all.end(), '\n');
    };
    std::int64_t const zero = 1'790'000'000'000;
    CHECK(rows({}) == 400);
    CHECK(rows({zero + 150, zero + 250, "", ""}) == 100);
    CHECK(rows({zero + 150, zero + 151, "", ""}) == 1);
    CHECK(rows({zero + 150, zero + 150, "", ""}) == 0);
    filter odd;
    odd.key_id = "key_odd0000000000000";
    CHECK(rows(odd) == 200);
    filter nobody;
    nobody.application_id = "app_none";
    CHECK(rows(nobody) == 0);
    filter both = odd;
    both.application_id = "app_0123456789abcdef";
    both.to_ms = zero + 10;
    CHECK(rows(both) == 5);
}

TEST_CASE("whether a record fits is known without an export") {
    test::folder const dir("/tmp");
    written w(dir / "usage.db");
    w.numbers(0, 10'000);
    sample const last(9'999);
    filter f;
    CHECK(*has_record(*w.j, f));
    f.key_id = last.r.key_id;
    CHECK(*has_record(*w.j, f));
    f.from_ms = last.r.time_ms + 1;
    CHECK_FALSE(*has_record(*w.j, f));
    f = {};
    f.key_id = "key_none";
    CHECK_FALSE(*has_record(*w.j, f));
    f = {};
    f.application_id = last.r.application_id;
    CHECK(*has_record(*w.j, f));
}

TEST_CASE("a reader that goes away ends the export at once") {
    test::folder const dir("/tmp");
    written w(dir / "usage.db");
    for (std::uint64_t b = 0; b < 4; ++b) w.numbers(b * 2000, b * 2000 + 2000);
    int pieces = 0;
    auto n = export_csv(*w.j, {}, [&](std::string_view) { return ++pieces < 3; });
    REQUIRE(n);
    CHECK(pieces == 3);
    CHECK(*n < 8000);
}

TEST_CASE("a damaged block makes the result corrupt, after every other record was written") {
    test::folder const dir("/tmp");
    {
        written w(dir / "usage.db");
        for (std::uint64_t b = 0; b < 3; ++b) w.numbers(b * 10, b * 10 + 10);
    }
    {
        auto db = sqlite::database::open(dir / "usage.db", {});
        REQUIRE(db);
        REQUIRE(db->exec("UPDATE blocks SET data = substr(data, 1, length(data) - 3) WHERE id = 2"));
    }
    written w(dir / "usage.db");
    std::string all;
    auto n = export_csv(*w.j, {}, [&](std::string_view piece) { return !all.append(piece).empty(); });
    REQUIRE_FALSE(n);
    CHECK(n.error().code == errc::corrupt);
    CHECK(std::count(all.begin(), all.end(), '\n') == 21);
}

TEST_CASE("an export that is cut short is no export with a block left out") {
    test::folder const dir("/tmp");
    auto const file = dir / "usage.db";
    {
        written w(file);
        w.numbers(0, 40'000);
    }
    auto const bytes = std::filesystem::file_size(file);
    std::fstream(file, std::ios::in | std::ios::out | std::ios::binary).seekp(static_cast<std::streamoff>(bytes / 2))
        << std::string(65536, '\xff');
    auto j = journal::open(file, journal::mode::read_only);
    REQUIRE(j);
    auto const n = export_csv(**j, {}, [](std::string_view) { return true; });
    REQUIRE_FALSE(n);
    CHECK(n.error().code == errc::io);
}

TEST_CASE("memory does not grow with the length of an export") {
    test::folder const dir("/tmp");
    written w(dir / "usage.db");
    for (std::uint64_t b = 0; b < 40; ++b) w.numbers(b * 8000, b * 8000 + 8000);
    std::size_t bytes = 0;
    std::size_t early = 0;
    std::size_t most = 0;
    auto n = export_csv(*w.j, {}, [&](std::string_view piece) {
        bytes += piece.size();
        if (bytes < 8'000'000) return true;
        if (early == 0) early = resident_bytes();
        most = std::max(most, resident_bytes());
        return true;
    });
    REQUIRE(n);
    CHECK(*n == 320'000);
    CHECK(bytes > 50'000'000);
    CHECK(most < early + growth_max);
}
