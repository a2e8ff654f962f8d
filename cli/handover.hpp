#pragma once
// A restart in place: a running gateway starts its successor (the program file and the settings as they are now, with the same
// arguments), hands it its listening sockets and its lock, and then drains. ARCHITECTURE.md, "Restart in place", has the order
// and the reasons.
//
// The two speak over a pair of Unix sockets that keep message boundaries; descriptors travel as SCM_RIGHTS. A message is a word,
// or a word, a space and text. Whatever ends one of the processes ends the pair for the other.
//
//   old -> new  estate JSON, then sockets (as often as needed)       what there is to take over
//   new -> old  prepared             settings are good, keys are loaded, addresses are bound; nobody was let in
//   old -> new  quiet                no admin call changes keys any more
//   new -> old  serving JSON         clients are served; JSON lists the listeners that it had no use for
//   old -> new  main                 the old one is no longer the service: the sockets are let go
//   new -> old  failed TEXT          instead of prepared or serving: why not
// from then on:
//   new -> old  refresh N, flush N   keys have changed; records are wanted in usage.db. Answer: done N (TEXT: why it failed)
//   old -> new  again                SIGHUP came to the old one
//
// Who is to stop before `main` was said tells a successor that may serve by SIGTERM, and then both end in order. One that cannot
// serve yet, for `quiet` was not said, is killed.

#include <sys/types.h>

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <functional>
#include <future>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <thread>
#include <vector>

#include "base/error.hpp"
#include "conf/settings.hpp"
#include "gateway/server.hpp"
#include "portal/admin_server.hpp"

namespace latchkey::cli {

// One end of the pair. send() from any thread; receive() from one at a time.
class channel {
  public:
    explicit channel(int descriptor) noexcept : descriptor_(descriptor) {}
    ~channel();
    channel(channel const&) = delete;
    channel& operator=(channel const&) = delete;

    struct message {
        std::string word, rest;
        std::vector<int> descriptors;  // the receiver's to close
        bool cut = false;              // there were more, and no room for them in this process
    };
    // False: the other process has ended, or takes nothing more.
    bool send(std::string_view text, std::span<int const> descriptors = {}) noexcept;
    // Nothing: the other process has ended, shut() was called, or the time is up (then ended() is false).
    std::optional<message> receive(std::optional<std::chrono::steady_clock::time_point> until = {});
    bool ended() const noexcept { return ended_; }
    void shut() noexcept;
    int descriptor() const noexcept { return descriptor_; }

  private:
    int descriptor_;
    bool ended_ = false;
};

// What passes from one process to the next. The descriptors belong to whoever has the object last.
struct estate {
    int lock = -1;
    conf::endpoint health_at;
    int health = -1;
    portal::inherited_socket admin;
    std::vector<gateway::listen_point> listeners;
};

// How the program was called, for starting it again.
struct invocation_of_serve {
    // The file: found as the shell found it, so that a link that was turned to a new version is followed. Empty: not found.
    std::string program;
    std::vector<std::string> arguments;
    static invocation_of_serve now(std::vector<std::string> arguments);
};

// The successor's side.
class predecessor {
  public:
    // Null where this process was not started by a predecessor. Before the first thread.
    static std::unique_ptr<predecessor> find();
    ~predecessor();

    // Each throws `failure` where the predecessor has ended or says what cannot be.
    estate receive();
    void failed(std::string_view why) noexcept;
    // Called by a thread that listens from prepared() on. `main`: this process is the service now; `again`: SIGHUP came there;
    // `gone`: it has ended.
    struct hooks {
        std::function<void()> main, again, gone;
    };
    void prepared(hooks);  // returns when it is quiet there
    int descriptor() const noexcept { return channel_.descriptor(); }
    void serving(std::vector<std::size_t> const& unused) noexcept;
    void forget_hooks();  // none is called any more when it returns

    // Any thread, after prepared(). Done also where it has ended; `unavailable` where it does not answer in time.
    result<void> refresh() { return ask("refresh"); }
    result<void> flush() { return ask("flush"); }

