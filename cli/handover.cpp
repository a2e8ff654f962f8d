#include "cli/handover.hpp"

#include <fcntl.h>
#include <fmt/format.h>
#include <poll.h>
#include <spawn.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <boost/json.hpp>
#include <cerrno>
#include <charconv>
#include <csignal>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <system_error>
#include <utility>

#include "base/clock.hpp"
#include "base/log.hpp"
#include "cli/notify.hpp"
#include "cli/run.hpp"

namespace latchkey::cli {
namespace {

namespace fs = std::filesystem;
namespace json = boost::json;
using namespace std::chrono_literals;
using steady = std::chrono::steady_clock;

constexpr char const* variable = "LATCHKEY_HANDOVER";  // the descriptor of the new process's end
constexpr int descriptor_there = 3;
constexpr int protocol_version = 1;
constexpr std::size_t message_bytes_max = 64U << 10U;
constexpr std::size_t text_bytes_max = 16U << 10U;
constexpr std::size_t descriptors_max = 200;  // in one message; the kernel takes 253
// None of these is a setting, for none depends on how much there is to do. A publication there takes 5 s at most, and a command
// that gets no answer says so and can be given again. A process that said why it fails, or closed its end, has only to exit.
constexpr auto answer_patience = 6s;
constexpr auto end_patience = 2s;
constexpr auto stop_look = 100ms;  // while admin calls end: how often it is seen that this process is to stop

std::string reason(int code) { return std::generic_category().message(code); }

int milliseconds_to(steady::time_point until) {
    auto const left = std::chrono::ceil<std::chrono::milliseconds>(until - steady::now()).count();
    return static_cast<int>(std::clamp<std::int64_t>(left, 0, 3'600'000));
}

}  // namespace

// --- channel

channel::~channel() { ::close(descriptor_); }

bool channel::send(std::string_view text, std::span<int const> descriptors) noexcept {
    iovec piece{const_cast<char*>(text.data()), text.size()};
    msghdr m{};
    m.msg_iov = &piece;
    m.msg_iovlen = 1;
    alignas(cmsghdr) std::array<char, CMSG_SPACE(descriptors_max * sizeof(int))> control{};
    if (!descriptors.empty()) {
        m.msg_control = control.data();
        m.msg_controllen = CMSG_SPACE(descriptors.size_bytes());
        cmsghdr* const c = CMSG_FIRSTHDR(&m);
        c->cmsg_level = SOL_SOCKET;
        c->cmsg_type = SCM_RIGHTS;
        c->cmsg_len = CMSG_LEN(descriptors.size_bytes());
        std::memcpy(CMSG_DATA(c), descriptors.data(), descriptors.size_bytes());
    }
    for (;;) {
        if (::sendmsg(descriptor_, &m, MSG_NOSIGNAL | MSG_DONTWAIT) >= 0) return true;
        if (errno != EINTR) return false;  // full: it has not read for long
    }
}

std::optional<channel::message> channel::receive(std::optional<steady::time_point> until) {
    pollfd p{descriptor_, POLLIN, 0};
    for (int n = 0; n <= 0;) {
        n = ::poll(&p, 1, until ? milliseconds_to(*until) : -1);
        if (n == 0 && until && steady::now() >= *until) return std::nullopt;
    }
    std::string text(message_bytes_max, '\0');
    alignas(cmsghdr) std::array<char, CMSG_SPACE(descriptors_max * sizeof(int))> control{};
    iovec piece{text.data(), text.size()};
    msghdr m{};
    m.msg_iov = &piece;
    m.msg_iovlen = 1;
    m.msg_control = control.data();
    m.msg_controllen = control.size();
    // Where the other process ended before it had read all, that is said first (ECONNRESET), and its last words come after it.
    ssize_t n = 0;
    while ((n = ::recvmsg(descriptor_, &m, MSG_CMSG_CLOEXEC)) < 0 && (errno == ECONNRESET || errno == EINTR)) continue;
    if (n <= 0) {
        ended_ = true;
        return std::nullopt;
    }
    message out;
    out.cut = (m.msg_flags & MSG_CTRUNC) != 0;
    for (cmsghdr* c = CMSG_FIRSTHDR(&m); c != nullptr; c = CMSG_NXTHDR(&m, c)) {
        if (c->cmsg_level != SOL_SOCKET || c->cmsg_type != SCM_RIGHTS) continue;
        out.descriptors.resize((c->cmsg_len - CMSG_LEN(0)) / sizeof(int));
        std::memcpy(out.descriptors.data(), CMSG_DATA(c), out.descriptors.size() * sizeof(int));
    }
    text.resize(static_cast<std::size_t>(n));
    auto const space = text.find(' ');
    out.word = text.substr(0, space);
    if (space != std::string::npos) out.rest = text.substr(space + 1);
    return out;
}

void channel::shut() noexcept { ::shutdown(descriptor_, SHUT_RDWR); }

// --- the estate as messages

namespace {

void give(channel& to, estate const& e) {
    json::array listen;
    std::vector<int> sockets;
    for (auto const& l : e.listeners) {
        listen.push_back(json::object{{"host", l.at.host}, {"port", l.at.port}, {"tls", l.tls}, {"sockets", l.sockets.size()}});
        sockets.insert(sockets.end(), l.sockets.begin(), l.sockets.end());
    }
    json::object const text{{"version", protocol_version},
                            {"device", e.admin.file.device},
                            {"inode", e.admin.file.inode},
                            {"health", {{"host", e.health_at.host}, {"port", e.health_at.port}}},
                            {"listen", std::move(listen)}};
    std::array<int, 3> const fixed{e.lock, e.health, e.admin.descriptor};
    to.send("estate " + json::serialize(text), fixed);
    for (std::span<int const> rest(sockets); !rest.empty();) {
        auto const some = rest.first(std::min(rest.size(), descriptors_max));
        to.send("sockets", some);
        rest = rest.subspan(some.size());
    }
}

conf::endpoint endpoint_of(json::value const& v) {
    return {std::string(std::string_view(v.at("host").as_string())), v.at("port").to_number<std::uint16_t>()};
}

// Throws what boost::json throws where another version says something else.
estate read_estate(channel::message const& m) {
    auto const text = json::parse(m.rest);
    if (text.at("version").to_number<int>() != protocol_version || m.descriptors.size() != 3) throw std::runtime_error("version");
    estate out;
    out.lock = m.descriptors[0];
    out.health = m.descriptors[1];
    out.admin.descriptor = m.descriptors[2];
    out.admin.file = {text.at("device").to_number<dev_t>(), text.at("inode").to_number<ino_t>()};
    out.health_at = endpoint_of(text.at("health"));
    for (auto const& l : text.at("listen").as_array())
        out.listeners.push_back(
            {endpoint_of(l), l.at("tls").as_bool(), std::vector<int>(l.at("sockets").to_number<std::size_t>(), -1)});
    return out;
}

}  // namespace

// --- the program file

invocation_of_serve invocation_of_serve::now(std::vector<std::string> arguments) {
    std::error_code ec;
    std::string const self = "/proc/self/exe";
    auto real = fs::read_symlink(self, ec).string();
    if (constexpr std::string_view gone = " (deleted)"; real.ends_with(gone)) real.resize(real.size() - gone.size());
    invocation_of_serve out{std::move(real), std::move(arguments)};
    std::string const name = out.arguments.empty() ? std::string{} : out.arguments.front();
    std::vector<fs::path> places;
    if (name.find('/') != std::string::npos) {
        places.emplace_back(fs::absolute(name, ec));
    } else if (char const* const path = std::getenv("PATH"); path != nullptr && !name.empty()) {  // NOLINT(concurrency-mt-unsafe)
        for (std::string_view rest(path); !rest.empty();) {
            auto const part = rest.substr(0, rest.find(':'));
            rest.remove_prefix(std::min(part.size() + 1, rest.size()));
            places.emplace_back(fs::absolute(fs::path(part) / name, ec));
        }
    }
    for (auto const& place : places) {
        // Without /proc the name has to do.
        if (out.program.empty() ? ::access(place.c_str(), X_OK) != 0 : !fs::equivalent(place, self, ec)) continue;
        out.program = place.string();
        break;
    }
    return out;
}

// --- predecessor

std::unique_ptr<predecessor> predecessor::find() {
    char const* const text = std::getenv(variable);  // NOLINT(concurrency-mt-unsafe): no thread yet
    if (text == nullptr) return nullptr;
    int fd = -1;
    auto const end = text + std::strlen(text);
    bool const number = std::from_chars(text, end, fd).ptr == end;
    ::unsetenv(variable);  // NOLINT(concurrency-mt-unsafe)
    int type = 0;
    socklen_t size = sizeof type;
    if (!number || ::getsockopt(fd, SOL_SOCKET, SO_TYPE, &type, &size) != 0 || type != SOCK_SEQPACKET) return nullptr;
    ::fcntl(fd, F_SETFD, FD_CLOEXEC);
    return std::unique_ptr<predecessor>(new predecessor(fd));
}

predecessor::~predecessor() {
    channel_.shut();
    if (listener_.joinable()) listener_.join();
}

namespace {
[[noreturn]] void fail_alone() { throw failure(exit_error, "the process before this one ended before it had handed over"); }
}  // namespace

estate predecessor::receive() {
    auto const first = channel_.receive();
    if (!first) fail_alone();
    auto const check = [](channel::message const& m) {
        if (m.cut) throw failure(exit_error, "the descriptor limit is too low for one more process to take the sockets over");
    };
    check(*first);
    estate out;
    try {
        if (first->word != "estate") throw std::runtime_error(first->word);
        out = read_estate(*first);
    } catch (std::exception const&) {
        throw failure(exit_error, "this version cannot take over from the one that runs: stop that one and start this one");
    }
    std::vector<int> sockets;
    std::size_t wanted = 0;
    for (auto const& l : out.listeners) wanted += l.sockets.size();
    while (sockets.size() < wanted) {
        auto const more = channel_.receive();
        if (more) check(*more);
        if (!more || more->descriptors.empty()) fail_alone();
        sockets.insert(sockets.end(), more->descriptors.begin(), more->descriptors.end());
    }
    auto at = sockets.begin();
    for (auto& l : out.listeners)
        for (int& s : l.sockets) s = *at++;
    return out;
}

void predecessor::failed(std::string_view why) noexcept try {
    channel_.send("failed " + std::string(why.substr(0, text_bytes_max)));
} catch (std::exception const&) {  // out of memory: the other side says that this process ended
    channel_.shut();
}

void predecessor::prepared(hooks h) {
    hooks_ = std::move(h);
    if (!channel_.send("prepared")) fail_alone();
    auto const quiet = channel_.receive();
    if (!quiet || quiet->word != "quiet") fail_alone();
    listener_ = std::thread([this] { listen(); });
}

void predecessor::serving(std::vector<std::size_t> const& unused) noexcept {
    channel_.send("serving " + json::serialize(json::array(unused.begin(), unused.end())));
}

void predecessor::listen() {
    bool main = false;
    while (auto const m = channel_.receive()) {
        if (m->word == "main" && !std::exchange(main, true)) call(&hooks::main);
        if (m->word == "again") call(&hooks::again);
        if (m->word != "done") continue;
        std::uint64_t n = 0;
        auto const number = std::from_chars(m->rest.data(), m->rest.data() + m->rest.size(), n);
        std::lock_guard const lock(guard_);
        if (auto const at = answers_.find(n); at != answers_.end())
            at->second = std::string(std::min(number.ptr + 1, m->rest.data() + m->rest.size()), m->rest.data() + m->rest.size());
        answered_.notify_all();
    }
    {
        std::lock_guard const lock(guard_);
        gone_ = true;
    }
    answered_.notify_all();
    if (!main) call(&hooks::main);  // it ended in between: there is no other service than this one
    call(&hooks::gone);
}

void predecessor::call(std::function<void()> hooks::*which) {
    std::lock_guard const lock(hooks_guard_);
    if (hooks_.*which) (hooks_.*which)();
}

void predecessor::forget_hooks() {
    std::lock_guard const lock(hooks_guard_);
    hooks_ = {};
}

result<void> predecessor::ask(std::string_view what) {
    std::unique_lock lock(guard_);
    if (gone_) return {};
    auto const n = ++asked_;
    answers_[n];
    lock.unlock();
    channel_.send(fmt::format("{} {}", what, n));  // where that fails it has ended, or does not read: both are found below
    lock.lock();
    answered_.wait_for(lock, answer_patience, [&] { return gone_ || answers_[n].has_value(); });
    auto const text = std::move(answers_[n]);
    answers_.erase(n);
    if (gone_ || (text && text->empty())) return {};
    return error{errc::unavailable, fmt::format("the process before this one, which still serves its last requests, {}",
                                                text ? "says: " + *text : "does not answer")};
}

// --- handover

handover::handover(invocation_of_serve how, bounds b, hooks h)
    : how_(std::move(how)), bounds_(b), hooks_(std::move(h)), wake_(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)) {
    if (wake_ < 0) throw failure(exit_error, "the process is out of descriptors");
}

