#include "cli/gateway_client.hpp"

#include <fmt/format.h>

#include <boost/asio/io_context.hpp>
#include <boost/asio/local/stream_protocol.hpp>
#include <boost/beast/core/basic_stream.hpp>
#include <boost/beast/core/flat_buffer.hpp>
#include <boost/beast/http.hpp>
#include <boost/json.hpp>

#include "portal/admin_api.hpp"
#include "portal/unix_address.hpp"

namespace latchkey::cli {
namespace {

namespace asio = boost::asio;
namespace http = boost::beast::http;
using unix_protocol = asio::local::stream_protocol;
using boost::system::error_code;

constexpr std::uint64_t reply_bytes_max = 64ULL << 20;

// Starts one asynchronous operation and runs it to its end; the stream's timeout bounds it.
template <class Start>
error_code finish(asio::io_context& context, Start start) {
    error_code out = asio::error::would_block;
    start([&out](error_code ec, auto...) { out = ec; });
    context.restart();
    context.run();
    return out;
}

error silent(std::string const& socket, std::string const& why, bool may_have_changed = false) {
    return {errc::unavailable,
            fmt::format("the gateway on {} does not answer ({}){}; look at its log, or stop it and run the command again", socket,
                        why, may_have_changed ? ", and may not have done what it was told" : "")};
}

}  // namespace

bool gateway_client::listening() const {
    auto const address = portal::unix_address::of(socket_path_);
    if (!address) return false;
    asio::io_context context;
    unix_protocol::socket socket(context);
    error_code ec;
    socket.connect(unix_protocol::endpoint(address->text()), ec);
    return !ec;
}

result<boost::json::value> gateway_client::call(http::verb method, std::string const& target, std::string body,
                                                std::string const& content_type) const {
    auto const address = portal::unix_address::of(socket_path_);
    if (!address) return address.error();
    asio::io_context context;
    boost::beast::basic_stream<unix_protocol> stream(context);
    stream.expires_after(answer_within_);
    unix_protocol::endpoint const at(address->text());
    if (auto const ec = finish(context, [&](auto done) { stream.async_connect(at, done); }))
        return silent(socket_path_, ec.message());
    http::request<http::string_body> request(method, target, 11);
    request.set(http::field::host, "latchkey");
    request.set(http::field::content_type, content_type);
    request.body() = std::move(body);
    request.prepare_payload();
    request.keep_alive(false);
    // A refused body breaks the write off; the reply that says why is read all the same.
    auto const sent = finish(context, [&](auto done) { http::async_write(stream, request, done); });
    http::response_parser<http::string_body> parser;
    parser.body_limit(reply_bytes_max);
    boost::beast::flat_buffer buffer;
    stream.expires_after(answer_within_);
    auto const read = finish(context, [&](auto done) { http::async_read(stream, buffer, parser, done); });
    if (read) return silent(socket_path_, (sent ? sent : read).message(), method != http::verb::get);
    error_code ec;
    auto value = boost::json::parse(parser.get().body(), ec);
    if (ec || !value.is_object()) return silent(socket_path_, "its reply is not JSON");
    if (parser.get().result_int() < 400) return value;
    auto const& object = value.get_object();
    auto const text = [&](char const* name) {
        auto const* const v = object.if_contains(name);
        return v != nullptr && v->is_string() ? std::string(std::string_view(v->get_string())) : std::string{};
    };
    return error{portal::code_of(text("code")), text("detail")};
}

}  // namespace latchkey::cli
