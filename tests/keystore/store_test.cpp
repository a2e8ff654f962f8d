#include "keystore/store.hpp"

#include <fmt/format.h>
#include <sys/resource.h>

#include <algorithm>
#include <csignal>
#include <set>

#include "base/ids.hpp"
#include "tests/base/scratch.hpp"

using namespace latchkey;
using namespace latchkey::keystore;
using namespace latchkey::testing;

namespace {

std::string const good_body = "qkJaB6MffYVzZXWqmcoF49yrUxP3wf";

std::unique_ptr<store> opened(std::string const& file) {
    auto s = store::open(file, {});
    INFO((s ? std::string() : s.error().message));
    REQUIRE(s);
    return std::move(*s);
}

std::vector<import_row> some_rows(std::size_t count, std::string const& stem = "user") {
    std::vector<import_row> rows;
    rows.reserve(count);
    for (std::size_t i = 0; i < count; ++i) rows.push_back({fmt::format("{}{:06}", stem, i), make_key("lk"), i + 2});
    return rows;
}

template <class T>
error refusal(result<T> const& r) {
    REQUIRE(r.has_error());
    INFO(r.error().message);
    CHECK_FALSE(r.error().message.empty());
    return r.error();
}

bool has(std::string const& text, std::string const& part) { return text.find(part) != std::string::npos; }

// As an operating system user that owns nothing here, where the tests run as root.
int as_nobody(std::function<int()> const& work) {
    return in_child([&] {
        if (::geteuid() == 0 && (::setgid(65534) != 0 || ::setuid(65534) != 0)) return 99;
        return work();
    });
}

key_entry only_entry(store& s, std::string const& key) {
    auto const hash = digest_of(key);
    auto const entries = s.shard(shard_of(hash));
    REQUIRE(entries);
    auto const at = std::find_if(entries->begin(), entries->end(), [&](auto const& e) { return e.hash == hash; });
    REQUIRE(at != entries->end());
    return *at;
}

}  // namespace

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

TEST_CASE("the files are for their owner only, and a laxer mode is tightened") {
    scratch_dir const dir;
    auto const file = dir.file("keys.db");
    auto const umask_before = ::umask(0);
    {
        auto const s = opened(file);
        REQUIRE(s->create_key("alice", "lk"));
        CHECK(mode_of(file) == 0600);
        CHECK(mode_of(file + "-wal") == 0600);
        CHECK(mode_of(file + "-shm") == 0600);
    }
    ::umask(umask_before);
    REQUIRE(::chmod(file.c_str(), 0644) == 0);
    auto const s = opened(file);
    CHECK(mode_of(file) == 0600);
}

TEST_CASE("the file is set up for safety") {
    scratch_dir const dir;
    auto const file = dir.file("keys.db");
    auto const s = opened(file);
    CHECK(shell(file, "PRAGMA journal_mode") == "wal");
    CHECK(shell(file, "PRAGMA user_version") == "1");
    CHECK(shell(file, "PRAGMA application_id") == std::to_string(0x4c4b4b59));
    CHECK(shell(file,
                "SELECT group_concat(strict) FROM pragma_table_list WHERE schema = 'main' AND name IN "
                "('keys', 'applications', 'changes', 'change_counter')") == "1,1,1,1");
}

TEST_CASE("a missing file is not found where none may be made") {
    scratch_dir const dir;
    auto const r = store::open(dir.file("keys.db"), {.create = false});
    CHECK(refusal(r).code == errc::not_found);
    CHECK(has(r.error().message, dir.file("keys.db")));
    CHECK_FALSE(std::filesystem::exists(dir.file("keys.db")));
}

