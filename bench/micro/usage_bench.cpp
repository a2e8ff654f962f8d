// What a usage record costs: the worker's part (prepare and commit), the flusher's part (ring, packing, compressing, SQLite), and
// reading back. Traffic: 500 keys of 50 applications, 200 paths of which a quarter carry a number, random ids and times.

#include <benchmark/benchmark.h>

#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <random>
#include <string>
#include <vector>

#include "usage/block.hpp"
#include "usage/export.hpp"
#include "usage/journal.hpp"
#include "usage/recorder.hpp"
#include "usage/ring.hpp"

namespace {

using namespace latchkey;
using namespace latchkey::usage;

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

// Prepared records, so that making them up is not measured.
struct traffic {
    std::vector<std::string> texts;
    std::vector<record> records;

    explicit traffic(std::size_t count) {
        std::mt19937_64 random(7);
        texts.reserve(count * 2 + 2000);
        auto const text = [&](std::string t) -> std::string_view { return texts.emplace_back(std::move(t)); };
        std::vector<std::string_view> applications;
        std::vector<std::string_view> application_ids;
        std::vector<std::string_view> keys;
        std::vector<std::string_view> paths;
        keys.reserve(500);
        paths.reserve(200);
        char id[33];
        for (int i = 0; i < 50; ++i) {
            applications.push_back(text("application " + std::to_string(i)));
            application_ids.push_back(text("app_" + std::to_string(1'000'000'000'000'000ULL + random() % 1'000'000'000ULL)));
        }
        for (int i = 0; i < 500; ++i)
            keys.push_back(text("key_" + std::to_string(1'000'000'000'000'000ULL + random() % 1'000'000'000ULL)));
        for (int i = 0; i < 200; ++i) paths.push_back(text("/v1/resource/" + std::to_string(i) + "/items"));
        std::int64_t now = 1'790'000'000'000;
        for (std::size_t n = 0; n < count; ++n) {
            record r;
            auto const key = random() % keys.size();
            std::snprintf(id, sizeof id, "%016llx%016llx", static_cast<unsigned long long>(random()),
                          static_cast<unsigned long long>(random()));
            r.time_ms = now += static_cast<std::int64_t>(random() % 2);
            r.request_id = text(id);
            r.key_id = keys[key];
            r.application = applications[key % 50];
            r.application_id = application_ids[key % 50];
            r.api = "default";
            r.method = random() % 8 == 0 ? "POST" : "GET";
            r.host = "api.example.com";
            r.path =
                random() % 4 == 0 ? text("/v1/orders/" + std::to_string(random() % 1'000'000)) : paths[random() % paths.size()];
            r.status = random() % 50 == 0 ? 404 : 200;
            r.request_bytes = 250 + random() % 64;
            r.response_bytes = 500 + random() % 4096;
            r.duration_us = static_cast<std::uint32_t>(400 + random() % 3000);
            r.upstream_us = r.duration_us - 100;
            r.client_ip = {0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 10, 0, static_cast<unsigned char>(key % 4), 7};
            records.push_back(r);
        }
    }
};

traffic const& shared_traffic() {
    static traffic const t(4 * block_records_max);
    return t;
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
    auto const& t = shared_traffic();
    block_packer p;
    for (auto _ : state) {
        p.clear();
        for (std::size_t i = 0; i < block_records_max; ++i) p.add(t.records[i]);
    }
    state.SetItemsProcessed(state.iterations() * static_cast<std::int64_t>(block_records_max));
}
BENCHMARK(block_pack);

void block_seal(benchmark::State& state) {
    auto const& t = shared_traffic();
    block_packer p;
    for (std::size_t i = 0; i < block_records_max; ++i) p.add(t.records[i]);
    std::size_t bytes = 0;
    for (auto _ : state) bytes = p.seal().value().size();
    state.counters["bytes_per_record"] = static_cast<double>(bytes) / block_records_max;
    state.SetItemsProcessed(state.iterations() * static_cast<std::int64_t>(block_records_max));
}
BENCHMARK(block_seal);

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
