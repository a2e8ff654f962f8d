// What an earlier or another process left in its rings: taken over once and only once.

#include <fcntl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <csignal>
#include <cstring>
#include <fstream>
#include <map>
#include <random>

#include "tests/usage/recorder_support.hpp"

using namespace latchkey;
using namespace latchkey::usage;
using namespace latchkey::usage::test;

TEST_CASE("records left in rings are taken over once, and rings that fit go on") {
    place const p;
    {
        auto r = p.open(3);
        append(*r, 0, 0, 20);
        append(*r, 1, 20, 50);
        append(*r, 2, 50, 51);
        REQUIRE(r->ring(2).prepare(sample(51).r));
    }
    SECTION("same workers") {
        auto r = p.open(3);
        CHECK(r->recovered() == 52);
        CHECK(r->state().appended == 0);
        append(*r, 0, 52, 60);
        REQUIRE(r->flush());
        CHECK(r->state().appended == 8);
        CHECK(sorted(test::numbers_in(p.journal_file)) == range(0, 60));
        CHECK(p.files(p.rings).size() == 3);
    }
    SECTION("fewer workers") {
        CHECK(p.open(1)->recovered() == 52);
        CHECK(p.files(p.rings) == std::vector<std::string>{"0.ring"});
        CHECK(p.open(1)->recovered() == 0);
    }
    SECTION("none: recover only") {
        CHECK(p.open(0)->recovered() == 52);
        CHECK(p.files(p.rings).empty());
    }
    SECTION("none, and no folder named: the journal remembers it") {
        auto o = p.options(0);
        o.ring_dir.clear();
        CHECK(place::open(o)->recovered() == 52);
        CHECK(p.files(p.rings).empty());
    }
    SECTION("another size") {
        auto o = p.options(3);
        o.ring_bytes = 2 * test::small_ring;
        CHECK(place::open(o)->recovered() == 52);
    }
    SECTION("another folder: the journal remembers the old one") {
        auto o = p.options(3);
        o.ring_dir = p.shm / "elsewhere";
        CHECK(place::open(o)->recovered() == 52);
        CHECK(p.files(p.rings).empty());
        CHECK(p.files(o.ring_dir).size() == 3);
    }
    CHECK(p.open(0)->recovered() == 0);
    auto found = sorted(test::numbers_in(p.journal_file));
    found.resize(52);
    CHECK(found == range(0, 52));
}

TEST_CASE("root recovers the rings of the journal's owner, and nobody else's") {
    if (::geteuid() != 0) return;
    place const p;
    {
        auto r = p.open(1);
        append(*r, 0, 0, 20);
    }
    REQUIRE(::chown(p.file_of("0.ring").c_str(), 12345, 12345) == 0);
    auto const refused = recorder::open(p.options(0));
    REQUIRE(refused.has_error());
    CHECK(refused.error().code == errc::not_allowed);
    REQUIRE(::chown(p.journal_file.c_str(), 12345, 12345) == 0);
    CHECK(p.open(0)->recovered() == 20);
    CHECK(p.files(p.rings).empty());
    CHECK(sorted(test::numbers_in(p.journal_file)) == range(0, 20));
}

TEST_CASE("a kill between the journal's commit and the ring's release counts nothing twice") {
    place const p;
    std::string before;
    {
        auto r = p.open(1);
        append(*r, 0, 0, 30);
        std::ifstream f(p.file_of("0.ring"), std::ios::binary);
        before.assign(std::istreambuf_iterator<char>(f), {});
        REQUIRE(r->flush());
    }
    std::ofstream(p.file_of("0.ring"), std::ios::binary) << before;  // as if release() had not been reached
    auto r = p.open(1);
    CHECK(r->recovered() == 0);
    append(*r, 0, 30, 40);
    REQUIRE(r->flush());
    CHECK(sorted(test::numbers_in(p.journal_file)) == range(0, 40));
}

