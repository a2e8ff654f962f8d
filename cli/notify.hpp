#pragma once
// The service manager's readiness protocol (sd_notify(3)): one datagram to $NOTIFY_SOCKET. Any thread.

#include <string_view>

namespace latchkey::cli {

// True where it was sent; false where nobody asked for it or the socket did not take it. '@' begins an abstract name.
bool notify(std::string_view state) noexcept;

}  // namespace latchkey::cli
