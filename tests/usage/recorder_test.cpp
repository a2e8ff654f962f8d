#include "usage/recorder.hpp"

#include <sys/resource.h>

#include <algorithm>
#include <atomic>
#include <csignal>
#include <fstream>
#include <mutex>
#include <random>
#include <thread>
#include <vector>

#include "base/clock.hpp"
#include "base/sqlite.hpp"
#include "tests/usage/recorder_support.hpp"

using namespace latchkey;
using namespace latchkey::usage;
using namespace latchkey::usage::test;
using namespace std::chrono_literals;

namespace {

template <class Condition>
bool comes_true(Condition condition) {
    auto const end = std::chrono::steady_clock::now() + 20s;
    while (!condition())
        if (std::chrono::steady_clock::now() > end)
            return false;
        else
            std::this_thread::yield();
    return true;
}

}  // namespace

TEST_CASE("flush brings every committed record of every worker into the journal") {
    place const p;
    auto r = p.open(2);
    append(*r, 0, 0, 100);
    append(*r, 1, 100, 150);
    CHECK(r->state().fill > 0);
    REQUIRE(r->flush());
    auto const s = r->state();
    CHECK(s.ok);
    CHECK(s.appended == 150);
    CHECK(s.journalled == 150);
    CHECK(s.dropped == 0);
    CHECK(s.fill == 0);
    CHECK(sorted(test::numbers_in(p.journal_file)) == range(0, 150));
    REQUIRE(r->flush());
    CHECK(r->state().journalled == 150);
}

TEST_CASE("the flusher journals by itself, and stop takes what is left") {
    place const p;
    auto r = p.open(1);
    r->start();
    append(*r, 0, 0, 50);
    CHECK(comes_true([&] { return r->state().journalled == 50; }));
    append(*r, 0, 50, 60);
    r->stop();
    r->stop();
    CHECK(r->state().journalled == 60);
    CHECK(sorted(test::numbers_in(p.journal_file)) == range(0, 60));
}

TEST_CASE("a ring that fills fast is emptied long before the flush interval") {
    place const p;
    auto o = p.options(1);
    o.flush_interval = 1h;
    auto r = place::open(o);
    r->start();
    append(*r, 0, 0, 100);  // more than a quarter of 64 KiB
    CHECK(comes_true([&] { return r->state().journalled == 100; }));
}

TEST_CASE("while the journal is locked nothing is lost, the rest is dropped by exact count, and then it goes on") {
    place const p;
    auto r = p.open(1);
    r->start();
    std::uint64_t refused = 0;
    std::vector<std::uint64_t> kept;
    {
        auto other = sqlite::database::open(p.journal_file, {});
        REQUIRE(other);
        auto t = sqlite::transaction::begin(*other, sqlite::transaction::kind::write);
        REQUIRE(t);
        for (std::uint64_t n = 0; n < 1000; ++n) {
            sample const s(n);
            if (r->ring(0).prepare(s.r)) {
                r->ring(0).commit();
                kept.push_back(n);
            } else {
                ++refused;
            }
        }
        CHECK(refused > 0);
        auto done = r->flush();
        REQUIRE_FALSE(done);
        CHECK(done.error().code == errc::busy);
        auto const s = r->state();
        CHECK_FALSE(s.ok);
        CHECK_FALSE(s.detail.empty());
        CHECK(s.dropped == refused);
        CHECK(s.journalled == 0);
    }
    CHECK(comes_true([&] { return r->state().ok && r->state().journalled == kept.size(); }));
    CHECK(r->state().detail.empty());
    CHECK(r->state().dropped == refused);
    append(*r, 0, 5000, 5001);
    REQUIRE(r->flush());
    kept.push_back(5000);
    CHECK(sorted(test::numbers_in(p.journal_file)) == kept);
}

TEST_CASE("a disk that takes no more bytes is reported, and nothing is lost or doubled when it takes them again") {
    place const p;
    auto r = p.open(1);
    struct rlimit was {};
    REQUIRE(::getrlimit(RLIMIT_FSIZE, &was) == 0);
    auto const old = std::signal(SIGXFSZ, SIG_IGN);
    struct rlimit const tight{256 * 1024, was.rlim_max};
    REQUIRE(::setrlimit(RLIMIT_FSIZE, &tight) == 0);
    std::uint64_t n = 0;
    std::mt19937_64 random(3);
    std::vector<std::uint64_t> ids;
    bool failed = false;
    for (; n < 100'000 && !failed; ++n) {
        sample s(random() >> 1U);
        std::string const path = std::to_string(random()) + std::to_string(random()) + std::to_string(random());
        s.r.path = path;
        if (!r->ring(0).prepare(s.r, false)) {
            failed = !r->flush();
            continue;
        }
        r->ring(0).commit();
        ids.push_back(test::number_of(s.id));
    }
    bool const reported = !r->state().ok;
    bool const still = !r->flush();
    ::setrlimit(RLIMIT_FSIZE, &was);
    std::signal(SIGXFSZ, old);
    CHECK(failed);
    CHECK(still);
    CHECK(reported);
    REQUIRE(r->flush());
    CHECK(r->state().ok);
    CHECK(sorted(test::numbers_in(p.journal_file)) == sorted(ids));
}

