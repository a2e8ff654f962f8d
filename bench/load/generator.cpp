#include "bench/load/generator.hpp"

#include <fmt/format.h>
#include <openssl/ssl.h>
#include <sys/epoll.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <deque>
#include <fstream>
#include <limits>
#include <random>
#include <stdexcept>

#include "bench/load/cpu_time.hpp"
#include "bench/load/wire.hpp"

namespace load {

namespace {

constexpr std::int64_t second_ns = 1'000'000'000;
constexpr std::uint64_t broken_max = 2000;  // then the run ends: it would only measure the noise of failure

std::vector<std::string> read_keys(std::string const& file) {
    std::ifstream in{file};
    std::string line;
    std::vector<std::string> keys;
    if (!in || !std::getline(in, line)) throw std::runtime_error("cannot read keys from " + file);
    while (std::getline(in, line)) {
        if (auto const comma = line.find(','); comma != std::string::npos) keys.push_back(line.substr(comma + 1));
    }
    if (keys.empty()) throw std::runtime_error("no keys in " + file);
    return keys;
}

// One for the whole process; it goes with it.
SSL_CTX* client_rules() {
    static SSL_CTX* const rules = [] {
        SSL_CTX* const made = SSL_CTX_new(TLS_client_method());
        if (made == nullptr) throw std::runtime_error("OpenSSL cannot be used");
        SSL_CTX_set_mode(made, SSL_MODE_ENABLE_PARTIAL_WRITE | SSL_MODE_ACCEPT_MOVING_WRITE_BUFFER);
        SSL_CTX_set_session_cache_mode(made, SSL_SESS_CACHE_OFF);
        SSL_CTX_set_read_ahead(made, 1);
        return made;
    }();
    return rules;
}

std::int64_t to_ns(double seconds) { return static_cast<std::int64_t>(seconds * 1e9); }

}  // namespace

// A run in progress: its connections, what is due, and what is counted.
class generator::session {
  public:
    session(reactor& loop, plan const& what, std::vector<std::string> const& keys);
    ~session();

    void connect_all();
    void measure();
    void hold();  // idle: until every connection had its response
    figures result() const { return figures_; }

    // --- what connections report
    plan const& what() const noexcept { return plan_; }
    reactor& loop() noexcept { return loop_; }
    std::string_view next_key();
    std::string filled(std::string const& text);  // with a number of its own for every "{n}"
    void connected(connection& who);
    void answered(connection& who, std::int64_t due_ns, int status, bool right_length);
    void ended(connection& who, bool within_exchange);
    void moved(std::uint64_t in, std::uint64_t out) noexcept {
        if (!in_window_) return;
        figures_.bytes_in += in;
        figures_.bytes_out += out;
    }

  private:
    bool may_start() const noexcept { return !stopping_ && plan_.mode != mode::idle && !(bounded() && begun_ >= plan_.requests); }
    bool bounded() const noexcept { return plan_.requests > 0; }
    bool all_done() const noexcept { return bounded() && begun_ >= plan_.requests && in_exchange_ == 0; }
    void count(std::int64_t due_ns, std::int64_t end_ns, int status, bool right_length);
    void next(connection& who);
    void arrivals(std::int64_t now);
    void open_window();
    void close_window();
    void settle();
    void add_connection();
    std::int64_t patience(std::int64_t now) const noexcept;

    reactor& loop_;
    plan const plan_;
    std::vector<std::string> const& keys_;
    std::mt19937_64 random_{20240229};
    std::exponential_distribution<double> gap_;
    std::vector<std::unique_ptr<connection>> connections_;
    std::deque<connection*> free_;
    std::deque<std::int64_t> due_;
    std::int64_t next_arrival_ = 0;
    std::int64_t window_begin_ = std::numeric_limits<std::int64_t>::max();
    std::int64_t window_end_ = std::numeric_limits<std::int64_t>::max();
    std::int64_t last_end_ = 0;  // of a response
    std::uint64_t up_ = 0;       // connections that stand
    std::uint64_t in_exchange_ = 0;
    std::uint64_t begun_ = 0;  // exchanges, ever
    std::uint64_t due_in_window_ = 0;
    bool started_ = false;
    bool in_window_ = false;
    bool stopping_ = false;
    figures figures_;
};

// One client connection: connect, then exchanges one at a time.
class generator::connection final : public event_target {
  public:
    explicit connection(session& owner) : owner_(owner) {}
    ~connection() override { close(); }

