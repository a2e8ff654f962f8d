#include "gateway/chunk.hpp"

#include <algorithm>
#include <cstring>

#include "gateway/frame.hpp"
#include "gateway/text.hpp"

namespace latchkey::gateway {

chunk_decoder::step chunk_decoder::decode(char* data, std::size_t size) noexcept {
    std::size_t r = 0;
    std::size_t w = 0;
    while (r < size) {
        if (where_ == place::data) {
            auto const n = static_cast<std::size_t>(std::min<std::uint64_t>(left_, size - r));
            if (w != r) std::memmove(data + w, data + r, n);
            r += n;
            w += n;
            left_ -= n;
            if (left_ == 0) where_ = place::data_cr;
            continue;
        }
        if (!take_framing(data[r++])) return {state::bad, r, w};
        if (where_ == place::end) return {state::done, r, w};
    }
    return {state::more, r, w};
}

// One byte outside of payload. False: not well-formed.
bool chunk_decoder::take_framing(char c) noexcept {
    switch (where_) {
        case place::size_first:
            left_ = 0;
            digits_ = zeros_ = 0;
            if (!is(c, char_class::hex)) return false;
            where_ = place::size;
            [[fallthrough]];
        case place::size:
            if (int const v = hex_value(c); v >= 0) {
                // 15 digits that count (so that no sum overflows), and a few leading zeros.
                if (v == 0 && left_ == 0) return ++zeros_ <= 8;
                left_ = left_ * 16 + static_cast<unsigned>(v);
                return ++digits_ <= 15;
            }
            if (c == ';' || c == ' ' || c == '\t') {
                where_ = place::extension;
                // RFC 9112 section 7.1.1 lets white space stand before ';' only.
                if (c != ';') where_ = place::size_zeros;
                return ++extension_bytes_ <= extension_bytes_max;
            }
            if (c != '\r') return false;
            where_ = place::size_lf;
            return true;
        case place::size_zeros:  // white space behind the size: only an extension may follow
            if (c == ';') where_ = place::extension;
            return (c == ';' || c == ' ' || c == '\t') && ++extension_bytes_ <= extension_bytes_max;
        case place::extension:
            if (c == '\r') {
                where_ = place::size_lf;
                return true;
            }
            if (c == '"') where_ = place::extension_quoted;
            return (is(c, char_class::token) || c == ';' || c == '=' || c == '"' || c == ' ' || c == '\t') &&
                   ++extension_bytes_ <= extension_bytes_max;
        case place::extension_quoted:
            if (c == '"') where_ = place::extension;
            if (c == '\\') where_ = place::extension_escape;
            return is(c, char_class::value) && ++extension_bytes_ <= extension_bytes_max;
        case place::extension_escape:
            where_ = place::extension_quoted;
            return is(c, char_class::value) && ++extension_bytes_ <= extension_bytes_max;
        case place::size_lf:
            if (c != '\n') return false;
            where_ = left_ == 0 ? place::trailer_start : place::data;
            return true;
        case place::data_cr: where_ = place::data_lf; return c == '\r';
        case place::data_lf: where_ = place::size_first; return c == '\n';
        default: return take_trailer(c);
    }
}

bool chunk_decoder::take_trailer(char c) noexcept try {
    if (++trailer_bytes_ > trailer_bytes_max) return false;
    switch (where_) {
        case place::trailer_start:
            if (c == '\r') {
                where_ = place::last_lf;
                return true;
            }
            if (++trailer_fields_ > trailer_fields_max || !is(c, char_class::token)) return false;
            line_.assign(1, c);
            where_ = place::trailer_name;
            return true;
        case place::trailer_name:
            if (c == ':') {
                name_end_ = line_.size();
                where_ = place::trailer_value;
            } else if (!is(c, char_class::token)) {
                return false;
            }
            line_.push_back(c);
            return true;
        case place::trailer_value:
            if (c == '\r') {
                where_ = place::trailer_lf;
                return true;
            }
            line_.push_back(c);
            return is(c, char_class::value);
        case place::trailer_lf: where_ = place::trailer_start; return c == '\n' && end_trailer_line();
        case place::last_lf:
            if (c != '\n') return false;
            where_ = place::end;
            return true;
        default: return false;
    }
} catch (...) {
    return false;
}

bool chunk_decoder::end_trailer_line() {
    std::string_view const name(line_.data(), name_end_);
    if (!allowed_in_trailer(name)) return drop_forbidden_;
    trailers_.append(name).append(": ").append(trimmed(std::string_view(line_).substr(name_end_ + 1))).append("\r\n");
    return true;
}

}  // namespace latchkey::gateway
