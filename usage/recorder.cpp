#include "usage/recorder.hpp"

#include <fmt/format.h>
#include <sys/statfs.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cassert>
#include <condition_variable>
#include <cstdlib>
#include <filesystem>
#include <limits>
#include <mutex>
#include <optional>
#include <thread>
#include <utility>
#include <vector>

#include "base/clock.hpp"
#include "base/log.hpp"
#include "usage/block.hpp"
#include "usage/ring_files.hpp"

// When the flusher runs. A worker never wakes it: that would be a system call in the request's way. The flusher looks at the
// rings' fill (two loads each) at a fixed beat: the time in which a worker that appends 64 MiB a second, some 300,000 requests,
// would fill half a ring; from 5 to 250 ms, and never longer than the flush interval. For the default 16 MiB that is 125 ms:
// eight wake-ups a second, which cost an idle machine less than a ten-thousandth of a core. A longer sleep while nothing happens
// would save that, but a burst out of silence could then fill the ring before anyone looked.
//
// How it runs. Packing a second's records takes tens of milliseconds of a busy gateway, and where the flusher shares a processor
// with a worker the kernel may let it go on for whole ticks (4 ms), in which no request does: the worker asks for short slices,
// but whoever has had more than his share when he wakes up waits all the same, and nobody looks again before the next tick. So a
// pass goes in small steps with pauses between them, in which the worker has the processor; sealing a block and writing it do,
// too. That leaves the flusher a fifth of the time, enough for 200,000 records a second where one takes a microsecond. The steps
// are short (calm), or longer (brisk) where many records come, for a gateway that busy has no time to give away. Within a short
// step the flusher offers the processor to whoever woke up meanwhile (sched_yield; Linux 6.18 takes it for what is left of the
// flusher's slice, so a busy worker takes more than it is owed: brisk steps and rings that fill know no such courtesy, or records
// would be lost). Nobody waits for pauses: they are left out while somebody is in flush() or stop(), and while a ring is half
// full. Retention waits in its turn: for rings that fill, and for whoever waits; what it left is done a beat later.
//
// What a pass needs (journal, packer, positions) is guarded by `work`, so that flush() makes a pass on the caller's thread and
// no hand-shake with the flusher is needed. state() takes only `status_guard`, which is never held during a pass.

