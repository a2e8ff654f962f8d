#include "cli/demo_upstream.hpp"

#include <fmt/format.h>

#include <boost/asio/io_context.hpp>
#include <boost/asio/ip/tcp.hpp>
#include <boost/asio/post.hpp>
#include <boost/beast/core/flat_buffer.hpp>
#include <boost/beast/core/tcp_stream.hpp>
#include <boost/beast/http.hpp>
#include <boost/json.hpp>
#include <charconv>
#include <csignal>
#include <stdexcept>
#include <thread>

#include "cli/commands.hpp"
#include "conf/load.hpp"

namespace latchkey::cli {
namespace {

namespace asio = boost::asio;
namespace http = boost::beast::http;
namespace json = boost::json;
using asio::ip::tcp;
using boost::system::error_code;
using message = http::request<http::string_body>;
using answer_t = http::response<http::string_body>;

constexpr unsigned connections_max = 128;
constexpr std::size_t body_bytes_max = 16U << 20;
constexpr std::uint64_t bytes_max = 16ULL << 20;
constexpr auto patience = std::chrono::seconds(30);

answer_t text(message const& r, http::status status, std::string body, char const* type = "application/json") {
    answer_t out(status, r.version());
    out.set(http::field::content_type, type);
    out.body() = std::move(body);
    out.keep_alive(r.keep_alive());
    out.prepare_payload();
    return out;
}

std::string echo(message const& r) {
    json::array headers;
    for (auto const& field : r) headers.push_back({std::string_view(field.name_string()), std::string_view(field.value())});
    return json::serialize(json::object{{"method", std::string_view(r.method_string())},
                                        {"target", std::string_view(r.target())},
                                        {"headers", std::move(headers)},
                                        {"body_bytes", r.body().size()}});
}

answer_t answer(message const& r) {
    std::string_view const target = r.target();
    auto const path = target.substr(0, target.find('?'));
    bool const get = r.method() == http::verb::get;
    constexpr std::string_view bytes = "/bytes/";
    if (get && path == "/") return text(r, http::status::ok, "{\"try\":[\"/hello\",\"/echo\",\"/bytes/1000\"]}");
    if (get && path == "/hello") return text(r, http::status::ok, "{\"hello\":\"world\"}");
    if ((get || r.method() == http::verb::post) && path == "/echo") return text(r, http::status::ok, echo(r));
    if (get && path.starts_with(bytes)) {
        std::uint64_t n = 0;
        auto const digits = path.substr(bytes.size());
        auto const [end, ec] = std::from_chars(digits.data(), digits.data() + digits.size(), n);
        if (ec == std::errc{} && end == digits.data() + digits.size() && n <= bytes_max)
            return text(r, http::status::ok, std::string(n, 'x'), "application/octet-stream");
    }
    return text(r, http::status::not_found, "{\"error\":\"try /hello, /echo or /bytes/1000\"}");
}

class session : public std::enable_shared_from_this<session> {
  public:
    session(tcp::socket socket, unsigned& count) : stream_(std::move(socket)), count_(count) { ++count_; }
    ~session() { --count_; }

    void read() {
        parser_.emplace();
        parser_->body_limit(body_bytes_max);
        stream_.expires_after(patience);
        http::async_read(stream_, buffer_, *parser_, [self = shared_from_this()](error_code ec, std::size_t) {
            if (!ec) self->reply(answer(self->parser_->get()));
            if (ec == http::error::body_limit) self->refuse();
        });
    }

  private:
    void refuse() {
        auto a = text(parser_->get(), http::status::payload_too_large, "{\"error\":\"at most 16 MiB\"}");
        a.keep_alive(false);
        reply(std::move(a));
    }
    void reply(answer_t a) {
        answer_ = std::move(a);
        stream_.expires_after(patience);
        http::async_write(stream_, answer_, [self = shared_from_this()](error_code ec, std::size_t) {
            if (!ec && self->answer_.keep_alive()) self->read();
        });
    }

    boost::beast::tcp_stream stream_;
    boost::beast::flat_buffer buffer_{64U << 10};
    std::optional<http::request_parser<http::string_body>> parser_;
    answer_t answer_;
    unsigned& count_;
};

}  // namespace

struct demo_server::impl {
    unsigned count = 0;  // outlives the sessions, which the context destroys
    asio::io_context context{1};
    tcp::acceptor acceptor{context};
    std::thread thread;

    void accept() {
        acceptor.async_accept([this](error_code ec, tcp::socket socket) {
            if (ec == asio::error::operation_aborted) return;
            if (!ec && count < connections_max) std::make_shared<session>(std::move(socket), count)->read();
            accept();
        });
    }
    void run() {
        for (;;) try {
                context.run();
                return;
            } catch (std::exception const&) {  // Beast 1.81's parser throws on an overlong trailer; that connection is gone
            }
    }
};

demo_server::demo_server(conf::endpoint const& at) : impl_(std::make_unique<impl>()) {
    error_code ec;
    auto const address = asio::ip::make_address(at.host, ec);
    tcp::endpoint const to(address, at.port);
    auto& a = impl_->acceptor;
    if (!ec) a.open(to.protocol(), ec);
    if (!ec) a.set_option(tcp::acceptor::reuse_address(true), ec);
    if (!ec) a.bind(to, ec);
    if (!ec) a.listen(asio::socket_base::max_listen_connections, ec);
    if (ec)
        throw std::runtime_error(
            fmt::format("cannot listen on {}:{}: {}; give another --listen", at.host, at.port, ec.message()));
    impl_->accept();
    impl_->thread = std::thread([i = impl_.get()] { i->run(); });
}

demo_server::~demo_server() {
    impl_->context.stop();
    impl_->thread.join();
}

std::uint16_t demo_server::port() const noexcept {
    error_code ignored;
    return impl_->acceptor.local_endpoint(ignored).port();
}

int demo_upstream(std::string const& listen, streams& s) {
    auto const at = conf::parse_listen(listen);
    if (!at) throw failure(exit_usage, at.error().message);
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGTERM);
    sigaddset(&set, SIGINT);
    pthread_sigmask(SIG_BLOCK, &set, nullptr);
    demo_server const server(*at);
    s.out << fmt::format("http://{}:{}\n", at->host, server.port()) << std::flush;
    int got = 0;
    sigwait(&set, &got);
    return exit_ok;
}

}  // namespace latchkey::cli
