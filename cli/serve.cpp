// The composition root: what a gateway is made of, in which order it comes up and goes down.

#include <fcntl.h>
#include <fmt/format.h>
#include <malloc.h>
#include <poll.h>
#include <sys/eventfd.h>
#include <sys/resource.h>
#include <sys/signalfd.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <boost/json.hpp>
#include <csignal>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <functional>
#include <future>
#include <memory>
#include <sstream>
#include <system_error>
#include <thread>
#include <utility>

#include "base/clock.hpp"
#include "base/log.hpp"
#include "cli/commands.hpp"
#include "cli/data_dir.hpp"
#include "cli/demo_upstream.hpp"
#include "cli/handover.hpp"
#include "cli/notify.hpp"
#include "conf/load.hpp"
#include "gateway/server.hpp"
#include "keystore/key_directory.hpp"
#include "portal/admin_server.hpp"
#include "usage/recorder.hpp"

namespace latchkey::cli {
namespace {

using namespace std::chrono_literals;

constexpr auto lock_patience = 5s;      // a command that is at work on the store ends first
constexpr auto fallen_patience = 2s;    // with running requests, where nobody may serve before this process has ended
constexpr int last_patience_ms = 1000;  // with the records of what a second signal cuts off
constexpr auto other_patience = 5s;     // beyond our own drain, for a successor that stops too and has settings of its own

template <class T>
T need(result<T> r) {
    if (!r) throw failure(exit_error, r.error().message);
    if constexpr (!std::is_void_v<T>) return std::move(*r);
}

conf::endpoint listen_flag(std::string const& text) {
    auto const at = conf::parse_listen(text);
    if (!at) throw failure(exit_usage, at.error().message);
    return *at;
}

void put_upstream(conf::settings& to, conf::target const& target) {
    conf::api api;
    api.upstreams = {target};
    to.apis = {api};
}

// File, then flags on top.
conf::settings all_settings(serve_flags const& f, streams& s) {
    auto out = settings_of(f.common, s, f.upstream.empty() && !f.demo);
    if (!f.listen.empty()) out.listen.clear();
    for (auto const& text : f.listen) out.listen.push_back(listen_flag(text));
    if (!f.tls_listen.empty()) out.tls.listen.clear();
    for (auto const& text : f.tls_listen) out.tls.listen.push_back(listen_flag(text));
    if (!f.tls_cert.empty()) out.tls.certificates = {{f.tls_cert, f.tls_key}};
    if (!f.admin_listen.empty()) out.admin_listen = listen_flag(f.admin_listen);
    if (f.workers) out.workers = *f.workers;
    conf::settle(out);
    if (!f.upstream.empty()) {
        auto const target = conf::parse_target(f.upstream);
        if (!target) throw failure(exit_usage, target.error().message);
        put_upstream(out, *target);
    }
    return out;
}

log::level level_of(std::string const& name) {
    if (name == "debug") return log::level::debug;
    if (name == "warning") return log::level::warning;
    if (name == "error") return log::level::error;
    return name == "off" ? log::level::off : log::level::info;
}

void raise_descriptor_limit() {
    rlimit limit{};
    if (::getrlimit(RLIMIT_NOFILE, &limit) != 0 || limit.rlim_cur == limit.rlim_max) return;
    limit.rlim_cur = limit.rlim_max;
    if (::setrlimit(RLIMIT_NOFILE, &limit) != 0)
        log::warn("start", "cannot raise the limit of open files; connections are capped by it");
}

std::string authority(conf::endpoint const& at, std::uint16_t port) {
    bool const v6 = at.host.find(':') != std::string::npos;
    return v6 ? fmt::format("[{}]:{}", at.host, port) : fmt::format("{}:{}", at.host, port);
}

// As a shell takes it for one word.
std::string shell_word(std::string_view text) {
    constexpr std::string_view plain = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_./-+:@%,=";
    if (!text.empty() && text.find_first_not_of(plain) == std::string_view::npos) return std::string(text);
    std::string out = "'";
    for (char const c : text) out += c == '\'' ? std::string("'\\''") : std::string(1, c);
    return out + "'";
}

// SIGTERM, SIGINT and SIGHUP as a descriptor. Blocked before the first thread starts, so every thread inherits the mask.
class stop_signals {
  public:
    stop_signals() {
        sigset_t set;
        sigemptyset(&set);
        for (int const s : {SIGTERM, SIGINT, SIGHUP}) sigaddset(&set, s);
        pthread_sigmask(SIG_BLOCK, &set, nullptr);
        fd_ = ::signalfd(-1, &set, SFD_CLOEXEC);
        if (fd_ < 0) throw failure(exit_error, "cannot wait for signals: the process is out of descriptors");
    }
    ~stop_signals() { ::close(fd_); }
    stop_signals(stop_signals const&) = delete;
    stop_signals& operator=(stop_signals const&) = delete;

