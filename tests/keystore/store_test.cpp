#include "keystore/store.hpp"

#include <set>

#include "tests/keystore/store_support.hpp"

using namespace latchkey;
using namespace latchkey::keystore;
using namespace latchkey::keystore::test;
using namespace latchkey::testing;

TEST_CASE("a created key is found by its id and by its digest") {
    scratch_dir const dir;
    auto const s = opened(dir.file("keys.db"));
    auto const made = s->create_key("Zoë's app", "lk");
    REQUIRE(made);
    CHECK(shape_of(made->key, "lk") == key_shape::ours);
    CHECK(made->row.id.starts_with("key_"));
    CHECK(made->row.application_id.starts_with("app_"));
    CHECK(made->row.name == "Zoë's app");
    CHECK(made->row.prefix == "lk");
    CHECK(made->row.last4 == made->key.substr(made->key.size() - 4));
    CHECK(made->row.created_ms > 1'600'000'000'000);
    CHECK(made->row.revoked_ms == 0);
    auto const found = s->find(made->row.id);
    REQUIRE(found);
    CHECK(found->name == made->row.name);
    auto const e = only_entry(*s, made->key);
    CHECK(e.key_id == made->row.id);
    CHECK(e.application_id == made->row.application_id);
    CHECK(e.application == made->row.name);
    CHECK(e.state == key_state::active);
    CHECK(s->key_count().value() == 1);
}

TEST_CASE("no byte of a key but prefix and last four is in the files") {
    scratch_dir const dir;
    std::string created;
    {
        auto const s = opened(dir.file("keys.db"));
        created = s->create_key("alice", "lk")->key;
        REQUIRE(s->import_keys({{"bob", "an-imported-secret-key", 2}}, "lk"));
        for (auto const* suffix : {"", "-wal"}) {
            auto const bytes = read_file(dir.file(std::string("keys.db") + suffix));
            CHECK_FALSE(has(bytes, created.substr(4, 10)));
            CHECK_FALSE(has(bytes, "imported-sec"));
        }
    }
    CHECK_FALSE(has(read_file(dir.file("keys.db")), created.substr(4, 10)));
}

TEST_CASE("an application can have several keys and goes with the last of them") {
    scratch_dir const dir;
    auto const s = opened(dir.file("keys.db"));
    auto const first = s->create_key("alice", "lk");
    REQUIRE(first);
    auto const second = s->create_key("ignored", "lk", first->row.application_id);
    REQUIRE(second);
    CHECK(second->row.name == "alice");
    CHECK(second->row.application_id == first->row.application_id);
    CHECK(refusal(s->create_key("x", "lk", "app_nobody")).code == errc::not_found);
    REQUIRE(s->remove(first->row.id));
    CHECK(shell(dir.file("keys.db"), "SELECT count(*) FROM applications") == "1");
    auto const removed = s->remove(second->row.id);
    REQUIRE(removed);
    CHECK(removed->id == second->row.id);
    CHECK(shell(dir.file("keys.db"), "SELECT count(*) FROM applications") == "0");
    CHECK(refusal(s->find(second->row.id)).code == errc::not_found);
    CHECK(refusal(s->remove(second->row.id)).code == errc::not_found);
}

TEST_CASE("names are 1 to 200 bytes of UTF-8 without control characters") {
    scratch_dir const dir;
    auto const s = opened(dir.file("keys.db"));
    for (std::string const& bad :
         {std::string(), std::string(201, 'a'), std::string("a\nb"), std::string("a\0b", 3), std::string("\x7f"),
          std::string("\xC2\x85"), std::string("\xff"), std::string("\xC0\xAF"), std::string("\xED\xA0\x80"),
          std::string("\xF4\x90\x80\x80"), std::string("\xE2\x82"), std::string("\xE0\x80\x80")}) {
        CAPTURE(bad);
        CHECK(refusal(s->create_key(bad, "lk")).code == errc::invalid_argument);
    }
    for (std::string const& good :
         {std::string(200, 'a'), std::string("日本語 😀"), std::string("a,b;\"c\""), std::string("\xC2\xA0")}) {
        CAPTURE(good);
        CHECK(s->create_key(good, "lk"));
    }
    CHECK(s->key_count().value() == 4);
}

