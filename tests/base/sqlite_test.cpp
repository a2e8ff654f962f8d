#include "base/sqlite.hpp"

#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include <array>
#include <atomic>
#include <cerrno>
#include <csignal>
#include <filesystem>
#include <functional>
#include <thread>
#include <utility>

#include "base/sqlite_steps.hpp"
#include "tests/base/scratch.hpp"

using namespace latchkey;
using namespace latchkey::testing;
using sqlite::database;
using sqlite::transaction;

namespace {

constexpr std::array<char const*, 1> first{"CREATE TABLE t (a INTEGER PRIMARY KEY, b TEXT, c BLOB) STRICT;"};
constexpr std::array<char const*, 2> second{
    first[0], "ALTER TABLE t ADD COLUMN d INTEGER NOT NULL DEFAULT 7; INSERT INTO t (b) VALUES ('2');"};
constexpr std::array<char const*, 2> failing{first[0], "CREATE TABLE u (x); CREATE TABLE t (x);"};
sqlite::schema const version_1{42, "a test", first};
sqlite::schema const version_2{42, "a test", second};
sqlite::schema const version_bad{42, "a test", failing};

database opened(std::string const& file, sqlite::schema const& schema = version_1) {
    auto db = database::open(file, {.create = true, .read_only = false, .busy_timeout = std::chrono::milliseconds(30)});
    REQUIRE(db);
    REQUIRE(db->adopt(schema));
    return std::move(*db);
}

}  // namespace

TEST_CASE("values come back as they were bound") {
    scratch_dir const dir;
    auto db = opened(dir.file("t.db"));
    std::string const text("with\0zero and \xC3\xAB", 16);
    std::array<unsigned char, 4> const bytes{0, 255, 1, 0};
    auto insert = db.prepare("INSERT INTO t VALUES (?1, ?2, ?3)").value();
    REQUIRE(insert.bind(1, INT64_MIN).bind(2, text).bind_blob(3, bytes).run());
    CHECK(db.changed_rows() == 1);
    REQUIRE(insert.bind(1, 5).bind(2, std::string_view()).bind_blob(3, {}).run());
    REQUIRE(insert.bind(1, 6).bind_null(2).bind_null(3).run());
    auto select = db.prepare("SELECT a, b, c, b IS NULL, c IS NULL FROM t ORDER BY a").value();
    REQUIRE(*select.step());
    CHECK(select.int64(0) == INT64_MIN);
    CHECK(select.text(1) == text);
    CHECK(std::equal(bytes.begin(), bytes.end(), select.blob(2).begin(), select.blob(2).end()));
    REQUIRE(*select.step());
    CHECK(select.text(1).empty());
    CHECK(select.int64(3) == 0);  // empty is not NULL
    CHECK(select.int64(4) == 0);
    REQUIRE(*select.step());
    CHECK(select.int64(3) == 1);
    CHECK(select.text(1).empty());
    CHECK(select.blob(2).empty());
    CHECK_FALSE(*select.step());
    CHECK(*select.step());  // reset by its end
}

TEST_CASE("a bind that fails comes out of the step, once") {
    scratch_dir const dir;
    auto db = opened(dir.file("t.db"));
    auto s = db.prepare("SELECT ?1").value();
    auto const r = s.bind(9, 1).bind(1, 1).step();
    REQUIRE(r.has_error());
    CHECK(r.error().message.find("t.db") != std::string::npos);
    CHECK(s.bind(1, 3).step().has_value());
    CHECK(s.int64(0) == 3);
}

TEST_CASE("errors of SQL and of constraints name the file") {
    scratch_dir const dir;
    auto db = opened(dir.file("t.db"));
    for (auto const& r : {db.exec("NONSENSE"), db.exec("INSERT INTO t (a) VALUES ('text')")}) {
        REQUIRE(r.has_error());
        CHECK(r.error().message.find("t.db") != std::string::npos);
    }
    CHECK(db.prepare("SELECT nothing FROM nowhere").has_error());
    REQUIRE(db.exec("INSERT INTO t (a) VALUES (1)"));
    CHECK(db.exec("INSERT INTO t (a) VALUES (1)").error().code == errc::conflict);
}