handover::~handover() {
    close();
    ::close(wake_);
}

void handover::close() {
    cancel();
    {
        std::lock_guard const lock(guard_);
        closing_ = true;
        if (successor_) successor_->shut();
    }
    gone_on_.notify_all();
    if (thread_.joinable()) thread_.join();
}

void handover::wait_for_predecessor() { predecessor_drains_ = true; }

void handover::poke() noexcept {
    std::uint64_t const one = 1;
    if (::write(wake_, &one, sizeof one) != sizeof one) log::error("handover", "the main thread cannot be woken");
}

void handover::ask() {
    std::lock_guard const lock(guard_);
    if (stage_ == stage::committed) {
        successor_->send("again");
        return;
    }
    if (!forbidden_.empty()) {
        if (!std::exchange(wished_, true)) log::error("reload", "{}", forbidden_);  // once: there may be a storm of signals
        return;
    }
    wished_ = true;
    poke();
}

void handover::predecessor_gone() {
    std::lock_guard const lock(guard_);
    predecessor_drains_ = false;
    poke();
}

result<std::int64_t> handover::reload() {
    std::future<result<std::int64_t>> answer;
    {
        std::lock_guard const lock(guard_);
        if (!forbidden_.empty()) return error{errc::invalid_argument, forbidden_};
        if (stage_ == stage::cancelled) return error{errc::unavailable, "the gateway is stopping"};
        if (predecessor_drains_) return error{errc::busy, "the process before this one still serves its last requests"};
        if (stage_ != stage::idle || wished_ || caller_) return error{errc::busy, "a reload is under way"};
        caller_.emplace();
        answer = caller_->get_future();
        poke();
    }
    return answer.get();
}

