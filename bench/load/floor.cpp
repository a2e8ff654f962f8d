// bench_floor PORT KEYS_CSV UPSTREAM_PORT [CONNECTIONS]: the least that a gateway has to do, and so the yardstick for what one
// adds. Between a client and a pooled upstream connection it moves each message with one read and one write, looks the key up,
// takes it off, adds X-Consumer-Id and keeps a record in memory. It believes whatever it is sent, has no limits and no deadlines:
// no product. With CONNECTIONS it makes so many to the upstream, and each request goes on any of them: what as many servers cost
// the kernel.
#include <fmt/format.h>
#include <sys/epoll.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cstdio>
#include <cstring>
#include <fstream>
#include <functional>
#include <random>
#include <stdexcept>
#include <unordered_map>
#include <utility>

#include "bench/load/reactor.hpp"
#include "bench/load/wire.hpp"

namespace {

using namespace load;

constexpr std::string_view refusal =
    "HTTP/1.1 401 Unauthorized\r\nContent-Type: application/problem+json\r\nContent-Length: 34\r\n\r\n"
    R"({"title":"No valid key","code":1}
)";

// Open addressing over one array of slots; built once.
class key_index {
  public:
    explicit key_index(std::string const& file) {
        std::ifstream in{file};
        std::string line;
        if (!in || !std::getline(in, line)) throw std::runtime_error("cannot read " + file);
        while (std::getline(in, line)) {
            auto const comma = line.find(',');
            if (comma != std::string::npos) add(line.substr(comma + 1), line.substr(0, comma));
        }
    }
    std::string const* name_of(std::string_view key) const noexcept {
        for (std::size_t at = std::hash<std::string_view>{}(key);; ++at) {
            auto const& entry = slots_[at & (slots_.size() - 1)];
            if (entry.key.empty()) return nullptr;
            if (entry.key == key) return &entry.name;
        }
    }

  private:
    struct slot {
        std::string key;
        std::string name;
    };
    void add(std::string key, std::string name) {
        if (++size_ * 4 > slots_.size()) throw std::runtime_error("more keys than the floor has room for");
        auto at = std::hash<std::string_view>{}(key);
        while (!slots_[at & (slots_.size() - 1)].key.empty()) ++at;
        slots_[at & (slots_.size() - 1)] = {std::move(key), std::move(name)};
    }
    std::vector<slot> slots_{1U << 19U};
    std::size_t size_ = 0;
};

struct usage_line {
    std::int64_t begin_ns = 0;
    std::int64_t end_ns = 0;
    std::array<char, 16> name{};
    std::uint64_t bytes = 0;
    int status = 0;
};

class floor_proxy;

// One socket. A client's `peer` is the upstream connection that works for it, and the other way round; both null between
// exchanges.
class side final : public event_target {
  public:
    side(floor_proxy& owner, int descriptor, bool client) : owner_(owner), descriptor_(descriptor), client_(client) {}
    ~side() override { ::close(descriptor_); }
    void on_events(std::uint32_t events) override;

    floor_proxy& owner_;
    int descriptor_;
    bool client_;
    bool gone_ = false;
    bool closes_ = false;   // client: after this response
    bool blocked_ = false;  // the peer has unsent bytes: read on when they are out
    side* peer_ = nullptr;
    std::uint64_t body_left_ = 0;
    std::string unsent_;
    std::string partial_;
    usage_line line_;  // client: of its exchange

  private:
    bool flush();
};

class floor_proxy final : public event_target {
  public:
    floor_proxy(std::uint16_t port, std::string const& keys, std::uint16_t upstream, std::size_t connections)
        : keys_(keys), upstream_port_(upstream), connections_(connections), listener_(listen_on(port)) {
        loop_.watch(listener_, *this);
    }
    ~floor_proxy() override { ::close(listener_); }
    floor_proxy(floor_proxy const&) = delete;
    floor_proxy& operator=(floor_proxy const&) = delete;

