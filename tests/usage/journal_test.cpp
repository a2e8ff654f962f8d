#include "usage/journal.hpp"

#include <fstream>
#include <limits>

#include "base/sqlite.hpp"
#include "tests/usage/support.hpp"

using namespace latchkey;
using namespace latchkey::usage;
using test::sample;

namespace {

constexpr auto ever = std::numeric_limits<std::int64_t>::max();

std::unique_ptr<journal> open_journal(std::string const& file, journal::mode m = journal::mode::read_write) {
    auto opened = journal::open(file, m);
    REQUIRE(opened);
    return std::move(*opened);
}

// Appends a block with the records from..to (their times are number + 1790000000000).
result<void> append(journal& j, std::string_view ring, std::uint64_t cursor, std::uint64_t from, std::uint64_t to) {
    block_packer p;
    for (auto n = from; n < to; ++n) {
        sample const s(n);
        REQUIRE(p.add(s.r));
    }
    auto sealed = p.seal();
    REQUIRE(sealed);
    return j.append(ring, cursor, p.meta(), *sealed);
}

std::vector<std::uint64_t> numbers(journal& j) {
    std::vector<std::uint64_t> found;
    test::each_record(j, [&](record const& r) { found.push_back(test::number_of(r.request_id)); });
    return found;
}

std::size_t blocks_in(journal& j, std::int64_t from, std::int64_t to) {
    std::size_t n = 0;
    REQUIRE(j.each_block(
        from, to, [&](std::string_view) { return ++n != 0; }, [](std::int64_t, std::string_view) { FAIL(); }));
    return n;
}

std::int64_t at(std::uint64_t n) { return 1'790'000'000'000 + static_cast<std::int64_t>(n); }

}  // namespace

TEST_CASE("blocks and cursors are there after the journal is opened again") {
    test::folder const dir("/tmp");
    {
        auto j = open_journal(dir / "usage.db");
        auto const none = j->cursor_of("r1");
        REQUIRE(none);
        CHECK_FALSE(none->has_value());
        REQUIRE(append(*j, "r1", 800, 0, 4));
        REQUIRE(append(*j, "r2", 200, 10, 11));
        REQUIRE(j->set_ring_dir("/some/where"));
    }
    auto j = open_journal(dir / "usage.db");
    CHECK(j->cursor_of("r1")->value() == 800);
    CHECK(j->cursor_of("r2")->value() == 200);
    CHECK(*j->ring_dir() == "/some/where");
    CHECK(*j->record_count() == 5);
    CHECK(numbers(*j) == std::vector<std::uint64_t>{0, 1, 2, 3, 10});
    REQUIRE(j->forget_ring("r1"));
    CHECK_FALSE(j->cursor_of("r1")->has_value());
    CHECK(*j->record_count() == 5);
}

TEST_CASE("a cursor never goes back: the same stretch of a ring cannot be journalled twice") {
    test::folder const dir("/tmp");
    auto j = open_journal(dir / "usage.db");
    REQUIRE(append(*j, "r1", 800, 0, 4));
    for (std::uint64_t const cursor : {800U, 8U}) {
        auto again = append(*j, "r1", cursor, 0, 4);
        REQUIRE_FALSE(again);
        CHECK(again.error().code == errc::conflict);
    }
    CHECK(*j->record_count() == 4);
    CHECK(j->cursor_of("r1")->value() == 800);
}

TEST_CASE("positions above 2^63 keep their order of bits") {
    test::folder const dir("/tmp");
    auto j = open_journal(dir / "usage.db");
    REQUIRE(append(*j, "r1", (1ULL << 62) + 8, 0, 1));
    CHECK(j->cursor_of("r1")->value() == (1ULL << 62) + 8);
}

TEST_CASE("blocks are chosen by time: from included, to excluded") {
    test::folder const dir("/tmp");
    auto j = open_journal(dir / "usage.db");
    for (std::uint64_t i = 0; i < 5; ++i) REQUIRE(append(*j, "r", i + 1, i * 100, i * 100 + 50));
    CHECK(blocks_in(*j, 0, ever) == 5);
    CHECK(blocks_in(*j, at(149), at(200)) == 1);
    CHECK(blocks_in(*j, at(150), at(200)) == 0);
    CHECK(blocks_in(*j, at(150), at(201)) == 1);
    CHECK(blocks_in(*j, at(120), at(330)) == 3);
    CHECK(blocks_in(*j, at(1000), ever) == 0);
}

