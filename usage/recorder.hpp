#pragma once
// The usage account of a data directory: the rings of its workers, the journal, and the flusher thread between them.
// This is what `serve` and the command line hold; ring and journal are its parts.
//
// Threads: open, start, stop from one thread; ring(i) is handed to worker i; flush() and state() from any thread but a worker's.

#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <thread>

#include "base/error.hpp"
#include "usage/ring.hpp"

namespace latchkey::usage {

struct recorder_options {
    std::string journal_file;  // DATA/usage.db
    std::string ring_dir;      // as chosen by choose_ring_dir()
    unsigned workers = 0;      // 0: recover only (no rings are made)
    std::uint64_t ring_bytes = 16ULL << 20;
    std::chrono::milliseconds flush_interval{1000};
    std::uint32_t retention_days = 0;
    // How the flusher stands back between its steps. Tests look at when it does.
    std::function<void(std::chrono::microseconds)> pause = [](std::chrono::microseconds d) { std::this_thread::sleep_for(d); };
    // How it lets go first, within a step, whoever has woken up meanwhile.
    std::function<void()> offer = [] { std::this_thread::yield(); };
};

// `wanted` if it is not empty; else a folder of our own (mode 0700, owned by us, named by a digest of the data directory's real
// path) in $RUNTIME_DIRECTORY, $XDG_RUNTIME_DIR or /dev/shm, the first that is a tmpfs and can be written. `said` gets a
// sentence where the choice is not a tmpfs. The same data directory and environment give the same folder; the journal also
// remembers the folder last used, and recovery looks in both.
result<std::string> choose_ring_dir(std::string const& wanted, std::string const& data_dir, std::string& said);

class recorder {
  public:
    // Opens the journal, recovers every ring file of this data directory that an earlier process left (once and only once),
    // removes those that are not needed, and makes `workers` rings. The caller holds the data directory's lock. Rings that a
    // running process holds (one that drains, after it handed over) are left to it, and looked at with every flush until they are
    // gone: if it is killed, its records are taken over then.
    static result<std::unique_ptr<recorder>> open(recorder_options);
    ~recorder();

    usage::ring& ring(unsigned worker) noexcept;
    std::uint64_t recovered() const noexcept;  // records taken over from the rings of earlier processes

    // From now on, looks for the rings of others with every flush until there are none: of a successor that failed.
    void look_for_others() noexcept;

    void start();  // the flusher thread: every flush_interval, or when a ring is a quarter full
    // Flushes what the rings hold, ends the thread, removes the rings. `succeeded`: another process goes on in their folder.
    void stop(bool succeeded = false);
    // Likewise for a recorder that was never started, because the process could not begin to serve. Removes no old records.
    void withdraw() noexcept;

    // Returns when every record committed before the call is in the journal. Error while the disk is full or the file locked:
    // nothing is lost then, the rings keep it and the flusher tries again (said in the log once, and in state()).
    result<void> flush();

    struct state_t {
        bool ok = true;
        std::string detail;            // why not
        std::uint64_t appended = 0;    // records committed to rings since start
        std::uint64_t journalled = 0;  // records in usage.db written since start
        std::uint64_t dropped = 0;     // records that found no room (exact)
        double fill = 0;               // the fullest ring, 0..1
    };
    state_t state() const;

  private:
    struct impl;
    explicit recorder(std::unique_ptr<impl>);
    std::unique_ptr<impl> impl_;
};

}  // namespace latchkey::usage
