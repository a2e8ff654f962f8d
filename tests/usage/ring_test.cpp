#include "usage/ring.hpp"

#include <fcntl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include <atomic>
#include <csignal>
#include <filesystem>
#include <fstream>
#include <thread>

#include "tests/usage/support.hpp"

using namespace latchkey;
using namespace latchkey::usage;
using test::sample;

namespace {

constexpr std::uint64_t small = 64 * 1024;
constexpr std::uint64_t page = 4096;
constexpr std::uint64_t head_at = 64;  // see the format in ring.cpp

std::unique_ptr<ring> open_ring(std::string const& file, std::uint64_t bytes = small) {
    auto opened = ring::open(file, bytes);
    INFO((opened ? std::string() : opened.error().message));
    REQUIRE(opened);
    return std::move(*opened);
}

void append(ring& r, std::uint64_t n) {
    sample const s(n);
    REQUIRE(r.prepare(s.r));
    r.commit();
}

std::vector<std::uint64_t> numbers(ring& r, std::uint64_t& position) {
    std::vector<std::uint64_t> found;
    auto next = r.read(position, 1'000'000, [&](record const& x) { found.push_back(test::number_of(x.request_id)); });
    REQUIRE(next);
    position = *next;
    return found;
}

std::vector<std::uint64_t> numbers(ring& r) {
    auto position = r.cursor();
    return numbers(r, position);
}

void poke(std::string const& file, std::uint64_t at, std::string_view bytes) {
    std::fstream f(file, std::ios::in | std::ios::out | std::ios::binary);
    f.seekp(static_cast<std::streamoff>(at));
    f.write(bytes.data(), static_cast<std::streamsize>(bytes.size()));
    REQUIRE(f.good());
}

std::string peek(std::string const& file, std::uint64_t at, std::size_t n) {
    std::ifstream f(file, std::ios::binary);
    f.seekg(static_cast<std::streamoff>(at));
    std::string bytes(n, '\0');
    f.read(bytes.data(), static_cast<std::streamsize>(n));
    REQUIRE(f.good());
    return bytes;
}

errc refusal(std::string const& file, std::uint64_t bytes = small) {
    auto opened = ring::open(file, bytes);
    REQUIRE_FALSE(opened);
    REQUIRE(opened.error().message.find(file) != std::string::npos);
    return opened.error().code;
}

}  // namespace

TEST_CASE("a committed record comes out as it went in") {
    test::folder const dir;
    auto r = open_ring(dir / "a");
    sample s(7);
    s.r.end = outcome::upstream_failed;
    s.r.status = 502;
    REQUIRE(r->prepare(s.r));
    r->commit();
    std::size_t seen = 0;
    auto next = r->read(0, 10, [&](record const& x) {
        ++seen;
        CHECK(test::same(x, s.r));
    });
    REQUIRE(next);
    CHECK(seen == 1);
    CHECK(r->appended() == 1);
    CHECK(*next % 8 == 0);
    CHECK(r->fill() > 0);
    r->release(*next);
    CHECK(r->fill() == 0);
}

TEST_CASE("commit sets outcome, bytes and duration to what happened at last") {
    test::folder const dir;
    auto r = open_ring(dir / "a");
    sample s(7);
    REQUIRE(r->prepare(s.r));
    r->commit(outcome::client_aborted, 123456789012ULL, 987654);
    s.r.end = outcome::client_aborted;
    s.r.response_bytes = 123456789012ULL;
    s.r.duration_us = 987654;
    std::size_t seen = 0;
    REQUIRE(r->read(0, 10, [&](record const& x) { seen += test::same(x, s.r) ? 1U : 100U; }));
    CHECK(seen == 1);
}

TEST_CASE("a prepared record is not read before it is committed, and a retracted one never") {
    test::folder const dir;
    auto r = open_ring(dir / "a");
    sample const s(1);
    REQUIRE(r->prepare(s.r));
    CHECK(numbers(*r).empty());
    r->retract();
    CHECK(numbers(*r).empty());
    append(*r, 2);
    CHECK(numbers(*r) == std::vector<std::uint64_t>{2});
}