TEST_CASE("revoking twice keeps the first time") {
    scratch_dir const dir;
    auto const s = opened(dir.file("keys.db"));
    auto const made = s->create_key("alice", "lk");
    auto const first = s->revoke(made->row.id);
    REQUIRE(first);
    CHECK(first->revoked_ms >= first->created_ms);
    REQUIRE(shell(dir.file("keys.db"), "UPDATE keys SET revoked_ms = 12345") == "");
    CHECK(s->revoke(made->row.id)->revoked_ms == 12345);
    CHECK(only_entry(*s, made->key).state == key_state::revoked);
    CHECK(refusal(s->revoke("key_nobody")).code == errc::not_found);
}

TEST_CASE("a key given in the place of its id is not repeated in the message") {
    scratch_dir const dir;
    auto const s = opened(dir.file("keys.db"));
    auto const made = s->create_key("alice", "lk");
    CHECK_FALSE(has(refusal(s->find(made->key)).message, made->key.substr(3, 8)));
    CHECK(has(refusal(s->find("key_abc")).message, "key_abc"));
}

TEST_CASE("states come from the rows: revoked before disabled before active, and expiry") {
    scratch_dir const dir;
    auto const s = opened(dir.file("keys.db"));
    auto const made = s->create_key("alice", "lk");
    REQUIRE(shell(dir.file("keys.db"), "UPDATE applications SET disabled_ms = 5; UPDATE keys SET expires_ms = 77") == "");
    CHECK(only_entry(*s, made->key).state == key_state::disabled);
    CHECK(only_entry(*s, made->key).expires_ms == 77);
    REQUIRE(s->revoke(made->row.id));
    CHECK(only_entry(*s, made->key).state == key_state::revoked);
}

TEST_CASE("pages go through all keys in order of creation, each once") {
    scratch_dir const dir;
    auto const s = opened(dir.file("keys.db"));
    REQUIRE(s->import_keys(some_rows(25), "lk"));
    for (int i = 0; i < 5; ++i) REQUIRE(s->create_key("later", "lk"));
    std::vector<std::string> ids;
    std::string after;
    std::int64_t newest = 0;
    for (;;) {
        auto const page = s->list(after, 7);
        REQUIRE(page);
        for (auto const& r : *page) {
            CHECK(r.created_ms >= newest);
            newest = r.created_ms;
            ids.push_back(r.id);
        }
        if (page->size() < 7) break;
        after = page->back().id;
    }
    CHECK(ids.size() == 30);
    CHECK(std::set<std::string>(ids.begin(), ids.end()).size() == 30);
    CHECK(refusal(s->list("", 0)).code == errc::invalid_argument);
    CHECK(refusal(s->list("", 10'001)).code == errc::invalid_argument);
    CHECK(refusal(s->list("key_gone", 5)).code == errc::not_found);
}

TEST_CASE("shards hold exactly their digests, one by one and in the ordered scan") {
    scratch_dir const dir;
    auto const s = opened(dir.file("keys.db"));
    auto const rows = some_rows(5000);
    REQUIRE(s->import_keys(rows, "lk"));
    std::size_t expected = 0;
    std::size_t total = 0;
    auto const scanned = s->each_shard([&](std::size_t index, std::vector<key_entry> const& entries) {
        REQUIRE(index == expected++);
        auto const alone = s->shard(index);
        REQUIRE(alone);
        REQUIRE(alone->size() == entries.size());
        for (std::size_t i = 0; i < entries.size(); ++i) {
            REQUIRE(shard_of(entries[i].hash) == index);
            REQUIRE(entries[i].hash == (*alone)[i].hash);
            REQUIRE(entries[i].key_id == (*alone)[i].key_id);
        }
        total += entries.size();
    });
    REQUIRE(scanned);
    CHECK(expected == shard_count);
    CHECK(total == rows.size());
    CHECK(refusal(s->shard(shard_count)).code == errc::invalid_argument);
}

TEST_CASE("digests at both ends of the range are in the first and the last shard") {
    scratch_dir const dir;
    auto const s = opened(dir.file("keys.db"));
    REQUIRE(s->create_key("alice", "lk"));
    shell(
        dir.file("keys.db"),
        "INSERT INTO keys (digest, id, application, prefix, last4, created_ms) VALUES (zeroblob(32), 'key_first', 1, '', '', 1), "
        "(x'" +
            std::string(64, 'F') + "', 'key_last', 1, '', '', 1)");
    CHECK(s->shard(0)->front().key_id == "key_first");
    CHECK(s->shard(shard_count - 1)->back().key_id == "key_last");
}
