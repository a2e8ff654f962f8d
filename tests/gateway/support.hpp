#pragma once
// What the gateway's tests share: heads from text, bytes in memory of exactly their size (so that a sanitizer sees a read beyond
// them), and a settings value for one api.

#include <cstddef>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "conf/settings.hpp"
#include "gateway/frame.hpp"
#include "gateway/head.hpp"
#include "tests/catch.hpp"

namespace latchkey::gateway::test {

inline constexpr parse_limits wide_limits{16 * 1024, 8 * 1024, 100};

// Text and the head that was parsed from it; the head's views live as long as this.
class message {
  public:
    explicit message(std::string_view text) : text_(text.begin(), text.end()), head_(std::make_unique<head>()) {}
    message(message const&) = delete;
    message& operator=(message const&) = delete;

    parsed request(parse_limits const& limits = wide_limits) {
        std::size_t searched = 0;
        return parse_request_head(text_.data(), text_.size(), searched, limits, *head_, why);
    }
    parsed response(parse_limits const& limits = wide_limits) {
        std::size_t searched = 0;
        return parse_response_head(text_.data(), text_.size(), searched, limits, *head_);
    }
    head const& operator*() const { return *head_; }
    head const* operator->() const { return head_.get(); }
    std::string_view text() const { return {text_.data(), text_.size()}; }

    refusal why = refusal::none;

  private:
    std::vector<char> text_;
    std::unique_ptr<head> head_;
};

// What the gateway says of a request's head: parse, then frame check.
inline refusal judge(std::string_view text, request_frame& frame) {
    static std::unique_ptr<message> last;  // the frame's views live in it
    last = std::make_unique<message>(text);
    parsed const p = last->request();
    if (p == parsed::bad) return last->why;
    REQUIRE(p == parsed::whole);
    return check_request(**last, frame);
}
inline refusal judge(std::string_view text) {
    request_frame ignored;
    return judge(text, ignored);
}

inline std::string get(std::string_view fields) { return "GET / HTTP/1.1\r\nHost: h\r\n" + std::string(fields) + "\r\n"; }
inline std::string post(std::string_view fields) { return "POST / HTTP/1.1\r\nHost: h\r\n" + std::string(fields) + "\r\n"; }

// Text with what cannot be seen made visible, for messages.
inline std::string shown(std::string_view text) {
    std::string out;
    for (char const c : text) {
        auto const u = static_cast<unsigned char>(c);
        if (c == '\r')
            out += "\\r";
        else if (c == '\n')
            out += "\\n";
        else if (u < 0x20 || u >= 0x7f)
            out += "\\x" + std::string(1, "0123456789abcdef"[u >> 4U]) + std::string(1, "0123456789abcdef"[u & 15U]);
        else
            out += c;
    }
    return out;
}

}  // namespace latchkey::gateway::test

template <>
struct Catch::StringMaker<latchkey::gateway::refusal> {
    static std::string convert(latchkey::gateway::refusal r) { return std::string(latchkey::gateway::text_of(r).code); }
};
template <>
struct Catch::StringMaker<latchkey::gateway::parsed> {
    static std::string convert(latchkey::gateway::parsed p) {
        return p == latchkey::gateway::parsed::whole ? "whole" : p == latchkey::gateway::parsed::more ? "more" : "bad";
    }
};
