// keys.db as a file: its mode and set-up, damage, locks, a full disk, kills.

#include <fmt/format.h>
#include <sys/resource.h>
#include <csignal>

#include "tests/keystore/store_support.hpp"

using namespace latchkey;
using namespace latchkey::keystore;
using namespace latchkey::keystore::test;
using namespace latchkey::testing;

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
