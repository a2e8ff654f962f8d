// What a usage record costs: the worker's part (prepare and commit), the flusher's part (ring, packing, compressing, SQLite), and
// reading back.

#include <benchmark/benchmark.h>

#include <cstdlib>
#include <filesystem>
#include <string>

#include "bench/micro/traffic.hpp"
#include "usage/block.hpp"
#include "usage/export.hpp"
#include "usage/journal.hpp"
#include "usage/recorder.hpp"
#include "usage/ring.hpp"

namespace {

using namespace latchkey;
using namespace latchkey::usage;
using bench::few_keys;
using bench::traffic;

struct folder {
    std::string path = "/dev/shm/latchkey-bench-XXXXXX";
    folder() {
        if (::mkdtemp(path.data()) == nullptr) std::abort();
    }
    ~folder() {
        std::error_code e;
        std::filesystem::remove_all(path, e);
    }
    folder(folder const&) = delete;
    folder& operator=(folder const&) = delete;
};

constexpr std::size_t many_keys = 16'384;  // more than a block has records

traffic const& shared_traffic() {
    static traffic const t(4 * block_records);
    return t;
}

traffic const& traffic_of(benchmark::State const& state) {
    static traffic const many(4 * block_records, many_keys);
    return static_cast<std::size_t>(state.range(0)) == many_keys ? many : shared_traffic();
}

// The worker's part. The ring is emptied with the clock stopped, once in a lap.
void ring_append(benchmark::State& state) {
    folder const dir;
    auto r = ring::open(dir.path + "/r", 16U << 20).value();
    auto const& t = shared_traffic();
    std::size_t i = 0;
    bool const patched = state.range(0) != 0;
    for (auto _ : state) {
        r->prepare(t.records[i]);
        if (patched)
            r->commit(outcome::served, 1234, 567);
        else
            r->commit();
        if (++i < t.records.size()) continue;
        i = 0;
        state.PauseTiming();
        r->release(r->read(r->cursor(), ~std::size_t{0}, [](record const&) {}).value());
        state.ResumeTiming();
    }
    if (r->dropped() != 0) state.SkipWithError("the ring was full");
    state.SetItemsProcessed(state.iterations());
}
BENCHMARK(ring_append)->Arg(0)->Arg(1);

void block_pack(benchmark::State& state) {
    auto const& t = traffic_of(state);
    block_packer p;
    for (auto _ : state) {
        p.clear();
        for (std::size_t i = 0; i < block_records; ++i) p.add(t.records[i]);
    }
    state.SetItemsProcessed(state.iterations() * static_cast<std::int64_t>(block_records));
}
BENCHMARK(block_pack)->ArgName("keys")->Arg(few_keys)->Arg(many_keys);

void block_seal(benchmark::State& state) {
    auto const& t = traffic_of(state);
    block_packer p;
    for (std::size_t i = 0; i < block_records; ++i) p.add(t.records[i]);
    std::size_t bytes = 0;
    for (auto _ : state) bytes = p.seal().value().size();
    state.counters["bytes_per_record"] = static_cast<double>(bytes) / block_records;
    state.SetItemsProcessed(state.iterations() * static_cast<std::int64_t>(block_records));
}
BENCHMARK(block_seal)->ArgName("keys")->Arg(few_keys)->Arg(many_keys);

// The flusher's part as a whole: from full ring to committed transaction.
void flush(benchmark::State& state) {
    folder const dir;
    auto r = recorder::open({.journal_file = dir.path + "/usage.db", .ring_dir = dir.path + "/rings", .workers = 1}).value();
    auto const& t = shared_traffic();
    std::int64_t records = 0;
    for (auto _ : state) {
        state.PauseTiming();
        for (auto const& x : t.records) {
            if (!r->ring(0).prepare(x)) break;
            r->ring(0).commit();
            ++records;
        }
        state.ResumeTiming();
        r->flush().value();
    }
    state.SetItemsProcessed(records);
}
BENCHMARK(flush)->UseRealTime();

void csv_export(benchmark::State& state) {
    folder const dir;
    auto r = recorder::open({.journal_file = dir.path + "/usage.db", .ring_dir = dir.path + "/rings", .workers = 1}).value();
    for (auto const& x : shared_traffic().records) {
        r->ring(0).prepare(x);
        r->ring(0).commit();
    }
    r->flush().value();
    auto j = journal::open(dir.path + "/usage.db", journal::mode::read_only).value();
    std::uint64_t rows = 0;
    std::size_t bytes = 0;
    for (auto _ : state) {
        rows += export_csv(*j, {}, [&](std::string_view piece) { return (bytes += piece.size()) != 0; }).value();
    }
    state.SetItemsProcessed(static_cast<std::int64_t>(rows));
    state.SetBytesProcessed(static_cast<std::int64_t>(bytes));
}
BENCHMARK(csv_export);

}  // namespace
