#include "cli/data_dir.hpp"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <filesystem>
#include <system_error>
#include <thread>
#include <utility>

#include "base/owner.hpp"

namespace latchkey::cli {
namespace {

constexpr auto retry_every = std::chrono::milliseconds(20);  // flock() has no wait with a bound

std::string reason(int code) { return std::generic_category().message(code); }

std::string read_holder(int fd) {
    std::array<char, 64> text{};
    auto const n = ::pread(fd, text.data(), text.size(), 0);
    std::string out(text.data(), n > 0 ? static_cast<std::size_t>(n) : 0);
    while (!out.empty() && out.back() == '\n') out.pop_back();
    return out;
}

// Opens the lock file, and makes it where it is missing. -1 with errno where neither works.
int open_lock(data_paths const& at) {
    constexpr int flags = O_RDWR | O_CLOEXEC | O_NOFOLLOW;
    for (;;) {
        int fd = ::open(at.lock.c_str(), flags);
        if (fd >= 0 || errno != ENOENT) return fd;
        fd = ::open(at.lock.c_str(), flags | O_CREAT | O_EXCL, 0600);
        if (fd < 0 && errno == EEXIST) continue;  // another process was faster
        if (fd < 0) return fd;
        int const failed = give_to_owner_of(at.dir, fd);
        if (failed == 0) return fd;
        ::unlink(at.lock.c_str());
        ::close(fd);
        errno = failed;
        return -1;
    }
}

}  // namespace

data_paths::data_paths(std::string const& d) : dir(d) {
    auto const in = [&](char const* name) { return (std::filesystem::path(d) / name).string(); };
    lock = in("lock");
    keys_db = in("keys.db");
    usage_db = in("usage.db");
    admin_socket = in("admin.sock");
}

result<void> make_data_dir(std::string const& dir) {
    std::error_code ec;
    auto const parent = std::filesystem::absolute(dir, ec).parent_path();
    if (!ec) std::filesystem::create_directories(parent, ec);
    if (!ec && ::mkdir(dir.c_str(), 0700) != 0 && errno != EEXIST) ec = std::error_code(errno, std::generic_category());
    struct stat found {};
    if (!ec && ::stat(dir.c_str(), &found) != 0) ec = std::error_code(errno, std::generic_category());
    if (ec)
        return error{errc::io, fmt::format("cannot make the data directory {}: {}; name another with --data", dir, ec.message())};
    if (!S_ISDIR(found.st_mode)) return error{errc::io, fmt::format("{} is not a folder; name another with --data", dir)};
    if ((found.st_mode & 0022U) != 0)
        return error{errc::not_allowed, fmt::format("others may write to the data directory {}; run: chmod 700 {}", dir, dir)};
    return {};
}

result<data_lock> data_lock::take(data_paths const& at, std::string const& kind, std::chrono::milliseconds patience) {
    int const fd = open_lock(at);
    if (fd < 0) {
        if (errno == ENOENT)
            return error{errc::not_found,
                         fmt::format("there is no data directory {}; name the gateway's with --data or --config", at.dir)};
        auto const code = errno == EACCES ? errc::not_allowed : errc::io;
        return error{code, fmt::format("cannot open {}: {}; check --data and its permissions", at.lock, reason(errno))};
    }
    data_lock held(fd);
    auto const until = std::chrono::steady_clock::now() + patience;
    while (::flock(fd, LOCK_EX | LOCK_NB) != 0) {
        if (errno != EWOULDBLOCK && errno != EINTR)
            return error{errc::io, fmt::format("cannot lock {}: {}; keep the data directory on a local file system", at.lock,
                                               reason(errno))};
        if (std::chrono::steady_clock::now() >= until)
            return error{
                errc::busy,
                fmt::format("the data directory {} is in use by another process ({}); a second gateway needs its own: --data DIR",
                            at.dir, read_holder(fd))};
        std::this_thread::sleep_for(retry_every);
    }
    if (auto const named = held.name_holder(at, kind); !named) return named.error();
    return held;
}

result<data_lock> data_lock::inherit(data_paths const& at, int descriptor) {
    data_lock held(descriptor);
    struct stat ours {};
    struct stat wanted {};
    if (::fstat(descriptor, &ours) != 0 || ::stat(at.lock.c_str(), &wanted) != 0 || ours.st_dev != wanted.st_dev ||
        ours.st_ino != wanted.st_ino)
        return error{
            errc::not_allowed,
            fmt::format("the data directory cannot change to {} by a reload: stop the gateway and start it again", at.dir)};
    return held;
}

result<void> data_lock::name_holder(data_paths const& at, std::string const& kind) const {
    auto const text = holder_name(kind, ::getpid()) + "\n";
    if (::ftruncate(descriptor_, 0) != 0 ||
        ::pwrite(descriptor_, text.data(), text.size(), 0) != static_cast<ssize_t>(text.size()))
        return error{errc::io, fmt::format("cannot write {}: {}; free space on its disk", at.lock, reason(errno))};
    return {};
}

data_lock::data_lock(data_lock&& other) noexcept : descriptor_(std::exchange(other.descriptor_, -1)) {}

data_lock::~data_lock() {
    if (descriptor_ >= 0) ::close(descriptor_);
}

std::string holder_name(std::string_view kind, int process) { return fmt::format("{} {}", kind, process); }

std::string lock_holder(data_paths const& at) {
    int const fd = ::open(at.lock.c_str(), O_RDONLY | O_CLOEXEC | O_NOFOLLOW);
    if (fd < 0) return {};
    auto out = read_holder(fd);
    ::close(fd);
    return out;
}

}  // namespace latchkey::cli
