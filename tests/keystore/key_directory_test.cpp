#include "keystore/key_directory.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <atomic>
#include <mutex>
#include <optional>
#include <set>

#include "base/log.hpp"
#include "tests/base/scratch.hpp"

using namespace latchkey;
using namespace latchkey::keystore;
using namespace latchkey::testing;

namespace {

// Stands for the workers: a table that obeys, or does not.
class workers {
  public:
    result<void> operator()(std::vector<shard_update> const& updates) {
        std::lock_guard const lock(guard_);
        ++calls_;
        if (refusing_) return error{errc::unavailable, "worker 1 did not answer"};
        table_.apply(updates);
        return {};
    }
    std::optional<key_state> state_of(std::string const& key) {
        std::lock_guard const lock(guard_);
        key_view v;
        if (!table_.find(digest_of(key), v)) return std::nullopt;
        return v.state;
    }
    void refuse(bool yes) {
        std::lock_guard const lock(guard_);
        refusing_ = yes;
    }
    int calls() {
        std::lock_guard const lock(guard_);
        return calls_;
    }

  private:
    std::mutex guard_;
    key_table table_;
    int calls_ = 0;
    bool refusing_ = false;
};

bool has(std::string const& text, std::string const& part) { return text.find(part) != std::string::npos; }

struct running {
    scratch_dir dir;
    std::string file = dir.file("keys.db");
    workers obey;
    std::unique_ptr<key_directory> keys;

    explicit running(std::function<void(store&)> const& before = {}, int busy_ms = 30) {
        auto s = store::open(file, {.create = true, .busy_timeout = std::chrono::milliseconds(busy_ms)});
        REQUIRE(s);
        if (before) before(**s);
        keys = std::make_unique<key_directory>(std::move(*s), "lk");
        auto const all = keys->load();
        REQUIRE(all);
        REQUIRE(all->size() == shard_count);
        REQUIRE(obey(*all));
        keys->start([this](auto const& updates) { return obey(updates); });
    }
    void sql(std::string const& text) const { REQUIRE(shell(file, text) == ""); }
    // Waits until the poll has looked once more at whatever is in the file now: a change of ours in it has come out.
    void poll_passed() {
        auto const marker = keys->create_key("marker");
        REQUIRE(marker);
        sql("UPDATE keys SET revoked_ms = 1 WHERE id = '" + marker->row.id + "'");
        REQUIRE(eventually([&] { return obey.state_of(marker->key) == key_state::revoked; }));
    }
};

}  // namespace

TEST_CASE("a created key is in force when the call returns, and a revoked one is dead") {
    running r;
    auto const made = r.keys->create_key("alice");
    REQUIRE(made);
    CHECK(r.obey.state_of(made->key) == key_state::active);
    CHECK(r.keys->state().keys == 1);
    auto const revoked = r.keys->revoke(made->row.id);
    REQUIRE(revoked);
    CHECK(r.obey.state_of(made->key) == key_state::revoked);
    REQUIRE(r.keys->remove(made->row.id));
    CHECK_FALSE(r.obey.state_of(made->key).has_value());
    CHECK(r.keys->state().keys == 0);
    CHECK(r.keys->state().ok);
}

TEST_CASE("load gives what the store held before the start") {
    std::string key;
    running r([&](store& s) { key = s.create_key("alice", "lk")->key; });
    CHECK(r.obey.state_of(key) == key_state::active);
    CHECK(r.keys->state().keys == 1);
}

TEST_CASE("an imported key is in force when the call returns") {
    running r;
    std::vector<import_row> rows;
    for (std::size_t i = 0; i < 2000; ++i) rows.push_back({fmt::format("user{}", i), make_key("lk"), i + 2});
    auto const report = r.keys->import_keys(rows);
    REQUIRE(report);
    CHECK(report->imported == 2000);
    for (auto const& row : rows) REQUIRE(r.obey.state_of(row.key) == key_state::active);
    CHECK(r.keys->state().keys == 2000);
}