    [[noreturn]] void run() {
        for (;;) loop_.turn(-1);
    }

    void on_events(std::uint32_t) override {
        for (int descriptor = accept_from(listener_); descriptor >= 0; descriptor = accept_from(listener_)) add(descriptor, true);
    }

    // Reads what `from` has and passes it on, until nothing is left or the other side is full.
    void pump(side& from) {
        static std::array<char, 256 * 1024> buffer;
        while (!from.gone_ && !from.blocked_ && !(from.client_ && from.peer_ != nullptr && from.body_left_ == 0)) {
            auto const room = from.body_left_ > 0 ? std::min<std::uint64_t>(from.body_left_, buffer.size()) : buffer.size();
            auto const got = receive_some(from.descriptor_, buffer.data(), static_cast<std::size_t>(room));
            if (got.what == io_result::would_block) return;
            if (got.what == io_result::closed) return drop(from);
            std::string_view const text{buffer.data(), got.bytes};
            if (from.body_left_ > 0) {
                from.body_left_ -= got.bytes;
                pass(from, text);
            } else {
                on_text(from, text);
            }
            if (got.bytes < room) return;
        }
    }

    void drop(side& gone) {
        if (gone.gone_) return;
        gone.gone_ = true;
        std::erase(pool_, &gone);
        if (!gone.client_) --upstream_sides_;
        if (auto* const other = std::exchange(gone.peer_, nullptr)) {
            other->peer_ = nullptr;
            drop(*other);
        }
        auto const at = sides_.find(&gone);
        loop_.retire(std::move(at->second));
        sides_.erase(at);
    }

  private:
    side& add(int descriptor, bool client) {
        auto made = std::make_unique<side>(*this, descriptor, client);
        auto& added = *made;
        sides_.emplace(&added, std::move(made));
        loop_.watch(descriptor, added);
        return added;
    }

    side* lease() {
        if (!pool_.empty() && upstream_sides_ >= connections_) {
            if (connections_ > 1) std::swap(pool_.back(), pool_[any_() % pool_.size()]);
            auto* const pooled = pool_.back();
            pool_.pop_back();
            return pooled;
        }
        int const descriptor = connect_to(upstream_port_);
        if (descriptor < 0) return nullptr;
        ++upstream_sides_;
        return &add(descriptor, false);
    }

    // Sends, or keeps what does not fit (a connection that is still being made takes nothing yet).
    void write(side& to, std::string_view text) {
        std::size_t sent = 0;
        if (to.unsent_.empty()) {
            auto const done = send_some(to.descriptor_, text.data(), text.size());
            if (done.what == io_result::closed) return drop(to);
            sent = done.bytes;
        }
        if (sent == text.size()) return;
        to.unsent_.append(text.substr(sent));
        if (to.peer_ != nullptr) to.peer_->blocked_ = true;
    }

    void pass(side& from, std::string_view text) {
        if (from.peer_ == nullptr) return drop(from);
        auto& to = *from.peer_;
        (from.client_ ? from : to).line_.bytes += text.size();
        bool const ends = from.body_left_ == 0;
        write(to, text);
        if (!from.client_ && ends && from.peer_ != nullptr) finish(*from.peer_, from);
    }

    void on_text(side& from, std::string_view text) {
        if (!from.partial_.empty()) {
            from.partial_.append(text);
            text = from.partial_;
        }
        head_view head;
        auto const found = scan_head(text, head);
        if (found == scan::bad) return drop(from);
        if (found == scan::more) {
            if (from.partial_.empty()) from.partial_.assign(text);
            return;
        }
        auto const body = std::min<std::uint64_t>(text.size() - head.bytes, head.content_length);
        from.body_left_ = head.content_length - body;
        auto const message = text.substr(0, head.bytes + static_cast<std::size_t>(body));
        auto kept = std::move(from.partial_);  // `text` may lie in it
        from.partial_.clear();
        if (from.client_) {
            on_request(from, head, message);
        } else if (from.peer_ != nullptr) {
            from.peer_->line_.status = status_of(head.start_line);
            pass(from, message);
        } else {
            drop(from);
        }
    }