namespace latchkey::usage {

namespace fs = std::filesystem;
using std::chrono::milliseconds;
using std::chrono::steady_clock;

namespace {

constexpr auto never = std::numeric_limits<std::int64_t>::max();
constexpr long tmpfs_magic = 0x01021994;
constexpr double early_fill = 0.25;
constexpr double brisk_fill = 0.375;
constexpr double late_fill = 0.5;
// Short steps delay a request less, and cost more: by their pauses, and by what each finds no longer in the caches.
struct pace {
    std::int64_t step_ns;  // of its own work
    std::chrono::microseconds pause;
    std::int64_t offer_ns;  // after so much of it, others may go first
};
constexpr pace calm{100'000, std::chrono::microseconds(400), 20'000};
constexpr pace brisk{250'000, std::chrono::microseconds(1000), never};
constexpr double brisk_per_second = 32'000;  // records since the pass before
constexpr milliseconds retry_pause{1000};
constexpr std::chrono::minutes retention_pause{10};  // once nothing is left to remove; and how often it is said meanwhile
constexpr milliseconds retention_turn{200};          // of a pass; then records and callers of flush() have theirs
constexpr std::chrono::minutes drop_log_pause{1};
constexpr std::int64_t day_ms = 86'400'000;
constexpr unsigned numbers_max = 10'000;  // of ring files

bool is_tmpfs(std::string const& folder) {
    struct statfs about {};
    return ::statfs(folder.c_str(), &about) == 0 && static_cast<long>(about.f_type) == tmpfs_magic;
}

// The first folder of an environment variable that may hold several (systemd: RuntimeDirectory=a b).
std::string folder_from(char const* variable) {
    auto const* value = std::getenv(variable);  // NOLINT(concurrency-mt-unsafe): nobody sets variables after start
    if (value == nullptr || *value != '/') return {};
    std::string text(value);
    return text.substr(0, text.find(':'));
}

milliseconds beat_of(recorder_options const& o) {
    constexpr std::uint64_t bytes_per_ms = (64ULL << 20) / 1000;
    auto const half = milliseconds(static_cast<std::int64_t>(o.ring_bytes / 2 / bytes_per_ms));
    return std::max(milliseconds(1), std::min(o.flush_interval, std::clamp(half, milliseconds(5), milliseconds(250))));
}

// While one stands, the flusher makes no pauses.
class hurry {
  public:
    explicit hurry(std::atomic<unsigned>& n) : n_(n) { ++n_; }
    ~hurry() { --n_; }
    hurry(hurry const&) = delete;
    hurry& operator=(hurry const&) = delete;

  private:
    std::atomic<unsigned>& n_;
};

}  // namespace

result<std::string> choose_ring_dir(std::string const& wanted, std::string const& data_dir, std::string& said) {
    constexpr std::string_view slow = "a disk may stall requests for milliseconds whenever it writes the rings' pages";
    said.clear();
    if (!wanted.empty()) {
        if (auto done = make_folder(wanted, false); !done) return done.error();
        if (!is_tmpfs(wanted)) said = fmt::format("the usage rings lie in {}, which is no tmpfs: {}", wanted, slow);
        return wanted;
    }
    auto const tag = folder_tag(data_dir);
    if (!tag) return tag.error();
    for (auto const& base : {folder_from("RUNTIME_DIRECTORY"), folder_from("XDG_RUNTIME_DIR"), std::string("/dev/shm")}) {
        if (base.empty() || !is_tmpfs(base) || ::access(base.c_str(), W_OK | X_OK) != 0) continue;
        auto folder = fmt::format("{}/latchkey-{}", base, *tag);
        if (auto done = make_folder(folder, true); !done) return done.error();
        return folder;
    }
    auto folder = (data_dir.empty() ? std::string(".") : data_dir) + "/rings";
    if (auto done = make_folder(folder, true); !done) return done.error();
    said = fmt::format("the usage rings lie in {}, for no tmpfs can be written here: {}; set usage.ring_dir", folder, slow);
    return folder;
}

struct recorder::impl {
    recorder_options options;
    std::string tag;
    std::vector<std::unique_ptr<usage::ring>> rings;
    std::vector<std::string> files;  // of `rings`
    std::atomic<std::uint64_t> recovered{0};
    std::atomic<bool> others{false};     // a process that still runs may have rings here, or in `elsewhere`
    std::vector<std::string> elsewhere;  // other folders with rings of such a process
    std::uint64_t appended_before = 0;   // what the rings' counters said when they were opened
    std::uint64_t dropped_before = 0;
    std::atomic<std::uint64_t> journalled{0};

    std::mutex work;
    std::unique_ptr<usage::journal> journal;
    block_packer packer;
    std::vector<std::uint64_t> positions;
    std::vector<bool> damaged;  // rings that cannot be read on, and so stay full
    steady_clock::time_point next_retention{};
    std::uint64_t outlived = 0;  // records that retention has removed and that are not said yet
    steady_clock::time_point next_outlived_line{};
    std::atomic<bool> retention_left{false};  // it has more to remove
    std::int64_t step_began = 0;
    std::int64_t offered = 0;  // when it last stood back, or offered to
    pace steps = calm;
    std::int64_t last_pass = steady_ns();
    std::uint64_t appended_by_then = 0;

    mutable std::mutex status_guard;
    bool ok = true;
    std::string detail;

    std::mutex wake_guard;
    std::condition_variable wake;
    bool stopping = false;
    std::thread flusher;
    std::atomic<unsigned> hurried{0};  // threads that are in flush() or stop()

    std::uint64_t drops_said = 0;
    steady_clock::time_point next_drop_line{};

    result<void> recover_folder(std::string const& folder, std::vector<unsigned>& taken);
    result<void> make_rings(std::vector<unsigned> const& taken);
    result<void> set_up();
    bool recover_others(std::string const& folder);
    void recover_others();

    result<void> pass();
    pace pace_for(std::int64_t now);
    void stand_back();
    result<void> attempt();
    result<void> take_all();
    result<void> remove_old();
    void say_outlived(steady_clock::time_point now);
    void report(result<void> const& outcome);
    void say_drops(steady_clock::time_point now);
    bool failing() const;
    void run();
    void remove_rings(result<void> const& emptied, bool succeeded);

