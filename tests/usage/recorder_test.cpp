#include "usage/recorder.hpp"

#include <fcntl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/statfs.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <csignal>
#include <fstream>
#include <map>
#include <numeric>
#include <random>
#include <thread>

#include "base/clock.hpp"
#include "base/sqlite.hpp"
#include "tests/usage/support.hpp"
#include "usage/ring_files.hpp"

using namespace latchkey;
using namespace latchkey::usage;
using namespace std::chrono_literals;
using test::sample;

namespace {

constexpr std::uint64_t small = 64 * 1024;

struct place {
    test::folder data{"/tmp"};
    test::folder shm;
    std::string journal_file = data / "usage.db";
    std::string rings = shm / "rings";

    recorder_options options(unsigned workers) const {
        return {.journal_file = journal_file, .ring_dir = rings, .workers = workers, .ring_bytes = small, .flush_interval = 10ms};
    }
    std::unique_ptr<recorder> open(unsigned workers) const { return open(options(workers)); }
    static std::unique_ptr<recorder> open(recorder_options const& o) {
        auto opened = recorder::open(o);
        REQUIRE(opened);
        return std::move(*opened);
    }
    // Ring files, by their names' ends ("0.ring", "0.ring.damaged").
    std::vector<std::string> files(std::string const& in) const {
        std::vector<std::string> names;
        if (!std::filesystem::exists(in)) return names;
        for (auto const& e : std::filesystem::directory_iterator(in)) {
            auto const name = e.path().filename().string();
            names.push_back(name.substr(name.find('-') + 1));
        }
        std::sort(names.begin(), names.end());
        return names;
    }
    std::string file_of(std::string const& end) const {
        for (auto const& e : std::filesystem::directory_iterator(rings))
            if (e.path().string().ends_with("-" + end)) return e.path().string();
        return {};
    }
};

void append(recorder& r, unsigned worker, std::uint64_t from, std::uint64_t to) {
    for (auto n = from; n < to; ++n) {
        sample const s(n);
        REQUIRE(r.ring(worker).prepare(s.r));
        r.ring(worker).commit();
    }
}

std::vector<std::uint64_t> sorted(std::vector<std::uint64_t> v) {
    std::sort(v.begin(), v.end());
    return v;
}

std::vector<std::uint64_t> range(std::uint64_t from, std::uint64_t to) {
    std::vector<std::uint64_t> v(to - from);
    std::iota(v.begin(), v.end(), from);
    return v;
}

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
        o.ring_bytes = 2 * small;
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

TEST_CASE("somebody who waits for flush() does not wait for retention of years, which later passes finish") {
    place const p;
    auto o = p.options(1);
    o.retention_days = 30;
    {
        auto j = journal::open(p.journal_file, journal::mode::read_write);
        REQUIRE(j);
        block_packer packer;
        for (std::uint64_t n = 0; n < 600; ++n) {
            sample s(n);
            s.r.time_ms = wall_ms() - 40LL * 86'400'000;
            packer.clear();
            REQUIRE(packer.add(s.r));
            REQUIRE((*j)->append("other", n + 1, packer.meta(), packer.seal().value()));
        }
    }
    auto r = place::open(o);
    REQUIRE(r->flush());
    auto const left = test::numbers_in(p.journal_file);
    CHECK(left.size() < 600);
    CHECK(left.size() >= 600 - 256);
    CHECK(left == range(600 - left.size(), 600));  // the oldest went first
    for (int i = 0; i < 3; ++i) REQUIRE(r->flush());
    CHECK(test::numbers_in(p.journal_file).empty());
}

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

namespace {

// The child of the kill test: appends records of `round` as fast as it can, says the number of each once it is prepared, and then
// commits it in one of three ways. Never returns.
[[noreturn]] void append_until_killed(recorder_options const& o, int acknowledge, std::uint64_t round) {
    auto opened = recorder::open(o);
    if (!opened) ::_exit(3);
    (*opened)->start();
    auto& ring = (*opened)->ring(0);
    for (std::uint64_t n = 0;; ++n) {
        sample const s(round << 32U | n);
        if (!ring.prepare(s.r, false)) {
            ::sched_yield();
            --n;
            continue;
        }
        if (n % 5 == 4) {
            ring.retract();
            continue;
        }
        auto const number = round << 32U | n;
        if (::write(acknowledge, &number, sizeof number) != sizeof number) ::_exit(4);
        if (n % 5 == 2)
            ring.commit(outcome::client_aborted, 42, 43);
        else
            ring.commit();
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
    std::map<std::uint64_t, unsigned> unsaid;  // by round: prepared, and killed before it could say so
    std::size_t wrong_values = 0;
    test::each_record(**j, [&](record const& r) {
        auto const number = test::number_of(r.request_id);
        auto const said = acknowledged.find(number);
        if (said == acknowledged.end())
            ++unsaid[number >> 32U];
        else
            ++said->second;
        bool const final_values = r.end == outcome::client_aborted && r.response_bytes == 42 && r.duration_us == 43;
        bool const is_last =
            acknowledged.find(number + 1) == acknowledged.end() && acknowledged.find(number + 2) == acknowledged.end();
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
    for (auto const& [round, times] : unsaid) CHECK(times == 1);
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

TEST_CASE("flushing does not wait for the flusher's pauses, and loses nothing to them") {
    place const p;
    auto o = p.options(2);
    o.ring_bytes = 16 << 20;  // of which this fills less than half: the flusher would pause
    auto r = place::open(o);
    std::uint64_t const each = 20'000;
    r->start();
    std::atomic<bool> done{false};
    std::atomic<int> failures{0};  // Catch's own checks are for one thread
    std::thread other([&] {
        for (auto n = each; n < 2 * each; ++n) {
            sample const s(n);
            if (!r->ring(1).prepare(s.r)) ++failures;
            r->ring(1).commit();
        }
    });
    std::thread impatient([&] {
        while (!done)
            if (!r->flush()) ++failures;
    });
    append(*r, 0, 0, each);
    other.join();
    done = true;
    impatient.join();
    CHECK(failures == 0);
    REQUIRE(r->flush());
    CHECK(r->state().journalled == 2 * each);
    CHECK(sorted(test::numbers_in(p.journal_file)) == range(0, 2 * each));
    r->stop();
}
