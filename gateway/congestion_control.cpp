#include "gateway/congestion_control.hpp"

#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/socket.h>

#include <string_view>

namespace latchkey::gateway {
namespace {

bool within_host(ip_address const& peer) noexcept {
    if (peer.is_v6() && peer.to_v6().is_v4_mapped())
        return asio::ip::make_address_v4(asio::ip::v4_mapped, peer.to_v6()).is_loopback();
    return peer.is_loopback();
}

}  // namespace

void choose_congestion_control(int descriptor, ip_address const& peer) noexcept {
    constexpr std::string_view plain = "reno";
    if (within_host(peer)) ::setsockopt(descriptor, IPPROTO_TCP, TCP_CONGESTION, plain.data(), plain.size());
}

}  // namespace latchkey::gateway