  private:
    explicit predecessor(int descriptor) : channel_(descriptor) {}
    result<void> ask(std::string_view what);
    void listen();
    void call(std::function<void()> hooks::*which);

    channel channel_;
    std::mutex hooks_guard_;
    hooks hooks_;
    std::thread listener_;
    std::mutex guard_;  // for all below
    std::condition_variable answered_;
    std::map<std::uint64_t, std::optional<std::string>> answers_;  // of those who wait
    std::uint64_t asked_ = 0;
    bool gone_ = false;
};

// The old process's side: one successor at a time, and none while a predecessor of ours still drains. Wishes that come
// meanwhile are one more reload afterwards.
class handover {
  public:
    // What the gateway does at each step, on the handover's thread.
    struct hooks {
        std::function<estate()> give;
        std::function<result<void>(std::chrono::milliseconds)> quiet;  // admin calls end
        std::function<void(bool may_have_served)> resume;              // it failed: all as before
        std::function<void(std::vector<std::size_t> const& unused)> let_go;
        std::function<result<void>()> refresh, flush;
        // The successor, which was this process, is dead. True: nobody serves, and the drain was cut short.
        std::function<bool(pid_t)> fallen;
    };
    // `takeover`: to the successor's first request; `pause`: of it, for how long commands may wait.
    struct bounds {
        std::chrono::milliseconds takeover, pause;
    };
    handover(invocation_of_serve, bounds, hooks);
    ~handover();  // close()
    handover(handover const&) = delete;
    handover& operator=(handover const&) = delete;

    // Why this process can have no successor; empty: it can. Before the first wish.
    void forbid(std::string why) { forbidden_ = std::move(why); }
    void wait_for_predecessor();  // before the first wish: there is one

    // --- the main thread
    int wake() const noexcept { return wake_; }  // readable when turn() has something to do
    bool turn();                                 // starts what is wished. True: a successor serves, this process is to drain
    // This process is to stop, and so is a successor that this process has not let go for. Returns when there is none, or when
    // all is let go: turn() says which.
    void cancel();
    // Behind cancel(): waits for the end of a successor that was told to stop, and tells it once more.
    void see_off(std::chrono::milliseconds patience);
    void press() noexcept;
    bool fallen() const noexcept { return fallen_; }  // the successor died as this process drained, and nobody came in its place
    bool ended() const noexcept { return ended_; }    // the successor has ended as this process drained, however it did
    void close();                                     // cancel(), and no hook is called any more

    // --- any thread
    void ask();  // SIGHUP
    void predecessor_gone();
    result<std::int64_t> reload();  // waits for the successor, whose process id is returned; `busy` at once

  private:
    enum class stage { idle, running, committed, cancelled };
    void run();
    struct successor {
        std::shared_ptr<channel> line;
        pid_t pid = -1;
        std::vector<std::size_t> unused;
    };
    result<void> attempt(successor&);
    result<channel::message> next(channel&, std::string_view word, std::chrono::steady_clock::time_point until);
    bool answer(channel& to, channel::message const&);
    result<void> quiet(std::chrono::steady_clock::time_point until);
    void watch(successor const&);
    void settle(result<std::int64_t> const& how);
    void poke() noexcept;

    invocation_of_serve const how_;
    bounds const bounds_;
    hooks const hooks_;
    std::string forbidden_;
    int wake_ = -1;
    std::thread thread_;
    std::atomic<bool> fallen_ = false;
    std::atomic<bool> ended_ = false;

    std::mutex guard_;  // for all below
    std::condition_variable gone_on_;
    stage stage_ = stage::idle;
    pid_t child_ = -1;        // the successor, while it is not waited for
    bool may_serve_ = false;  // `quiet` was said to it
    bool stops_ = false;      // it was told to stop, as this process was
    bool closing_ = false;
    bool let_go_ = false;  // by the hook: before that nothing of this process may go down
    bool wished_ = false;
    bool thread_ended_ = true;
    bool predecessor_drains_ = false;
    std::optional<std::promise<result<std::int64_t>>> caller_;
    std::shared_ptr<channel> successor_;
};

}  // namespace latchkey::cli