    // The signal that came, or 0: `until` became readable first.
    int wait(int until) {
        for (;;) {
            pollfd both[2] = {{fd_, POLLIN, 0}, {until, POLLIN, 0}};
            if (::poll(both, 2, -1) < 0) continue;  // EINTR only
            if ((both[1].revents & POLLIN) != 0) return 0;
            if (int const got = take(); got != 0) return got;
        }
    }
    int descriptor() const noexcept { return fd_; }
    int take() {
        signalfd_siginfo got{};
        if (::read(fd_, &got, sizeof got) != sizeof got) return 0;
        if (got.ssi_signo != SIGHUP) ++(passed_on_by_ != 0 && got.ssi_pid == passed_on_by_ ? passed_on_ : told_);
        return static_cast<int>(got.ssi_signo);
    }

    // That process passes on what it is told. A service manager that tells all processes of a service, and a terminal, give this
    // one the same wish, which is then one and not two.
    void expect_from(pid_t before) noexcept { passed_on_by_ = static_cast<std::uint32_t>(before); }
    bool told_again() const noexcept { return std::max(told_, passed_on_) > 1; }

  private:
    int fd_ = -1;
    std::uint32_t passed_on_by_ = 0;  // as signalfd has it. 0: none; the kernel itself and other namespaces count as others
    int told_ = 0, passed_on_ = 0;    // to stop
};

// Until this process serves, SIGTERM, SIGINT and the end of the process before end it at once: loading may take long, and nobody
// was let in yet. What it leaves is what a killed process leaves.
class start_watch {
  public:
    start_watch(stop_signals& signals, predecessor* before)
        : signals_(signals), before_(before), over_(::eventfd(0, EFD_CLOEXEC)) {
        if (over_ < 0) throw failure(exit_error, "the process is out of descriptors");
        thread_ = std::thread([this] { watch(); });
    }
    ~start_watch() {
        end();
        ::close(over_);
    }
    start_watch(start_watch const&) = delete;
    start_watch& operator=(start_watch const&) = delete;

    // From here on the process before is asked by who waits for its word.
    void leave_predecessor() noexcept { alone_ = false; }
    // From here on signals wait for run_until_end().
    void end() {
        if (!thread_.joinable()) return;
        std::uint64_t const one = 1;
        while (::write(over_, &one, sizeof one) != sizeof one) continue;
        thread_.join();
        if (reload_) ::kill(::getpid(), SIGHUP);
    }

  private:
    void watch() {
        for (bool pair = before_ != nullptr;;) {
            pollfd all[3] = {{over_, POLLIN, 0}, {signals_.descriptor(), POLLIN, 0}, {pair ? before_->descriptor() : -1, 0, 0}};
            if (::poll(all, 3, -1) < 0) continue;  // EINTR only
            if (all[0].revents != 0) return;
            if (all[1].revents != 0) {
                int const signal = signals_.take();
                if (signal == SIGHUP) reload_ = true;
                if (signal == SIGTERM || signal == SIGINT) stop();
            } else if (all[2].revents != 0) {
                pair = false;
                if (alone_) give_up("the process before this one ended before it had handed over");
            }
        }
    }
    [[noreturn]] void stop() {
        if (before_ != nullptr) give_up("the new process was told to stop before it served");
        log::info("stop", "before anybody was served");
        log::stop();
        std::_Exit(exit_ok);
    }
    [[noreturn]] void give_up(char const* why) {
        if (before_ != nullptr) before_->failed(why);
        log::error("start", "{}", why);
        log::stop();
        std::_Exit(exit_error);
    }