TEST_CASE("a transaction that is not committed leaves nothing, also when an exception passes") {
    scratch_dir const dir;
    auto db = opened(dir.file("t.db"));
    {
        auto t = transaction::begin(db, transaction::kind::write);
        REQUIRE(t);
        REQUIRE(db.exec("INSERT INTO t (a) VALUES (1)"));
    }
    try {
        auto const t = transaction::begin(db, transaction::kind::write);
        REQUIRE(db.exec("INSERT INTO t (a) VALUES (2)"));
        throw std::runtime_error("x");
    } catch (std::runtime_error const&) {
    }
    CHECK(db.int64("SELECT count(*) FROM t").value() == 0);
    auto t = transaction::begin(db, transaction::kind::write);
    REQUIRE(db.exec("INSERT INTO t (a) VALUES (3)"));
    REQUIRE(t->commit());
    CHECK(db.int64("SELECT count(*) FROM t").value() == 1);
    CHECK(transaction::begin(db, transaction::kind::read));
}

TEST_CASE("missing migrations are applied, once, and a failing one changes nothing") {
    scratch_dir const dir;
    auto const file = dir.file("t.db");
    { REQUIRE(opened(file).exec("INSERT INTO t (b) VALUES ('1')")); }
    {
        auto db = database::open(file, {}).value();
        CHECK(db.adopt(version_bad).has_error());
        CHECK(db.int64("PRAGMA user_version").value() == 1);
        CHECK(db.int64("SELECT count(*) FROM sqlite_schema WHERE name = 'u'").value() == 0);
    }
    for (int i = 0; i < 2; ++i) {
        auto db = opened(file, version_2);
        CHECK(db.int64("PRAGMA user_version").value() == 2);
        CHECK(db.int64("SELECT count(*) FROM t WHERE d = 7").value() == 2);
    }
    CHECK(database::open(file, {})->adopt(version_1).error().code == errc::newer_schema);
}

TEST_CASE("read-only neither makes, migrates nor writes") {
    scratch_dir const dir;
    auto const file = dir.file("t.db");
    CHECK(database::open(file, {.create = true, .read_only = true}).error().code == errc::not_found);
    { opened(file); }
    auto db = database::open(file, {.create = false, .read_only = true}).value();
    CHECK(db.adopt(version_1));
    CHECK(db.adopt(version_2).error().code == errc::unavailable);
    CHECK(db.exec("INSERT INTO t (a) VALUES (1)").error().code == errc::io);
    CHECK(db.quick_check());
}

TEST_CASE("statements stay valid when their database is moved") {
    scratch_dir const dir;
    auto db = opened(dir.file("t.db"));
    auto s = db.prepare("SELECT 7").value();
    database const moved = std::move(db);
    REQUIRE(*s.step());
    CHECK(s.int64(0) == 7);
    auto other = std::move(s);
    CHECK(other.int64(0) == 7);
    CHECK(moved.still_there());
}

TEST_CASE("triggers rest while they are switched off, and foreign keys do not") {
    scratch_dir const dir;
    auto db = opened(dir.file("t.db"));
    REQUIRE(
        db.exec("CREATE TABLE a (x INTEGER PRIMARY KEY); CREATE TABLE b (x REFERENCES a); CREATE TABLE fired (x);"
                "CREATE TRIGGER t AFTER INSERT ON a BEGIN INSERT INTO fired VALUES (new.x); END"));
    auto insert = db.prepare("INSERT INTO a VALUES (?1)");
    REQUIRE(insert);
    REQUIRE(insert->bind(1, std::int64_t{1}).run());
    {
        sqlite::no_triggers const off(db);
        REQUIRE(insert->bind(1, std::int64_t{2}).run());
        CHECK(db.exec("INSERT INTO b VALUES (77)").has_error());
    }
    REQUIRE(insert->bind(1, std::int64_t{3}).run());
    CHECK(db.int64("SELECT count(*) FROM fired").value() == 2);
    CHECK(db.int64("SELECT count(*) FROM fired WHERE x = 2").value() == 0);
}