    bool open() {
        opened_ns_ = now_ns();
        descriptor_ = connect_to(owner_.what().port);
        if (descriptor_ < 0) return false;
        owner_.loop().watch(descriptor_, *this);
        if (owner_.what().tls) {
            tls_ = SSL_new(client_rules());
            SSL_set_fd(tls_, descriptor_);
            SSL_set_connect_state(tls_);
        }
        return true;
    }

    void close() noexcept {
        SSL_free(tls_);
        tls_ = nullptr;
        if (descriptor_ >= 0) ::close(descriptor_);
        descriptor_ = -1;
    }

    bool busy() const noexcept { return stage_ == stage::head || stage_ == stage::body; }

    // Sends one request; `due_ns` is when it should have started.
    bool start(std::int64_t due_ns) {
        auto const& what = owner_.what();
        due_ns_ = due_ns;
        stage_ = stage::head;
        partial_.clear();
        request_.clear();
        auto const key = owner_.next_key();
        fmt::format_to(std::back_inserter(request_), "{} {} HTTP/1.1\r\nHost: {}\r\nUser-Agent: bench/1\r\nAccept: */*\r\n",
                       what.upload_bytes > 0 ? "POST" : "GET", what.spread > 0 ? owner_.filled(what.path) : what.path,
                       what.spread > 0 ? owner_.filled(what.host) : what.host);
        if (!key.empty()) fmt::format_to(std::back_inserter(request_), "X-API-KEY: {}\r\n", key);
        if (what.upload_bytes > 0) fmt::format_to(std::back_inserter(request_), "Content-Length: {}\r\n", what.upload_bytes);
        if (what.mode == mode::fresh) request_ += "Connection: close\r\n";
        request_ += "\r\n";
        unsent_ = request_;
        upload_left_ = what.upload_bytes;
        return flush();
    }

    void on_events(std::uint32_t events) override {
        if (descriptor_ < 0) return;
        bool alive = (events & (EPOLLERR | EPOLLHUP)) == 0 || stage_ == stage::closing;
        if (alive && stage_ == stage::connecting) {
            if ((events & EPOLLOUT) == 0) return;
            if (int const done = tls_ ? SSL_do_handshake(tls_) : 1; done != 1) {
                if (outcome(done).what == io_result::closed) end();
                return;
            }
            stage_ = stage::ready;
            owner_.connected(*this);
            return;
        }
        if (alive && (events & EPOLLOUT) != 0 && busy()) alive = flush();
        if (alive && (events & (EPOLLIN | EPOLLRDHUP | EPOLLHUP)) != 0) alive = read_all((events & (EPOLLRDHUP | EPOLLHUP)) != 0);
        if (!alive) end();
    }

    void end() {
        bool const within = busy() || stage_ == stage::connecting;
        close();
        owner_.ended(*this, within);
    }

  private:
    enum class stage : std::uint8_t { connecting, ready, head, body, closing };

    bool flush() {
        static std::string const filler(1 << 20, 'u');
        while (!unsent_.empty() || upload_left_ > 0) {
            bool const head = !unsent_.empty();
            auto const size = head ? unsent_.size() : static_cast<std::size_t>(std::min<std::int64_t>(upload_left_, 1 << 20));
            auto const sent = send(head ? unsent_.data() : filler.data(), size);
            if (sent.what != io_result::moved) return sent.what == io_result::would_block;
            owner_.moved(0, sent.bytes);
            if (head) {
                unsent_.remove_prefix(sent.bytes);
            } else {
                upload_left_ -= static_cast<std::int64_t>(sent.bytes);
            }
        }
        return true;
    }