    stop_signals& signals_;
    predecessor* before_;
    int over_ = -1;
    std::atomic<bool> alone_ = true;
    bool reload_ = false;
    std::thread thread_;
};

std::vector<portal::figure> figures_of(gateway::counters const& c) {
    auto const n = [](std::uint64_t v) { return static_cast<double>(v); };
    std::vector<portal::figure> out{
        {"connections_open", "Client connections", {}, false, n(c.connections_open)},
        {"connections_accepted_total", "Client connections accepted", {}, true, n(c.connections_accepted)},
        {"connections_shed_total", "Client connections closed at once, over a limit", {}, true, n(c.connections_shed)},
        {"clients_put_off_total",
         "Times that a client waited, unread, since more were ready than a worker takes on at once",
         {},
         true,
         n(c.clients_put_off)},
        {"io_uring_workers",
         "Workers that use io_uring; 0 where it is off or not to be had, which costs processor time only",
         {},
         false,
         n(c.io_uring_workers)},
        {"requests_total", "Requests that left a usage record", {}, true, n(c.requests)},
        {"requests_in_flight", "Requests being served", {}, false, n(c.requests_in_flight)},
        {"forwarded_total", "Requests handed to an upstream", {}, true, n(c.forwarded)},
        {"refused_total", "Requests the gateway answered itself", {}, true, n(c.refused)},
        {"upstream_failures_total", "Requests an upstream failed", {}, true, n(c.upstream_failures)},
        {"upstream_retries_total", "Stale upstream connections replaced", {}, true, n(c.upstream_retries)},
        {"upstream_connections", "Upstream connections", {}, false, n(c.upstream_connections)},
        {"buffer_bytes", "Message buffers in use or promised, a tenth of a second ago at most", {}, false, n(c.buffer_bytes)},
        {"buffer_limit_bytes",
         "limits.memory, a part for each worker: from 92 % of its part on connections are not kept, from 95 % requests get 503",
         {},
         false,
         n(c.buffer_limit_bytes)},
        {"frame_bytes",
         "Memory mapped for sessions and for the frames of what they do; not their buffers, nor what TLS keeps",
         {},
         false,
         n(c.frame_bytes)},
        {"client_aborts_total", "Requests whose client went away", {}, true, n(c.client_aborts)},
        {"tls_handshakes_total", "TLS handshakes done", {}, true, n(c.tls_handshakes)},
        {"tls_resumed_total", "TLS handshakes done by a ticket", {}, true, n(c.tls_resumed)},
        {"tls_handshakes_failed_total",
         "TLS connections that ended before their handshake was done",
         {},
         true,
         n(c.tls_handshakes_failed)},
        {"request_bytes_total", "Bytes read from clients", {}, true, n(c.request_bytes)},
        {"response_bytes_total", "Bytes sent to clients", {}, true, n(c.response_bytes)}};
    for (std::size_t i = 0; i < std::size(c.status_class); ++i)
        out.push_back({"responses_total", "Responses by status class; none: nothing was sent",
                       i == 0 ? "class=\"none\"" : fmt::format("class=\"{}xx\"", i), true, n(c.status_class[i])});
    for (std::size_t i = 1; i < c.problems.size(); ++i)  // 0 is none
        out.push_back({"problems_total", "Answers of the gateway's own, by their code",
                       fmt::format("code=\"{}\"", text_of(static_cast<gateway::refusal>(i)).code), true, n(c.problems[i])});
    return out;
}

// Appears whole, when everything is ready; gone again when the process stops in order, unless a successor's stands there. Whether
// it can be written is known before that.
class ready_file {
  public:
    ready_file(std::string path, std::string text) : path_(std::move(path)), text_(std::move(text)) {
        if (prepare()) return;
        std::remove(temporary().c_str());
        fail();
    }
    ~ready_file() {
        if (!path_.empty()) std::remove((shown_ ? path_ : temporary()).c_str());
    }
    ready_file(ready_file const&) = delete;
    ready_file& operator=(ready_file const&) = delete;

