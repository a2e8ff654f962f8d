#pragma once
// A second opinion on heads: Beast's parser, which has read more traffic than ours. Whatever ours takes and the frame check lets
// through, it must take as well, and see the same message. For tests and fuzz targets; it allocates.

#include <boost/asio/buffer.hpp>
#include <boost/beast/http/basic_parser.hpp>
#include <optional>
#include <string_view>
#include <utility>
#include <vector>

#include "gateway/head.hpp"

namespace latchkey::gateway::test {

struct second_reading {
    std::string_view method;
    std::string_view target;
    int status = 0;
    int version = 0;
    std::size_t bytes = 0;
    std::vector<std::pair<std::string_view, std::string_view>> fields;
};

template <bool Request>
class second_reader : public boost::beast::http::basic_parser<Request> {
    using view = boost::beast::string_view;
    using error = boost::system::error_code;

  public:
    // Nothing where Beast finds the head wrong or not whole.
    static std::optional<second_reading> read(std::string_view bytes) {
        second_reader r;
        r.header_limit(UINT32_MAX);
        r.body_limit(boost::none);
        r.skip(true);
        error ec;
        r.seen_.bytes = r.put(boost::asio::const_buffer(bytes.data(), bytes.size()), ec);
        if (ec || !r.is_header_done()) return std::nullopt;
        return std::move(r.seen_);
    }

  private:
    static std::string_view plain(view s) { return {s.data(), s.size()}; }
    void on_request_impl(boost::beast::http::verb, view method, view target, int version, error&) override {
        seen_.method = plain(method);
        seen_.target = plain(target);
        seen_.version = version;
    }
    void on_response_impl(int status, view, int version, error&) override {
        seen_.status = status;
        seen_.version = version;
    }
    void on_field_impl(boost::beast::http::field, view name, view value, error&) override {
        seen_.fields.emplace_back(plain(name), plain(value));
    }
    void on_header_impl(error&) override {}
    void on_body_init_impl(boost::optional<std::uint64_t> const&, error&) override {}
    std::size_t on_body_impl(view body, error&) override { return body.size(); }
    void on_chunk_header_impl(std::uint64_t, view, error&) override {}
    std::size_t on_chunk_body_impl(std::uint64_t, view body, error&) override { return body.size(); }
    void on_finish_impl(error&) override {}

    second_reading seen_;
};

// Whether the second reader sees what stands in `h`, which was read from the front of `bytes`.
template <bool Request>
bool seen_alike(head const& h, std::string_view bytes) {
    auto const again = second_reader<Request>::read(bytes.substr(0, h.bytes));
    if (!again || again->bytes != h.bytes || again->version != h.version || again->fields.size() != h.count) return false;
    if (Request ? again->method != h.method || again->target != h.target : again->status != h.status) return false;
    for (std::size_t i = 0; i < h.count; ++i)
        if (again->fields[i].first != h.fields[i].name || again->fields[i].second != h.fields[i].value) return false;
    return true;
}

}  // namespace latchkey::gateway::test
