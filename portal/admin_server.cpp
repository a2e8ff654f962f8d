#include "portal/admin_server.hpp"

#include <fmt/format.h>
#include <sys/socket.h>
#include <unistd.h>

#include <atomic>
#include <boost/asio/as_tuple.hpp>
#include <boost/asio/awaitable.hpp>
#include <boost/asio/co_spawn.hpp>
#include <boost/asio/executor_work_guard.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/asio/ip/tcp.hpp>
#include <boost/asio/local/stream_protocol.hpp>
#include <boost/asio/post.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/asio/thread_pool.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <boost/asio/write.hpp>
#include <boost/beast/core/basic_stream.hpp>
#include <boost/beast/core/flat_buffer.hpp>
#include <boost/beast/http.hpp>
#include <functional>
#include <future>
#include <list>
#include <optional>
#include <stdexcept>
#include <thread>
#include <tuple>
#include <utility>

#include "base/log.hpp"
#include "portal/admin_api.hpp"
#include "portal/admin_socket.hpp"

namespace latchkey::portal {
namespace {

namespace asio = boost::asio;
namespace beast = boost::beast;
namespace http = beast::http;
using boost::system::error_code;
using unix_protocol = asio::local::stream_protocol;
using asio::ip::tcp;

constexpr auto as_result = asio::as_tuple(asio::use_awaitable);
constexpr std::uint32_t head_bytes_max = 16U << 10;
constexpr std::size_t buffer_bytes_max = 256U << 10;
constexpr auto accept_pause = std::chrono::milliseconds(100);  // out of descriptors: accepting again at once would spin
constexpr auto stop_bound = std::chrono::seconds(10);

asio::awaitable<reply> make_call(std::function<reply()> call) { co_return call(); }

// Runs `call` on the pool; the coroutine goes on in its own context.
asio::awaitable<reply> on_pool(asio::thread_pool& pool, std::function<reply()> call) {
    auto body = make_call(std::move(call));
    auto [thrown, made] = co_await asio::co_spawn(pool, std::move(body), as_result);
    if (!thrown) co_return made;
    try {
        std::rethrow_exception(thrown);
    } catch (std::exception const& e) {
        log::error("admin_call", "{}", e.what());
    }
    co_return problem(500, "io", "the call failed; the log says why");
}

http::response<http::string_body> to_message(reply r, unsigned version, bool keep_alive, bool head) {
    http::response<http::string_body> out(http::int_to_status(r.status), version);
    out.set(http::field::content_type, r.type);
    out.set(http::field::cache_control, "no-store");
    if (!r.allow.empty()) out.set(http::field::allow, r.allow);
    if (r.status == 503) out.set(http::field::retry_after, "1");
    out.keep_alive(keep_alive);
    out.content_length(r.body.size());
    if (!head) out.body() = std::move(r.body);
    return out;
}

// What a parser's complaint is answered with; nullopt: the peer went away or was too slow, nobody to answer.
std::optional<reply> parse_reply(error_code ec) {
    if (ec == http::error::end_of_stream || ec == http::error::partial_message ||
        ec.category() != make_error_code(http::error{}).category())
        return std::nullopt;
    if (ec == http::error::body_limit) return problem(413, "too_large", "the body is larger than this resource takes");
    if (ec == http::error::header_limit || ec == http::error::buffer_overflow)
        return problem(431, "too_large", "the head is too large");
    return problem(400, "bad_request", "not an HTTP request");
}

std::uint16_t port_of(int descriptor) {
    tcp::endpoint at;
    auto size = static_cast<socklen_t>(at.capacity());
    if (::getsockname(descriptor, at.data(), &size) != 0) return 0;
    return at.port();
}

}  // namespace

struct admin_server::impl {
    impl(admin_options o, keystore::key_directory& keys, usage::recorder& usage, gateway_view gateway)
        : opts(std::move(o)), api(keys, usage, std::move(gateway), opts.reload, opts.flush_elsewhere), calls(opts.calls_max) {}