TEST_CASE("foreign keys and full synchronisation are on") {
    scratch_dir const dir;
    auto db = opened(dir.file("t.db"));
    CHECK(db.int64("PRAGMA foreign_keys").value() == 1);
    CHECK(db.int64("PRAGMA synchronous").value() == 2);
    CHECK(db.int64("PRAGMA busy_timeout").value() == 30);
}

TEST_CASE("a link in the place of the file is refused, and the file it leads to is not touched") {
    scratch_dir const dir;
    auto const foreign = dir.file("foreign");
    write_file(foreign, "");
    REQUIRE(::chmod(foreign.c_str(), 0644) == 0);
    auto const file = dir.file("t.db");
    for (auto const& target : {foreign, dir.file("nowhere")}) {
        std::filesystem::remove(file);
        std::filesystem::create_symlink(target, file);
        for (bool const create : {true, false}) {
            auto const r = database::open(file, {.create = create});
            REQUIRE(r.has_error());
            CHECK(r.error().code == errc::io);
            CHECK(r.error().message.find("t.db is a link") != std::string::npos);
        }
        CHECK(database::open(file, {.create = false, .read_only = true}).has_error());
    }
    CHECK(mode_of(foreign) == 0644);
    CHECK(read_file(foreign).empty());
    CHECK_FALSE(std::filesystem::exists(dir.file("nowhere")));
}

TEST_CASE("a FIFO in the place of the file is refused without waiting for who writes to it") {
    scratch_dir const dir;
    auto const file = dir.file("t.db");
    REQUIRE(::mkfifo(file.c_str(), 0600) == 0);
    CHECK(database::open(file, {}).error().message.find("not a regular file") != std::string::npos);
}

TEST_CASE("a folder that is reached through a link holds a database as any other") {
    scratch_dir const dir;
    std::filesystem::create_directories(dir.file("real/inner"));
    std::filesystem::create_directory_symlink(dir.file("real"), dir.file("link"));
    std::filesystem::create_directory_symlink("../real/inner", dir.file("real/again"));
    auto const file = dir.file("link/again/t.db");
    for (int i = 1; i < 3; ++i) {
        auto db = opened(file);
        REQUIRE(db.exec("INSERT INTO t (b) VALUES ('1')"));
        CHECK(db.int64("SELECT count(*) FROM t").value() == i);
        CHECK(db.still_there());
        CHECK(std::filesystem::exists(dir.file("real/inner/t.db-wal")));
    }
    CHECK(mode_of(dir.file("real/inner/t.db")) == 0600);
}

TEST_CASE("opening a file once more in this process leaves the first connection its locks") {
    scratch_dir const dir;
    auto const file = dir.file("t.db");
    auto db = opened(file);
    REQUIRE(db.exec("INSERT INTO t (b) VALUES ('1')"));
    { REQUIRE(database::open(file, {})); }
    // The last of all connections removes the write-ahead log: this one must see that it is not the last.
    CHECK(shell(file, "SELECT count(*) FROM t") == "1");
    CHECK(std::filesystem::exists(file + "-wal"));
}

TEST_CASE("what root makes in a folder of another user belongs to that user") {
    if (::geteuid() != 0) return;
    scratch_dir const dir;
    auto const folder = dir.file("data");
    std::filesystem::create_directory(folder);
    REQUIRE(::chown(folder.c_str(), 65534, 65533) == 0);
    auto db = opened(folder + "/t.db");
    REQUIRE(db.exec("INSERT INTO t (b) VALUES ('1')"));
    for (std::string const end : {"", "-wal", "-shm"}) {
        struct stat s {};
        INFO(end);
        REQUIRE(::stat((folder + "/t.db" + end).c_str(), &s) == 0);
        CHECK(s.st_uid == 65534);
        CHECK(s.st_gid == 65533);
        CHECK((s.st_mode & 0777U) == 0600);
    }
}