    template <class Counter>
    std::uint64_t sum(Counter counter) const {
        std::uint64_t n = 0;
        for (auto const& r : rings) n += counter(*r);
        return n;
    }
    std::uint64_t appended() const {
        return sum([](auto const& r) { return r.appended(); }) - appended_before;
    }
    std::uint64_t dropped() const {
        return sum([](auto const& r) { return r.dropped(); }) - dropped_before;
    }
    double fill() const {
        double most = 0;
        for (auto const& r : rings) most = std::max(most, r->fill());
        return most;
    }
    bool filling(double beyond) const {  // is there a ring that is so full and can be emptied? With `work` held
        for (std::size_t i = 0; i < rings.size(); ++i)
            if (!damaged[i] && rings[i]->fill() >= beyond) return true;
        return false;
    }
};

recorder::recorder(std::unique_ptr<impl> i) : impl_(std::move(i)) {}
recorder::~recorder() { stop(); }

// `taken` gets the numbers that stay: of rings that go on as ours, and of those that a running process holds.
result<void> recorder::impl::recover_folder(std::string const& folder, std::vector<unsigned>& taken) {
    auto const found = list_rings(folder, tag);
    if (!found) return found.error();
    std::uint64_t n = 0;
    for (auto const& f : *found) {
        bool const goes_on =
            folder == options.ring_dir && rings.size() < options.workers && f.file == ring_file(folder, tag, f.number);
        auto kept = recover_ring(f.file, goes_on ? options.ring_bytes : 0, *journal, packer, n);
        bool const held = !kept && kept.error().code == errc::busy;
        if (!kept && !held) return kept.error();
        if (held || *kept) taken.push_back(f.number);
        others = others || held;
        if (held && folder != options.ring_dir && (elsewhere.empty() || elsewhere.back() != folder)) elsewhere.push_back(folder);
        if (held || !*kept) continue;
        rings.push_back(std::move(*kept));
        files.push_back(f.file);
    }
    recovered += n;
    return {};
}

// Numbers in use are stepped over, and so is one that another process took or looks at just now.
result<void> recorder::impl::make_rings(std::vector<unsigned> const& taken) {
    auto const of_before = files.size();
    for (unsigned number = 0; rings.size() < options.workers; ++number) {
        if (std::find(taken.begin(), taken.end(), number) != taken.end()) continue;
        auto const file = ring_file(options.ring_dir, tag, number);
        auto made = ring::open(file, options.ring_bytes);
        if (!made && made.error().code == errc::busy && number < numbers_max) continue;
        if (!made) {
            while (files.size() > of_before) {  // nothing is in them, and memory may be what was missing
                ::unlink(files.back().c_str());
                files.pop_back();
            }
            return made.error();
        }
        rings.push_back(std::move(*made));
        files.push_back(file);
    }
    for (auto const& r : rings) positions.push_back(r->cursor());
    damaged.resize(rings.size());
    appended_before = appended();
    dropped_before = dropped();
    return {};
}

// The folders of before come first, and are forgotten only when nothing of ours is left in them. The new one is remembered before
// a ring is made there. So no kill leaves a ring where the next start would not look.
result<void> recorder::impl::set_up() {
    auto const named = folder_tag(fs::path(options.journal_file).parent_path().string());
    if (!named) return named.error();
    tag = *named;
    auto opened = journal::open(options.journal_file, journal::mode::read_write);
    if (!opened) return opened.error();
    journal = std::move(*opened);

    if (!options.ring_dir.empty()) {
        if (auto done = make_folder(options.ring_dir, false); !done) return done;
        std::error_code e;
        if (auto real = fs::canonical(options.ring_dir, e); !e) options.ring_dir = real.string();
    }
    auto const before = journal->ring_dir();
    if (!before) return before.error();
    auto const remembered = journal->other_ring_dirs();
    if (!remembered) return remembered.error();
    auto folders = *remembered;
    if (!before->empty() && std::find(folders.begin(), folders.end(), *before) == folders.end()) folders.push_back(*before);
    std::vector<unsigned> taken;
    for (auto const& f : folders)
        if (f != options.ring_dir)
            if (auto done = recover_folder(f, taken); !done) return done;
    if (elsewhere != *remembered)
        if (auto done = journal->set_other_ring_dirs(elsewhere); !done) return done;
    if (options.ring_dir.empty()) return {};
    taken.clear();
    if (auto done = recover_folder(options.ring_dir, taken); !done) return done;
    if (options.workers != 0 && *before != options.ring_dir)
        if (auto done = journal->set_ring_dir(options.ring_dir); !done) return done;
    return make_rings(taken);
}

// True where some may be left for later.
bool recorder::impl::recover_others(std::string const& folder) {
    auto const found = list_rings(folder, tag);
    if (!found) return true;
    bool left = false;
    for (auto const& f : *found) {
        if (std::find(files.begin(), files.end(), f.file) != files.end()) continue;
        std::uint64_t n = 0;
        auto const done = recover_ring(f.file, 0, *journal, packer, n, [this] { stand_back(); });
        if (n != 0)
            log::info("usage.recovered", "{} usage records of a process that was killed were taken over from its rings", n);
        recovered += n;
        if (done) continue;
        bool const for_good = done.error().code == errc::not_allowed || done.error().code == errc::newer_schema;
        if (for_good) log::error("usage.not_recovered", "{}", done.error().message);
        left = left || !for_good;
    }
    return left;
}

void recorder::impl::recover_others() {
    if (!others.exchange(false)) return;
    bool left = false;
    std::vector<std::string> still;
    for (auto const& folder : elsewhere)
        if (recover_others(folder)) still.push_back(folder);
    if (still != elsewhere && journal->set_other_ring_dirs(still)) elsewhere = still;
    if (!options.ring_dir.empty()) left = recover_others(options.ring_dir);
    if (left || !elsewhere.empty()) others = true;
}

result<std::unique_ptr<recorder>> recorder::open(recorder_options o) {
    if (o.workers != 0 && o.ring_dir.empty())
        return error{errc::invalid_argument, "usage rings need a folder; see choose_ring_dir()"};
    auto i = std::make_unique<impl>();
    i->options = std::move(o);
    if (auto done = i->set_up(); !done) return done.error();
    if (i->recovered != 0)
        log::info("usage.recovered", "{} usage records of an earlier process were taken over from its rings",
                  i->recovered.load());
    return std::unique_ptr<recorder>(new recorder(std::move(i)));
}

ring& recorder::ring(unsigned worker) noexcept {
    assert(worker < impl_->rings.size());
    return *impl_->rings[worker];
}

std::uint64_t recorder::recovered() const noexcept { return impl_->recovered; }
void recorder::look_for_others() noexcept { impl_->others = true; }

result<void> recorder::impl::take_all() {
    std::optional<error> first;
    for (std::size_t i = 0; i < rings.size(); ++i) {
        auto took = take_records(*rings[i], positions[i], *journal, packer, &journalled, [this] { stand_back(); });
        if (!took) return took.error();  // the journal does not take it: the next ring would fare no better
        damaged[i] = took->damaged;
        if (took->damaged && !first)
            first = error{errc::corrupt,
                          fmt::format("the usage ring of worker {} is damaged in memory; its records from here on stay in "
                                      "the file, a restart saves what can be read",
                                      i)};
    }
    if (first) return *first;
    return {};
}

result<void> recorder::impl::remove_old() {
    auto const now = steady_clock::now();
    if (options.retention_days == 0 || now < next_retention) return {};
    auto const before_ms = wall_ms() - options.retention_days * day_ms;
    retention_left = true;
    do {
        auto gone = journal->remove_some(before_ms, [this] { stand_back(); });
        if (!gone) return gone.error();
        outlived += *gone;
        retention_left = *gone != 0;
        if (!retention_left) {
            next_retention = now + retention_pause;
            break;
        }
        stand_back();
    } while (hurried == 0 && !filling(early_fill) && steady_clock::now() < now + retention_turn);
    say_outlived(now);
    return {};
}

void recorder::impl::say_outlived(steady_clock::time_point now) {
    if (outlived == 0 || (retention_left && now < next_outlived_line)) return;
    log::info("usage.retention", "{} usage records older than {} days were removed{}", std::exchange(outlived, 0),
              options.retention_days, retention_left ? "; there are more" : "");
    next_outlived_line = now + retention_pause;
}

result<void> recorder::impl::pass() {
    std::lock_guard const lock(work);
    step_began = offered = steady_ns();
    steps = pace_for(step_began);
    auto done = attempt();
    report(done);
    return done;
}

// By how many records came since the pass before, and how full the rings are.
pace recorder::impl::pace_for(std::int64_t now) {
    auto const seconds = static_cast<double>(now - std::exchange(last_pass, now)) / 1e9;
    auto const by_now = appended();
    auto const came = static_cast<double>(by_now - std::exchange(appended_by_then, by_now));
    return came > seconds * brisk_per_second || filling(brisk_fill) ? brisk : calm;
}

void recorder::impl::stand_back() {
    auto const now = steady_ns();
    if (now - step_began < steps.step_ns) {
        if (now - offered < steps.offer_ns || hurried != 0) return;
        options.offer();
        offered = steady_ns();
        step_began += offered - now;
        return;
    }
    if (filling(brisk_fill)) steps = brisk;
    if (hurried == 0 && !filling(late_fill)) options.pause(steps.pause);
    step_began = offered = steady_ns();
}

// Out of memory, nothing has moved: the records wait for the next pass.
result<void> recorder::impl::attempt() try {
    auto done = take_all();
    if (done) done = remove_old();
    if (done) recover_others();
    return done;
} catch (std::bad_alloc const&) {
    return error{errc::io, "out of memory"};
}

// One line when the trouble begins, one when it is over.
void recorder::impl::report(result<void> const& outcome) {
    std::lock_guard const lock(status_guard);
    if (!outcome) {
        if (ok)
            log::error("usage.not_journalled", "{}; the records wait in the rings, the journal is tried again every second",
                       outcome.error().message);
        ok = false;
        detail = outcome.error().message;
    } else if (!ok) {
        log::info("usage.journalled_again", "the usage journal takes records again; {} found no room in the rings since start",
                  dropped());
        ok = true;
        detail.clear();
    }
}

void recorder::impl::say_drops(steady_clock::time_point now) {
    auto const n = dropped();
    if (n == drops_said || now < next_drop_line) return;
    log::warn("usage.dropped", "{} usage records found no room in the rings ({} since start); see usage.ring_bytes",
              n - drops_said, n);
    drops_said = n;
    next_drop_line = now + drop_log_pause;
}

bool recorder::impl::failing() const {
    std::lock_guard const lock(status_guard);
    return !ok;
}

void recorder::impl::run() {
    auto const beat = beat_of(options);
    auto next_pass = steady_clock::now() + options.flush_interval;
    std::unique_lock lock(wake_guard);
    while (!stopping) {
        wake.wait_for(lock, beat, [this] { return stopping; });
        if (stopping) break;
        auto now = steady_clock::now();
        say_drops(now);
        bool const early = (fill() >= early_fill || retention_left) && !failing();
        if (now < next_pass && !early) continue;
        lock.unlock();
        auto const done = pass();
        lock.lock();
        next_pass = steady_clock::now() + (done ? options.flush_interval : retry_pause);
    }
}

void recorder::start() {
    assert(!impl_->flusher.joinable());
    impl_->stopping = false;
    impl_->flusher = std::thread([this] { impl_->run(); });
}

void recorder::stop(bool succeeded) {
    hurry const h(impl_->hurried);
    {
        std::lock_guard const lock(impl_->wake_guard);
        impl_->stopping = true;
    }
    impl_->wake.notify_all();
    if (!impl_->flusher.joinable()) return;
    impl_->flusher.join();
    impl_->remove_rings(flush(), succeeded);
}

void recorder::withdraw() noexcept try {
    hurry const h(impl_->hurried);
    std::lock_guard const lock(impl_->work);
    impl_->remove_rings(impl_->take_all(), false);
} catch (std::exception const&) {  // the next start takes over what is left
}

void recorder::impl::remove_rings(result<void> const& emptied, bool succeeded) {
    if (!emptied) {
        log::error("usage.left_in_rings", "{}; the next start takes the records over from the rings", emptied.error().message);
        return;
    }
    // All of it is in the journal, so the files need not hold memory any longer. (tmpfs is memory.)
    fs::path const folder = options.ring_dir;
    for (std::size_t i = 0; i < files.size(); ++i)
        if (::unlink(files[i].c_str()) == 0) static_cast<void>(journal->forget_ring(rings[i]->id()));
    bool const chosen = folder.filename().string().starts_with("latchkey-");  // by choose_ring_dir()
    if (chosen && !succeeded) ::rmdir(folder.c_str());                        // if it is empty now
}

result<void> recorder::flush() {
    hurry const h(impl_->hurried);
    return impl_->pass();
}

recorder::state_t recorder::state() const {
    state_t s;
    {
        std::lock_guard const lock(impl_->status_guard);
        s.ok = impl_->ok;
        s.detail = impl_->detail;
    }
    s.journalled = impl_->journalled.load(std::memory_order_relaxed);
    s.appended = impl_->appended();
    s.dropped = impl_->dropped();
    s.fill = impl_->fill();
    return s;
}

}  // namespace latchkey::usage