bool handover::turn() {
    std::uint64_t n = 0;
    while (::read(wake_, &n, sizeof n) == sizeof n) continue;
    std::unique_lock lock(guard_);
    if (stage_ == stage::committed) return let_go_;
    if (!thread_ended_ || stage_ != stage::idle) return false;
    if (thread_.joinable()) {  // its last act was to say so
        lock.unlock();
        thread_.join();
        lock.lock();
    }
    if (predecessor_drains_ || !forbidden_.empty() || (!wished_ && !caller_)) return false;
    wished_ = false;
    stage_ = stage::running;
    thread_ended_ = false;
    try {
        thread_ = std::thread([this] { run(); });
    } catch (std::system_error const& e) {
        thread_ended_ = true;
        stage_ = stage::idle;
        error const why{errc::io, fmt::format("the system gives no thread: {}", e.what())};
        log::error("reload", "failed, and all goes on as before: {}", why.message);
        settle(why);
    }
    return false;
}

void handover::cancel() {
    {
        std::unique_lock lock(guard_);
        if (let_go_) return;
        if (stage_ == stage::committed || (stage_ == stage::running && may_serve_)) {
            // It may have let clients in: they are served to their end. What it does is known soon, for it was told.
            if (!std::exchange(stops_, true) && child_ > 0) ::kill(child_, SIGTERM);
            gone_on_.wait(lock, [this] { return let_go_ || thread_ended_; });
            if (let_go_) return;
        } else if (std::exchange(stage_, stage::cancelled) == stage::running) {
            if (successor_) successor_->shut();
            if (child_ > 0) ::kill(child_, SIGKILL);
        } else {
            settle(error{errc::unavailable, "the gateway is stopping"});
        }
    }
    if (thread_.joinable()) thread_.join();
}