    // One accepted connection; listed in `open` while its coroutine runs.
    template <class Protocol>
    struct connection {
        explicit connection(asio::basic_stream_socket<Protocol> socket) : stream(std::move(socket)) {}
        beast::basic_stream<Protocol> stream;
        beast::flat_buffer buffer{buffer_bytes_max};
        bool busy = false;     // a call runs or its reply is being written
        bool awaited = false;  // counted in `awaited`
        bool fresh = true;     // no request has come
    };
    template <class Protocol>
    struct listener {
        listener(asio::io_context& on, unsigned& open_count) : acceptor(on), pause(on), count(open_count) {}
        asio::basic_socket_acceptor<Protocol> acceptor;
        asio::steady_timer pause;
        unsigned& count;
    };
    enum class ending { all, admin, used };
    using closer = std::function<void(ending)>;  // closes the connection if it is one of those, and no call runs on it

    void run();
    void shut(bool to_successor);
    void await_answer(connection<unix_protocol>& c, bool on);
    std::shared_ptr<void> enlist(unsigned& count, closer close);
    template <class Listener>
    void accept(Listener& at);
    template <class Listener, class Socket>
    void serve(Listener& at, Socket socket);
    template <class Protocol>
    asio::awaitable<bool> send(connection<Protocol>& c, reply r, unsigned version, bool keep_alive, bool head);
    asio::awaitable<void> session(connection<unix_protocol>& c);
    asio::awaitable<bool> admin_exchange(connection<unix_protocol>& c);
    asio::awaitable<void> session(connection<tcp>& c);
    asio::awaitable<std::optional<reply>> read_body(connection<unix_protocol>& c,
                                                    http::request_parser<http::string_body>& parser);
    [[noreturn]] void cannot_listen(error_code) const;
    void bind_health();
    void listen_health();

