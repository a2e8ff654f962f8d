#include "gateway/head.hpp"

#include <boost/beast/http/basic_parser.hpp>
#include <boost/beast/http/error.hpp>
#include <cstring>
#include <limits>
#include <optional>

#include "gateway/text.hpp"

namespace latchkey::gateway {
namespace {

namespace http = boost::beast::http;
using boost::system::error_code;
using beast_view = boost::beast::string_view;

std::string_view plain(beast_view s) noexcept { return {s.data(), s.size()}; }

constexpr std::array<std::string_view, static_cast<std::size_t>(field_id::count_)> names{
    "",
    "host",
    "content-length",
    "transfer-encoding",
    "connection",
    "keep-alive",
    "proxy-connection",
    "proxy-authorization",
    "proxy-authenticate",
    "te",
    "trailer",
    "upgrade",
    "http2-settings",
    "expect",
    "x-api-key",
    "authorization",
    "x-consumer-id",
    "x-consumer-username",
    "x-credential-identifier",
    "x-request-id",
    "traceparent",
    "tracestate",
    "forwarded",
    "x-forwarded-for",
    "x-forwarded-proto",
    "x-forwarded-host",
    "x-forwarded-port",
};

constexpr std::size_t longest_name = 23;

// Names by length: most fields are told apart by it alone.
struct by_length {
    std::array<std::array<field_id, 4>, longest_name + 1> ids{};
    constexpr by_length() {
        for (std::size_t i = 1; i < names.size(); ++i) {
            auto& bucket = ids[names[i].size()];
            for (auto& slot : bucket)
                if (slot == field_id::other) {
                    slot = static_cast<field_id>(i);
                    break;
                }
        }
    }
};
constexpr by_length index;

// Lower case, and '_' as '-'.
struct folding {
    std::array<char, 256> to{};
    constexpr folding() {
        for (std::size_t c = 0; c < 256; ++c) to[c] = c == '_' ? '-' : lower(static_cast<char>(c));
    }
};
constexpr folding folded;

constexpr char fold(char c) noexcept { return folded.to[static_cast<unsigned char>(c)]; }

// Of one length. First and last characters tell most names apart.
bool matches(std::string_view name, std::string_view known) noexcept {
    if (fold(name.back()) != known.back() || fold(name.front()) != known.front()) return false;
    for (std::size_t i = 1; i + 1 < name.size(); ++i)
        if (fold(name[i]) != known[i]) return false;
    return true;
}

// Collects views; refuses what does not lie in place (Beast unfolds obs-fold into memory of its own) or is too much.
template <bool Request>
class collector : public http::basic_parser<Request> {
  public:
    collector(head& out, char const* data, std::size_t size, std::size_t fields_limit) noexcept
        : out_(out), data_(data), size_(size), fields_limit_(fields_limit) {}

    bool too_many_fields = false;

  private:
    // Whether the value stands on its name's own line (RFC 9112 section 5.2 lets a server refuse obs-fold). Beast unfolds into
    // memory of its own, or skips the fold where the first line is empty.
    bool on_one_line(std::string_view name, std::string_view value) const noexcept {
        char const* p = name.data() + name.size() + 1;
        char const* const last = data_ + size_;
        while (p < last && (*p == ' ' || *p == '\t')) ++p;
        if (!value.empty()) {
            if (value.data() != p) return false;
            p += value.size();
            while (p < last && (*p == ' ' || *p == '\t')) ++p;
        }
        return last - p >= 3 && p[0] == '\r' && p[1] == '\n' && p[2] != ' ' && p[2] != '\t';
    }

    void on_request_impl(http::verb, beast_view method, beast_view target, int version, error_code&) override {
        out_.method = plain(method);
        out_.target = plain(target);
        out_.version = version;
    }
    void on_response_impl(int status, beast_view reason, int version, error_code&) override {
        out_.status = status;
        out_.reason = plain(reason);
        out_.version = version;
    }
    void on_field_impl(http::field, beast_view name, beast_view value, error_code& ec) override {
        if (out_.count == fields_limit_) {
            too_many_fields = true;
            ec = http::error::header_limit;
            return;
        }
        if (!on_one_line(plain(name), plain(value))) {
            ec = http::error::bad_obs_fold;
            return;
        }
        field& f = out_.fields[out_.count++];
        f.name = plain(name);
        f.value = plain(value);
        f.alias = false;
        f.id = identify(f.name, f.alias);
    }
    void on_header_impl(error_code&) override {}
    void on_body_init_impl(boost::optional<std::uint64_t> const&, error_code&) override {}
    std::size_t on_body_impl(beast_view body, error_code&) override { return body.size(); }
    void on_chunk_header_impl(std::uint64_t, beast_view, error_code&) override {}
    std::size_t on_chunk_body_impl(std::uint64_t, beast_view body, error_code&) override { return body.size(); }
    void on_finish_impl(error_code&) override {}