void handover::see_off(std::chrono::milliseconds patience) {
    std::unique_lock lock(guard_);
    if (!stops_ || !let_go_) return;
    if (!gone_on_.wait_for(lock, patience, [this] { return thread_ended_; }))
        log::warn("stop", "process {}, which was told to stop too, has not ended yet", child_);
}

void handover::press() noexcept {
    std::lock_guard const lock(guard_);
    if (stops_ && !thread_ended_) ::kill(child_, SIGTERM);
}

void handover::settle(result<std::int64_t> const& how) {
    if (!caller_) return;
    caller_->set_value(how);
    caller_.reset();
}

namespace {

// Its end of the pair becomes descriptor 3, and beside the three standard ones there is none else. The signals that are blocked
// here stay blocked there until it waits for them, so that none is lost and none ends it.
result<pid_t> spawn(invocation_of_serve const& how, int its_end) {
    posix_spawn_file_actions_t actions{};
    ::posix_spawn_file_actions_init(&actions);
    ::posix_spawn_file_actions_adddup2(&actions, its_end, descriptor_there);
    ::posix_spawn_file_actions_addclosefrom_np(&actions, descriptor_there + 1);
    auto arguments = how.arguments;
    std::vector<char*> argv;
    argv.reserve(arguments.size() + 1);
    for (auto& a : arguments) argv.push_back(a.data());
    argv.push_back(nullptr);
    auto heir = fmt::format("{}={}", variable, descriptor_there);
    std::vector<char*> environment;
    for (char** e = environ; *e != nullptr; ++e) environment.push_back(*e);
    environment.push_back(heir.data());
    environment.push_back(nullptr);
    pid_t child = -1;
    int const failed = ::posix_spawn(&child, how.program.c_str(), &actions, nullptr, argv.data(), environment.data());
    ::posix_spawn_file_actions_destroy(&actions);
    if (failed != 0) return error{errc::io, fmt::format("cannot start {}: {}", how.program, reason(failed))};
    return child;
}

// Waits for its end until `until`, then kills it. What there was to see.
std::string end(pid_t child, steady::time_point until) {
    int status = 0;
    pid_t ended = 0;
    while ((ended = ::waitpid(child, &status, WNOHANG)) == 0 && steady::now() < until) std::this_thread::sleep_for(5ms);
    if (ended == 0) {
        ::kill(child, SIGKILL);
        ::waitpid(child, &status, 0);
        return "was ended";
    }
    if (WIFSIGNALED(status)) return fmt::format("was killed by signal {}", WTERMSIG(status));
    return fmt::format("ended with exit code {}", WEXITSTATUS(status));
}

}  // namespace