TEST_CASE("several records are prepared before the first is final, and each is made final or taken back in its turn") {
    test::folder const dir;
    auto r = open_ring(dir / "a");
    for (std::uint64_t n = 1; n <= 5; ++n) REQUIRE(r->prepare(sample(n).r));
    CHECK(numbers(*r).empty());
    r->commit();
    CHECK(numbers(*r) == std::vector<std::uint64_t>{1});
    r->retract();  // the second, behind which others stand
    CHECK(numbers(*r) == std::vector<std::uint64_t>{1});
    r->commit(outcome::client_aborted, 42, 43);
    CHECK(numbers(*r) == std::vector<std::uint64_t>{1, 3});
    REQUIRE(r->prepare(sample(6).r));
    r->commit();
    r->retract();  // the fifth
    r->retract();  // the sixth, behind which nothing stands
    CHECK(numbers(*r) == std::vector<std::uint64_t>{1, 3, 4});
    append(*r, 7);
    CHECK(numbers(*r) == std::vector<std::uint64_t>{1, 3, 4, 7});
    CHECK(r->appended() == 4);
    std::vector<outcome> ends;
    REQUIRE(r->read(0, 10, [&](record const& x) { ends.push_back(x.end); }));
    CHECK(ends[1] == outcome::client_aborted);
    auto position = r->cursor();
    numbers(*r, position);
    r->release(position);
    CHECK(r->fill() == 0);
}

TEST_CASE(
    "records that are prepared together keep their order over many laps, those between that are taken back are passed over") {
    test::folder const dir;
    auto r = open_ring(dir / "a");
    std::string const filler(path_bytes_max, 'p');
    std::uint64_t position = 0;
    std::vector<std::uint64_t> wanted;
    std::vector<std::uint64_t> got;
    std::uint64_t n = 0;
    while (n < 20'000) {
        std::vector<std::uint64_t> prepared;
        for (std::uint64_t const most = 1 + n % 7; prepared.size() < most; ++n) {
            sample s(n);
            s.r.path = std::string_view(filler).substr(0, (n * 37) % path_bytes_max);
            if (!r->prepare(s.r, false)) break;
            prepared.push_back(n);
        }
        for (auto const m : prepared) {
            if (m % 3 == 1) {
                r->retract();
            } else {
                r->commit();
                wanted.push_back(m);
            }
        }
        if (!prepared.empty()) continue;
        for (auto const m : numbers(*r, position)) got.push_back(m);
        r->release(position);
    }
    for (auto const m : numbers(*r, position)) got.push_back(m);
    CHECK(got == wanted);
    CHECK(position > 10 * small);
    CHECK(r->appended() == wanted.size());
}

// The file is copied while it is mapped: what a kill at that moment leaves.
TEST_CASE("recovery finds all that was prepared, behind a pad too, and nothing that was taken back") {
    test::folder const dir;
    auto r = open_ring(dir / "a");
    std::string const filler(path_bytes_max, 'p');
    std::uint64_t position = 0;
    std::uint64_t laps = 0;
    for (std::uint64_t n = 0; laps < 40; ++n) {
        std::vector<std::uint64_t> wanted;
        std::uint64_t const first = n * 8;
        std::size_t prepared = 0;
        for (; prepared < 4; ++prepared) {
            sample s(first + prepared);
            s.r.path = std::string_view(filler).substr(0, ((first + prepared) * 137) % path_bytes_max);
            REQUIRE(r->prepare(s.r));
        }
        if (n % 3 != 0) r->retract();
        if (n % 3 == 2) r->commit();
        for (std::uint64_t m = first + (n % 3 == 0 ? 0 : 1); m < first + prepared; ++m) wanted.push_back(m);
        std::filesystem::copy_file(dir / "a", dir / "b", std::filesystem::copy_options::overwrite_existing);
        {
            auto killed = open_ring(dir / "b");
            killed->recover_prepared();
            CHECK(numbers(*killed) == wanted);
            killed->recover_prepared();
            CHECK(numbers(*killed) == wanted);
            append(*killed, 99);
            wanted.push_back(99);
            CHECK(numbers(*killed) == wanted);
        }
        for (std::size_t left = prepared - (n % 3 == 0 ? 0 : n % 3 == 1 ? 1 : 2); left != 0; --left) r->commit();
        auto const before = position;
        numbers(*r, position);
        r->release(position);
        laps += position / small - before / small;
    }
}