    admin_options const opts;
    admin_api api;
    // What coroutines still touch when the context destroys them stands before it.
    std::list<closer> open;
    unsigned admin_count = 0;
    unsigned health_count = 0;
    unsigned awaited = 0;  // admin connections that are new or have a call running, which pause() waits for
    bool paused = false;
    std::function<void()> quiet;  // to be told when there are none
    bool importing = false;       // one import's body in memory at a time
    bool stopping = false;
    bool handed_over = false;
    bool cut = false;  // the context was stopped over connections that did not end in time
    asio::io_context context{1};
    std::optional<asio::executor_work_guard<asio::io_context::executor_type>> guard;
    std::optional<admin_socket> socket_file;
    listener<unix_protocol> admin{context, admin_count};
    listener<tcp> health{context, health_count};
    asio::steady_timer stop_timer{context};
    std::uint16_t health_port = 0;
    bool bound = false;
    bool listens = true;
    asio::thread_pool calls;
    asio::thread_pool reload_calls{2};  // one may last; another is told so
    asio::thread_pool health_calls{1};  // of its own, so that waiting admin calls never delay a probe
    std::thread thread;
};

std::shared_ptr<void> admin_server::impl::enlist(unsigned& count, closer close) {
    auto const at = open.insert(open.end(), std::move(close));
    ++count;
    return {&*at, [this, at, &count](void*) {
                open.erase(at);
                --count;
                if (stopping && !cut && open.empty()) stop_timer.cancel();
            }};
}

void admin_server::impl::await_answer(connection<unix_protocol>& c, bool on) {
    if (c.awaited == on) return;
    c.awaited = on;
    awaited += on ? 1U : ~0U;
    if (awaited == 0 && quiet) std::exchange(quiet, {})();
}

// Beast 1.81's parser may throw on hostile trailers, out of the handler that fed it; the connection is gone then, the rest goes
// on.
void admin_server::impl::run() {
    for (;;) {
        try {
            context.run();
            return;
        } catch (std::exception const& e) {
            log::warn("admin_connection", "closed: {}", e.what());
        }
    }
}

void admin_server::impl::cannot_listen(error_code ec) const {
    throw std::runtime_error(fmt::format("cannot listen on {}:{} for health: {}; {} admin_listen (--admin-listen)",
                                         opts.health.host, opts.health.port, ec.message(),
                                         ec == asio::error::address_in_use ? "stop the other program or set" : "set"));
}

void admin_server::impl::bind_health() {
    bound = true;
    error_code ec;
    auto const address = asio::ip::make_address(opts.health.host, ec);
    auto const fail = [&] { cannot_listen(ec); };
    if (ec) fail();
    tcp::endpoint const at(address, opts.health.port);
    bool const before = opts.health_before >= 0;
    bool const same_port =
        before && (opts.health.port == opts.health_before_at.port || opts.health.port == port_of(opts.health_before));
    if (same_port && opts.health.host == opts.health_before_at.host) {
        health.acceptor.assign(at.protocol(), opts.health_before);
        health_port = health.acceptor.local_endpoint().port();
        return;
    }
    health.acceptor.open(at.protocol(), ec);
    if (!ec) health.acceptor.set_option(tcp::acceptor::reuse_address(true), ec);
    // "127.0.0.1:8081" and "0.0.0.0:8081" overlap: beside a socket that listens the other can be bound only where both say that
    // they share the port. Another gateway does not say so here, and is refused as ever.
    if (int const on = 1; !ec && same_port) {
        ::setsockopt(opts.health_before, SOL_SOCKET, SO_REUSEPORT, &on, sizeof on);
        ::setsockopt(health.acceptor.native_handle(), SOL_SOCKET, SO_REUSEPORT, &on, sizeof on);
    }
    if (!ec) health.acceptor.bind(at, ec);
    if (before) ::close(opts.health_before);
    if (ec) fail();
    health_port = health.acceptor.local_endpoint().port();
    listens = false;
}

void admin_server::impl::listen_health() {
    if (std::exchange(listens, true)) return;
    error_code ec;
    health.acceptor.listen(asio::socket_base::max_listen_connections, ec);
    if (ec) cannot_listen(ec);
}

template <class Listener>
void admin_server::impl::accept(Listener& at) {
    if constexpr (std::is_same_v<Listener, listener<unix_protocol>>)
        if (paused) return;
    at.acceptor.async_accept([this, &at](error_code ec, auto socket) {
        // Behind a handover, what was accepted before is answered yet: the client will not try again.
        if (ec == asio::error::operation_aborted || (stopping && !handed_over)) return;
        if (ec) {
            at.pause.expires_after(accept_pause);
            at.pause.async_wait([this, &at](error_code aborted) {
                if (!aborted) accept(at);
            });
            return;
        }
        if (at.count < opts.connections_max) serve(at, std::move(socket));
        if (!stopping) accept(at);
    });
}

template <class Listener, class Socket>
void admin_server::impl::serve(Listener& at, Socket socket) {
    using protocol = typename Socket::protocol_type;
    if constexpr (std::is_same_v<protocol, unix_protocol>) {
        if (!peer_allowed(socket.native_handle())) {
            log::warn("admin_refused", "a peer of another user tried the admin socket");
            return;
        }
    }
    auto c = std::make_shared<connection<protocol>>(std::move(socket));
    auto entry = enlist(at.count, [raw = c.get()](ending which) {
        bool const health_or_awaited = !std::is_same_v<protocol, unix_protocol> || raw->awaited;
        if (raw->busy || (which == ending::admin && health_or_awaited) || (which == ending::used && raw->fresh)) return;
        raw->stream.close();
    });
    if constexpr (std::is_same_v<protocol, unix_protocol>) {
        await_answer(*c, true);
        entry = std::shared_ptr<void>(entry.get(), [this, c, entry](void*) { await_answer(*c, false); });
    }
    // The handler keeps the connection and its entry until the coroutine has ended, or was destroyed by a throwing parser.
    asio::co_spawn(context, session(*c), [c, entry](std::exception_ptr const& thrown) {
        if (thrown) log::warn("admin_connection", "closed after an internal error");
    });
}

template <class Protocol>
asio::awaitable<bool> admin_server::impl::send(connection<Protocol>& c, reply r, unsigned version, bool keep_alive, bool head) {
    bool const keep = keep_alive && !stopping && !paused;
    auto message = to_message(std::move(r), version, keep, head);
    http::response_serializer<http::string_body> serializer(message);
    serializer.split(head);
    c.stream.expires_after(opts.stall_timeout);
    if (head) {
        auto const [ec, n] = co_await http::async_write_header(c.stream, serializer, as_result);
        co_return !ec && keep;
    }
    auto const [ec, n] = co_await http::async_write(c.stream, serializer, as_result);
    co_return !ec && keep;
}

asio::awaitable<std::optional<reply>> admin_server::impl::read_body(connection<unix_protocol>& c,
                                                                    http::request_parser<http::string_body>& parser) {
    auto const& head = parser.get();
    if (beast::iequals(head[http::field::expect], "100-continue") && !parser.is_done()) {
        static constexpr std::string_view go_on = "HTTP/1.1 100 Continue\r\n\r\n";
        c.stream.expires_after(opts.stall_timeout);
        auto const [ec, n] = co_await asio::async_write(c.stream, asio::buffer(go_on.data(), go_on.size()), as_result);
        if (ec) co_return reply{0, {}, {}, {}};
    }
    while (!parser.is_done()) {
        c.stream.expires_after(opts.stall_timeout);
        auto const [ec, n] = co_await http::async_read_some(c.stream, c.buffer, parser, as_result);
        if (ec) co_return parse_reply(ec).value_or(reply{0, {}, {}, {}});
    }
    co_return std::nullopt;
}

// False: the connection ends.
asio::awaitable<bool> admin_server::impl::admin_exchange(connection<unix_protocol>& c) {
    http::request_parser<http::string_body> parser;
    parser.header_limit(head_bytes_max);
    parser.body_limit(opts.import_bytes_max);
    if (paused && !c.awaited) co_return false;
    c.stream.expires_after(opts.idle_timeout);
    auto const [ec, n] = co_await http::async_read_header(c.stream, c.buffer, parser, as_result);
    if (ec) {
        if (auto r = parse_reply(ec)) co_await send(c, std::move(*r), 11, false, false);
        co_return false;
    }
    c.busy = true;
    c.fresh = false;
    await_answer(c, true);
    auto const version = parser.get().version();
    bool const import = is_import(parser.get().method(), std::string_view(parser.get().target()));
    if (import && importing) {
        co_await send(c, problem(503, "busy", "another import runs; try again when it has ended"), version, false, false);
        co_return false;
    }
    if (!import) parser.body_limit(opts.body_bytes_max);
    if (auto const length = parser.content_length(); length && *length > (import ? opts.import_bytes_max : opts.body_bytes_max)) {
        co_await send(c, problem(413, "too_large", "the body is larger than this resource takes"), version, false, false);
        co_return false;
    }
    struct import_slot {
        bool& taken;
        bool mine;
        ~import_slot() {
            if (mine) taken = false;
        }
    } const slot{importing, import};
    if (import) importing = true;
    auto reading = read_body(c, parser);
    auto refused = co_await std::move(reading);
    if (refused) {
        if (refused->status != 0) co_await send(c, std::move(*refused), version, false, false);
        co_return false;
    }
    auto message = parser.release();
    auto const asked =
        std::make_shared<request>(request{message.method(), std::string(message.target()),
                                          std::string(message[http::field::content_type]), std::move(message.body())});
    bool const keep_alive = message.keep_alive();
    std::function<reply()> call = [this, asked] { return api.answer(*asked); };
    c.stream.expires_never();
    bool const reload = is_reload(asked->method, asked->target);
    if (reload) await_answer(c, false);
    auto made = co_await on_pool(reload ? reload_calls : calls, std::move(call));
    bool const kept = co_await send(c, std::move(made), version, keep_alive, message.method() == http::verb::head);
    c.busy = false;
    await_answer(c, false);
    co_return kept;
}

asio::awaitable<void> admin_server::impl::session(connection<unix_protocol>& c) {
    for (bool go_on = true; go_on;) {
        auto exchange = admin_exchange(c);  // named: in the loop condition itself its frame was freed twice (GCC 12)
        go_on = co_await std::move(exchange);
    }
    c.stream.close();
}

// No body is ever read: a request that has one is answered and the connection closed.
asio::awaitable<void> admin_server::impl::session(connection<tcp>& c) {
    for (bool go_on = true; go_on;) {
        http::request_parser<http::empty_body> parser;
        parser.header_limit(head_bytes_max);
        c.stream.expires_after(opts.idle_timeout);
        auto const [ec, n] = co_await http::async_read_header(c.stream, c.buffer, parser, as_result);
        if (ec) {
            if (auto r = parse_reply(ec)) co_await send(c, std::move(*r), 11, false, false);
            break;
        }
        c.busy = true;
        c.fresh = false;
        auto const method = parser.get().method();
        std::string const target(parser.get().target());
        bool const no_body = parser.content_length().value_or(0) == 0 && !parser.chunked();
        reply made;
        if (target == "/livez") {
            made = api.health(method, target);
        } else {
            std::function<reply()> call = [this, method, target] { return api.health(method, target); };
            c.stream.expires_never();
            made = co_await on_pool(health_calls, std::move(call));
        }
        go_on = co_await send(c, std::move(made), parser.get().version(), parser.get().keep_alive() && no_body,
                              method == http::verb::head);
        c.busy = false;
    }
    error_code ignored;
    c.stream.socket().shutdown(tcp::socket::shutdown_send, ignored);
    c.stream.close();
}

// release(): closing alone would leave the sockets in our epoll set for as long as another process has them.
void admin_server::impl::shut(bool to_successor) {
    if (stopping) return;
    stopping = true;
    handed_over = to_successor;
    for (auto end : {+[](impl&i, error_code&ec) { return i.admin.acceptor.release(ec); },
                     +[](impl&i, error_code&ec) { return i.health.acceptor.release(ec); }}) {
        error_code failed;
        int const descriptor = end(*this, failed);
        if (!failed) ::close(descriptor);
    }
    if (handed_over && socket_file) socket_file->own_file(false);
    admin.pause.cancel();
    health.pause.cancel();
    for (auto const& close : open) close(handed_over ? ending::used : ending::all);
    guard.reset();
    // Connections whose call still runs get their reply; the timer bounds that, and nothing but them keeps the context going.
    if (open.empty()) return;
    stop_timer.expires_after(stop_bound);
    stop_timer.async_wait([this](error_code ec) {
        if (ec) return;
        cut = true;
        context.stop();
    });
}

admin_server::admin_server(admin_options options, keystore::key_directory& keys, usage::recorder& usage, gateway_view gateway)
    : impl_(std::make_unique<impl>(std::move(options), keys, usage, std::move(gateway))) {}

admin_server::~admin_server() { stop(); }

void admin_server::bind() { impl_->bind_health(); }

void admin_server::listen() { impl_->listen_health(); }

void admin_server::start() {
    auto& i = *impl_;
    if (!i.bound) i.bind_health();
    if (i.opts.admin_before.descriptor >= 0)
        i.socket_file.emplace(i.opts.socket_path, i.opts.admin_before);
    else
        i.socket_file.emplace(i.opts.socket_path);
    i.admin.acceptor.assign(unix_protocol(), i.socket_file->release());
    i.listen_health();
    i.guard.emplace(i.context.get_executor());
    i.accept(i.admin);
    i.accept(i.health);
    i.thread = std::thread([&i] { i.run(); });
}

bool admin_server::pause(std::chrono::milliseconds patience) {
    auto const done = std::make_shared<std::promise<void>>();
    auto const quiet = done->get_future();
    asio::post(impl_->context, [i = impl_.get(), done] {
        i->paused = true;
        error_code ignored;
        i->admin.acceptor.cancel(ignored);
        i->admin.pause.cancel();
        for (auto const& close : i->open) close(impl::ending::admin);
        i->quiet = [done] { done->set_value(); };
        if (i->awaited == 0) std::exchange(i->quiet, {})();
    });
    return quiet.wait_for(patience) == std::future_status::ready;
}

void admin_server::resume() {
    asio::post(impl_->context, [i = impl_.get()] {
        i->quiet = {};
        if (!std::exchange(i->paused, false) || i->stopping) return;
        i->accept(i->admin);
    });
}

void admin_server::own_socket_file() {
    asio::post(impl_->context, [i = impl_.get()] {
        if (!i->stopping) i->socket_file->own_file(true);
    });
}

void admin_server::hand_over() {
    auto const done = std::make_shared<std::promise<void>>();
    asio::post(impl_->context, [i = impl_.get(), done] {
        i->shut(true);
        done->set_value();
    });
    done->get_future().wait();
}

inherited_socket admin_server::admin_listener() const noexcept {
    return {impl_->admin.acceptor.native_handle(), impl_->socket_file->file()};
}

int admin_server::health_listener() const noexcept { return impl_->health.acceptor.native_handle(); }

void admin_server::stop() {
    auto& i = *impl_;
    if (!i.thread.joinable()) return;
    asio::post(i.context, [&i] { i.shut(false); });
    i.thread.join();
    i.calls.join();
    i.reload_calls.join();
    i.health_calls.join();
    i.socket_file.reset();
}

std::uint16_t admin_server::health_port() const noexcept { return impl_->health_port; }

}  // namespace latchkey::portal