namespace {
error stranger() { return {errc::unavailable, "the new process speaks another protocol, and was ended"}; }
}  // namespace

// What a successor asks for. False: it is something else.
bool handover::answer(channel& to, channel::message const& m) {
    if (m.word != "refresh" && m.word != "flush") return false;
    auto const done = m.word == "refresh" ? hooks_.refresh() : hooks_.flush();
    to.send(fmt::format("done {}{}", m.rest, done ? "" : " " + done.error().message.substr(0, text_bytes_max)));
    return true;
}

// The message with that word. Error: why it will not come; `unavailable` where the process will not end by itself.
result<channel::message> handover::next(channel& from, std::string_view word, steady::time_point until) {
    for (;;) {
        auto m = from.receive(until);
        if (!m && !from.ended())
            return error{errc::unavailable,
                         fmt::format("the new process did not serve within {} ms (takeover), or not within {} ms of the time "
                                     "when commands began to wait (takeover_pause), and was ended",
                                     bounds_.takeover.count(), bounds_.pause.count())};
        if (!m) return error{errc::io, {}};  // it ended; run() says how
        for (int const fd : m->descriptors) ::close(fd);
        if (m->word == word) return std::move(*m);
        if (m->word == "failed") return error{errc::io, m->rest};
        if (!answer(from, *m)) return stranger();
    }
}

// Looks now and then whether this process is to stop. If not, the successor may serve from here on.
result<void> handover::quiet(steady::time_point until) {
    for (;;) {
        auto const left = std::chrono::ceil<std::chrono::milliseconds>(until - steady::now());
        auto done = hooks_.quiet(std::clamp<std::chrono::milliseconds>(left, 0ms, stop_look));
        std::lock_guard const lock(guard_);
        if (stage_ == stage::cancelled) return error{errc::unavailable, "the gateway is stopping"};
        may_serve_ = done.has_value();
        if (may_serve_ || steady::now() >= until) return done;
    }
}

