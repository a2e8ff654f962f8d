// What an import makes of its rows, and what it refuses.

#include "tests/keystore/store_support.hpp"

using namespace latchkey;
using namespace latchkey::keystore;
using namespace latchkey::keystore::test;
using namespace latchkey::testing;

TEST_CASE("an import makes one application a name, with the name as its id where it can be one") {
    scratch_dir const dir;
    auto const s = opened(dir.file("keys.db"));
    std::string const long_name(65, 'a');
    std::vector<import_row> const rows{{"alice", "alice-key-number-1", 2},
                                       {"alice", "alice-key-number-2", 3},
                                       {"bob smith", "bob-key-number-0001", 4},
                                       {long_name, "long-key-number-001", 5},
                                       {"A.b_c-9", "lk_" + good_body + "0LsakP", 6}};
    auto const report = s->import_keys(rows, "lk");
    REQUIRE(report);
    CHECK(report->imported == 5);
    CHECK(report->unchanged == 0);
    auto const one = only_entry(*s, rows[0].key);
    CHECK(one.application_id == "alice");
    CHECK(only_entry(*s, rows[1].key).application_id == "alice");
    CHECK(only_entry(*s, rows[2].key).application_id.starts_with("app_"));
    CHECK(only_entry(*s, rows[3].key).application_id.starts_with("app_"));
    CHECK(only_entry(*s, rows[4].key).application_id == "A.b_c-9");
    auto const foreign = s->find(one.key_id);
    CHECK(foreign->prefix == "alic");
    CHECK(foreign->last4 == "er-1");
    auto const ours = s->find(only_entry(*s, rows[4].key).key_id);
    CHECK(ours->prefix == "lk");
    CHECK(ours->last4 == "sakP");
}

TEST_CASE("an imported name that is another application's id gets an id of its own") {
    scratch_dir const dir;
    auto const s = opened(dir.file("keys.db"));
    auto const made = s->create_key("Somebody", "lk");
    std::string const taken = made->row.application_id;
    REQUIRE(s->import_keys({{taken, "a-key-of-somebody-else", 2}}, "lk"));
    auto const e = only_entry(*s, "a-key-of-somebody-else");
    CHECK(e.application == taken);
    CHECK(e.application_id != taken);
}

TEST_CASE("the same import again changes nothing") {
    scratch_dir const dir;
    auto const s = opened(dir.file("keys.db"));
    auto const rows = some_rows(50);
    REQUIRE(s->import_keys(rows, "lk"));
    auto const before = s->changed_since(0)->newest;
    auto const report = s->import_keys(rows, "lk");
    REQUIRE(report);
    CHECK(report->imported == 0);
    CHECK(report->unchanged == 50);
    CHECK(s->changed_since(0)->newest == before);
    auto const twice = s->import_keys({{"dup", "dup-key-number-0001", 2}, {"dup", "dup-key-number-0001", 3}}, "lk");
    REQUIRE(twice);
    CHECK(twice->imported == 1);
    CHECK(twice->unchanged == 1);
}

TEST_CASE("an import does not bring a revoked key back, and tells it from one that works") {
    scratch_dir const dir;
    auto const s = opened(dir.file("keys.db"));
    std::vector<import_row> const rows{{"ann", "ann-key-number-0001", 2}, {"ann", "ann-key-number-0002", 3}};
    REQUIRE(s->import_keys(rows, "lk"));
    auto const entry = only_entry(*s, rows[0].key);
    REQUIRE(s->revoke(entry.key_id));
    auto const report = s->import_keys(rows, "lk");
    REQUIRE(report);
    CHECK(report->imported == 0);
    CHECK(report->unchanged == 1);
    CHECK(report->revoked == 1);
    CHECK(only_entry(*s, rows[0].key).state == key_state::revoked);
    CHECK_FALSE(s->import_keys({{"eve", rows[0].key, 2}}, "lk"));  // still somebody's
}

TEST_CASE("an import with one row that cannot go in imports nothing and names the line, never the key") {
    scratch_dir const dir;
    auto const s = opened(dir.file("keys.db"));
    REQUIRE(s->import_keys({{"alice", "alice-key-number-1", 2}}, "lk"));
    auto rows = some_rows(40);
    auto const refused = [&](import_row bad, errc code) {
        bad.line = 17;
        rows[15] = bad;
        auto const e = refusal(s->import_keys(rows, "lk"));
        CHECK(e.code == code);
        CHECK(has(e.message, "line 17: "));
        if (bad.key.size() > 4) CHECK_FALSE(has(e.message, bad.key));
        CHECK(s->key_count().value() == 1);
        CHECK(shell(dir.file("keys.db"), "SELECT count(*) FROM applications") == "1");
    };
    refused({"mallory", "alice-key-number-1", 0}, errc::conflict);
    refused({"user000003", rows[4].key, 0}, errc::conflict);  // the same key twice in the file, under two names
    refused({"bob", "short", 0}, errc::invalid_argument);
    refused({"bob", "has a space in the key", 0}, errc::invalid_argument);
    refused({"bob", std::string(256, 'k'), 0}, errc::invalid_argument);
    refused({"bob", "lk_" + good_body + "0LsakQ", 0}, errc::invalid_argument);
    refused({"", "fine-key-number-0001", 0}, errc::invalid_argument);
    refused({"bad\tname", "fine-key-number-0001", 0}, errc::invalid_argument);
}

TEST_CASE("of several conflicts the first line of the file is named") {
    scratch_dir const dir;
    auto const s = opened(dir.file("keys.db"));
    auto rows = some_rows(30);
    REQUIRE(s->import_keys(rows, "lk"));
    for (auto& r : rows) r.name += "-other";
    auto const e = refusal(s->import_keys(rows, "lk"));
    CHECK(e.code == errc::conflict);
    CHECK(has(e.message, "line 2: "));
    CHECK(has(e.message, "30 lines"));
}
