#include "keystore/key_table.hpp"

#include <fmt/format.h>

#include <atomic>
#include <map>
#include <thread>

#include "tests/catch.hpp"

using namespace latchkey::keystore;

namespace {

key_entry entry(std::string const& key, std::string application = "alice") {
    key_entry e;
    e.hash = digest_of(key);
    e.key_id = "key_" + key;
    e.application_id = "app_1";
    e.application = std::move(application);
    return e;
}

// Entries whose digests collide in all the bits that choose shard, slot and tag: only the rest tells them apart.
key_entry twin(unsigned char last) {
    key_entry e = entry(fmt::format("twin{}", last));
    e.hash.fill(7);
    e.hash[31] = last;
    return e;
}

}  // namespace

TEST_CASE("an empty table and an empty shard know no key") {
    key_view out;
    CHECK_FALSE(key_table().find(digest_of("x"), out));
    CHECK_FALSE(key_shard({}).find(digest_of("x"), out));
    CHECK(key_table().size() == 0);
}

TEST_CASE("a shard gives back each entry as it was built") {
    std::vector<key_entry> entries;
    for (int i = 0; i < 3000; ++i) {
        auto e = entry(fmt::format("k{}", i), fmt::format("app {} é%", i));
        e.application_id = fmt::format("app_{}", i);
        e.expires_ms = i % 3 == 0 ? 1'700'000'000'000 + i : 0;
        e.state = static_cast<key_state>(i % 3);
        entries.push_back(e);
    }
    key_shard const shard(entries);
    REQUIRE(shard.size() == 3000);
    for (auto const& e : entries) {
        key_view v;
        REQUIRE(shard.find(e.hash, v));
        REQUIRE(v.key_id == e.key_id);
        REQUIRE(v.application_id == e.application_id);
        REQUIRE(v.application == e.application);
        REQUIRE(v.username == percent_encoded(e.application));
        REQUIRE(v.expires_ms == e.expires_ms);
        REQUIRE(v.state == e.state);
    }
    key_view v;
    for (int i = 3000; i < 6000; ++i) REQUIRE_FALSE(shard.find(digest_of(fmt::format("k{}", i)), v));
}

TEST_CASE("shards of every small size find all and only their keys") {
    for (std::size_t count = 1; count < 70; ++count) {
        std::vector<key_entry> entries;
        for (std::size_t i = 0; i < count; ++i) entries.push_back(entry(fmt::format("{}-{}", count, i)));
        key_shard const shard(entries);
        key_view v;
        for (auto const& e : entries) REQUIRE(shard.find(e.hash, v));
        for (int i = 0; i < 200; ++i) REQUIRE_FALSE(shard.find(digest_of(fmt::format("no{}-{}", count, i)), v));
    }
}

TEST_CASE("digests that differ in their last byte only are told apart") {
    std::vector<key_entry> entries;
    for (int i = 0; i < 200; ++i) entries.push_back(twin(static_cast<unsigned char>(i)));
    key_shard const shard(entries);
    key_view v;
    for (int i = 0; i < 256; ++i) {
        auto const e = twin(static_cast<unsigned char>(i));
        REQUIRE(shard.find(e.hash, v) == (i < 200));
        if (i < 200) REQUIRE(v.key_id == e.key_id);
    }
}

TEST_CASE("the longest texts fit, and a longer one is refused") {
    auto e = entry("long", std::string(200, '\xff'));
    e.key_id = std::string(64, 'k');
    e.application_id = std::string(64, 'a');
    key_shard const shard({e});
    key_view v;
    REQUIRE(shard.find(e.hash, v));
    CHECK(v.application == e.application);
    CHECK(v.username.size() == 600);
    CHECK(v.key_id == e.key_id);
    CHECK(v.application_id == e.application_id);
    e.application += 'x';
    CHECK_THROWS_AS(key_shard({e}), std::length_error);
    e.application = "ok";
    e.key_id += 'x';
    CHECK_THROWS_AS(key_shard({e}), std::length_error);
}

TEST_CASE("a username that equals the name is the name's own bytes") {
    auto const e = entry("plain", "plain-name");
    key_shard const shard({e});
    key_view v;
    REQUIRE(shard.find(e.hash, v));
    CHECK(static_cast<void const*>(v.username.data()) == static_cast<void const*>(v.application.data()));
}

TEST_CASE("percent encoding leaves visible ASCII but the percent sign") {
    CHECK(percent_encoded("alice@example.org") == "alice@example.org");
    CHECK(percent_encoded("a b") == "a%20b");
    CHECK(percent_encoded("100%") == "100%25");
    CHECK(percent_encoded("Zoë") == "Zo%C3%AB");
    CHECK(percent_encoded("a\r\nb\x7f") == "a%0D%0Ab%7F");
    CHECK(percent_encoded("") == "");
}

TEST_CASE("the shard of a digest is its first ten bits") {
    digest d{};
    CHECK(shard_of(d) == 0);
    d[0] = 0xff;
    d[1] = 0xff;
    CHECK(shard_of(d) == shard_count - 1);
    d[0] = 0x01;
    d[1] = 0x7f;
    CHECK(shard_of(d) == 5);
}

TEST_CASE("apply swaps shards in and counts the revision up") {
    key_table table;
    auto const e = entry("one");
    auto const before = table.revision();
    table.apply({{shard_of(e.hash), std::make_shared<key_shard const>(std::vector<key_entry>{e})}});
    key_view v;
    CHECK(table.revision() == before + 1);
    CHECK(table.size() == 1);
    REQUIRE(table.find(e.hash, v));
    table.apply({{shard_of(e.hash), std::make_shared<key_shard const>(std::vector<key_entry>{})}});
    CHECK(table.revision() == before + 2);
    CHECK(table.size() == 0);
    CHECK_FALSE(table.find(e.hash, v));
    CHECK_THROWS_AS(table.apply({{shard_count, nullptr}}), std::out_of_range);
}

TEST_CASE("many threads read one shard at once") {
    std::vector<key_entry> entries;
    for (int i = 0; i < 500; ++i) entries.push_back(entry(fmt::format("t{}", i)));
    auto const shard = std::make_shared<key_shard const>(entries);
    std::atomic<int> found{0};
    std::vector<std::thread> readers;
    for (int t = 0; t < 4; ++t)
        readers.emplace_back([&, mine = shard] {
            key_view v;
            for (auto const& e : entries) found += mine->find(e.hash, v) && v.key_id == e.key_id ? 1 : 0;
        });
    for (auto& r : readers) r.join();
    CHECK(found == 2000);
}
