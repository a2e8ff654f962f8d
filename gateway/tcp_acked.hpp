#pragma once
// In a file of its own, since the kernel's <linux/tcp.h> and glibc's <netinet/tcp.h> cannot be included together.

#include <cstdint>

namespace latchkey::gateway {

// Bytes of ours that the peer's kernel has acknowledged on this connection, our SYN included (tcpi_bytes_acked, RFC 4898
// tcpEStatsAppHCThruOctetsAcked). The greatest value where the kernel does not say. One system call.
std::uint64_t bytes_acked(int descriptor) noexcept;

}  // namespace latchkey::gateway