TEST_CASE("find and list answer from the store") {
    running r;
    auto const made = r.keys->create_key("alice");
    auto const more = r.keys->create_key("", made->row.application_id);
    REQUIRE(more);
    CHECK(r.keys->find(more->row.id)->name == "alice");
    CHECK(r.keys->list("", 10)->size() == 2);
    CHECK(r.keys->find("key_nobody").error().code == errc::not_found);
    CHECK(r.keys->revoke("key_nobody").error().code == errc::not_found);
    CHECK(r.keys->create_key("").error().code == errc::invalid_argument);
    CHECK(r.keys->state().ok);  // the caller's mistakes are not the store's
}

TEST_CASE("refresh does not wait for the poll, and catch_up finds what came after load") {
    running r;
    auto const made = r.keys->create_key("alice");
    r.sql("UPDATE keys SET revoked_ms = 1 WHERE id = '" + made->row.id + "'");
    REQUIRE(r.keys->refresh());
    CHECK(r.obey.state_of(made->key) == key_state::revoked);

    auto s = store::open(r.file, {});
    REQUIRE(s);
    key_directory next(std::move(*s), "lk");
    REQUIRE(next.load());
    CHECK(next.catch_up()->empty());
    r.sql("UPDATE keys SET revoked_ms = 0");
    CHECK(next.catch_up()->size() == 1);
    CHECK(next.catch_up()->empty());
}

TEST_CASE("rows that another process changes come into force") {
    running r;
    auto const a = r.keys->create_key("alice");
    auto const b = r.keys->create_key("bob");
    r.sql("UPDATE keys SET revoked_ms = 1 WHERE id = '" + a->row.id + "'");
    CHECK(eventually([&] { return r.obey.state_of(a->key) == key_state::revoked; }));
    CHECK(r.obey.state_of(b->key) == key_state::active);
    r.sql("DELETE FROM keys WHERE id = '" + b->row.id + "'");
    CHECK(eventually([&] { return !r.obey.state_of(b->key); }));
    r.sql("UPDATE keys SET revoked_ms = 0");
    CHECK(eventually([&] { return r.obey.state_of(a->key) == key_state::active; }));
    r.sql("UPDATE applications SET disabled_ms = 1");
    CHECK(eventually([&] { return r.obey.state_of(a->key) == key_state::disabled; }));
    CHECK(eventually([&] { return r.keys->state().keys == 1; }));
}

TEST_CASE("a change of ours is published once, and nothing is published where nothing changed") {
    running r;
    auto const before = r.obey.calls();
    auto const made = r.keys->create_key("alice");
    CHECK(r.obey.calls() == before + 1);
    REQUIRE(r.keys->revoke(made->row.id));
    CHECK(r.obey.calls() == before + 2);
    REQUIRE(r.keys->revoke(made->row.id));  // no row changes
    CHECK(r.obey.calls() == before + 2);
    REQUIRE(r.keys->list("", 10));
    r.poll_passed();
    CHECK(r.obey.calls() == before + 4);  // the marker's making and its revocation
}

TEST_CASE("a change that not every worker confirms is an error to the caller, and is tried until it holds") {
    running r;
    auto const made = r.keys->create_key("alice");
    r.obey.refuse(true);
    auto const revoked = r.keys->revoke(made->row.id);
    REQUIRE(revoked.has_error());
    CHECK(revoked.error().code == errc::unavailable);
    CHECK(has(revoked.error().message, "is stored, but not confirmed"));
    CHECK(has(revoked.error().message, made->row.id));
    CHECK(has(revoked.error().message, "worker 1"));
    CHECK_FALSE(r.keys->state().ok);
    CHECK(has(r.keys->state().detail, "worker 1"));
    CHECK(r.keys->find(made->row.id)->revoked_ms != 0);
    CHECK(r.obey.state_of(made->key) == key_state::active);
    auto const calls = r.obey.calls();
    CHECK(eventually([&] { return r.obey.calls() >= calls + 2; }));
    r.obey.refuse(false);
    CHECK(eventually([&] { return r.obey.state_of(made->key) == key_state::revoked; }));
    CHECK(eventually([&] { return r.keys->state().ok; }));
    auto const settled = r.obey.calls();
    r.poll_passed();
    CHECK(r.obey.calls() == settled + 2);
}