    bool write() {
        if (path_.empty()) return true;
        bool const done = prepare() && std::rename(temporary().c_str(), path_.c_str()) == 0;
        if (!done) std::remove(temporary().c_str());
        shown_ = shown_ || done;
        return done;
    }
    [[noreturn]] void fail() const {
        throw failure(exit_error, fmt::format("cannot write the ready file {}; name another with --ready-file", path_));
    }
    void leave() { path_.clear(); }

  private:
    std::string temporary() const { return fmt::format("{}.tmp-{}", path_, ::getpid()); }
    bool prepare() const {
        if (path_.empty()) return true;
        std::ofstream out(temporary());
        out << text_ << "\n";
        out.close();
        return out.good();
    }

    std::string path_;
    std::string text_;
    bool shown_ = false;
};

// Members come up in this order and go down in the reverse one. With a predecessor, everything that can fail comes before
// prepared(), and nobody was let in by then.
class gateway_process {
  public:
    gateway_process(conf::settings settings, serve_flags const& f, predecessor* before, start_watch& watch, streams& s)
        : settings_(std::move(settings)),
          paths_(settings_.data_dir),
          before_(before),
          how_(invocation_of_serve::now(f.arguments)),
          handover_(how_, {settings_.takeover, settings_.takeover_pause}, handover_hooks()) {
        if (::getpid() == 1)
            handover_.forbid(
                "process 1 of a container cannot be replaced, for the container ends with it: restart the container");
        if (how_.program.empty())
            handover_.forbid("the program's own file is not found, and /proc is not mounted to tell it: restart the gateway");
        if (f.demo) handover_.forbid("a gateway with --demo cannot be reloaded, for the demo API lives in it: start it again");
        estate from;
        if (before_ != nullptr) {
            from = before_->receive();
            lock_.emplace(need(data_lock::inherit(paths_, from.lock)));
        }
        need(make_data_dir(paths_.dir));
        if (before_ == nullptr) lock_.emplace(need(data_lock::take(paths_, "gateway", lock_patience)));
        auto const shards = load_keys();
        open_recorder(s);
        struct unserved {  // a first start that fails leaves no rings in memory
            usage::recorder* of;
            ~unserved() {
                if (of != nullptr) of->withdraw();
            }
        } until_served{before_ == nullptr ? recorder_.get() : nullptr};
        server_ = std::make_unique<gateway::server>(settings_, shards, *recorder_);
        server_->bind(std::move(from.listeners));
        auto const ports = server_->ports();
        for (std::size_t i = 0; i < settings_.listen.size(); ++i) listen_.push_back(authority(settings_.listen[i], ports.at(i)));
        auto const tls_ports = server_->tls_ports();
        for (std::size_t i = 0; i < settings_.tls.listen.size(); ++i)
            tls_listen_.push_back(authority(settings_.tls.listen[i], tls_ports.at(i)));
        make_admin(from);
        ready_file_.emplace(f.ready_file, ready_json());
        struct unhook {  // a hook must not find this object gone; ~gateway_process does not run for one that was never whole
            predecessor* of;
            ~unhook() {
                if (of != nullptr) of->forget_hooks();
            }
        } until_whole{before_};
        if (before_ != nullptr) {
            handover_.wait_for_predecessor();
            watch.leave_predecessor();
            before_->prepared({[] { notify("READY=1"); }, [this] { handover_.ask(); }, [this] { handover_.predecessor_gone(); }});
            need(server_->publish(need(keys_->catch_up())));  // there is no other writer of ours from here on
        }
        watch.end();
        admin_->listen();
        recorder_->start();
        until_served.of = nullptr;
        server_->start();
        keys_->start([this](auto const& updates) { return publish(updates); });
        ready_ = true;
        admin_->start();
        if (before_ == nullptr) {
            if (!ready_file_->write()) ready_file_->fail();
            notify("READY=1");
            return;
        }
        say_who_serves();  // clients have been let in: it must not end over this
        admin_->own_socket_file();
        until_whole.of = nullptr;
        before_->serving(server_->unused());
    }

    ~gateway_process() {
        handover_.cancel();
        stop(0ms);
        handover_.close();  // it answers the successor by what is about to go
        if (before_ != nullptr) before_->forget_hooks();
    }