TEST_CASE("a damaged ring keeps what can be read, is put aside, and does not stop the start") {
    place const p;
    {
        auto r = p.open(2);
        append(*r, 0, 0, 20);
        append(*r, 1, 20, 30);
    }
    auto const file = p.file_of("0.ring");
    SECTION("in the middle") {
        {
            std::fstream f(file, std::ios::in | std::ios::out | std::ios::binary);
            f.seekp(4096 + 2000);
            f << "damage";
        }
        auto r = p.open(2);
        CHECK(r->recovered() > 10 + 3);
        CHECK(r->recovered() < 30);
        append(*r, 0, 100, 110);
        REQUIRE(r->flush());
        CHECK(p.files(p.rings) == std::vector<std::string>{"0.ring", "0.ring.damaged", "1.ring"});
    }
    SECTION("in its header") {
        std::ofstream(file, std::ios::in | std::ios::out | std::ios::binary) << "not a ring";
        CHECK(p.open(2)->recovered() == 10);
        std::ofstream(p.file_of("0.ring"), std::ios::in | std::ios::out | std::ios::binary) << "not a ring";
        CHECK(p.open(2)->recovered() == 0);
        CHECK(p.files(p.rings) == std::vector<std::string>{"0.ring", "0.ring.damaged", "0.ring.damaged-2", "1.ring"});
    }
    SECTION("of a strange length") {
        REQUIRE(::truncate(file.c_str(), 50'000) == 0);
        CHECK(p.open(2)->recovered() == 10);
    }
    SECTION("never finished") {
        std::ofstream(file, std::ios::trunc) << "";
        CHECK(p.open(2)->recovered() == 10);
        CHECK(p.files(p.rings).size() == 2);
    }
    auto const found = sorted(test::numbers_in(p.journal_file));
    CHECK(std::adjacent_find(found.begin(), found.end()) == found.end());
}

TEST_CASE("a ring file that is a link stops the start with its name") {
    place const p;
    p.open(1);
    auto const file = p.file_of("0.ring");
    std::filesystem::rename(file, p.shm / "kept");
    std::filesystem::create_symlink(p.shm / "kept", file);
    auto opened = recorder::open(p.options(1));
    REQUIRE_FALSE(opened);
    CHECK(opened.error().code == errc::not_allowed);
    CHECK(opened.error().message.find(file) != std::string::npos);
}

TEST_CASE("rings that a running process holds are left to it, and taken over once when it has ended without a word") {
    place const p;
    auto o = p.options(2);
    SECTION("in the same folder") {}
    SECTION("in a folder that is not used any more") { o.ring_dir = p.shm / "elsewhere"; }
    SECTION("when the one that saw them was killed, too") {
        auto before = p.open(2);
        append(*before, 1, 0, 20);
        o.ring_dir = p.shm / "elsewhere";
        {
            auto after = place::open(o);
            append(*after, 0, 20, 30);
        }
        o.ring_dir = p.shm / "third";
        auto last = place::open(o);
        CHECK(last->recovered() == 10);
        before.reset();
        REQUIRE(last->flush());
        CHECK(last->recovered() == 30);
        CHECK(sorted(test::numbers_in(p.journal_file)) == range(0, 30));
        return;
    }
    auto before = p.open(2);
    auto after = place::open(o);
    CHECK(after->recovered() == 0);
    append(*before, 0, 0, 10);
    append(*after, 0, 10, 20);
    append(*before, 1, 20, 30);
    REQUIRE(after->flush());
    REQUIRE(before->flush());
    append(*before, 1, 30, 40);
    CHECK(sorted(test::numbers_in(p.journal_file)) == range(0, 30));
    before.reset();  // without start() and stop(): as if it was killed
    REQUIRE(after->flush());
    REQUIRE(after->flush());
    CHECK(after->recovered() == 10);
    CHECK(sorted(test::numbers_in(p.journal_file)) == range(0, 40));
    CHECK(p.files(p.rings).size() == (o.ring_dir == p.rings ? 2 : 0));
}

TEST_CASE("a process that ends in order leaves nothing to the one that saw its rings") {
    place const p;
    auto before = p.open(2);
    before->start();
    auto after = p.open(3);
    append(*before, 0, 0, 10);
    before->stop(true);
    CHECK(p.files(p.rings).size() == 3);
    before.reset();
    REQUIRE(after->flush());
    CHECK(after->recovered() == 0);
    CHECK(sorted(test::numbers_in(p.journal_file)) == range(0, 10));
}

TEST_CASE("the rings of a successor that failed are looked for when asked") {
    place const p;
    auto r = p.open(1);
    {
        auto failed = p.open(2);
        append(*failed, 1, 0, 5);
    }
    REQUIRE(r->flush());
    CHECK(r->recovered() == 0);
    r->look_for_others();
    REQUIRE(r->flush());
    CHECK(r->recovered() == 5);
    CHECK(p.files(p.rings) == std::vector<std::string>{"0.ring"});
}

TEST_CASE("rings and files of others in the same folder are not touched") {
    place const p;
    place other;
    other.rings = p.rings;
    {
        auto mine = p.open(1);
        append(*mine, 0, 0, 5);
    }
    {
        auto theirs = other.open(2);
        append(*theirs, 0, 10, 20);
    }
    for (auto const* name : {"notes.txt", "0123456789abcdef-0.ring", "x.ring"}) std::ofstream(p.rings + "/" + name) << "x";
    CHECK(p.open(0)->recovered() == 5);
    CHECK(std::filesystem::exists(p.rings + "/0123456789abcdef-0.ring"));
    CHECK(other.open(2)->recovered() == 10);
}

namespace {

constexpr std::uint64_t together_max = 4;

// The child of the kill test: appends records of `round` as fast as it can, says the number of each once it is prepared, and then
// commits it in one of three ways. Never returns.
[[noreturn]] void append_until_killed(recorder_options const& o, int acknowledge, std::uint64_t round) {
    auto opened = recorder::open(o);
    if (!opened) ::_exit(3);
    (*opened)->start();
    auto& ring = (*opened)->ring(0);
    for (std::uint64_t first = 0;;) {
        // So many are prepared before the first of them is final.
        std::uint64_t const most = 1 + first % together_max;
        std::uint64_t end = first;
        for (; end < first + most; ++end) {
            sample const s(round << 32U | end);
            if (!ring.prepare(s.r, false)) break;
            auto const number = round << 32U | end;
            if (end % 5 != 4 && ::write(acknowledge, &number, sizeof number) != sizeof number) ::_exit(4);
        }
        if (end == first) ::sched_yield();
        for (; first < end; ++first) {
            if (first % 5 == 4)
                ring.retract();
            else if (first % 5 == 2)
                ring.commit(outcome::client_aborted, 42, 43);
            else
                ring.commit();
        }
    }
}

// Lets a child append until `after` acknowledgements came, kills it, and returns every number it acknowledged.
std::vector<std::uint64_t> one_life(recorder_options const& o, std::uint64_t round, std::size_t after) {
    int ends[2];
    REQUIRE(::pipe2(ends, O_CLOEXEC) == 0);
    auto const child = ::fork();
    REQUIRE(child >= 0);
    if (child == 0) {
        ::close(ends[0]);
        append_until_killed(o, ends[1], round);
    }
    ::close(ends[1]);
    std::vector<std::uint64_t> acknowledged;
    std::array<std::uint64_t, 512> piece{};
    std::size_t spare = 0;  // bytes of a number whose rest has not come yet
    bool killed = after == 0;
    if (killed) ::kill(child, SIGKILL);
    for (;;) {
        auto const n = ::read(ends[0], reinterpret_cast<char*>(piece.data()) + spare, sizeof piece - spare);
        if (n <= 0) break;
        auto const bytes = spare + static_cast<std::size_t>(n);
        acknowledged.insert(acknowledged.end(), piece.begin(), piece.begin() + static_cast<long>(bytes / 8));
        spare = bytes % 8;
        std::memmove(piece.data(), reinterpret_cast<char*>(piece.data()) + bytes - spare, spare);
        if (killed || acknowledged.size() < after) continue;
        ::kill(child, SIGKILL);
        killed = true;
    }
    ::close(ends[0]);
    int status = 0;
    REQUIRE(::waitpid(child, &status, 0) == child);
    REQUIRE(WIFSIGNALED(status));
    REQUIRE(WTERMSIG(status) == SIGKILL);
    return acknowledged;
}

}  // namespace

TEST_CASE("after kill -9 at any moment every acknowledged record is on record exactly once") {
    place const p;
    constexpr std::uint64_t lives = 80;
    std::mt19937 random(std::random_device{}());
    std::map<std::uint64_t, unsigned> acknowledged;
    for (std::uint64_t round = 0; round < lives; ++round) {
        std::size_t const after = round % 10 == 9 ? 0 : 1 + random() % (round % 3 == 0 ? 50 : 4000);
        for (auto const n : one_life(p.options(1), round, after)) acknowledged[n] = 0;
    }
    REQUIRE(acknowledged.size() > lives);
    auto const last_recovered = p.open(0)->recovered();
    INFO("the last recovery took over " << last_recovered);

    auto j = journal::open(p.journal_file, journal::mode::read_only);
    REQUIRE(j);
    // By round: prepared, and killed before it could say so, or before it could take it back.
    std::map<std::uint64_t, unsigned> unsaid;
    std::size_t wrong_values = 0;
    test::each_record(**j, [&](record const& r) {
        auto const number = test::number_of(r.request_id);
        auto const said = acknowledged.find(number);
        if (said == acknowledged.end())
            ++unsaid[number >> 32U];
        else
            ++said->second;
        bool const final_values = r.end == outcome::client_aborted && r.response_bytes == 42 && r.duration_us == 43;
        auto const next = acknowledged.upper_bound(number + together_max);
        bool const is_last = next == acknowledged.end() || next->first >> 32U != number >> 32U;
        bool const wants_final = (number & 0xffffffffU) % 5 == 2;
        if (wants_final != final_values && !is_last) ++wrong_values;
    });
    std::size_t missing = 0;
    std::size_t twice = 0;
    for (auto const& [number, times] : acknowledged) {
        missing += times == 0 ? 1U : 0U;
        twice += times > 1 ? 1U : 0U;
    }
    CHECK(missing == 0);
    CHECK(twice == 0);
    CHECK(wrong_values == 0);
    for (auto const& [round, times] : unsaid) CHECK(times <= 2);
}