    head& out_;
    char const* data_;
    std::size_t size_;
    std::size_t fields_limit_;
};

// A line end without its CR never becomes valid by more bytes: say so at once instead of waiting for the deadline.
bool has_bare_lf(char const* data, std::size_t from, std::size_t size) noexcept {
    for (char const* p = data + from; p < data + size; ++p) {
        p = static_cast<char const*>(std::memchr(p, '\n', static_cast<std::size_t>(data + size - p)));
        if (!p) return false;
        if (p == data || p[-1] != '\r') return true;
    }
    return false;
}

enum class found : std::uint8_t { head_end, more, bare_lf };

found search_end(char const* data, std::size_t size, std::size_t& searched) noexcept {
    std::size_t const from = searched > 3 ? searched - 3 : 0;
    if (std::string_view(data, size).find("\r\n\r\n", from) != std::string_view::npos) return found::head_end;
    bool const bare = has_bare_lf(data, searched, size);
    searched = size;
    return bare ? found::bare_lf : found::more;
}

template <bool Request>
error_code run_parser(collector<Request>& parser, char const* data, std::size_t size, std::size_t bytes_limit,
                      std::size_t& consumed) {
    parser.header_limit(static_cast<std::uint32_t>(bytes_limit));
    parser.body_limit(boost::none);
    parser.skip(true);  // the body is not Beast's
    error_code ec;
    consumed = parser.put(boost::asio::const_buffer(data, size), ec);
    return ec;
}

refusal reason_for(error_code const& ec, std::string_view bytes, std::size_t target_limit) noexcept {
    if (ec == http::error::header_limit)
        return bytes.find("\r\n") == std::string_view::npos || bytes.find("\r\n") > target_limit + 64 ? refusal::target_too_long
                                                                                                      : refusal::head_too_large;
    if (ec == http::error::bad_version) return refusal::version_not_supported;
    if (ec == http::error::bad_content_length || ec == http::error::multiple_content_length ||
        ec == http::error::bad_transfer_encoding)
        return refusal::ambiguous_framing;
    return refusal::malformed_request;
}

}  // namespace

field_id identify(std::string_view name, bool& alias) noexcept {
    if (name.size() > longest_name || name.empty()) return field_id::other;
    for (field_id const id : index.ids[name.size()]) {
        if (id == field_id::other) return id;
        if (matches(name, names[static_cast<std::size_t>(id)])) {
            alias = name.find('_') != std::string_view::npos;
            return id;
        }
    }
    return field_id::other;
}

parsed parse_request_head(char const* data, std::size_t size, std::size_t& searched, parse_limits const& limits, head& out,
                          refusal& why) noexcept try {
    why = refusal::malformed_request;
    if (searched != 0) {
        auto const f = search_end(data, size, searched);
        if (f == found::bare_lf) return parsed::bad;
        if (f == found::more) {
            if (size < limits.bytes) return parsed::more;
            why = reason_for(http::error::header_limit, {data, size}, limits.target);
            return parsed::bad;
        }
    }
    out.count = 0;
    collector<true> parser(out, data, size, limits.fields);
    error_code const ec = run_parser(parser, data, size, limits.bytes, out.bytes);
    if (!ec) {
        if (out.target.size() > limits.target)
            why = refusal::target_too_long;
        else if (out.bytes > limits.bytes)  // Beast's limit lets the last line end through
            why = refusal::head_too_large;
        else
            return parsed::whole;
        return parsed::bad;
    }
    if (ec == http::error::need_more) {
        // (A whole head can be too short for Beast to judge, as "GET / \r\n\r\n" is. More bytes do not make it valid.)
        if (search_end(data, size, searched) != found::more) return parsed::bad;
        if (size < limits.bytes) return parsed::more;
        why = reason_for(http::error::header_limit, {data, size}, limits.target);
        return parsed::bad;
    }
    why = parser.too_many_fields ? refusal::too_many_fields : reason_for(ec, {data, size}, limits.target);
    return parsed::bad;
} catch (...) {
    why = refusal::malformed_request;
    return parsed::bad;
}

parsed parse_response_head(char const* data, std::size_t size, std::size_t& searched, parse_limits const& limits,
                           head& out) noexcept try {
    if (searched != 0) {
        auto const f = search_end(data, size, searched);
        if (f == found::bare_lf) return parsed::bad;
        if (f == found::more) return size < limits.bytes ? parsed::more : parsed::bad;
    }
    out.count = 0;
    collector<false> parser(out, data, size, limits.fields);
    error_code const ec = run_parser(parser, data, size, limits.bytes, out.bytes);
    if (!ec) return out.bytes <= limits.bytes ? parsed::whole : parsed::bad;
    if (ec != http::error::need_more) return parsed::bad;
    if (search_end(data, size, searched) != found::more) return parsed::bad;
    return size < limits.bytes ? parsed::more : parsed::bad;
} catch (...) {
    return parsed::bad;
}

}  // namespace latchkey::gateway
