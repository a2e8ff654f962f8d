#pragma once
// What one gathered write sends: a few pieces of memory that others own, moved on as bytes go out. Pure.

#include <sys/uio.h>

#include <array>
#include <cassert>
#include <charconv>
#include <cstddef>
#include <span>
#include <string_view>

namespace latchkey::gateway {

class pieces {
  public:
    void add(char const* data, std::size_t size) noexcept {
        if (size == 0) return;
        assert(count_ < v_.size());
        v_[count_++] = {const_cast<char*>(data), size};
        left_ += size;
    }
    void add(std::string_view s) noexcept { add(s.data(), s.size()); }

    void clear() noexcept { at_ = count_ = left_ = 0; }

    void advance(std::size_t n) noexcept {
        left_ -= n;
        while (n > 0 && at_ < count_) {
            iovec& first = v_[at_];
            if (n < first.iov_len) {
                first.iov_base = static_cast<char*>(first.iov_base) + n;
                first.iov_len -= n;
                return;
            }
            n -= first.iov_len;
            ++at_;
        }
    }

    std::span<iovec const> rest() const noexcept { return {v_.data() + at_, count_ - at_}; }
    std::size_t left() const noexcept { return left_; }

  private:
    std::array<iovec, 8> v_;  // the first count_
    std::size_t at_ = 0;
    std::size_t count_ = 0;
    std::size_t left_ = 0;
};

// The line before a chunk's data (RFC 9112 section 7.1).
class chunk_line {
  public:
    std::string_view of(std::size_t payload) noexcept {
        auto const [end, ec] = std::to_chars(text_.data(), text_.data() + 16, payload, 16);
        end[0] = '\r';
        end[1] = '\n';
        return {text_.data(), static_cast<std::size_t>(end - text_.data()) + 2};
    }

  private:
    std::array<char, 20> text_;
};

// One chunk with `payload`, and the last chunk with `trailers` where `end` is set. `line` must outlive the write.
inline void add_chunk(pieces& p, chunk_line& line, std::string_view payload, bool end, std::string_view trailers) noexcept {
    if (!payload.empty()) {
        p.add(line.of(payload.size()));
        p.add(payload);
        p.add(end ? "\r\n0\r\n" : "\r\n");
    } else if (end) {
        p.add("0\r\n");
    }
    if (end) {
        p.add(trailers);
        p.add("\r\n");
    }
}

}  // namespace latchkey::gateway