TEST_CASE("what is no key store is refused, each with its own sentence, and stays as it was") {
    scratch_dir const dir;
    auto const file = dir.file("keys.db");
    std::filesystem::create_directory(dir.file("folder"));
    auto const folder = refusal(store::open(dir.file("folder"), {}));
    CHECK(folder.code == errc::io);
    CHECK(has(folder.message, "is a folder"));
    auto const nowhere = refusal(store::open(dir.file("none/keys.db"), {}));
    CHECK(nowhere.code == errc::io);
    CHECK(has(nowhere.message, "folder does not exist"));
    CHECK(refusal(store::open("", {})).code == errc::invalid_argument);
    CHECK(refusal(store::open(":memory:", {})).code == errc::invalid_argument);

    std::string const text(5000, 'x');
    write_file(file, text);
    auto const no_database = refusal(store::open(file, {}));
    CHECK(no_database.code == errc::corrupt);
    CHECK(has(no_database.message, "not a SQLite database"));
    CHECK(read_file(file) == text);
    std::filesystem::remove(file);

    shell(file, "CREATE TABLE t (x); PRAGMA application_id = 77");
    auto const other = read_file(file);
    auto const foreign = refusal(store::open(file, {}));
    CHECK(foreign.code == errc::corrupt);
    CHECK(has(foreign.message, "another program"));
    CHECK(read_file(file) == other);
    shell(file, "PRAGMA application_id = 0");
    CHECK(has(refusal(store::open(file, {})).message, "another program"));
}

TEST_CASE("a file of a later Latchkey is refused") {
    scratch_dir const dir;
    auto const file = dir.file("keys.db");
    { REQUIRE(opened(file)->create_key("alice", "lk")); }
    shell(file, "PRAGMA user_version = 99");
    auto const e = refusal(store::open(file, {}));
    CHECK(e.code == errc::newer_schema);
    CHECK(has(e.message, "99"));
    shell(file, "PRAGMA user_version = 1");
    CHECK(opened(file)->key_count().value() == 1);
}

TEST_CASE("damage anywhere in the file is refused at opening or answers as damage, and never crashes") {
    scratch_dir const dir;
    auto const file = dir.file("keys.db");
    { REQUIRE(opened(file)->import_keys(some_rows(2000), "lk")); }
    auto const whole = read_file(file);
    REQUIRE(whole.size() > 40 * 4096);
    std::size_t refused = 0;
    for (std::size_t page = 1; page < whole.size() / 4096; page += 7) {
        auto broken = whole;
        for (std::size_t i = 0; i < 64; ++i) broken[page * 4096 + i] = static_cast<char>(0xa5);
        write_file(file, broken);
        auto const s = store::open(file, {});
        if (!s) {
            CHECK(s.error().code == errc::corrupt);
            CHECK(has(s.error().message, "restore"));
            ++refused;
        }
    }
    CHECK(refused >= whole.size() / 4096 / 7 - 1);
    write_file(file, whole.substr(0, whole.size() / 2 / 4096 * 4096));  // cut off
    CHECK(refusal(store::open(file, {})).code == errc::corrupt);
}

TEST_CASE("damage where reading the keys does not come by is found by the check, while the store is in use") {
    scratch_dir const dir;
    auto const file = dir.file("keys.db");
    { REQUIRE(opened(file)->import_keys(some_rows(2000), "lk")); }
    REQUIRE(store::check(file));
    auto const root = std::stoul(shell(file, "SELECT rootpage FROM sqlite_schema WHERE name = 'keys_by_creation'"));
    auto broken = read_file(file);
    std::fill_n(broken.begin() + static_cast<std::ptrdiff_t>((root - 1) * 4096), 4096, static_cast<char>(0xa5));
    write_file(file, broken);
    CHECK(refusal(store::open(file, {})).code == errc::corrupt);
    auto const s = store::open(file, {.check = false});
    REQUIRE(s);
    std::size_t keys = 0;
    REQUIRE((*s)->each_shard([&](std::size_t, auto const& entries) { keys += entries.size(); }));
    CHECK(keys == 2000);
    auto const found = refusal(store::check(file));
    CHECK(found.code == errc::corrupt);
    CHECK(has(found.message, "restore a backup"));
    CHECK(refusal(store::check(dir.file("none.db"))).code == errc::not_found);
}