TEST_CASE("what a visit sees is what stood in the file when it began, and it hinders no writer") {
    test::folder const dir("/tmp");
    auto writer = open_journal(dir / "usage.db");
    for (std::uint64_t i = 0; i < 3; ++i) REQUIRE(append(*writer, "r", i + 1, i, i + 1));
    auto reader = open_journal(dir / "usage.db", journal::mode::read_only);
    std::size_t seen = 0;
    REQUIRE(reader->each_block(
        0, ever,
        [&](std::string_view) {
            ++seen;
            REQUIRE(append(*writer, "r", 10 + seen, 50 + seen, 51 + seen));
            return true;
        },
        [](std::int64_t, std::string_view) { FAIL(); }));
    CHECK(seen == 3);
    CHECK(*reader->record_count() == 6);
}

TEST_CASE("the log stays bounded while a reader stands still in the middle of an export") {
    test::folder const dir("/tmp");
    auto writer = open_journal(dir / "usage.db");
    std::string const noise = [] {
        std::string s(200'000, '\0');
        std::uint64_t x = 88172645463325252ULL;
        for (auto& c : s) c = static_cast<char>((x ^= x << 13U, x ^= x >> 7U, x ^= x << 17U));
        return s;
    }();
    REQUIRE(append(*writer, "r", 1, 0, 1));
    auto reader = open_journal(dir / "usage.db", journal::mode::read_only);
    std::uintmax_t longest = 0;
    REQUIRE(reader->each_block(
        0, ever,
        [&](std::string_view) {
            for (std::uint64_t i = 0; i < 300; ++i) {  // 60 MB
                REQUIRE(writer->append("r", 10 + i, {1, at(5), at(5)}, noise));
                longest = std::max(longest, std::filesystem::file_size(dir / "usage.db-wal"));
            }
            return true;
        },
        [](std::int64_t, std::string_view) {}));
    CHECK(longest < 20'000'000);
}

TEST_CASE("old blocks are removed by their last record, however many there are") {
    test::folder const dir("/tmp");
    auto j = open_journal(dir / "usage.db");
    for (std::uint64_t i = 0; i < 600; ++i) REQUIRE(append(*j, "r", i + 1, i * 10, i * 10 + 2));
    std::uint64_t gone = 0;
    for (std::uint64_t some = 1; some != 0; gone += some) {
        auto const removed = j->remove_some(at(5901));  // block 590 ends at 5901
        REQUIRE(removed);
        some = *removed;
        CHECK(numbers(*j).front() == (gone + some) / 2 * 10);  // the oldest went first
    }
    CHECK(gone == 590 * 2);
    CHECK(*j->record_count() == 20);
    CHECK(numbers(*j).front() == 5900);
    CHECK(j->cursor_of("r")->value() == 600);
}

TEST_CASE("old blocks are removed by their bytes: large ones one at a time") {
    test::folder const dir("/tmp");
    auto j = open_journal(dir / "usage.db");
    block_meta const meta{.records = 7, .first_ms = 1, .last_ms = 1};
    for (std::uint64_t i = 1; i <= 3; ++i) REQUIRE(j->append("r", i, meta, std::string(128 << 10, 'b')));
    for (std::uint64_t i = 4; i <= 8; ++i) REQUIRE(j->append("r", i, meta, std::string(40 << 10, 'b')));
    for (int i = 0; i < 3; ++i) CHECK(*j->remove_some(ever) == 7);
    CHECK(*j->remove_some(ever) == 4 * 7);
    CHECK(*j->remove_some(ever) == 7);
    CHECK(*j->remove_some(ever) == 0);
}

TEST_CASE("a block goes into the file, and out of it, in steps") {
    test::folder const dir("/tmp");
    auto j = open_journal(dir / "usage.db");
    block_packer p;
    for (std::uint64_t n = 0; p.meta().records < block_records; ++n) REQUIRE(p.add(sample(n * 7919).r));
    auto const sealed = p.seal();
    REQUIRE(sealed);
    unsigned calls = 0;
    std::function<void()> const count = [&] { ++calls; };
    REQUIRE(j->append("r", 1, p.meta(), *sealed, count));
    CHECK(calls > sealed->size() / 4096);
    calls = 0;
    auto const gone = j->remove_some(std::numeric_limits<std::int64_t>::max(), count);
    REQUIRE(gone);
    CHECK(*gone == block_records);
    CHECK(calls > 0);
    CHECK(j->record_count().value() == 0);
}

TEST_CASE("a damaged block is named and skipped, the others are visited") {
    test::folder const dir("/tmp");
    {
        auto j = open_journal(dir / "usage.db");
        for (std::uint64_t i = 0; i < 3; ++i) REQUIRE(append(*j, "r", i + 1, i, i + 1));
    }
    {
        auto db = sqlite::database::open(dir / "usage.db", {});
        REQUIRE(db);
        REQUIRE(db->exec("UPDATE blocks SET data = x'4c4b420128b52ffd00' WHERE id = 2"));
    }
    auto j = open_journal(dir / "usage.db");
    std::vector<std::int64_t> bad;
    std::size_t good = 0;
    REQUIRE(j->each_block(
        0, ever, [&](std::string_view) { return ++good != 0; },
        [&](std::int64_t id, std::string_view why) {
            bad.push_back(id);
            CHECK_FALSE(why.empty());
        }));
    CHECK(good == 2);
    CHECK(bad == std::vector<std::int64_t>{2});
}

TEST_CASE("a visit that says no is the last") {
    test::folder const dir("/tmp");
    auto j = open_journal(dir / "usage.db");
    for (std::uint64_t i = 0; i < 3; ++i) REQUIRE(append(*j, "r", i + 1, i, i + 1));
    int seen = 0;
    REQUIRE(j->each_block(
        0, ever, [&](std::string_view) { return ++seen < 2; }, [](std::int64_t, std::string_view) {}));
    CHECK(seen == 2);
}

TEST_CASE("a held lock, a missing file, another program's file and a later schema are told apart") {
    test::folder const dir("/tmp");
    auto const file = dir / "usage.db";
    SECTION("held lock") {
        auto j = open_journal(file);
        auto other = sqlite::database::open(file, {});
        REQUIRE(other);
        {
            auto t = sqlite::transaction::begin(*other, sqlite::transaction::kind::write);
            REQUIRE(t);
            auto done = append(*j, "r", 1, 0, 1);
            REQUIRE_FALSE(done);
            CHECK(done.error().code == errc::busy);
        }
        REQUIRE(append(*j, "r", 1, 0, 1));
        CHECK(*j->record_count() == 1);
    }
    SECTION("missing") {
        auto opened = journal::open(file, journal::mode::read_only);
        REQUIRE_FALSE(opened);
        CHECK(opened.error().code == errc::not_found);
    }
    SECTION("not SQLite") {
        std::ofstream(file) << std::string(5000, 'x');
        auto opened = journal::open(file, journal::mode::read_write);
        REQUIRE_FALSE(opened);
        CHECK(opened.error().code == errc::corrupt);
    }
    SECTION("later schema") {
        open_journal(file);
        {
            auto db = sqlite::database::open(file, {});
            REQUIRE(db);
            REQUIRE(db->exec("PRAGMA user_version = 99"));
        }
        auto opened = journal::open(file, journal::mode::read_write);
        REQUIRE_FALSE(opened);
        CHECK(opened.error().code == errc::newer_schema);
    }
    SECTION("removed under us") {
        auto j = open_journal(file);
        REQUIRE(append(*j, "r", 1, 0, 1));
        std::filesystem::remove(file);
        auto done = append(*j, "r", 2, 1, 2);
        REQUIRE_FALSE(done);
        CHECK(done.error().code == errc::io);
    }
}
