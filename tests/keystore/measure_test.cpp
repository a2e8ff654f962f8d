// Figures, not checks: `test_keystore "figures with 100k keys"` (or 1M) prints what the store and the table cost on this machine.

#include <fmt/format.h>
#include <malloc.h>

#include <ctime>

#include "base/clock.hpp"
#include "keystore/store.hpp"
#include "tests/base/scratch.hpp"

using namespace latchkey;
using namespace latchkey::keystore;
using namespace latchkey::testing;

namespace {

template <class Work>
void timed(std::string const& what, Work const& work) {
    auto const from = steady_ns();
    auto const cpu_from = std::clock();
    work();
    auto const cpu_ms = static_cast<double>(std::clock() - cpu_from) * 1e3 / CLOCKS_PER_SEC;
    WARN(fmt::format("{}: {:.3f} ms, of processor time {:.1f} ms", what, static_cast<double>(steady_ns() - from) / 1e6, cpu_ms));
}

void measure(std::size_t count) {
    scratch_dir const dir;
    auto const file = dir.file("keys.db");
    std::string first_id;
    {
        auto s = store::open(file, {}).value();
        std::vector<import_row> rows;
        for (std::size_t i = 0; i < count; ++i) rows.push_back({fmt::format("user{:06}", i), make_key("lk"), i + 2});
        timed(fmt::format("import of {} keys", count), [&] { REQUIRE(s->import_keys(rows, "lk")); });
    }
    std::unique_ptr<store> s;
    timed("open with quick_check", [&] { s = store::open(file, {}).value(); });
    WARN(fmt::format("file: {:.1f} MB", static_cast<double>(std::filesystem::file_size(file)) / 1e6));
    key_table table;
    ::malloc_trim(0);
    auto const before = ::mallinfo2();
    timed("each_shard and building all shards", [&] {
        std::vector<shard_update> all;
        REQUIRE(s->each_shard([&](std::size_t i, auto const& e) { all.push_back({i, std::make_shared<key_shard const>(e)}); }));
        table.apply(all);
    });
    auto const after = ::mallinfo2();
    WARN(fmt::format("table: {} keys, {:.1f} MB", table.size(),
                     static_cast<double>(after.uordblks + after.hblkhd - before.uordblks - before.hblkhd) / 1e6));
    std::string id;
    timed("create", [&] { id = s->create_key("one more", "lk")->row.id; });
    timed("revoke", [&] { REQUIRE(s->revoke(id)); });
    timed("changed_since and one shard anew", [&] {
        auto const newest = s->changed_since(0)->newest;
        auto const changes = s->changed_since(newest - 1);
        for (auto const i : changes->shards) key_shard const anew(*s->shard(i));
    });
    timed("1000 x data_version", [&] {
        for (int i = 0; i < 1000; ++i) REQUIRE(s->data_version());
    });
    auto const key = make_key("lk");
    digest d{};
    timed("1e6 x digest_of", [&] {
        for (int i = 0; i < 1'000'000; ++i) {
            d = digest_of(key);
            asm volatile("" : : "r"(d.data()) : "memory");
        }
    });
    std::size_t found = 0;
    timed("1e6 x shape_of", [&] {
        for (int i = 0; i < 1'000'000; ++i) {
            asm volatile("" : : "r"(key.data()) : "memory");
            found += shape_of(key, "lk") == key_shape::ours ? 1 : 0;
        }
    });
    timed("1e6 x find of an unknown key", [&] {
        key_view v;
        for (std::uint32_t i = 0; i < 1'000'000; ++i) {
            std::uint64_t const mixed = i * 0x9E3779B97F4A7C15ULL;
            std::copy_n(reinterpret_cast<unsigned char const*>(&mixed), sizeof mixed, d.data());
            found += table.find(d, v) ? 1 : 0;
        }
    });
    REQUIRE(found == 1'000'000);
}

}  // namespace

TEST_CASE("figures with 100k keys", "[.measure]") { measure(100'000); }
TEST_CASE("figures with 1M keys", "[.measure]") { measure(1'000'000); }
