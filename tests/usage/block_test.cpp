#include "usage/block.hpp"

#include <functional>
#include <random>

#include "tests/usage/support.hpp"

using namespace latchkey;
using namespace latchkey::usage;
using test::sample;

namespace {

std::string packed_of(std::string_view sealed) {
    std::string packed;
    block_opener opener;
    auto done = opener.open(sealed, packed);
    INFO((done ? std::string() : done.error().message));
    REQUIRE(done);
    return packed;
}

std::string sealed_of(block_packer& p) {
    auto sealed = p.seal();
    REQUIRE(sealed);
    return std::string(*sealed);
}

// The records of the block, in their order, each with its number; there are `count`, and nothing behind them.
void read_back(block_packer& p, std::size_t count, std::function<void(std::size_t, record const&)> const& visit) {
    auto const packed = packed_of(sealed_of(p));
    auto reader = block_reader::over(packed);
    REQUIRE(reader);
    CHECK(reader->records() == count);
    record out;
    for (std::size_t n = 0; n < count; ++n) {
        REQUIRE(reader->next(out));
        visit(n, out);
    }
    CHECK_FALSE(reader->next(out));
    CHECK_FALSE(reader->damaged());
}

}  // namespace

TEST_CASE("a block gives back every record as it was added, extremes included") {
    block_packer p;
    std::vector<std::unique_ptr<sample>> in;
    for (std::uint64_t n = 0; n < 3000; ++n) in.push_back(std::make_unique<sample>(n * n * 7919));
    in[1]->r.request_id = "";
    in[2]->r.request_id = "trace-42";
    in[3]->r.request_id = "0123456789ABCDEF0123456789abcdef";  // upper case must stay upper case
    in[4]->r.request_id = "0123456789abcdef0123456789abcdeg";
    in[5]->r.request_id = "/123456789abcdef0123456789abcde:";
    in[6]->r.request_id = "`123456789abcdef0123456789abcde\xe9";
    in[7]->r = record{};
    in[8]->r.time_ms = std::numeric_limits<std::int64_t>::min();
    in[9]->r.time_ms = std::numeric_limits<std::int64_t>::max();
    in[10]->r.request_bytes = in[10]->r.response_bytes = ~std::uint64_t{0};
    in[10]->r.duration_us = in[10]->r.upstream_us = ~std::uint32_t{0};
    in[10]->r.status = 0xffff;
    in[11]->r.end = outcome::shut_down;
    in[12]->r.path = std::string_view("/with\0nul and \xff bytes", 21);
    for (auto const& s : in) REQUIRE(p.add(s->r));
    CHECK(p.meta().records == in.size());
    CHECK(p.meta().first_ms == std::numeric_limits<std::int64_t>::min());
    CHECK(p.meta().last_ms == std::numeric_limits<std::int64_t>::max());
    read_back(p, in.size(), [&](std::size_t n, record const& out) { REQUIRE(test::same(out, in[n]->r)); });
}

TEST_CASE("request ids of hex digits are told from their neighbours in the character table") {
    block_packer p;
    std::vector<std::string> ids;
    for (int c = 0; c < 256; ++c)
        for (std::size_t at : {0U, 7U, 8U, 31U}) {
            std::string id(32, '7');
            id[at] = static_cast<char>(c);
            ids.push_back(id);
        }
    for (auto const& id : ids) {
        record r;
        r.request_id = id;
        REQUIRE(p.add(r));
    }
    read_back(p, ids.size(), [&](std::size_t n, record const& out) { REQUIRE(out.request_id == ids[n]); });
}

TEST_CASE("a block is bounded by records and by text, and goes on after clear") {
    block_packer p;
    std::string path(path_bytes_max, 'x');
    std::string id(128, 'y');
    SECTION("by records") {
        sample const s(1);
        std::size_t n = 0;
        while (p.add(s.r)) ++n;
        CHECK(n == block_records);
    }
    SECTION("by text") {
        std::size_t n = 0;
        for (;; ++n) {
            auto const text = std::to_string(1'000'000 + n);
            path.replace(0, text.size(), text);
            record r;
            r.path = path;
            r.request_id = id;
            if (!p.add(r)) break;
        }
        CHECK(n > 1000);
        CHECK(n < 1100);
    }
    CHECK(packed_of(sealed_of(p)).size() <= block_packed_bytes_max);
    p.clear();
    sample const s(5);
    REQUIRE(p.add(s.r));
    auto const packed = packed_of(sealed_of(p));
    auto reader = block_reader::over(packed);
    REQUIRE(reader);
    record out;
    REQUIRE(reader->next(out));
    CHECK(test::same(out, s.r));
}

TEST_CASE("thousands of ordinary records take less than a fifth of their text") {
    block_packer p;
    std::size_t text = 0;
    std::mt19937_64 random(1);
    for (std::uint64_t n = 0; n < block_records; ++n) {
        sample const s(random());
        REQUIRE(p.add(s.r));
        text += 100 + s.r.request_id.size() + s.r.path.size() + s.r.host.size() + s.r.application_id.size() + s.r.key_id.size();
    }
    CHECK(sealed_of(p).size() * 5 < text);
}