result<void> handover::attempt(successor& s) {
    std::array<int, 2> ends{};
    if (::socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends.data()) != 0)
        return error{errc::io, "no pair of sockets: " + reason(errno)};
    s.line = std::make_shared<channel>(ends[0]);
    {
        std::lock_guard const lock(guard_);
        successor_ = s.line;
        if (stage_ == stage::cancelled) s.line->shut();
    }
    auto const child = spawn(how_, ends[1]);
    ::close(ends[1]);
    if (!child) return child.error();
    s.pid = *child;
    {
        std::lock_guard const lock(guard_);
        child_ = s.pid;
        if (stage_ == stage::cancelled) ::kill(child_, SIGKILL);
    }
    auto const until = steady::now() + bounds_.takeover;
    log::info("reload", "process {} starts as the successor", s.pid);
    give(*s.line, hooks_.give());  // where that fails, the successor has ended, and its words are read below
    if (auto const m = next(*s.line, "prepared", until); !m) return m.error();
    auto const commands_until = std::min(until, steady::now() + bounds_.pause);
    if (auto done = quiet(commands_until); !done) return done;
    s.line->send("quiet");
    auto const serving = next(*s.line, "serving", commands_until);
    if (!serving) return serving.error();
    boost::system::error_code ec;
    auto const places = json::parse(serving->rest, ec);
    if (ec || !places.is_array()) return stranger();
    for (auto const& place : places.get_array()) s.unused.push_back(place.to_number<std::size_t>(ec));
    return {};
}

void handover::run() {
    auto const fields = fmt::format("RELOADING=1\nMONOTONIC_USEC={}", steady_ns() / 1000);
    notify(fields);
    successor s;
    result<void> done;
    try {
        done = attempt(s);
    } catch (std::exception const& e) {
        done = error{errc::io, e.what()};
    }
    if (done) {
        std::lock_guard const lock(guard_);
        // Its service manager learns of the new process from the one that it knows, and before that one speaks itself.
        if (done) notify(fmt::format("MAINPID={}", s.pid));
        if (done && !s.line->send("main")) done = error{errc::io, {}};
        if (done) stage_ = stage::committed;
    }
    if (!done) {
        bool const late = done.error().code == errc::unavailable;
        bool stopping = false;
        bool may_have_served = false;
        {
            std::lock_guard const lock(guard_);
            child_ = -1;
            may_have_served = may_serve_;
            stopping = stops_ || stage_ == stage::cancelled;
        }
        if (s.line) s.line->shut();
        auto const how = s.pid > 0 ? end(s.pid, steady::now() + (late ? 0s : end_patience)) : std::string{};
        auto why = done.error().message;
        if (why.empty()) why = fmt::format("the new process {} before it served; what it said stands where this log does", how);
        hooks_.resume(may_have_served);
        notify("READY=1");
        if (stopping)
            log::info("reload", "given up, for the gateway is stopping");
        else
            log::error("reload", "failed, and all goes on as before: {}", why);
        {
            std::lock_guard const lock(guard_);
            settle(stopping ? error{errc::unavailable, "the gateway is stopping"} : error{errc::io, why});
            successor_.reset();
            may_serve_ = false;
            stage_ = stops_ || stage_ == stage::cancelled ? stage::cancelled : stage::idle;
            thread_ended_ = true;
            poke();
        }
        gone_on_.notify_all();
        return;
    }
    hooks_.let_go(s.unused);
    log::info("reload", "process {} serves; this one drains", s.pid);
    {
        std::lock_guard const lock(guard_);
        let_go_ = true;
        settle(std::int64_t{s.pid});
        if (std::exchange(wished_, false)) s.line->send("again");
    }
    gone_on_.notify_all();
    poke();
    while (auto const m = s.line->receive()) answer(*s.line, *m);
    watch(s);
    {
        std::lock_guard const lock(guard_);
        thread_ended_ = true;
    }
    gone_on_.notify_all();
}

// The pair has ended while this process drains. How the successor ended is looked at and left for the service manager, which gets
// it as its child when this process ends, and learns only then that its main process is dead.
void handover::watch(successor const& s) {
    ended_ = true;
    auto const until = steady::now() + end_patience;
    siginfo_t how{};
    for (;;) {
        if (::waitid(P_PID, static_cast<id_t>(s.pid), &how, WEXITED | WNOHANG | WNOWAIT) != 0) return;
        if (how.si_pid != 0) break;
        std::unique_lock lock(guard_);
        if (gone_on_.wait_for(lock, 5ms, [this] { return closing_; }) || steady::now() >= until) return;
    }
    bool const killed = how.si_code != CLD_EXITED;
    if (!killed && how.si_status == 0) return;  // it was told to stop
    log::error("reload",
               "process {}, which took over, {} {}, and nobody accepts connections: start the gateway again (a service manager "
               "does, when this process has ended, for which it now gives running requests little time)",
               s.pid, killed ? "was killed by signal" : "ended with exit code", how.si_status);
    fallen_ = hooks_.fallen(s.pid);
}

}  // namespace latchkey::cli