TEST_CASE("retention removes what is older, in days") {
    place const p;
    auto o = p.options(1);
    o.retention_days = 30;
    std::uint64_t const today = static_cast<std::uint64_t>(wall_ms() / 86'400'000);
    {
        auto const first = place::open(p.options(1));
        for (std::uint64_t age : {40U, 31U, 29U, 0U}) {
            sample s(age + 1);
            s.r.time_ms = static_cast<std::int64_t>(today - age) * 86'400'000;
            REQUIRE(first->ring(0).prepare(s.r));
            first->ring(0).commit();
            REQUIRE(first->flush());
        }
    }
    auto r = place::open(o);
    REQUIRE(r->flush());
    CHECK(sorted(test::numbers_in(p.journal_file)) == std::vector<std::uint64_t>{1, 30});
}

namespace {

// Blocks of a record each, forty days old.
void write_old_blocks(place const& p, std::uint64_t count) {
    auto j = journal::open(p.journal_file, journal::mode::read_write);
    REQUIRE(j);
    block_packer packer;
    for (std::uint64_t n = 0; n < count; ++n) {
        sample s(n);
        s.r.time_ms = wall_ms() - 40LL * 86'400'000;
        packer.clear();
        REQUIRE(packer.add(s.r));
        REQUIRE((*j)->append("other", n + 1, packer.meta(), packer.seal().value()));
    }
}

}  // namespace

TEST_CASE("somebody who waits for flush() does not wait for retention of years, which later passes finish") {
    place const p;
    auto o = p.options(1);
    o.retention_days = 30;
    write_old_blocks(p, 600);
    auto r = place::open(o);
    REQUIRE(r->flush());
    auto const left = test::numbers_in(p.journal_file);
    CHECK(left.size() < 600);
    CHECK(left.size() >= 600 - 64);
    CHECK(left == range(600 - left.size(), 600));  // the oldest went first
    for (int i = 0; i < 10; ++i) REQUIRE(r->flush());
    CHECK(test::numbers_in(p.journal_file).empty());
}

TEST_CASE("retention that gave way goes on a beat later, not after a flush interval") {
    place const p;
    auto o = p.options(1);
    o.retention_days = 30;
    o.flush_interval = std::chrono::minutes(10);
    o.pause = [](std::chrono::microseconds) { std::this_thread::sleep_for(std::chrono::milliseconds(210)); };  // a whole turn
    write_old_blocks(p, 600);
    auto r = place::open(o);
    r->start();
    for (std::uint64_t n = 1000; n < 1100; ++n) {  // a quarter of the ring: the first pass
        sample s(n);
        s.r.time_ms = wall_ms();
        REQUIRE(r->ring(0).prepare(s.r));
        r->ring(0).commit();
    }
    auto const end = std::chrono::steady_clock::now() + std::chrono::minutes(1);
    while (test::numbers_in(p.journal_file) != range(1000, 1100) && std::chrono::steady_clock::now() < end)
        std::this_thread::sleep_for(std::chrono::milliseconds(20));
    CHECK(test::numbers_in(p.journal_file) == range(1000, 1100));
    r->stop();
}

TEST_CASE("a recorder that never started leaves no ring behind, and loses nothing of one that it took over") {
    place const p;
    {
        auto killed = place::open(p.options(2));
        append(*killed, 1, 0, 10);
    }
    REQUIRE(p.files(p.rings).size() == 2);
    auto r = place::open(p.options(2));
    append(*r, 0, 10, 12);
    r->withdraw();
    CHECK(p.files(p.rings).empty());
    CHECK(sorted(test::numbers_in(p.journal_file)) == range(0, 12));
}

TEST_CASE("the flusher pauses between its steps, and loses nothing to that") {
    place const p;
    auto o = p.options(2);
    o.ring_bytes = 32 << 20;  // of which this fills less than half
    std::atomic<unsigned> pauses{0};
    o.pause = [&](std::chrono::microseconds) { ++pauses; };
    auto r = place::open(o);
    std::uint64_t const each = 20'000;
    r->start();
    std::atomic<int> failures{0};  // Catch's own checks are for one thread
    std::thread other([&] {
        for (auto n = each; n < 2 * each; ++n) {
            sample const s(n);
            if (r->ring(1).prepare(s.r))
                r->ring(1).commit();
            else
                ++failures;
        }
    });
    append(*r, 0, 0, each);
    other.join();
    CHECK(failures == 0);
    auto const end = std::chrono::steady_clock::now() + std::chrono::minutes(1);
    while (r->state().journalled < 2 * each && std::chrono::steady_clock::now() < end) std::this_thread::yield();
    CHECK(pauses > 0);
    CHECK(r->state().journalled == 2 * each);
    CHECK(sorted(test::numbers_in(p.journal_file)) == range(0, 2 * each));
    r->stop();
}

