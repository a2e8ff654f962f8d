// The change log: which shards a change touched, whoever made it.

#include <set>

#include "tests/keystore/store_support.hpp"

using namespace latchkey;
using namespace latchkey::keystore;
using namespace latchkey::keystore::test;
using namespace latchkey::testing;

TEST_CASE("the change log names the shards of every touched key, whoever touched it and how") {
    scratch_dir const dir;
    auto const file = dir.file("keys.db");
    auto const s = opened(file);
    REQUIRE(s->import_keys(some_rows(300), "lk"));
    auto const a = s->create_key("alice", "lk");
    auto const b = s->create_key("bob", "lk");
    auto const shard_a = shard_of(digest_of(a->key));
    auto const shard_b = shard_of(digest_of(b->key));
    auto since = s->changed_since(0)->newest;
    using shards = std::vector<std::size_t>;
    auto const touched = [&] {
        auto const found = s->changed_since(since);
        REQUIRE(found);
        since = found->newest;
        return found->shards;
    };
    CHECK(touched().empty());
    auto const version = s->data_version().value();

    REQUIRE(s->revoke(a->row.id));
    CHECK(touched() == shards{shard_a});
    CHECK(s->data_version().value() == version);  // our own commit

    auto const sql = [&](std::string const& text) { REQUIRE(shell(file, text) == ""); };
    sql("UPDATE keys SET revoked_ms = 0 WHERE id = '" + a->row.id + "'");
    CHECK(s->data_version().value() != version);
    CHECK(touched() == shards{shard_a});
    sql("UPDATE applications SET name = 'Bob' WHERE name = 'bob'");
    CHECK(touched() == shards{shard_b});
    sql("UPDATE keys SET digest = x'" + std::string(64, '0') + "' WHERE id = '" + a->row.id + "'");
    CHECK(touched() == (shard_a == 0 ? shards{0} : shards{0, shard_a}));
    sql("INSERT OR REPLACE INTO keys SELECT x'" + std::string(64, 'F') +
        "', id, application, prefix, last4, created_ms, 0, 0 FROM keys WHERE id = '" + b->row.id + "'");
    CHECK(touched() == (shard_b == 1023 ? shards{1023} : shards{shard_b, 1023}));
    sql("UPDATE OR REPLACE keys SET id = '" + b->row.id + "' WHERE id = '" + a->row.id + "'");
    CHECK(touched() == shards{0, 1023});
    sql("DELETE FROM keys WHERE id = '" + b->row.id + "'");
    CHECK(touched() == shards{0});
    sql("DELETE FROM keys");
    CHECK(touched().size() > 200);
    CHECK(s->key_count().value() == 0);
}

TEST_CASE("an application that is taken away and put back by hand is in the change log") {
    scratch_dir const dir;
    auto const file = dir.file("keys.db");
    auto const s = opened(file);
    auto const made = s->create_key("alice", "lk");
    auto const index = shard_of(digest_of(made->key));
    auto since = s->changed_since(0)->newest;
    REQUIRE(shell(file, "CREATE TEMP TABLE kept AS SELECT * FROM applications; DELETE FROM applications") == "");
    auto const gone = s->changed_since(since);
    CHECK(gone->shards == std::vector<std::size_t>{index});
    CHECK(s->shard(index)->empty());  // a key without application is no key
    since = gone->newest;
    REQUIRE(shell(file, "INSERT INTO applications (seq, id, name, created_ms) SELECT application, 'back', 'back', 1 FROM keys") ==
            "");
    auto const back = s->changed_since(since);
    CHECK(back->shards == std::vector<std::size_t>{index});
    CHECK(only_entry(*s, made->key).application_id == "back");
    since = back->newest;
    REQUIRE(shell(file,
                  "INSERT OR REPLACE INTO applications (seq, id, name, created_ms) SELECT seq, id, 'new', 1 FROM applications") ==
            "");
    CHECK(s->changed_since(since)->shards == std::vector<std::size_t>{index});
    CHECK(only_entry(*s, made->key).application == "new");
}

TEST_CASE("an import that brings back the keys of an application that was away names their shards too") {
    scratch_dir const dir;
    auto const file = dir.file("keys.db");
    auto const s = opened(file);
    auto const made = s->create_key("alice", "lk");
    REQUIRE(shell(file, "DELETE FROM applications") == "");
    auto const since = s->changed_since(0)->newest;
    std::vector<import_row> const rows{{"bob", make_key("lk"), 2}};
    REQUIRE(s->import_keys(rows, "lk"));
    CHECK(only_entry(*s, made->key).application == "bob");  // the next number is the one that was free
    std::set<std::size_t> const wanted{shard_of(digest_of(made->key)), shard_of(digest_of(rows[0].key))};
    auto const found = s->changed_since(since);
    CHECK(std::set<std::size_t>(found->shards.begin(), found->shards.end()) == wanted);
}

TEST_CASE("after an import, done or refused, the change log goes on") {
    scratch_dir const dir;
    auto const s = opened(dir.file("keys.db"));
    auto rows = some_rows(10);
    REQUIRE(s->import_keys(rows, "lk"));
    auto since = s->changed_since(0)->newest;
    auto const noted = [&](std::string const& name) {
        auto const made = s->create_key(name, "lk");
        REQUIRE(made);
        auto const found = s->changed_since(since);
        since = found->newest;
        return found->shards == std::vector<std::size_t>{shard_of(digest_of(made->key))};
    };
    CHECK(noted("after one that went in"));
    for (auto& r : rows) r.name += " again";
    CHECK(refusal(s->import_keys(rows, "lk")).code == errc::conflict);
    CHECK(s->changed_since(since)->newest == since);
    CHECK(noted("after one that was refused"));
}

TEST_CASE("the change log stays small however much changes") {
    scratch_dir const dir;
    auto const s = opened(dir.file("keys.db"));
    REQUIRE(s->import_keys(some_rows(6000), "lk"));
    for (int i = 0; i < 3; ++i) REQUIRE(shell(dir.file("keys.db"), "UPDATE keys SET last4 = 'abcd'") == "");
    CHECK(std::stoi(shell(dir.file("keys.db"), "SELECT count(*) FROM changes")) <= 4096);
    CHECK(s->changed_since(0)->shards.size() <= shard_count);
    CHECK(s->changed_since(0)->newest >= 18'000);
}

TEST_CASE("a change number from another history means that every shard changed") {
    scratch_dir const dir;
    auto const s = opened(dir.file("keys.db"));
    REQUIRE(s->create_key("alice", "lk"));
    auto const found = s->changed_since(1'000'000);
    REQUIRE(found);
    CHECK(found->shards.size() == shard_count);
    CHECK(found->newest < 1'000'000);
}