TEST_CASE("a new key that is not confirmed names its id, so that it can be revoked") {
    running r;
    r.obey.refuse(true);
    auto const made = r.keys->create_key("alice");
    REQUIRE(made.has_error());
    auto const id = r.keys->list("", 1)->front().id;
    CHECK(has(made.error().message, id));
    r.obey.refuse(false);
    CHECK(r.keys->revoke(id));
}

TEST_CASE("a publisher that throws is one that does not confirm") {
    scratch_dir const dir;
    key_directory keys(store::open(dir.file("keys.db"), {}).value(), "lk");
    REQUIRE(keys.load());
    keys.start([](auto const&) -> result<void> { throw std::runtime_error("out of memory"); });
    auto const made = keys.create_key("alice");
    REQUIRE(made.has_error());
    CHECK(has(made.error().message, "out of memory"));
}

TEST_CASE("while another process holds the file, changes fail, keys stay in force, and it ends by itself") {
    running r;
    auto const made = r.keys->create_key("alice");
    {
        sqlite_shell other(r.file);
        REQUIRE(other.run("BEGIN IMMEDIATE") == "");
        auto const refused = r.keys->revoke(made->row.id);
        REQUIRE(refused.has_error());
        CHECK(refused.error().code == errc::busy);
        CHECK_FALSE(r.keys->state().ok);
        CHECK(has(r.keys->state().detail, r.file));
        CHECK(r.obey.state_of(made->key) == key_state::active);
        CHECK(r.keys->find(made->row.id));
        CHECK(r.keys->state().keys == 1);
    }
    CHECK(eventually([&] { return r.keys->state().ok; }));
    CHECK(r.keys->revoke(made->row.id));
    CHECK(r.obey.state_of(made->key) == key_state::revoked);
}

TEST_CASE("a file that is deleted keeps every key in force, and its return is noticed") {
    running r;
    auto const made = r.keys->create_key("alice");
    std::filesystem::rename(r.file, r.dir.file("away"));
    CHECK(eventually([&] { return !r.keys->state().ok; }));
    CHECK(has(r.keys->state().detail, "deleted"));
    CHECK(r.keys->state().keys == 1);
    auto const calls = r.obey.calls();
    CHECK(r.keys->create_key("bob").error().code == errc::io);
    CHECK(r.keys->revoke(made->row.id).error().code == errc::io);
    CHECK(r.obey.state_of(made->key) == key_state::active);
    CHECK(r.obey.calls() == calls);
    std::filesystem::rename(r.dir.file("away"), r.file);
    CHECK(eventually([&] { return r.keys->state().ok; }));
    CHECK(r.keys->revoke(made->row.id));
}

TEST_CASE("a file that is replaced by an empty one revokes nothing and allows nothing") {
    running r;
    auto const made = r.keys->create_key("alice");
    std::filesystem::rename(r.file, r.dir.file("away"));
    write_file(r.file, "");
    CHECK(eventually([&] { return has(r.keys->state().detail, "replaced"); }));
    CHECK(r.obey.state_of(made->key) == key_state::active);
    CHECK_FALSE(r.obey.state_of("an-unknown-key-0001").has_value());
    CHECK(r.keys->state().keys == 1);
    CHECK(r.keys->list("", 10).has_error());
}

TEST_CASE("damage while running is said and keeps every key in force") {
    running r;
    auto const made = r.keys->create_key("alice");
    REQUIRE(shell(r.file, "PRAGMA wal_checkpoint(TRUNCATE)") == "0|0|0");
    auto const whole = read_file(r.file);
    {
        std::fstream out(r.file, std::ios::in | std::ios::out | std::ios::binary);
        out.seekp(4096);
        for (std::size_t i = 4096; i < whole.size(); ++i) out.put(static_cast<char>(0xa5));
    }
    // Another process's commit makes us read the damaged pages; it may itself find them damaged, so only the header changes.
    shell(r.file, "PRAGMA user_version = 1");
    auto const refused = r.keys->revoke(made->row.id);
    REQUIRE(refused.has_error());
    CHECK(refused.error().code == errc::corrupt);
    CHECK_FALSE(r.keys->state().ok);
    CHECK(r.obey.state_of(made->key) == key_state::active);
}

