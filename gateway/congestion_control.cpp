#include "gateway/congestion_control.hpp"

#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/socket.h>

#include <string_view>

namespace latchkey::gateway {

void choose_congestion_control(int descriptor, ip_address const& peer) noexcept {
    constexpr std::string_view plain = "reno";
    if (peer.is_loopback()) ::setsockopt(descriptor, IPPROTO_TCP, TCP_CONGESTION, plain.data(), plain.size());
}

}  // namespace latchkey::gateway