TEST_CASE("a file that has to be migrated is checked first, whatever was asked") {
    scratch_dir const dir;
    auto const file = dir.file("keys.db");
    { REQUIRE(opened(file)->import_keys(some_rows(2000), "lk")); }
    auto const root = std::stoul(shell(file, "SELECT rootpage FROM sqlite_schema WHERE name = 'keys_by_creation'"));
    shell(file, "PRAGMA user_version = 0; PRAGMA wal_checkpoint(TRUNCATE)");
    auto broken = read_file(file);
    std::fill_n(broken.begin() + static_cast<std::ptrdiff_t>((root - 1) * 4096), 4096, static_cast<char>(0xa5));
    write_file(file, broken);
    CHECK(has(refusal(store::open(file, {.check = false})).message, "is damaged"));
    CHECK(read_file(file) == broken);
}

TEST_CASE("a file or folder that cannot be written is said at opening") {
    scratch_dir const dir;
    auto const file = dir.file("keys.db");
    { opened(file); }
    auto const refused_as_nobody = [&](std::string const& path, std::string const& word) {
        return as_nobody([&] {
            auto const s = store::open(path, {});
            if (s) return 1;
            return s.error().code == errc::io && has(s.error().message, path) && has(s.error().message, word) ? 0 : 2;
        });
    };
    REQUIRE(::chmod(dir.file("").c_str(), 0755) == 0);
    REQUIRE(::chmod(file.c_str(), 0400) == 0);
    CHECK(refused_as_nobody(file, "check owner and mode") == 0);
    if (::geteuid() == 0) {
        REQUIRE(::chmod(file.c_str(), 0644) == 0);
        CHECK(refused_as_nobody(file, "chmod 600") == 0);  // not ours to tighten
    }
    REQUIRE(::chmod(dir.file("").c_str(), 0555) == 0);
    CHECK(refused_as_nobody(dir.file("new.db"), "check owner and mode") == 0);
    REQUIRE(::chmod(dir.file("").c_str(), 0755) == 0);
}

TEST_CASE("a lock of another process is waited for, then said, and reading goes on") {
    scratch_dir const dir;
    auto const file = dir.file("keys.db");
    auto s = store::open(file, {.create = true, .busy_timeout = std::chrono::milliseconds(30)});
    REQUIRE(s);
    auto const made = (*s)->create_key("alice", "lk");
    REQUIRE(made);
    {
        sqlite_shell other(file);
        REQUIRE(other.run("BEGIN IMMEDIATE") == "");
        auto const e = refusal((*s)->revoke(made->row.id));
        CHECK(e.code == errc::busy);
        CHECK(has(e.message, file));
        CHECK(refusal((*s)->create_key("bob", "lk")).code == errc::busy);
        CHECK(refusal((*s)->import_keys(some_rows(1), "lk")).code == errc::busy);
        CHECK(refusal((*s)->check_writable()).code == errc::busy);
        CHECK((*s)->find(made->row.id));
        CHECK((*s)->list("", 10)->size() == 1);
    }
    CHECK((*s)->check_writable());
    CHECK((*s)->revoke(made->row.id));
    s->reset();
    {
        sqlite_shell other(file);
        other.run("PRAGMA locking_mode = EXCLUSIVE; BEGIN EXCLUSIVE");
        CHECK(refusal(store::open(file, {.create = true, .busy_timeout = std::chrono::milliseconds(30)})).code == errc::busy);
    }
    CHECK(opened(file)->key_count().value() == 1);
}