    // Health says "draining" and the commands work until the last exchange has ended; then usage and keys are closed. Behind a
    // handover it is the successor that health and commands speak to.
    void stop(std::chrono::milliseconds drain) {
        draining_ = true;
        if (server_) server_->drain(drain);
        drained_ = true;
        if (admin_) admin_->stop();
        if (recorder_) recorder_->stop(handed_over_);
        if (keys_) keys_->stop();
    }

    handover& next() { return handover_; }
    void hurry() { server_->hurry(); }
    void end_now() { server_->end_now(); }

    std::string ready_json() const {
        boost::json::array listen(listen_.begin(), listen_.end());
        boost::json::array tls_listen(tls_listen_.begin(), tls_listen_.end());
        return boost::json::serialize(
            boost::json::object{{"pid", ::getpid()},
                                {"listen", std::move(listen)},
                                {"tls_listen", std::move(tls_listen)},
                                {"admin_listen", authority(settings_.admin_listen, admin_->health_port())},
                                {"admin_socket", paths_.admin_socket}});
    }
    std::string greeting() const {
        std::vector<std::string> where;
        for (auto const& at : listen_) where.push_back("http://" + at);
        for (auto const& at : tls_listen_) where.push_back("https://" + at);
        // The command is for another terminal, which may stand in another folder.
        std::error_code ec;
        auto const from_anywhere = std::filesystem::absolute(paths_.dir, ec);
        std::string const data = ec ? paths_.dir : from_anywhere.lexically_normal().string();
        return fmt::format("latchkey: serving {}, data in {}; make a key with: latchkey keys create --name NAME --data {}",
                           fmt::join(where, " and "), data, shell_word(data));
    }
    gateway::server const& server() const { return *server_; }

  private:
    void make_admin(estate const& from) {
        portal::admin_options o;
        o.socket_path = paths_.admin_socket;
        o.health = settings_.admin_listen;
        o.admin_before = from.admin;
        o.health_before = from.health;
        o.health_before_at = from.health_at;
        o.reload = [this] { return handover_.reload(); };
        if (before_ != nullptr) o.flush_elsewhere = [this] { return before_->flush(); };
        started_ms_ = wall_ms();
        admin_ = std::make_unique<portal::admin_server>(o, *keys_, *recorder_, [this] { return state(); });
        admin_->bind();
    }

    void say_who_serves() {
        bool const shown = ready_file_->write();
        if (!lock_->name_holder(paths_, "gateway") || !shown)
            log::error("reload", "the lock or the ready file cannot be written, and may name another process");
    }

    // On every worker here, and on those of a predecessor that drains: it may let a slow head through yet.
    result<void> publish(std::vector<keystore::shard_update> const& updates) {
        result<void> here;
        if (!drained_) here = server_->publish(updates);  // else no worker is left that could let an old key through
        result<void> there;
        if (before_ != nullptr) there = before_->refresh();
        return here ? there : here;
    }

    handover::hooks handover_hooks() {
        handover::hooks h;
        h.give = [this] {
            return estate{lock_->descriptor(), settings_.admin_listen, admin_->health_listener(), admin_->admin_listener(),
                          server_->listeners()};
        };
        h.quiet = [this](std::chrono::milliseconds patience) -> result<void> {
            if (admin_->pause(patience)) return {};
            return error{errc::io,
                         "a command on the keys or the account still runs; reload again when it has ended, or let takeover_pause "
                         "be longer"};
        };
        h.resume = [this](bool may_have_served) {
            recorder_->look_for_others();           // of the one that failed
            if (may_have_served) say_who_serves();  // it may have named itself
            admin_->resume();
        };
        h.let_go = [this](std::vector<std::size_t> const& unused) {
            handed_over_ = draining_ = true;
            ready_file_->leave();
            lock_.reset();
            admin_->hand_over();
            server_->hand_over(unused, std::min(settings_.client.idle, settings_.client.takeover_idle));
        };
        h.fallen = [this](pid_t successor) {
            server_->hurry();
            auto const until = steady_ns() + std::chrono::nanoseconds(fallen_patience).count();
            while (!drained_ && steady_ns() < until) {
                auto const holder = lock_holder(paths_);  // a command that ran meanwhile serves nobody
                if (holder.starts_with("gateway") && holder != holder_name("gateway", successor)) return false;
                std::this_thread::sleep_for(10ms);
            }
            if (!drained_) server_->end_now();
            return true;
        };
        h.refresh = [this]() -> result<void> {
            if (drained_) return {};
            auto done = keys_->refresh();
            return drained_ ? result<void>{} : done;
        };
        h.flush = [this] { return recorder_->flush(); };
        return h;
    }

