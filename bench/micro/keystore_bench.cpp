// What a request pays for its key: shape and checksum, digest, look-up among 100,000.
#include <algorithm>
#include <map>
#include <memory>
#include <vector>

#include "base/ids.hpp"
#include "bench/micro/allocations.hpp"
#include "keystore/key_format.hpp"
#include "keystore/key_table.hpp"

namespace latchkey::bench {
namespace {

constexpr std::size_t key_count = 100'000;

struct filled_table {
    keystore::key_table table;
    std::vector<keystore::digest> digests;  // of the keys in it, in random order
};

filled_table const& full() {
    static filled_table const made = [] {
        filled_table t;
        std::map<std::size_t, std::vector<keystore::key_entry>> shards;
        for (std::size_t i = 0; i < key_count; ++i) {
            keystore::key_entry entry;
            entry.hash = keystore::digest_of(keystore::make_key("lk"));
            entry.key_id = make_id("key_");
            entry.application_id = make_id("app_");
            entry.application = "application " + std::to_string(i);
            t.digests.push_back(entry.hash);
            shards[keystore::shard_of(entry.hash)].push_back(std::move(entry));
        }
        std::vector<keystore::shard_update> updates;
        for (auto& [index, entries] : shards) {
            std::sort(entries.begin(), entries.end(), [](auto const& a, auto const& b) { return a.hash < b.hash; });
            updates.push_back({index, std::make_shared<keystore::key_shard const>(entries)});
        }
        t.table.apply(updates);
        return t;
    }();
    return made;
}

void key_shape(benchmark::State& state) {
    auto const key = keystore::make_key("lk");
    count_allocations const counted{state};
    for (auto _ : state) benchmark::DoNotOptimize(keystore::shape_of(key, "lk"));
}
BENCHMARK(key_shape);

void key_shape_malformed(benchmark::State& state) {
    count_allocations const counted{state};
    for (auto _ : state) benchmark::DoNotOptimize(keystore::shape_of("too-short", "lk"));
}
BENCHMARK(key_shape_malformed);

void key_digest(benchmark::State& state) {
    auto const key = keystore::make_key("lk");
    count_allocations const counted{state};
    for (auto _ : state) benchmark::DoNotOptimize(keystore::digest_of(key));
}
BENCHMARK(key_digest);

// Every look-up another key: cold in the cache, as under real traffic.
void key_lookup_100k(benchmark::State& state) {
    auto const& keys = full();
    std::size_t at = 0;
    keystore::key_view found;
    count_allocations const counted{state};
    for (auto _ : state) {
        if (!keys.table.find(keys.digests[at], found)) state.SkipWithError("a key is missing");
        benchmark::DoNotOptimize(found);
        at = at + 1 == keys.digests.size() ? 0 : at + 1;
    }
}
BENCHMARK(key_lookup_100k);

void key_lookup_same(benchmark::State& state) {
    auto const& keys = full();
    keystore::key_view found;
    count_allocations const counted{state};
    for (auto _ : state) {
        if (!keys.table.find(keys.digests[0], found)) state.SkipWithError("a key is missing");
        benchmark::DoNotOptimize(found);
    }
}
BENCHMARK(key_lookup_same);

void key_lookup_unknown(benchmark::State& state) {
    auto const& keys = full();
    auto const unknown = keystore::digest_of("a key that nobody has");
    keystore::key_view found;
    count_allocations const counted{state};
    for (auto _ : state) benchmark::DoNotOptimize(keys.table.find(unknown, found));
}
BENCHMARK(key_lookup_unknown);

}  // namespace
}  // namespace latchkey::bench
