// bench_load: drives a proxy and is its upstream. One run a line of `name=value` words on standard input, one JSON line a run on
// standard output; or one run from the command line.
//
//   bench_load upstream=9000                                     runs from standard input, until its end
//   bench_load upstream=9000 mode=closed port=8080 keys=keys.csv one run
//
// Words: mode=closed|open|fresh|idle port=N connections=N warm=S seconds=S rate=N path=/bytes/1024 upload=BYTES status=N
// body=BYTES keys=FILE key=TEXT tls=0|1 spin=0|1 pids=1,2,3 requests=N host=NAME spread=N (plan says what they mean). The word
// `release` alone closes what an idle run left open.
#include <fmt/format.h>
#include <sys/epoll.h>
#include <sys/prctl.h>
#include <unistd.h>

#include <csignal>
#include <cstdio>
#include <iostream>
#include <optional>
#include <sstream>
#include <stdexcept>

#include "bench/load/generator.hpp"
#include "bench/load/upstream.hpp"

namespace {

using namespace load;

mode mode_of(std::string const& text) {
    if (text == "closed") return mode::closed;
    if (text == "open") return mode::open;
    if (text == "fresh") return mode::fresh;
    if (text == "idle") return mode::idle;
    throw std::runtime_error("no mode '" + text + "': closed, open, fresh or idle");
}

std::vector<int> pids_of(std::string const& text) {
    std::vector<int> pids;
    std::istringstream in{text};
    for (std::string pid; std::getline(in, pid, ',');) pids.push_back(std::stoi(pid));
    return pids;
}

std::uint16_t port_of(std::string const& text) {
    auto const port = std::stoul(text);
    if (port == 0 || port > 65535) throw std::runtime_error("no port: " + text);
    return static_cast<std::uint16_t>(port);
}

void set(plan& into, std::string const& name, std::string const& value) {
    if (name == "mode")
        into.mode = mode_of(value);
    else if (name == "port")
        into.port = port_of(value);
    else if (name == "connections")
        into.connections = static_cast<unsigned>(std::stoul(value));
    else if (name == "warm")
        into.warm_s = std::stod(value);
    else if (name == "seconds")
        into.seconds = std::stod(value);
    else if (name == "rate")
        into.rate = std::stod(value);
    else if (name == "requests")
        into.requests = std::stoull(value);
    else if (name == "path")
        into.path = value;
    else if (name == "host")
        into.host = value;
    else if (name == "spread")
        into.spread = static_cast<unsigned>(std::stoul(value));
    else if (name == "upload")
        into.upload_bytes = std::stoll(value);
    else if (name == "status")
        into.status = std::stoi(value);
    else if (name == "body")
        into.body_bytes = std::stoll(value);
    else if (name == "keys")
        into.keys_file = value;
    else if (name == "key")
        into.key = value;
    else if (name == "tls")
        into.tls = value != "0";
    else if (name == "spin")
        into.spin = value != "0";
    else if (name == "pids")
        into.pids = pids_of(value);
    else
        throw std::runtime_error("no word '" + name + "'");
}

plan plan_of(std::vector<std::string> const& words) {
    plan made;
    for (auto const& word : words) {
        auto const equals = word.find('=');
        if (equals == std::string::npos) throw std::runtime_error("not name=value: " + word);
        set(made, word.substr(0, equals), word.substr(equals + 1));
    }
    if (made.port == 0) throw std::runtime_error("port= is missing");
    if (made.mode == mode::open && made.rate <= 0) throw std::runtime_error("mode=open needs rate=");
    if (made.requests > 0 && (made.mode != mode::closed || made.warm_s > 0))
        throw std::runtime_error("requests= goes with mode=closed and warm=0");
    if (made.spread > 10'000) throw std::runtime_error("spread= is at most 10000: {n} is four digits");
    return made;
}

std::string to_json(figures const& f, upstream_counts const& before, upstream_counts const& after) {
    std::string statuses;
    for (auto const& [status, n] : f.statuses) statuses += fmt::format("{}\"{}\":{}", statuses.empty() ? "" : ",", status, n);
    auto const per_request = f.completed == 0 ? 0.0 : static_cast<double>(f.cpu_ns) / static_cast<double>(f.completed) / 1e3;
    auto const us = [&](double share) { return static_cast<double>(f.latency.at(share)) / 1e3; };
    return fmt::format(
        "{{\"seconds\":{:.4f},\"completed\":{},\"per_second\":{:.1f},\"unfinished\":{},\"broken\":{},\"reconnected\":{},"
        "\"wrong_status\":{},\"wrong_length\":{},\"bytes_in\":{},\"bytes_out\":{},\"silences\":{},\"queue_max\":{},\"ready\":{},"
        "\"cpu_ns\":{},"
        "\"cpu_us_per_request\":{:.3f},\"statuses\":{{{}}},\"p50_us\":{:.1f},\"p90_us\":{:.1f},\"p99_us\":{:.1f},\"p999_us\":{:."
        "1f},"
        "\"max_us\":{:.1f},\"upstream\":{{\"connections\":{},\"requests\":{},\"leaked_keys\":{},\"anonymous\":{},\"malformed\":{}"
        "}}}}",
        f.seconds, f.completed, f.seconds > 0 ? static_cast<double>(f.completed) / f.seconds : 0.0, f.unfinished, f.broken,
        f.reconnected, f.wrong_status, f.wrong_length, f.bytes_in, f.bytes_out, f.silences, f.queue_max, f.ready, f.cpu_ns,
        per_request, statuses, us(0.5), us(0.9), us(0.99), us(0.999), us(1.0), after.connections - before.connections,
        after.requests - before.requests, after.leaked_keys - before.leaked_keys, after.anonymous - before.anonymous,
        after.malformed - before.malformed);
}

// Standard input as an event source: lines, without blocking the loop that the upstream lives in.
class commands final : public event_target {
  public:
    explicit commands(reactor& loop) { loop.watch(STDIN_FILENO, *this); }
    void on_events(std::uint32_t events) override {
        if ((events & (EPOLLIN | EPOLLHUP)) == 0) return;
        // The end comes with the last line in one event: read on to it then, there is no second one.
        char buffer[65536];
        ssize_t n = 0;
        do {
            n = ::read(STDIN_FILENO, buffer, sizeof buffer);
            if (n > 0) text_.append(buffer, static_cast<std::size_t>(n));
        } while (n > 0 && (events & EPOLLHUP) != 0);
        ended_ = n <= 0;
    }
    bool ended() const noexcept { return ended_; }
    std::optional<std::string> next() {
        auto const end = text_.find('\n');
        if (end == std::string::npos) return std::nullopt;
        auto line = text_.substr(0, end);
        text_.erase(0, end + 1);
        return line;
    }

  private:
    std::string text_;
    bool ended_ = false;
};

std::string answer_to(std::vector<std::string> const& words, generator& clients, upstream const* server) {
    if (words.size() == 1 && words[0] == "release") {
        clients.release();
        return "{}";
    }
    upstream_counts const none;
    auto const before = server != nullptr ? server->counts() : none;
    auto const done = clients.run(plan_of(words));
    return to_json(done, before, server != nullptr ? server->counts() : none);
}

std::vector<std::string> words_of(std::string const& line) {
    std::istringstream in{line};
    std::vector<std::string> words;
    for (std::string word; in >> word;) words.push_back(word);
    return words;
}

void serve_commands(reactor& loop, generator& clients, upstream const& server) {
    commands input{loop};
    for (bool ended = false; !ended;) {
        loop.turn(-1);
        ended = input.ended();
        while (auto const line = input.next()) {
            std::string answer;
            try {
                answer = answer_to(words_of(*line), clients, &server);
            } catch (std::exception const& e) {
                clients.release();
                answer = fmt::format("{{\"error\":\"{}\"}}", e.what());
            }
            std::cout << answer << std::endl;
        }
    }
}

}  // namespace

int main(int argc, char** argv) try {
    std::signal(SIGPIPE, SIG_IGN);
    ::prctl(PR_SET_TIMERSLACK, 1000UL);
    std::vector<std::string> words(argv + 1, argv + argc);
    reactor loop;
    std::optional<upstream> server;
    if (!words.empty() && words[0].starts_with("upstream=")) {
        server.emplace(loop, port_of(words[0].substr(9)));
        words.erase(words.begin());
    }
    generator clients{loop};
    if (words.empty() && server) {
        serve_commands(loop, clients, *server);
    } else {
        std::cout << answer_to(words, clients, server ? &*server : nullptr) << std::endl;
    }
    return 0;
} catch (std::exception const& e) {
    std::fprintf(stderr, "bench_load: %s\n", e.what());
    return 1;
}