    // With many keys the check of the file takes as long as reading them, so both go on at once. Nobody is let in before it ends.
    std::vector<keystore::shard_update> load_keys() {
        auto store = need(keystore::store::open(paths_.keys_db, {.check = false}));
        auto checked = std::async(std::launch::async, [this] { return keystore::store::check(paths_.keys_db); });
        keys_ = std::make_unique<keystore::key_directory>(std::move(store), settings_.keys.prefix);
        auto shards = keys_->load();
        need(checked.get());  // first: where both find damage, it knows more of it
        ::malloc_trim(0);     // what reading took, a few megabytes for 100,000 keys, goes back to the system
        return need(std::move(shards));
    }

    void open_recorder(streams& s) {
        std::string said;
        usage::recorder_options o;
        o.journal_file = paths_.usage_db;
        o.ring_dir = need(usage::choose_ring_dir(settings_.usage.ring_dir, paths_.dir, said));
        o.workers = conf::worker_count(settings_);
        o.ring_bytes = settings_.usage.ring_bytes;
        o.flush_interval = settings_.usage.flush_interval;
        o.retention_days = settings_.usage.retention_days;
        if (!said.empty()) s.err << "latchkey: " << said << "\n";
        auto opened = usage::recorder::open(o);
        bool const folder_is_ours = before_ == nullptr && settings_.usage.ring_dir.empty();
        if (!opened && folder_is_ours) ::rmdir(o.ring_dir.c_str());  // if nothing is in it
        recorder_ = need(std::move(opened));
    }

    portal::gateway_state state() const {
        portal::gateway_state out;
        out.ready = ready_;
        out.draining = draining_;
        out.version = LATCHKEY_VERSION;
        out.started_ms = started_ms_;
        out.workers = conf::worker_count(settings_);
        out.listen = listen_;
        out.tls_listen = tls_listen_;
        out.data_dir = paths_.dir;
        out.power_cut_cost = fmt::format("a power cut can cost the usage records of the last {} ms; a killed process loses none",
                                         settings_.usage.flush_interval.count());
        out.recovered = recorder_->recovered();
        out.figures = figures_of(server_->counters());
        return out;
    }

