#include "gateway/tcp_acked.hpp"

#include <linux/tcp.h>
#include <netinet/in.h>
#include <sys/socket.h>

#include <cstddef>
#include <limits>

namespace latchkey::gateway {

std::uint64_t bytes_acked(int descriptor) noexcept {
    tcp_info info{};
    socklen_t size = sizeof info;
    constexpr auto needed = offsetof(tcp_info, tcpi_bytes_acked) + sizeof info.tcpi_bytes_acked;
    if (::getsockopt(descriptor, IPPROTO_TCP, TCP_INFO, &info, &size) != 0 || size < needed)
        return std::numeric_limits<std::uint64_t>::max();
    return info.tcpi_bytes_acked;
}

}  // namespace latchkey::gateway