    void on_request(side& client, head_view const& head, std::string_view message) {
        auto const* const name = head.api_key.empty() ? nullptr : keys_.name_of(head.api_key);
        client.closes_ = head.close;
        if (name == nullptr) {
            client.body_left_ = 0;
            write(client, refusal);
            if (client.closes_) drop(client);
            return;
        }
        auto* const upstream = lease();
        if (upstream == nullptr) return drop(client);
        client.peer_ = upstream;
        upstream->peer_ = &client;
        client.line_ = {};
        client.line_.begin_ns = now_ns();
        std::memcpy(client.line_.name.data(), name->data(), std::min(name->size(), client.line_.name.size()));
        out_.assign(message.data(), static_cast<std::size_t>(head.api_key_line.data() - message.data()));
        out_.append(head.api_key_line.data() + head.api_key_line.size(), message.data() + head.bytes - 2);
        out_.append("X-Consumer-Id: ").append(*name).append("\r\n\r\n").append(message.substr(head.bytes));
        if (client.closes_) take_out_close();
        pass(client, out_);
    }

    // The client's wish to close is not the upstream's business.
    void take_out_close() {
        static constexpr std::string_view line = "Connection: close\r\n";
        if (auto const at = out_.find(line); at != std::string::npos) out_.erase(at, line.size());
    }

    void finish(side& client, side& upstream) {
        client.line_.end_ns = now_ns();
        usage_[usage_at_++ % usage_.size()] = client.line_;
        client.peer_ = upstream.peer_ = nullptr;
        client.blocked_ = upstream.blocked_ = false;
        pool_.push_back(&upstream);
        if (client.closes_ && client.unsent_.empty()) return drop(client);
        if (!client.closes_) pump(client);
    }

    reactor loop_;
    key_index keys_;
    std::uint16_t upstream_port_;
    std::size_t connections_;
    std::size_t upstream_sides_ = 0;
    std::minstd_rand any_;
    int listener_;
    std::unordered_map<side*, std::unique_ptr<side>> sides_;
    std::vector<side*> pool_;
    std::vector<usage_line> usage_{1U << 16U};
    std::size_t usage_at_ = 0;
    std::string out_;
};

bool side::flush() {
    while (!unsent_.empty()) {
        auto const sent = send_some(descriptor_, unsent_.data(), unsent_.size());
        if (sent.what != io_result::moved) return sent.what == io_result::would_block;
        unsent_.erase(0, sent.bytes);
    }
    return true;
}

void side::on_events(std::uint32_t events) {
    if (gone_) return;
    if ((events & (EPOLLERR | EPOLLHUP)) != 0) return owner_.drop(*this);
    if ((events & EPOLLOUT) != 0 && !unsent_.empty()) {
        if (!flush()) return owner_.drop(*this);
        if (unsent_.empty()) {
            if (client_ && closes_ && peer_ == nullptr) return owner_.drop(*this);
            if (peer_ != nullptr && std::exchange(peer_->blocked_, false)) owner_.pump(*peer_);
        }
    }
    if (!gone_ && (events & (EPOLLIN | EPOLLRDHUP)) != 0) owner_.pump(*this);
}

}  // namespace

int main(int argc, char** argv) try {
    if (argc != 4 && argc != 5) throw std::runtime_error("usage: bench_floor PORT KEYS_CSV UPSTREAM_PORT [CONNECTIONS]");
    auto const port_of = [](char const* text) { return static_cast<std::uint16_t>(std::stoul(text)); };
    floor_proxy proxy{port_of(argv[1]), argv[2], port_of(argv[3]), argc == 5 ? std::stoul(argv[4]) : 0};
    proxy.run();
} catch (std::exception const& e) {
    std::fprintf(stderr, "bench_floor: %s\n", e.what());
    return 1;
}