TEST_CASE("a file that is deleted or replaced while open is neither read nor written") {
    scratch_dir const dir;
    auto const file = dir.file("keys.db");
    auto const s = opened(file);
    auto const made = s->create_key("alice", "lk");
    std::filesystem::rename(file, dir.file("away.db"));
    for (auto const& e : {refusal(s->create_key("bob", "lk")), refusal(s->data_version()), refusal(s->find(made->row.id)),
                          refusal(s->list("", 5)), refusal(s->changed_since(0)), refusal(s->shard(0)), refusal(s->key_count()),
                          refusal(s->each_shard([](auto, auto const&) { FAIL("visited"); }))}) {
        CHECK(e.code == errc::io);
        CHECK(has(e.message, "deleted"));
    }
    write_file(file, "");
    CHECK(has(refusal(s->revoke(made->row.id)).message, "replaced"));
    std::filesystem::rename(dir.file("away.db"), file);
    CHECK(s->revoke(made->row.id));
}

TEST_CASE("a write for which there is no space changes nothing and says so") {
    scratch_dir const dir;
    auto const file = dir.file("keys.db");
    { REQUIRE(opened(file)->create_key("alice", "lk")); }
    auto const rows = some_rows(20'000);
    int const code = in_child([&] {
        std::signal(SIGXFSZ, SIG_IGN);
        auto const s = store::open(file, {});
        if (!s) return 1;
        rlimit const limit{400'000, 400'000};
        if (::setrlimit(RLIMIT_FSIZE, &limit) != 0) return 2;
        auto const r = (*s)->import_keys(rows, "lk");
        if (r) return 3;
        if (r.error().code != errc::io || !has(r.error().message, "space") || !has(r.error().message, "nothing of this"))
            return 4;
        auto const count = (*s)->key_count();
        if (!count || *count != 1) return 5;
        return (*s)->create_key("bob", "lk") ? 0 : 6;
    });
    CHECK(code == 0);
    CHECK(opened(file)->key_count().value() == 2);
}

TEST_CASE("a process killed in the middle of an import leaves all of it or nothing") {
    scratch_dir const dir;
    auto const rows = some_rows(20'000);
    int killed = 0;
    for (std::uintmax_t const wal_bytes : {0U, 1U, 100'000U, 2'000'000U, 5'000'000U}) {
        auto const file = dir.file(fmt::format("keys{}.db", wal_bytes));
        { REQUIRE(opened(file)->create_key("alice", "lk")); }
        pid_t const child = ::fork();
        REQUIRE(child >= 0);
        if (child == 0) {
            auto const s = store::open(file, {});
            ::_exit(s && (*s)->import_keys(rows, "lk") ? 0 : 1);
        }
        int status = 0;
        bool ended = false;
        REQUIRE(eventually([&] {
            ended = ::waitpid(child, &status, WNOHANG) == child;
            std::error_code none;
            auto const size = std::filesystem::file_size(file + "-wal", none);
            return ended || (!none && size >= wal_bytes);
        }));
        if (!ended) {
            ::kill(child, SIGKILL);
            REQUIRE(::waitpid(child, &status, 0) == child);
        }
        killed += WIFSIGNALED(status) ? 1 : 0;
        auto const s = opened(file);
        auto const count = s->key_count().value();
        CAPTURE(wal_bytes, count);
        CHECK((count == 1 || count == rows.size() + 1));
        if (WIFEXITED(status)) CHECK(count == rows.size() + 1);
        CHECK(std::stoull(shell(file, "SELECT count(*) FROM applications")) == count);
        REQUIRE(s->import_keys(rows, "lk"));
        CHECK(s->key_count().value() == rows.size() + 1);
    }
    CHECK(killed >= 1);
}

TEST_CASE("two processes that make the file at once both get it") {
    scratch_dir const dir;
    auto const file = dir.file("keys.db");
    std::vector<pid_t> children;
    for (int i = 0; i < 4; ++i) {
        pid_t const child = ::fork();
        REQUIRE(child >= 0);
        if (child == 0) {
            auto const s = store::open(file, {});
            ::_exit(s && (*s)->create_key("alice", "lk") ? 0 : 1);
        }
        children.push_back(child);
    }
    for (pid_t const child : children) {
        int status = 0;
        REQUIRE(::waitpid(child, &status, 0) == child);
        CHECK(status == 0);
    }
    CHECK(opened(file)->key_count().value() == 4);
}