TEST_CASE("work on a file goes in steps where the connection was opened for it, and only while it is wanted") {
    scratch_dir const dir;
    auto const file = dir.file("t.db");
    auto db = std::move(*database::open(file, {.in_steps = true}));
    REQUIRE(db.adopt(version_1));
    unsigned calls = 0;
    std::function<void()> const count = [&] { ++calls; };
    auto const write = [](database& to) { REQUIRE(to.exec("INSERT INTO t (c) VALUES (randomblob(400000))")); };

    write(db);
    CHECK(calls == 0);
    {
        sqlite::between_accesses const steps(count);
        write(db);
        CHECK(calls >= 2 * 400'000 / 4096);  // a frame's head and its page, in the log
        auto const logged = std::exchange(calls, 0U);
        REQUIRE(db.exec("PRAGMA wal_checkpoint(TRUNCATE)"));
        CHECK(calls >= logged);  // each page read from the log and written into the file
        calls = 0;
        {
            std::function<void()> const nothing;
            sqlite::between_accesses const none(nothing);
            write(db);
            CHECK(calls == 0);
        }
        write(db);
        CHECK(calls > 0);
    }
    calls = 0;
    write(db);
    CHECK(calls == 0);

    SECTION("another connection to the file") {
        auto plain = opened(file);
        sqlite::between_accesses const steps(count);
        write(plain);
        CHECK(calls == 0);
    }
    SECTION("another thread") {
        sqlite::between_accesses const steps(count);
        std::thread([&] { write(db); }).join();
        CHECK(calls == 0);
    }
    CHECK(shell(file, "SELECT count(*), sum(length(c)) FROM t") ==
          std::to_string(db.int64("SELECT count(*) FROM t").value()) + "|" +
              std::to_string(db.int64("SELECT count(*) FROM t").value() * 400'000));
    CHECK(shell(file, "PRAGMA integrity_check") == "ok");
}

TEST_CASE("what happens between steps does not hide why a write failed") {
    scratch_dir const dir;
    auto db = std::move(*database::open(dir.file("t.db"), {.in_steps = true}));
    REQUIRE(db.adopt(version_1));
    REQUIRE(db.exec("PRAGMA cache_size = 10"));  // pages are written in the middle of the statement
    rlimit before{};
    REQUIRE(::getrlimit(RLIMIT_FSIZE, &before) == 0);
    auto* const on_signal = std::signal(SIGXFSZ, SIG_IGN);
    rlimit small = before;
    small.rlim_cur = 200'000;
    REQUIRE(::setrlimit(RLIMIT_FSIZE, &small) == 0);
    std::function<void()> const other = [] { errno = EINTR; };
    auto const done = [&] {
        sqlite::between_accesses const steps(other);
        return db.exec("INSERT INTO t (c) VALUES (randomblob(900000))");
    }();
    REQUIRE(::setrlimit(RLIMIT_FSIZE, &before) == 0);
    std::signal(SIGXFSZ, on_signal);
    REQUIRE_FALSE(done);
    CHECK(done.error().message.find("no space left") != std::string::npos);
}

TEST_CASE("whoever waits for a lock that is held through many steps gets it, and finds all or nothing") {
    scratch_dir const dir;
    auto const file = dir.file("t.db");
    auto db = std::move(*database::open(file, {.in_steps = true}));
    REQUIRE(db.adopt(version_1));
    auto other = std::move(*database::open(file, {.busy_timeout = std::chrono::minutes(1)}));
    unsigned seen = 0;
    std::function<void()> const look = [&] {  // another connection reads in the middle of the transaction
        CHECK(other.int64("SELECT count(*) FROM t").value() == 0);
        ++seen;
    };
    {
        sqlite::between_accesses const steps(look);
        REQUIRE(db.exec("INSERT INTO t (c) VALUES (randomblob(100000))"));
    }
    CHECK(seen > 20);
    CHECK(other.int64("SELECT count(*) FROM t").value() == 1);

    std::atomic<bool> begun{false};
    bool written = false;
    std::thread writer([&] {
        std::function<void()> const slow = [&] {
            begun = true;
            std::this_thread::sleep_for(std::chrono::milliseconds(1));
        };
        sqlite::between_accesses const steps(slow);
        written = static_cast<bool>(db.exec("INSERT INTO t (c) VALUES (randomblob(100000))"));
        begun = true;
    });
    while (!begun) std::this_thread::yield();
    CHECK(other.exec("INSERT INTO t (b) VALUES ('waited')"));
    writer.join();
    CHECK(written);
    CHECK(other.int64("SELECT count(*) FROM t").value() == 3);
}