TEST_CASE("a trouble is one line in the log when it begins and one when it ends") {
    scratch_dir const logs;
    log::start(log::level::info, logs.file("log"), true);
    {
        running r;
        auto const made = r.keys->create_key("alice");
        std::filesystem::rename(r.file, r.dir.file("away"));
        REQUIRE(eventually([&] { return !r.keys->state().ok; }));
        for (int i = 0; i < 3; ++i) CHECK(r.keys->list("", 1).has_error());
        std::filesystem::rename(r.dir.file("away"), r.file);
        REQUIRE(eventually([&] { return r.keys->state().ok; }));
        r.poll_passed();
        CHECK_FALSE(has(read_file(logs.file("log")), made->key));
    }
    log::stop();
    auto const text = read_file(logs.file("log"));
    INFO(text);
    CHECK(std::count(text.begin(), text.end(), '\n') == 2);
    CHECK(has(text, "deleted"));
    CHECK(has(text, "in order again"));
}

TEST_CASE("calls before the start and after the stop are refused, not lost") {
    scratch_dir const dir;
    key_directory keys(store::open(dir.file("keys.db"), {}).value(), "lk");
    CHECK(keys.create_key("alice").error().code == errc::unavailable);
    REQUIRE(keys.load());
    keys.start([](auto const&) { return result<void>{}; });
    REQUIRE(keys.create_key("alice"));
    keys.stop();
    CHECK(keys.create_key("alice").error().code == errc::unavailable);
    CHECK(keys.find("key_x").error().code == errc::unavailable);
    keys.stop();
}

TEST_CASE("many threads change and read at once, and each change holds when its call returns") {
    running r({}, 10'000);
    std::atomic<int> wrong{0};
    std::mutex guard;
    std::set<std::string> ids;
    std::vector<std::thread> callers;
    for (int t = 0; t < 4; ++t)
        callers.emplace_back([&, t] {
            for (int i = 0; i < 10; ++i) {
                auto const made = r.keys->create_key(fmt::format("user{}-{}", t, i));
                if (!made || r.obey.state_of(made->key) != key_state::active) ++wrong;
                if (!made) continue;
                if (!r.keys->find(made->row.id) || !r.keys->list("", 5) || !r.keys->state().ok) ++wrong;
                if (i % 2 == 0 && (!r.keys->revoke(made->row.id) || r.obey.state_of(made->key) != key_state::revoked)) ++wrong;
                std::lock_guard const lock(guard);
                ids.insert(made->row.id);
            }
        });
    {
        sqlite_shell other(r.file);  // somebody else writes all the while
        other.run("PRAGMA busy_timeout = 5000");
        for (int i = 0; i < 20; ++i) other.run("UPDATE applications SET created_ms = created_ms + 1");
    }
    for (auto& c : callers) c.join();
    CHECK(wrong == 0);
    CHECK(ids.size() == 40);
    CHECK(r.keys->state().keys == 40);
}

TEST_CASE("what is queued when the directory goes is done first") {
    scratch_dir const dir;
    std::vector<std::thread> callers;
    std::atomic<int> done{0};
    std::atomic<int> refused{0};
    {
        key_directory keys(store::open(dir.file("keys.db"), {}).value(), "lk");
        REQUIRE(keys.load());
        keys.start([](auto const&) { return result<void>{}; });
        for (int t = 0; t < 6; ++t) callers.emplace_back([&] { ++(keys.create_key("alice") ? done : refused); });
        keys.stop();
        for (auto& c : callers) c.join();
    }
    CHECK(done + refused == 6);
    CHECK(shell(dir.file("keys.db"), "SELECT count(*) FROM keys") == std::to_string(done));
}