    conf::settings settings_;
    data_paths paths_;
    predecessor* before_;
    invocation_of_serve const how_;
    handover handover_;
    std::optional<data_lock> lock_;
    std::optional<ready_file> ready_file_;
    std::unique_ptr<usage::recorder> recorder_;
    std::unique_ptr<gateway::server> server_;
    std::unique_ptr<keystore::key_directory> keys_;
    std::unique_ptr<portal::admin_server> admin_;
    std::vector<std::string> listen_;
    std::vector<std::string> tls_listen_;
    std::int64_t started_ms_ = 0;
    std::atomic<bool> ready_ = false;
    std::atomic<bool> draining_ = false;
    std::atomic<bool> drained_ = false;
    std::atomic<bool> handed_over_ = false;
};

// Drains in a thread of its own, so that a signal can end the process at once: running requests are cut off and recorded so, and
// the rings keep what is not journalled. Behind a handover the first one only ends the patience with idle clients, for it may
// have been meant for the whole service.
void drain(gateway_process& gateway, std::chrono::milliseconds bound, stop_signals& signals, bool handed_over) {
    int const done = ::eventfd(0, EFD_CLOEXEC);
    std::thread worker([&] {
        gateway.stop(bound);
        gateway.next().see_off(bound + other_patience);
        std::uint64_t const one = 1;
        if (::write(done, &one, sizeof one) != sizeof one) log::error("stop", "cannot say that the drain has ended");
    });
    for (;;) {
        int const signal = signals.wait(done);
        if (signal == 0) break;
        if (signal == SIGHUP) {
            if (handed_over) gateway.next().ask();
        } else if (!signals.told_again()) {
            if (handed_over) gateway.hurry();
        } else {
            log::warn("stop", "{} signal: ending at once", handed_over ? "another" : "second");
            gateway.next().press();
            gateway.end_now();
            pollfd ended{done, POLLIN, 0};
            ::poll(&ended, 1, last_patience_ms);
            log::stop();
            std::_Exit(exit_error);
        }
    }
    worker.join();
    ::close(done);
}

// To the end: SIGTERM or SIGINT, or a successor that serves (then true).
bool run_until_end(gateway_process& gateway, stop_signals& signals) {
    auto& next = gateway.next();
    for (;;) {
        int const signal = signals.wait(next.wake());
        if (signal == SIGHUP) {
            next.ask();
        } else if (signal != 0) {
            next.cancel();
            if (!next.turn()) return false;
            gateway.hurry();  // a successor serves, and stops too unless the signal came when all was let go
            return true;
        } else if (next.turn()) {
            return true;
        }
    }
}

struct log_session {
    explicit log_session(conf::log_settings const& l) { log::start(level_of(l.level), l.file, l.json); }
    ~log_session() { log::stop(); }
};

}  // namespace

namespace {

// What is wrong is said on `s`, or thrown.
int run_gateway(serve_flags const& f, predecessor* before, stop_signals& signals, streams& s, std::function<void()> const& up) {
    std::unique_ptr<demo_server> demo;
    auto settings = all_settings(f, s);
    if (f.demo) {
        demo = std::make_unique<demo_server>(conf::endpoint{"127.0.0.1", 0});
        put_upstream(settings, {{"127.0.0.1", demo->port()}, {}});
    }
    auto const findings = conf::check(settings);
    for (auto const& finding : findings) s.err << "latchkey: " << conf::to_text(finding) << "\n";
    if (!findings.empty()) return exit_error;
    log_session const logging(settings.log);
    raise_descriptor_limit();
    start_watch watch(signals, before);
    gateway_process gateway(settings, f, before, watch, s);
    log::info("memory", "{}", gateway.server().memory_bound());
    s.err << gateway.greeting() + "\n" << std::flush;  // in one write: the log's thread writes to the same place
    up();
    bool const handed_over = run_until_end(gateway, signals);
    if (!handed_over) notify("STOPPING=1");
    auto const* const event = handed_over ? "reload" : "stop";
    log::info(event, "draining for at most {} ms; {} signal ends at once", settings.drain.count(),
              handed_over ? "a successor serves, another" : "a second");
    drain(gateway, settings.drain, signals, handed_over);
    log::info(event, "every request is on record");
    if (gateway.next().fallen()) return exit_error;
    if (handed_over && !gateway.next().ended() && ::isatty(STDERR_FILENO) == 1)  // whose shell now shows its prompt
        s.err << fmt::format("latchkey: {} goes on in the background; SIGTERM stops it\n",
                             lock_holder(data_paths(settings.data_dir)))
              << std::flush;
    return exit_ok;
}

}  // namespace

int serve(serve_flags const& f, streams& s) {
    stop_signals signals;
    auto const before = predecessor::find();
    if (!before) return run_gateway(f, nullptr, signals, s, [] {});
    signals.expect_from(::getppid());
    // Until it serves, what this process says goes to the one before it, too: the person who asked for the reload wants to see
    // it.
    std::ostringstream said;
    streams both{s.in, s.out, said, s.terminal};
    auto const pass_on = [&] {
        s.err << said.str() << std::flush;
        said.str({});
    };
    auto const fail = [&](std::string const& why) {
        auto text = said.str() + why;
        while (text.ends_with('\n')) text.pop_back();
        if (std::string_view const name = "latchkey: "; text.starts_with(name)) text.erase(0, name.size());
        before->failed(text);
        pass_on();
    };
    try {
        int const code = run_gateway(f, before.get(), signals, both, pass_on);
        if (code != exit_ok) fail({});
        return code;
    } catch (std::exception const& e) {
        fail(e.what());
        throw;
    }
}

}  // namespace latchkey::cli
