#include "portal/unix_address.hpp"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/un.h>
#include <unistd.h>

#include <cerrno>
#include <filesystem>
#include <system_error>
#include <utility>

namespace latchkey::portal {
namespace {

constexpr std::size_t path_bytes_max = sizeof(sockaddr_un::sun_path) - 1;

}  // namespace

result<unix_address> unix_address::of(std::string const& path) {
    if (path.empty() || path.find('\0') != std::string::npos)
        return error{errc::invalid_argument, "the path of the admin socket is empty or has a NUL byte; name a folder for --data"};
    if (path.size() <= path_bytes_max) return unix_address(path, -1);
    auto const file = std::filesystem::path(path);
    int const folder = ::open(file.parent_path().c_str(), O_PATH | O_DIRECTORY | O_CLOEXEC);
    if (folder < 0)
        return error{errc::io, fmt::format("cannot open the folder {}: {}; check the path and its permissions",
                                           file.parent_path().string(), std::generic_category().message(errno))};
    unix_address through(fmt::format("/proc/self/fd/{}/{}", folder, file.filename().string()), folder);
    if (through.text_.size() > path_bytes_max)
        return error{errc::invalid_argument,
                     fmt::format("the socket's name {} is too long; take a shorter one", file.filename().string())};
    return through;
}

unix_address::unix_address(unix_address&& other) noexcept
    : text_(std::move(other.text_)), folder_(std::exchange(other.folder_, -1)) {}

unix_address::~unix_address() {
    if (folder_ >= 0) ::close(folder_);
}

}  // namespace latchkey::portal
