#pragma once
// The admin socket's file and its peers. Internal to this room.

#include <sys/types.h>

#include <string>

namespace latchkey::portal {

// A bound, listening Unix socket whose file has mode 0600 before anybody can connect. Owns the descriptor until release(),
// and the file until it is destroyed: it removes the file if that is still the one it made.
class admin_socket {
  public:
    // Throws std::runtime_error with the remedy (see admin_server::start).
    explicit admin_socket(std::string path);
    ~admin_socket();
    admin_socket(admin_socket const&) = delete;
    admin_socket& operator=(admin_socket const&) = delete;

    int release() noexcept;

  private:
    std::string path_;
    int descriptor_ = -1;
    dev_t device_ = 0;
    ino_t inode_ = 0;
};

// True where the process at the other end runs as our user or as root.
bool peer_allowed(int descriptor) noexcept;

}  // namespace latchkey::portal
