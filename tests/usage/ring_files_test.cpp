#include "usage/ring_files.hpp"

#include <sys/stat.h>
#include <sys/statfs.h>
#include <unistd.h>

#include <algorithm>

#include "tests/usage/recorder_support.hpp"

using namespace latchkey;
using namespace latchkey::usage;
using namespace latchkey::usage::test;

namespace {

class environment {
  public:
    environment(char const* name, std::string const& value) : name_(name) {
        if (auto const* was = std::getenv(name)) was_ = was;
        value.empty() ? ::unsetenv(name) : ::setenv(name, value.c_str(), 1);
    }
    ~environment() { was_.empty() ? ::unsetenv(name_) : ::setenv(name_, was_.c_str(), 1); }
    environment(environment const&) = delete;
    environment& operator=(environment const&) = delete;

  private:
    char const* name_;
    std::string was_;
};

}  // namespace

namespace {

// A folder for temporary files that is no tmpfs (/tmp is one on many machines); empty where there is none.
std::string folder_on_disk() {
    constexpr long tmpfs_magic = 0x01021994;
    for (char const* folder : {"/tmp", "/var/tmp", "."}) {
        struct statfs about {};
        if (::statfs(folder, &about) == 0 && static_cast<long>(about.f_type) != tmpfs_magic && ::access(folder, W_OK) == 0)
            return folder;
    }
    return {};
}

}  // namespace

TEST_CASE("the ring folder is chosen from the environment, private, and the same each time") {
    test::folder const data("/tmp");
    test::folder const runtime;
    auto const on_disk = folder_on_disk();
    test::folder const disk(on_disk.empty() ? data.path() : std::filesystem::absolute(on_disk).string());
    std::string said;
    SECTION("RUNTIME_DIRECTORY, the first of several") {
        environment const a("RUNTIME_DIRECTORY", runtime.path() + ":/tmp");
        environment const b("XDG_RUNTIME_DIR", "");
        auto dir = choose_ring_dir("", data.path(), said);
        REQUIRE(dir);
        CHECK(dir->starts_with(runtime.path() + "/"));
        CHECK(said.empty());
        struct stat about {};
        REQUIRE(::stat(dir->c_str(), &about) == 0);
        CHECK((about.st_mode & 0777U) == 0700U);
        CHECK(*choose_ring_dir("", data.path() + "/../" + std::filesystem::path(data.path()).filename().string(), said) == *dir);
        test::folder const other("/tmp");
        CHECK(*choose_ring_dir("", other.path(), said) != *dir);
    }
    SECTION("a folder on a disk is passed over") {
        environment const a("RUNTIME_DIRECTORY", disk.path());
        environment const b("XDG_RUNTIME_DIR", runtime.path());
        if (!on_disk.empty()) CHECK(choose_ring_dir("", data.path(), said)->starts_with(runtime.path() + "/"));
    }
    SECTION("a link that someone put there is refused") {
        environment const a("RUNTIME_DIRECTORY", runtime.path());
        auto const dir = *choose_ring_dir("", data.path(), said);
        std::filesystem::remove(dir);
        std::filesystem::create_directory_symlink(disk.path(), dir);
        auto again = choose_ring_dir("", data.path(), said);
        REQUIRE_FALSE(again);
        CHECK(again.error().code == errc::not_allowed);
    }
    SECTION("a wanted folder is taken as it is, and a disk is said") {
        CHECK(*choose_ring_dir(disk / "rings", data.path(), said) == disk / "rings");
        if (!on_disk.empty()) CHECK(said.find(disk / "rings") != std::string::npos);
        CHECK(*choose_ring_dir(runtime / "rings", data.path(), said) == runtime / "rings");
        CHECK(said.empty());
    }
    SECTION("no data directory") { CHECK_FALSE(choose_ring_dir("", data / "none", said)); }
}

TEST_CASE("whoever asks for it is called between the steps of a pass") {
    place const p;
    auto o = p.options(1);
    o.ring_bytes = 4 << 20;
    auto r = place::open(o);
    append(*r, 0, 0, 5000);
    auto j = journal::open(p.journal_file, journal::mode::read_write);
    REQUIRE(j);
    block_packer packer;
    auto& ring = r->ring(0);
    auto position = ring.cursor();
    std::uint64_t calls = 0;
    std::uint64_t most = 0;  // records between two calls
    std::uint64_t last = 0;
    auto took = take_records(ring, position, **j, packer, nullptr, [&] {
        ++calls;
        auto const n = packer.meta().records;
        most = std::max(most, n - std::min(n, last));
        last = n;
    });
    REQUIRE(took);
    CHECK(took->records == 5000);
    CHECK_FALSE(took->damaged);
    CHECK(most <= 64);
    CHECK(calls >= 5000 / 64);
    std::vector<std::uint64_t> blocks;
    REQUIRE((*j)->each_block(
        std::numeric_limits<std::int64_t>::min(), std::numeric_limits<std::int64_t>::max(),
        [&](std::string_view packed) {
            auto reader = block_reader::over(packed);
            REQUIRE(reader);
            blocks.push_back(reader->records());
            return true;
        },
        [](std::int64_t, std::string_view) { FAIL("a damaged block"); }));
    CHECK(blocks == std::vector<std::uint64_t>{4096, 904});
    CHECK(sorted(test::numbers_in(p.journal_file)) == range(0, 5000));
}

TEST_CASE("records that were all taken back leave their place, and the journal as it was") {
    place const p;
    auto r = place::open(p.options(1));
    auto& ring = r->ring(0);
    std::string const path(path_bytes_max, 'p');
    for (std::uint64_t n = 0; n < 4000; n += 8) {
        for (std::uint64_t i = 0; i < 8; ++i) {
            sample s(n + i);
            s.r.path = path;
            REQUIRE(ring.prepare(s.r));
        }
        for (unsigned i = 0; i < 8; ++i) ring.retract();
        if (ring.fill() < 0.5) continue;
        REQUIRE(r->flush());
        CHECK(ring.fill() == 0);
    }
    CHECK(ring.cursor() > 4 * ring.size());
    CHECK(test::numbers_in(p.journal_file).empty());
    append(*r, 0, 0, 3);
    REQUIRE(r->flush());
    CHECK(sorted(test::numbers_in(p.journal_file)) == range(0, 3));
}
