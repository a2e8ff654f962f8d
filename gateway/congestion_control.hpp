#pragma once
// Which congestion control (RFC 5681, tcp(7) TCP_CONGESTION) a connection has.

#include "gateway/net.hpp"

namespace latchkey::gateway {

// Nothing is congested between two ends on one host, and a control that paces what is sent (bbr does, by a timer for each train
// of segments) takes more CPU there than the bytes: a connection with a loopback `peer` gets "reno", which every Linux has and
// lets everybody choose. Any other keeps what the system is set to, and so does one to an address of the host's own that is not
// loopback.
//
// For a listener, whose own address is `peer` (its connections inherit it), or a socket that is about to connect: these are never
// paced. An accepted connection that has run bbr goes on with a pace, of twice what its window and round trip give: that costs
// little once it has been used a while, but as much as before for the first megabytes. A kernel that refuses leaves the socket as
// it was. At most one system call.
void choose_congestion_control(int descriptor, ip_address const& peer) noexcept;

}  // namespace latchkey::gateway