TEST_CASE("the flusher's steps are short where few records come, longer where many come or a ring fills") {
    place const p;
    auto o = p.options(1);
    o.ring_bytes = 16 << 20;
    o.flush_interval = std::chrono::milliseconds(20);
    constexpr auto brisk = std::chrono::microseconds(1000);
    std::mutex guard;
    std::vector<std::chrono::microseconds> pauses;
    o.pause = [&](std::chrono::microseconds d) {
        std::lock_guard const lock(guard);
        pauses.push_back(d);
    };
    std::atomic<unsigned> offers{0};  // to let others go first
    o.offer = [&] { ++offers; };
    bool within_steps = false;  // whether the machine is fast enough for one: there were far more records than steps
    // The share of pauses that were long, in a pass over so many records, so long after they began to come.
    auto const long_pauses = [&](double fill, std::chrono::milliseconds before_the_pass) {
        pauses.clear();
        offers = 0;
        auto r = place::open(o);
        std::uint64_t n = 0;
        for (; r->state().fill < fill; ++n) append(*r, 0, n, n + 1);
        std::this_thread::sleep_for(before_the_pass);
        r->start();
        auto const end = std::chrono::steady_clock::now() + std::chrono::minutes(1);
        while (r->state().journalled < n && std::chrono::steady_clock::now() < end) std::this_thread::yield();
        r->stop();
        CHECK(r->state().journalled == n);
        REQUIRE(pauses.size() > 5);
        within_steps = n > 96 * pauses.size();
        return static_cast<double>(std::count(pauses.begin(), pauses.end(), brisk)) / static_cast<double>(pauses.size());
    };
    CHECK(long_pauses(0.2, std::chrono::milliseconds(1000)) == 0);
    CHECK((offers > 0 || !within_steps));
    CHECK(long_pauses(0.45, std::chrono::milliseconds(2000)) == 1);
    CHECK(offers == 0);
    double most = 0;  // a slow machine takes its time over a few thousand records: once is enough
    for (int turn = 0; turn < 50 && most < 1; ++turn) most = std::max(most, long_pauses(0.2, std::chrono::milliseconds(0)));
    CHECK(most == 1);
}

TEST_CASE("the flusher makes no pauses while a ring is half full") {
    place const p;
    auto o = p.options(1);
    o.ring_bytes = 4 << 20;
    recorder* running = nullptr;
    double fullest = 0;
    o.pause = [&](std::chrono::microseconds) { fullest = std::max(fullest, running->state().fill); };
    auto r = place::open(o);
    running = r.get();
    std::uint64_t n = 0;
    for (; r->state().fill < 0.9; ++n) append(*r, 0, n, n + 1);
    r->start();
    auto const end = std::chrono::steady_clock::now() + std::chrono::minutes(1);
    while (r->state().journalled < n && std::chrono::steady_clock::now() < end) std::this_thread::yield();
    CHECK(r->state().journalled == n);
    r->stop();
    CHECK(fullest < 0.5);
}

TEST_CASE("whoever waits for flush() waits for no pause but the one that has begun") {
    place const p;
    auto o = p.options(1);
    o.ring_bytes = 32 << 20;
    auto const end = std::chrono::steady_clock::now() + std::chrono::minutes(1);
    std::atomic<unsigned> pauses{0};
    std::atomic<bool> asked{false};
    o.pause = [&](std::chrono::microseconds) {
        if (++pauses > 1) return;
        while (!asked && std::chrono::steady_clock::now() < end) std::this_thread::yield();
        std::this_thread::sleep_for(std::chrono::milliseconds(500));  // in which flush() begins to wait
    };
    std::atomic<unsigned> offers{0};
    o.offer = [&] { offers += asked ? 1 : 0; };
    auto r = place::open(o);
    std::uint64_t const count = 30'000;  // a hundred steps
    append(*r, 0, 0, count);
    r->start();
    while (pauses == 0 && std::chrono::steady_clock::now() < end) std::this_thread::yield();
    asked = true;
    REQUIRE(r->flush());
    CHECK(pauses == 1);
    CHECK(offers == 0);
    CHECK(r->state().journalled == count);
    r->stop();
}

TEST_CASE("a ring that is damaged in memory does not keep the flusher from pausing") {
    place const p;
    auto o = p.options(2);
    o.ring_bytes = 8 << 20;
    std::atomic<unsigned> pauses{0};
    o.pause = [&](std::chrono::microseconds) { ++pauses; };
    auto r = place::open(o);
    std::uint64_t n = 0;
    for (; r->state().fill < 0.9; ++n) append(*r, 0, n, n + 1);
    {
        std::fstream f(p.file_of("0.ring"), std::ios::in | std::ios::out | std::ios::binary);
        f.seekp(4096 + 200);
        f.put('!');
    }
    REQUIRE_FALSE(r->flush());
    r->start();
    append(*r, 1, n, n + 8000);  // less than half of the other
    auto const end = std::chrono::steady_clock::now() + std::chrono::minutes(1);
    while (r->state().journalled < 8000 && std::chrono::steady_clock::now() < end) std::this_thread::yield();
    CHECK(r->state().journalled == 8000);
    CHECK(pauses > 0);
    r->stop();
}