TEST_CASE("strings longer than a record may hold are cut, and a cut path ends in dots") {
    test::folder const dir;
    auto r = open_ring(dir / "a");
    std::string const large(70'000, 'x');
    record in;
    in.request_id = in.application = in.application_id = in.key_id = in.api = in.method = in.host = in.path = large;
    REQUIRE(r->prepare(in));
    r->commit();
    in.path = std::string_view(large).substr(0, path_bytes_max);
    REQUIRE(r->prepare(in));
    r->commit();
    std::vector<std::string> paths;
    REQUIRE(r->read(0, 10, [&](record const& x) {
        CHECK(x.request_id.size() == 128);
        CHECK(x.host.size() == host_bytes_max);
        CHECK(x.method.size() == method_bytes_max);
        paths.emplace_back(x.path);
    }));
    REQUIRE(paths.size() == 2);
    CHECK(paths[0] == std::string(path_bytes_max - 3, 'x') + "...");
    CHECK(paths[1] == std::string(path_bytes_max, 'x'));
}

TEST_CASE("records keep their order over many laps of every length") {
    test::folder const dir;
    auto r = open_ring(dir / "a");
    std::string const filler(path_bytes_max, 'p');
    std::uint64_t position = 0;
    std::uint64_t expected = 0;
    for (std::uint64_t n = 0; n < 20'000; ++n) {
        sample s(n);
        s.r.path = std::string_view(filler).substr(0, (n * 37) % path_bytes_max);
        while (!r->prepare(s.r, false)) {
            REQUIRE_FALSE(r->has_room());
            for (auto const got : numbers(*r, position)) REQUIRE(got == expected++);
            r->release(position);
        }
        r->commit();
    }
    for (auto const got : numbers(*r, position)) REQUIRE(got == expected++);
    CHECK(expected == 20'000);
    CHECK(position > 10 * small);
    CHECK(r->appended() == 20'000);
    CHECK(r->dropped() == 0);
}

TEST_CASE("a full ring refuses, counts exactly, and takes again once space is released") {
    test::folder const dir;
    auto r = open_ring(dir / "a");
    std::uint64_t kept = 0;
    for (std::uint64_t n = 0; n < 1000; ++n) {
        sample const s(n);
        if (!r->prepare(s.r)) continue;
        r->commit();
        ++kept;
    }
    CHECK(kept < 1000);
    CHECK(r->dropped() == 1000 - kept);
    CHECK_FALSE(r->has_room());
    sample const uncounted(5);
    CHECK_FALSE(r->prepare(uncounted.r, false));
    CHECK(r->dropped() == 1000 - kept);
    auto position = r->cursor();
    CHECK(numbers(*r, position).size() == kept);
    r->release(position);
    CHECK(r->has_room());
    append(*r, 4711);
    CHECK(numbers(*r) == std::vector<std::uint64_t>{4711});
}

TEST_CASE("positions, counters and id go on in a ring that is opened again") {
    test::folder const dir;
    std::string id;
    {
        auto r = open_ring(dir / "a");
        id = r->id();
        append(*r, 1);
        append(*r, 2);
    }
    auto r = open_ring(dir / "a");
    CHECK(r->id() == id);
    CHECK(id.size() == 32);
    CHECK(r->appended() == 2);
    append(*r, 3);
    CHECK(numbers(*r) == std::vector<std::uint64_t>{1, 2, 3});
    auto other = open_ring(dir / "b");
    CHECK(other->id() != id);
}

TEST_CASE("a record prepared before a kill is recovered, and a retracted or committed one is not counted anew") {
    test::folder const dir;
    SECTION("prepared") {
        {
            auto r = open_ring(dir / "a");
            append(*r, 1);
            sample const s(2);
            REQUIRE(r->prepare(s.r));
        }
        auto r = open_ring(dir / "a");
        CHECK(numbers(*r) == std::vector<std::uint64_t>{1});
        r->recover_prepared();
        r->recover_prepared();
        CHECK(numbers(*r) == std::vector<std::uint64_t>{1, 2});
        CHECK(r->appended() == 2);
    }
    SECTION("retracted") {
        {
            auto r = open_ring(dir / "a");
            append(*r, 1);
            sample const s(2);
            REQUIRE(r->prepare(s.r));
            r->retract();
        }
        auto r = open_ring(dir / "a");
        r->recover_prepared();
        CHECK(numbers(*r) == std::vector<std::uint64_t>{1});
    }
    SECTION("committed") {
        {
            auto r = open_ring(dir / "a");
            append(*r, 1);
        }
        auto r = open_ring(dir / "a");
        r->recover_prepared();
        CHECK(numbers(*r) == std::vector<std::uint64_t>{1});
    }
    SECTION("killed between the new values and the head: the new values count") {
        auto const file = dir / "a";
        {
            auto r = open_ring(file);
            append(*r, 1);
            auto const head = peek(file, head_at, 8);
            sample const s(2);
            REQUIRE(r->prepare(s.r));
            r->commit(outcome::timed_out, 77, 88);
            poke(file, head_at, head);
        }
        auto r = open_ring(file);
        r->recover_prepared();
        std::vector<std::uint64_t> bytes;
        REQUIRE(r->read(0, 10, [&](record const& x) { bytes.push_back(x.response_bytes); }));
        CHECK(bytes == std::vector<std::uint64_t>{1, 77});
    }
    SECTION("killed in the middle of the new values: the prepared ones count") {
        auto const file = dir / "a";
        {
            auto r = open_ring(file);
            sample const s(2);
            REQUIRE(r->prepare(s.r));
            poke(file, page + 16, "half of a final part");
        }
        auto r = open_ring(file);
        r->recover_prepared();
        CHECK(numbers(*r) == std::vector<std::uint64_t>{2});
    }
    SECTION("not whole: ignored") {
        auto const file = dir / "a";
        {
            auto r = open_ring(file);
            sample const s(2);
            REQUIRE(r->prepare(s.r));
        }
        poke(file, page + 120, "?");
        auto r = open_ring(file);
        r->recover_prepared();
        CHECK(numbers(*r).empty());
    }
    SECTION("of the lap before: ignored") {
        auto r = open_ring(dir / "a");
        std::uint64_t position = 0;
        while (position < 3 * small) {
            append(*r, 9);
            numbers(*r, position);
            r->release(position);
        }
        r->recover_prepared();
        CHECK(numbers(*r).empty());
    }
}

TEST_CASE("every single damaged byte of a frame ends the read there and keeps what stands before") {
    test::folder const dir;
    auto const file = dir / "a";
    std::uint64_t second = 0;
    {
        auto r = open_ring(file);
        append(*r, 1);
        numbers(*r, second);
        sample const s(2);
        REQUIRE(r->prepare(s.r));
        r->commit(outcome::served, 5, 6);
    }
    auto r = open_ring(file);
    auto const end = [&] {
        std::uint64_t p = 0;
        numbers(*r, p);
        return p;
    }();
    for (std::uint64_t at = second; at < end; ++at) {
        auto const was = peek(file, page + at, 1);
        poke(file, page + at, std::string(1, static_cast<char>(was[0] ^ 0x10)));
        std::size_t seen = 0;
        auto next = r->read(0, 10, [&](record const&) { ++seen; });
        INFO("byte " << at - second);
        REQUIRE_FALSE(next);
        REQUIRE(next.error().code == errc::corrupt);
        REQUIRE(seen == 1);
        poke(file, page + at, was);
    }
    CHECK(numbers(*r).size() == 2);
}

TEST_CASE("a read from an impossible position is called damaged") {
    test::folder const dir;
    auto r = open_ring(dir / "a");
    append(*r, 1);
    CHECK_FALSE(r->read(8'000'000, 1, [](record const&) {}));
    CHECK_FALSE(r->read(3, 1, [](record const&) {}));
    CHECK_FALSE(r->read(8, 1, [](record const&) {}));
}

TEST_CASE("ring files that are not ours, not whole or not rings are refused by kind") {
    test::folder const dir;
    auto const file = dir / "a";
    SECTION("symbolic link") {
        open_ring(dir / "target");
        REQUIRE(::symlink((dir / "target").c_str(), file.c_str()) == 0);
        CHECK(refusal(file) == errc::not_allowed);
    }
    SECTION("dangling symbolic link makes no file") {
        REQUIRE(::symlink((dir / "target").c_str(), file.c_str()) == 0);
        CHECK(refusal(file) == errc::not_allowed);
        CHECK_FALSE(std::filesystem::exists(dir / "target"));
    }
    SECTION("second name") {
        open_ring(dir / "target");
        REQUIRE(::link((dir / "target").c_str(), file.c_str()) == 0);
        CHECK(refusal(file) == errc::not_allowed);
    }
    SECTION("folder") {
        REQUIRE(::mkdir(file.c_str(), 0700) == 0);
        CHECK_FALSE(ring::open(file, small));
    }
    SECTION("pipe, without waiting for its other end") {
        REQUIRE(::mkfifo(file.c_str(), 0600) == 0);
        CHECK(refusal(file) == errc::not_allowed);
    }
    SECTION("writable by others") {
        open_ring(file);
        REQUIRE(::chmod(file.c_str(), 0622) == 0);
        CHECK(refusal(file) == errc::not_allowed);
    }
    SECTION("of another user") {
        open_ring(file);
        if (::chown(file.c_str(), 12345, 12345) == 0) {
            CHECK(refusal(file) == errc::not_allowed);
        }
    }
    SECTION("in use") {
        auto const held = open_ring(file);
        CHECK(refusal(file) == errc::busy);
    }
    SECTION("of another size") {
        open_ring(file);
        CHECK(refusal(file, 2 * small) == errc::conflict);
    }
    SECTION("cut short") {
        open_ring(file);
        REQUIRE(::truncate(file.c_str(), page + small / 2) == 0);
        CHECK(refusal(file) == errc::conflict);
        CHECK(refusal(file, 0) == errc::corrupt);
    }
    SECTION("no magic") {
        open_ring(file);
        poke(file, 0, "X");
        CHECK(refusal(file) == errc::corrupt);
    }
    SECTION("damaged id") {
        open_ring(file);
        poke(file, 30, "X");
        CHECK(refusal(file) == errc::corrupt);
    }
    SECTION("impossible positions") {
        open_ring(file);
        poke(file, head_at, std::string_view("\0\0\0\0\1\0\0\0", 8));
        CHECK(refusal(file) == errc::corrupt);
    }
    SECTION("a later version") {
        open_ring(file);
        poke(file, 8, "\x63");
        CHECK(refusal(file) == errc::newer_schema);
    }
    SECTION("no file, none wanted") { CHECK(refusal(file, 0) == errc::not_found); }
    SECTION("bad sizes") {
        CHECK(refusal(file, 65'537) == errc::invalid_argument);
        CHECK(refusal(file, 4096) == errc::invalid_argument);
    }
}

namespace {

// As the first version made them: the header's first line, and record 7.
constexpr std::string_view old_header =
    "4c4b5552494e4731010000000010000000000100000000003034643464333034313736636331356463653564656166343132666534663766"
    "055b88fec2eaa896";
constexpr std::string_view old_frame =
    "0100000000000000d8000000c5941d10000000000000000000000000000000000000000000000000076c50c4a00100003301000000000000"
    "0700000000000000ef030000fb01000000000000000000000000ffff0a000007c8000c00002007141407030f303030303030303030303030"
    "303030303030303030303030303030303030303742696c6c696e676170705f303132333435363738396162636465666b65795f6f64643030"
    "303030303030303030303064656661756c744745546170692e6578616d706c652e636f6d2f76312f7468696e67732f37";

std::string bytes_of(std::string_view hex) {
    std::string out;
    for (std::size_t i = 0; i < hex.size(); i += 2)
        out += static_cast<char>(std::stoi(std::string(hex.substr(i, 2)), nullptr, 16));
    return out;
}

}  // namespace

TEST_CASE("a ring of an earlier version is recovered, and not appended to") {
    test::folder const dir;
    auto const file = dir / "a";
    std::ofstream(file) << "";
    std::filesystem::resize_file(file, page + small);
    ::chmod(file.c_str(), 0600);
    poke(file, 0, bytes_of(old_header));
    poke(file, page, bytes_of(old_frame));  // prepared, and killed
    CHECK(refusal(file) == errc::conflict);
    auto opened = ring::open(file, 0);
    REQUIRE(opened);
    CHECK((*opened)->outdated());
    (*opened)->recover_prepared();
    CHECK(numbers(**opened) == std::vector<std::uint64_t>{7});
    CHECK_FALSE(open_ring(dir / "b")->outdated());
}

TEST_CASE("a ring that a kill left unfinished is made anew") {
    test::folder const dir;
    auto const file = dir / "a";
    std::ofstream(file).put('\0');
    CHECK(refusal(file, 0) == errc::not_found);
    auto r = open_ring(file);
    append(*r, 1);
    CHECK(numbers(*r).size() == 1);
}

TEST_CASE("the ring's file is private and all its space is reserved at open") {
    test::folder const dir;
    auto const old = ::umask(0);
    auto r = open_ring(dir / "a");
    ::umask(old);
    struct stat about {};
    REQUIRE(::stat((dir / "a").c_str(), &about) == 0);
    CHECK((about.st_mode & 0777U) == 0600U);
    CHECK(static_cast<std::uint64_t>(about.st_blocks) * 512 >= page + small);
}

TEST_CASE("a file system without room is an error at open and leaves no file") {
    test::folder const dir;
    struct rlimit was {};
    REQUIRE(::getrlimit(RLIMIT_FSIZE, &was) == 0);
    auto const old = std::signal(SIGXFSZ, SIG_IGN);
    struct rlimit const tight{small / 2, was.rlim_max};
    REQUIRE(::setrlimit(RLIMIT_FSIZE, &tight) == 0);
    auto const code = refusal(dir / "a");
    ::setrlimit(RLIMIT_FSIZE, &was);
    std::signal(SIGXFSZ, old);
    CHECK(code == errc::io);
    CHECK_FALSE(std::filesystem::exists(dir / "a"));
}

TEST_CASE("one producer and one consumer at once lose nothing and mix nothing up") {
    test::folder const dir;
    auto r = open_ring(dir / "a");
    constexpr std::uint64_t count = 100'000;
    std::thread producer([&] {
        for (std::uint64_t n = 0; n < count;) {
            sample const s(n);
            if (!r->prepare(s.r, false)) {
                std::this_thread::yield();
            } else if (n % 5 == 1) {
                r->commit(outcome::served, n, 1);
                ++n;
            } else if (n % 5 == 2 && (n / 5) % 2 == 0) {
                r->retract();
                bool const again = r->prepare(s.r, false);  // as much room as a moment ago, or more
                if (!again) std::abort();
                r->commit();
                ++n;
            } else {
                r->commit();
                ++n;
            }
        }
    });
    std::uint64_t position = 0;
    std::uint64_t expected = 0;
    bool right = true;
    while (expected < count && right) {
        auto next = r->read(position, 64, [&](record const& x) {
            sample s(expected++);
            if (s.r.response_bytes % 5 == 1) s.r.duration_us = 1;
            right = right && test::same(x, s.r);
        });
        right = right && next;
        if (!right) break;
        position = *next;
        r->release(position);
    }
    // After a failure the producer must still come to its end.
    while (!right && r->appended() < count) {
        auto next = r->read(position, 1'000'000, [](record const&) {});
        if (!next) std::abort();
        r->release(position = *next);
        std::this_thread::yield();
    }
    producer.join();
    CHECK(right);
    CHECK(expected == count);
}
