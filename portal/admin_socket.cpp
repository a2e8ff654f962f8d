#include "portal/admin_socket.hpp"

#include <fmt/format.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <stdexcept>
#include <system_error>
#include <utility>

#include "portal/unix_address.hpp"

namespace latchkey::portal {
namespace {

constexpr int backlog = 64;

[[noreturn]] void fail(std::string const& path, std::string_view what, std::string_view remedy) {
    throw std::runtime_error(fmt::format("cannot make the admin socket {}: {}; {}", path, what, remedy));
}

[[noreturn]] void fail_errno(std::string const& path, int code) {
    fail(path, std::generic_category().message(code), "check that the data directory is on a local file system and is yours");
}

int stream_socket(std::string const& path) {
    int const fd = ::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd < 0) fail_errno(path, errno);
    return fd;
}

sockaddr_un name_of(unix_address const& address) {
    sockaddr_un name{};
    name.sun_family = AF_UNIX;
    std::memcpy(name.sun_path, address.text().data(), address.text().size());
    return name;
}

// Non-blocking: a live listener with a full backlog says EAGAIN, which counts as an answer.
bool somebody_answers(std::string const& path, sockaddr_un const& name) {
    int const fd = stream_socket(path);
    bool const answered = ::connect(fd, reinterpret_cast<sockaddr const*>(&name), sizeof name) == 0 || errno == EAGAIN;
    ::close(fd);
    return answered;
}

// What a killed process left is removed; anything else stays and is an error.
void clear_way(std::string const& path, unix_address const& address, sockaddr_un const& name) {
    struct stat found {};
    if (::lstat(address.text().c_str(), &found) != 0) {
        if (errno == ENOENT) return;
        fail_errno(path, errno);
    }
    if (!S_ISSOCK(found.st_mode)) fail(path, "a file that is not a socket has this name", "move it away");
    if (somebody_answers(path, name))
        fail(path, "another process answers on it", "stop that process or take another data directory");
    if (::unlink(address.text().c_str()) != 0 && errno != ENOENT) fail_errno(path, errno);
}

}  // namespace

admin_socket::admin_socket(std::string path) : path_(std::move(path)) { make(); }

admin_socket::admin_socket(std::string path, inherited_socket const& from) : path_(std::move(path)) {
    auto const address = unix_address::of(path_);
    struct stat now {};
    if (address && ::lstat(address->text().c_str(), &now) == 0 && now.st_dev == from.file.device &&
        now.st_ino == from.file.inode) {
        descriptor_ = from.descriptor;
        file_ = from.file;
        owned_ = false;
        return;
    }
    ::close(from.descriptor);
    make();
}

void admin_socket::make() {
    auto const address = unix_address::of(path_);
    if (!address) throw std::runtime_error(address.error().message);
    auto const name = name_of(*address);
    clear_way(path_, *address, name);
    int const fd = stream_socket(path_);
    auto const give_up = [&](int code) {
        ::close(fd);
        fail_errno(path_, code);
    };
    // The file gets the descriptor's mode, less the umask. Nobody can connect before listen(), and by then the mode is proven.
    if (::fchmod(fd, S_IRUSR | S_IWUSR) != 0) give_up(errno);
    if (::bind(fd, reinterpret_cast<sockaddr const*>(&name), sizeof name) != 0) give_up(errno);
    struct stat made {};
    if (::chmod(address->text().c_str(), S_IRUSR | S_IWUSR) != 0 || ::lstat(address->text().c_str(), &made) != 0) give_up(errno);
    if ((made.st_mode & 0777U) != 0600U) give_up(EPERM);
    if (::listen(fd, backlog) != 0) give_up(errno);
    descriptor_ = fd;
    file_ = {made.st_dev, made.st_ino};
}

admin_socket::~admin_socket() {
    if (descriptor_ >= 0) ::close(descriptor_);
    if (!owned_) return;
    auto const address = unix_address::of(path_);
    struct stat now {};
    if (address && ::lstat(address->text().c_str(), &now) == 0 && now.st_dev == file_.device && now.st_ino == file_.inode)
        ::unlink(address->text().c_str());
}

int admin_socket::release() noexcept { return std::exchange(descriptor_, -1); }

bool peer_allowed(int descriptor) noexcept {
    ucred peer{};
    socklen_t size = sizeof peer;
    if (::getsockopt(descriptor, SOL_SOCKET, SO_PEERCRED, &peer, &size) != 0) return false;
    return peer.uid == ::geteuid() || peer.uid == 0;
}

}  // namespace latchkey::portal
