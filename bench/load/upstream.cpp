#include "bench/load/upstream.hpp"

#include <fmt/format.h>
#include <sys/epoll.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <charconv>

#include "bench/load/wire.hpp"

namespace load {

namespace {

constexpr std::uint64_t body_bytes_max = 64U << 20U;

std::string whole_response(std::string_view type, std::string_view body) {
    return fmt::format(
        "HTTP/1.1 200 OK\r\nServer: bench\r\nContent-Type: {}\r\nCache-Control: no-cache\r\nContent-Length: {}\r\n\r\n{}", type,
        body.size(), body);
}

}  // namespace

// One kept-alive connection of a proxy: reads a head, then a body (counted, not kept), then answers.
class upstream::connection final : public event_target {
  public:
    connection(upstream& owner, int descriptor) : owner_(owner), descriptor_(descriptor) {}
    ~connection() override { ::close(descriptor_); }

    void on_events(std::uint32_t events) override {
        if (gone_) return;
        bool alive = (events & (EPOLLERR | EPOLLHUP)) == 0;
        if (alive && (events & EPOLLOUT) != 0) alive = flush();
        if (alive && (events & (EPOLLIN | EPOLLRDHUP)) != 0) alive = read_all();
        if (alive) return;
        gone_ = true;
        owner_.remove(*this);
    }

  private:
    bool read_all() {
        static std::array<char, 256 * 1024> buffer;
        for (;;) {
            auto const got = body_left_ > 0 ? discard_some(descriptor_, static_cast<std::size_t>(body_left_))
                                            : receive_some(descriptor_, buffer.data(), buffer.size());
            if (got.what == io_result::would_block) return true;
            if (got.what == io_result::closed) return false;
            if (body_left_ > 0 ? !body_arrived(got.bytes) : !text_arrived({buffer.data(), got.bytes})) return false;
        }
    }

    bool body_arrived(std::uint64_t bytes) {
        body_left_ -= bytes;
        body_seen_ += bytes;
        if (body_left_ > 0) return true;
        own_ = whole_response("text/plain", fmt::format("{:020}", body_seen_));
        return answer(own_);
    }

    bool text_arrived(std::string_view text) {
        if (!partial_.empty()) {
            partial_.append(text);
            text = partial_;
        }
        head_view head;
        auto const found = scan_head(text, head);
        if (found == scan::bad) return malformed();
        if (found == scan::more) {
            if (partial_.empty()) partial_.assign(text);
            return true;
        }
        bool const kept = on_request(text.substr(0, head.bytes), head) && rest_arrived(text.substr(head.bytes));
        partial_.clear();
        return kept;
    }

    bool rest_arrived(std::string_view rest) {
        if (rest.empty()) return true;
        if (rest.size() > body_left_) return malformed();  // no proxy of ours pipelines
        return body_arrived(rest.size());
    }

    bool on_request(std::string_view text, head_view const& head) {
        ++owner_.counts_.requests;
        owner_.counts_.leaked_keys += head.api_key_line.empty() ? 0 : 1;
        owner_.counts_.anonymous += head.consumer_id.empty() ? 1 : 0;
        auto const& line = head.start_line;
        if (line.starts_with("GET /bytes/")) {
            std::uint64_t bytes = 0;
            auto const [end, error] = std::from_chars(line.data() + 11, line.data() + line.size(), bytes);
            if (error != std::errc{} || *end != ' ' || bytes > body_bytes_max) return malformed();
            return answer(owner_.response_of(bytes));
        }
        if (line.starts_with("GET /echo")) {
            own_ = whole_response("text/plain", text);
            return answer(own_);
        }
        if (!line.starts_with("POST ") || !head.has_content_length || head.chunked || head.content_length == 0)
            return malformed();
        body_left_ = head.content_length;
        body_seen_ = 0;
        return true;
    }

    bool malformed() {
        ++owner_.counts_.malformed;
        return false;
    }

    bool answer(std::string const& response) {
        out_ = response;
        return flush();
    }

    bool flush() {
        while (!out_.empty()) {
            auto const sent = send_some(descriptor_, out_.data(), out_.size());
            if (sent.what != io_result::moved) return sent.what == io_result::would_block;
            out_.remove_prefix(sent.bytes);
        }
        return true;
    }

    upstream& owner_;
    int descriptor_;
    bool gone_ = false;
    std::string partial_;   // a head that came in pieces
    std::string own_;       // a response made for one request
    std::string_view out_;  // what is not sent yet, of own_ or of owner_.responses_
    std::uint64_t body_left_ = 0;
    std::uint64_t body_seen_ = 0;
};

upstream::upstream(reactor& loop, std::uint16_t port) : loop_(loop), listener_(listen_on(port)) { loop_.watch(listener_, *this); }

upstream::~upstream() { ::close(listener_); }

void upstream::on_events(std::uint32_t) {
    for (int descriptor = accept_from(listener_); descriptor >= 0; descriptor = accept_from(listener_)) {
        ++counts_.connections;
        auto made = std::make_unique<connection>(*this, descriptor);
        auto& added = *made;
        connections_.emplace(&added, std::move(made));
        loop_.watch(descriptor, added);
    }
}

std::string const& upstream::response_of(std::uint64_t bytes) {
    auto& response = responses_[bytes];
    if (response.empty()) response = whole_response("application/json", std::string(static_cast<std::size_t>(bytes), 'x'));
    return response;
}

void upstream::remove(connection& gone) {
    auto const at = connections_.find(&gone);
    if (at == connections_.end()) return;
    loop_.retire(std::move(at->second));
    connections_.erase(at);
}

}  // namespace load
