#include "cli/notify.hpp"

#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <cstddef>
#include <cstdlib>
#include <cstring>

namespace latchkey::cli {

bool notify(std::string_view state) noexcept {
    char const* const path = std::getenv("NOTIFY_SOCKET");
    if (path == nullptr || (path[0] != '/' && path[0] != '@')) return false;
    auto const length = std::strlen(path);
    sockaddr_un to{};
    if (length < 2 || length >= sizeof to.sun_path) return false;
    to.sun_family = AF_UNIX;
    std::memcpy(to.sun_path, path, length);
    if (path[0] == '@') to.sun_path[0] = '\0';
    int const fd = ::socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    if (fd < 0) return false;
    auto const size = static_cast<socklen_t>(offsetof(sockaddr_un, sun_path) + length);
    auto const sent = ::sendto(fd, state.data(), state.size(), MSG_NOSIGNAL, reinterpret_cast<sockaddr const*>(&to), size);
    ::close(fd);
    return sent == static_cast<ssize_t>(state.size());
}

}  // namespace latchkey::cli