    io_result outcome(int n) const noexcept {
        if (n > 0) return {io_result::moved, static_cast<std::size_t>(n)};
        int const why = SSL_get_error(tls_, n);
        return {why == SSL_ERROR_WANT_READ || why == SSL_ERROR_WANT_WRITE ? io_result::would_block : io_result::closed, 0};
    }
    io_result send(char const* data, std::size_t size) noexcept {
        return tls_ ? outcome(SSL_write(tls_, data, static_cast<int>(size))) : send_some(descriptor_, data, size);
    }
    io_result receive(char* data, std::size_t size) noexcept {
        return tls_ ? outcome(SSL_read(tls_, data, static_cast<int>(size))) : receive_some(descriptor_, data, size);
    }

    // `ends`: the other side has closed, and no event will say so again.
    bool read_all(bool ends) {
        static std::array<char, 256 * 1024> buffer;
        for (;;) {
            bool const skip = stage_ == stage::body;
            auto const most = static_cast<std::size_t>(body_left_);
            auto const got = !skip  ? receive(buffer.data(), buffer.size())
                             : tls_ ? receive(buffer.data(), std::min(buffer.size(), most))
                                    : discard_some(descriptor_, most);
            if (got.what == io_result::would_block) return true;
            if (got.what == io_result::closed) return false;
            owner_.moved(got.bytes, 0);
            if (stage_ != stage::head && stage_ != stage::body) return false;  // bytes that nobody asked for
            if (skip ? !body_arrived(got.bytes) : !text_arrived({buffer.data(), got.bytes})) return false;
            // A short read took all there was; what comes later has an event of its own.
            if (descriptor_ < 0 || (!tls_ && !ends && !skip && got.bytes < buffer.size() && stage_ != stage::body)) return true;
        }
    }

    bool text_arrived(std::string_view text) {
        if (!partial_.empty()) {
            partial_.append(text);
            text = partial_;
        }
        head_view head;
        auto const found = scan_head(text, head);
        if (found == scan::bad) return false;
        if (found == scan::more) {
            if (partial_.empty()) partial_.assign(text);
            return true;
        }
        status_ = status_of(head.start_line);
        auto const body = text.substr(head.bytes);
        auto const wanted = owner_.what().body_bytes;
        right_length_ = head.has_content_length && !head.chunked && body.size() <= head.content_length &&
                        (wanted < 0 || head.content_length == static_cast<std::uint64_t>(wanted));
        if (owner_.what().upload_bytes > 0)
            right_length_ = right_length_ && body == fmt::format("{:020}", owner_.what().upload_bytes);
        closes_ = head.close || owner_.what().mode == mode::fresh;
        if (!head.has_content_length || body.size() > head.content_length) return false;
        body_left_ = head.content_length - body.size();
        stage_ = stage::body;
        return body_left_ > 0 || complete();
    }

    bool body_arrived(std::size_t bytes) {
        body_left_ -= bytes;
        return body_left_ > 0 || complete();
    }

    // True: the connection goes on (perhaps with its next exchange).
    bool complete() {
        stage_ = closes_ ? stage::closing : stage::ready;
        bool const goes_on = !closes_;
        owner_.answered(*this, due_ns_, status_, right_length_);
        return goes_on || descriptor_ >= 0;
    }

    session& owner_;
    int descriptor_ = -1;
    SSL* tls_ = nullptr;
    stage stage_ = stage::connecting;
    std::int64_t opened_ns_ = 0;
    std::int64_t due_ns_ = 0;
    std::string request_;
    std::string_view unsent_;  // of request_
    std::int64_t upload_left_ = 0;
    std::string partial_;  // a response head that came in pieces
    std::uint64_t body_left_ = 0;
    int status_ = 0;
    bool right_length_ = false;
    bool closes_ = false;

