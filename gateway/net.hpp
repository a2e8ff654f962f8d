#pragma once
// The names that this room uses of Asio, in one place.

#include <boost/asio/io_context.hpp>
#include <boost/asio/ip/address.hpp>
#include <boost/asio/ip/tcp.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/system/error_code.hpp>
#include <cerrno>
#include <cstddef>

namespace latchkey::gateway {

namespace asio = boost::asio;
using boost::system::error_code;
using io_context = asio::io_context;
using tcp_endpoint = asio::ip::tcp::endpoint;
using ip_address = asio::ip::address;

struct io_result {
    error_code ec;
    std::size_t n = 0;
};

inline bool would_block(error_code const& ec) noexcept { return ec == asio::error::would_block; }

// What this machine lacks for a connection: open files or memory. It says nothing of the peer. (That there is no port left looks
// like there being no way to an address, so it is not told.)
inline bool is_shortage(error_code const& ec) noexcept {
    if (ec.category() != boost::system::system_category()) return false;
    auto const e = ec.value();
    return e == EMFILE || e == ENFILE || e == ENOBUFS || e == ENOMEM;
}

}  // namespace latchkey::gateway