TEST_CASE("a block is sealed in steps, and is the same whatever happens between them") {
    block_packer p;
    for (std::uint64_t n = 0; p.meta().records < block_records; ++n) REQUIRE(p.add(sample(n * 7919).r));
    auto const at_once = sealed_of(p);
    unsigned calls = 0;
    std::function<void()> const count = [&] { ++calls; };
    auto sealed = p.seal(count);
    REQUIRE(sealed);
    CHECK(*sealed == at_once);
    CHECK(calls >= packed_of(at_once).size() / (64 << 10));  // at most so many bytes without a stop
    CHECK(calls > 3);

    block_packer few;
    REQUIRE(few.add(sample(1).r));
    calls = 0;
    REQUIRE(few.seal(count));
    CHECK(calls == 0);
}

TEST_CASE("strings of every length come back, those around one and two bytes of length included") {
    std::vector<std::string> paths;
    for (std::size_t n : {1U, 2U, 126U, 127U, 128U, 129U, 130U, 131U, 255U, 256U, 1023U, 1024U})
        for (char const c : {'a', '\x7f', '\x80', '\x81'}) paths.emplace_back(n, c);
    block_packer p;
    for (int turn = 0; turn < 2; ++turn)  // the second time they are found again
        for (auto const& path : paths) {
            record r;
            r.path = path;
            REQUIRE(p.add(r));
        }
    read_back(p, 2 * paths.size(), [&](std::size_t n, record const& out) { CHECK(out.path == paths[n % paths.size()]); });
}

TEST_CASE("an empty block and foreign bytes are told from blocks") {
    block_packer p;
    auto const empty = sealed_of(p);
    auto const packed = packed_of(empty);
    auto reader = block_reader::over(packed);
    REQUIRE(reader);
    record out;
    CHECK_FALSE(reader->next(out));
    CHECK_FALSE(reader->damaged());

    block_opener opener;
    std::string to;
    for (std::string const bad : {"", "L", "LKB", "LKB\x01", "LKB\x02 later version", "SQLite format 3"}) {
        auto done = opener.open(bad, to);
        REQUIRE_FALSE(done);
        CHECK(done.error().code == errc::corrupt);
    }
}

TEST_CASE("a block that is cut or changed anywhere is found out by its checksum") {
    block_packer p;
    for (std::uint64_t n = 0; n < 50; ++n) {
        sample const s(n);
        REQUIRE(p.add(s.r));
    }
    auto const good = sealed_of(p);
    auto const packed = packed_of(good);
    block_opener opener;
    std::string to;
    for (std::size_t i = 0; i < good.size(); ++i) {
        CHECK_FALSE(opener.open(good.substr(0, i), to));
        auto bad = good;
        bad[i] = static_cast<char>(bad[i] ^ 0x20);
        // Bits of the frame's head that zstd ignores may flip unseen; the content may not.
        if (opener.open(bad, to)) CHECK(to == packed);
    }
}

TEST_CASE("a block that claims an immense size is refused before memory is taken") {
    // A zstd frame head with an eight-byte content size of 1 TiB.
    std::string bomb = "LKB\x01";
    bomb += std::string("\x28\xb5\x2f\xfd\xe0", 5) + std::string("\0\0\0\0\0\1\0\0", 8) + std::string(16, '\1');
    block_opener opener;
    std::string to;
    CHECK_FALSE(opener.open(bomb, to));
    CHECK(to.capacity() < 1'000'000);
}

TEST_CASE("a reader over hostile packed bytes stays inside them") {
    block_packer p;
    for (std::uint64_t n = 0; n < 40; ++n) {
        sample const s(n);
        REQUIRE(p.add(s.r));
    }
    auto const good = packed_of(sealed_of(p));
    std::mt19937 random(42);
    std::size_t refused = 0;
    for (int round = 0; round < 20'000; ++round) {
        std::string bad = good;
        for (unsigned k = 0; k <= random() % 4; ++k) bad[random() % bad.size()] = static_cast<char>(random());
        if (round % 3 == 0) bad.resize(random() % bad.size());
        bad.shrink_to_fit();  // so that an address sanitizer sees one byte too far
        auto reader = block_reader::over(bad);
        if (!reader) {
            ++refused;
            continue;
        }
        record r;
        std::size_t n = 0;
        std::uint64_t sum = 0;
        while (reader->next(r)) {
            ++n;
            for (auto const text : {r.request_id, r.application, r.application_id, r.key_id, r.api, r.method, r.host, r.path})
                for (char const c : text) sum += static_cast<unsigned char>(c);
            REQUIRE(r.end <= outcome::shut_down);
        }
        REQUIRE(n <= reader->records());
        REQUIRE(sum < 1'000'000'000);
    }
    CHECK(refused > 1000);
}

TEST_CASE("numbers out of their range, and columns of the wrong length, are damage") {
    auto const refused = [](std::string_view packed) {
        auto reader = block_reader::over(packed);
        if (!reader) return true;
        record r;
        while (reader->next(r)) {
        }
        return reader->damaged();
    };
    CHECK(refused(""));
    CHECK(refused(std::string(1, '\x05')));
    std::string const ten_ones(10, '\xff');
    CHECK(refused(ten_ones));
    std::string empty(22, '\0');  // no records, base 0, no strings, nineteen empty columns
    CHECK_FALSE(refused(empty));
    CHECK(refused(empty + "x"));
    std::string one = empty;
    one[0] = 1;  // a record, but nothing in the columns
    CHECK(refused(one));
    std::string strings = empty;
    strings[2] = 100;  // a hundred strings in no bytes
    CHECK(refused(strings));
}