    friend class session;
};

generator::session::session(reactor& loop, plan const& what, std::vector<std::string> const& keys)
    : loop_(loop), plan_(what), keys_(keys), gap_(what.rate > 0 ? what.rate / 1e9 : 1.0) {}

generator::session::~session() = default;

std::string_view generator::session::next_key() {
    if (!plan_.key.empty() || keys_.empty()) return plan_.key;
    return keys_[random_() % keys_.size()];
}

std::string generator::session::filled(std::string const& text) {
    static constexpr std::string_view mark = "{n}";
    auto const at = text.find(mark);
    if (at == std::string::npos) return text;
    return fmt::format("{}{:04}{}", text.substr(0, at), random_() % plan_.spread, text.substr(at + mark.size()));
}

void generator::session::add_connection() {
    auto made = std::make_unique<connection>(*this);
    if (!made->open()) {
        ++figures_.broken;
        return;
    }
    connections_.push_back(std::move(made));
}

void generator::session::connect_all() {
    auto const give_up = now_ns() + (plan_.tls ? 30 : 5) * second_ns;
    while (up_ < plan_.connections) {
        // A batch at a time: a listen queue is not endless.
        while (connections_.size() < plan_.connections && connections_.size() < up_ + 256) {
            auto const before = figures_.broken;
            add_connection();
            if (figures_.broken > before) break;
        }
        loop_.turn(second_ns / 1000);
        if (now_ns() > give_up || figures_.broken > broken_max) {
            throw std::runtime_error(fmt::format("only {} of {} connections to port {}", up_, plan_.connections, plan_.port));
        }
    }
}

void generator::session::connected(connection& who) {
    ++up_;
    if (started_) next(who);
    if (plan_.mode == mode::idle) {
        ++in_exchange_;
        if (!who.start(now_ns())) who.end();
    }
}

void generator::session::next(connection& who) {
    if (!may_start()) return;
    auto due = plan_.mode == mode::fresh ? who.opened_ns_ : now_ns();
    if (plan_.mode == mode::open) {
        if (due_.empty()) {
            free_.push_back(&who);
            return;
        }
        due = due_.front();
        due_.pop_front();
    }
    ++in_exchange_;
    ++begun_;
    if (!who.start(due)) who.end();
}

void generator::session::count(std::int64_t due_ns, std::int64_t end_ns, int status, bool right_length) {
    bool const ended_within = end_ns >= window_begin_ && end_ns < window_end_;
    bool const due_within = due_ns >= window_begin_ && due_ns < window_end_;
    figures_.completed += ended_within ? 1 : 0;
    figures_.silences += ended_within && last_end_ > 0 && end_ns - last_end_ >= silence_ns ? 1 : 0;
    last_end_ = end_ns;
    if (plan_.mode == mode::open ? due_within : ended_within) {
        figures_.latency.add(end_ns - due_ns);
        ++figures_.statuses[status];
    }
    // Wrong answers count at any time: a warm-up that fails is no warm-up.
    figures_.wrong_status += status == plan_.status ? 0 : 1;
    figures_.wrong_length += right_length ? 0 : 1;
}

void generator::session::answered(connection& who, std::int64_t due_ns, int status, bool right_length) {
    --in_exchange_;
    count(due_ns, now_ns(), status, right_length);
    if (plan_.mode == mode::idle) {
        ++figures_.ready;
        return;
    }
    if (who.stage_ != connection::stage::closing) next(who);
}

void generator::session::ended(connection& who, bool within_exchange) {
    if (within_exchange) {
        ++figures_.broken;
        if (who.stage_ != connection::stage::connecting) --in_exchange_;
    } else if (plan_.mode != mode::fresh) {
        ++figures_.reconnected;
    }
    if (who.stage_ != connection::stage::connecting) --up_;
    if (plan_.mode == mode::idle && !within_exchange) --figures_.ready;
    std::erase(free_, &who);
    auto const at = std::find_if(connections_.begin(), connections_.end(), [&](auto const& c) { return c.get() == &who; });
    if (at == connections_.end()) return;
    loop_.retire(std::move(*at));
    connections_.erase(at);
    if (!stopping_ && plan_.mode != mode::idle && figures_.broken <= broken_max) add_connection();
}

void generator::session::arrivals(std::int64_t now) {
    for (; next_arrival_ <= now; next_arrival_ += std::max<std::int64_t>(1, static_cast<std::int64_t>(gap_(random_)))) {
        due_.push_back(next_arrival_);
        if (next_arrival_ >= window_begin_ && next_arrival_ < window_end_) ++due_in_window_;
    }
    while (!due_.empty() && !free_.empty()) {
        auto& who = *free_.front();
        free_.pop_front();
        next(who);
    }
    figures_.queue_max = std::max<std::uint64_t>(figures_.queue_max, due_.size());
}

void generator::session::open_window() {
    in_window_ = true;
    figures_.cpu_ns = -cpu_ns_of(plan_.pids);
    window_begin_ = now_ns();
    window_end_ = window_begin_ + to_ns(plan_.seconds);
    figures_.queue_max = 0;
}

void generator::session::close_window() {
    if (!in_window_) throw std::runtime_error(fmt::format("{} exchanges broke off before the window opened", figures_.broken));
    auto const end = now_ns();
    figures_.cpu_ns += cpu_ns_of(plan_.pids);
    figures_.seconds = static_cast<double>(end - window_begin_) / 1e9;
    in_window_ = false;
}

// How long a turn may wait without missing an arrival or the window's edge.
std::int64_t generator::session::patience(std::int64_t now) const noexcept {
    if (plan_.spin) return 0;
    auto const until = plan_.mode == mode::open && !stopping_ ? next_arrival_ : now + second_ns / 1000;
    return std::clamp<std::int64_t>(until - now, 0, second_ns / 1000);
}

void generator::session::measure() {
    started_ = true;
    auto now = now_ns();
    auto const warm_end = now + to_ns(plan_.warm_s);
    next_arrival_ = now;
    for (std::size_t i = connections_.size(); i-- > 0;) next(*connections_[i]);
    while (now < window_end_ && figures_.broken <= broken_max && !all_done()) {
        if (!in_window_ && now >= warm_end) open_window();
        if (plan_.mode == mode::open) arrivals(now);
        loop_.turn(patience(now));
        now = now_ns();
    }
    if (plan_.mode == mode::open && in_window_) arrivals(window_end_ - 1);
    close_window();
    settle();
}

// What is under way may end, so that no run leaves the proxy with broken exchanges that the next one would pay for; and of the
// open mode's requests none is left out because it was slow.
void generator::session::settle() {
    auto const give_up = now_ns() + 2 * second_ns;
    if (plan_.mode == mode::open) {
        while ((!due_.empty() || in_exchange_ > 0) && now_ns() < give_up && figures_.broken <= broken_max)
            loop_.turn(patience(now_ns()));
        figures_.unfinished = due_in_window_ - std::min(due_in_window_, figures_.latency.count());
    }
    stopping_ = true;
    while (in_exchange_ > 0 && now_ns() < give_up + 3 * second_ns) loop_.turn(patience(now_ns()));
}

void generator::session::hold() {
    auto const give_up = now_ns() + 5 * second_ns;
    while (figures_.ready < plan_.connections && now_ns() < give_up) loop_.turn(second_ns / 1000);
}

generator::generator(reactor& loop) : loop_(loop) {}
generator::~generator() = default;

void generator::release() {
    session_.reset();
    loop_.turn(0);
}

figures generator::run(plan const& what) {
    release();
    if (!what.keys_file.empty() && what.keys_file != keys_file_) {
        keys_ = read_keys(what.keys_file);
        keys_file_ = what.keys_file;
    }
    static std::vector<std::string> const none;
    session_ = std::make_unique<session>(loop_, what, what.keys_file.empty() ? none : keys_);
    session_->connect_all();
    if (what.mode == mode::idle) {
        session_->hold();
        return session_->result();
    }
    session_->measure();
    auto done = session_->result();
    release();
    return done;
}

}  // namespace load
