#pragma once
// The admin socket's file and its peers. Internal to this room.

#include <string>

#include "portal/admin_server.hpp"

namespace latchkey::portal {

// A bound, listening Unix socket whose file has mode 0600 before anybody can connect. Owns the descriptor until release(),
// and the file until it is destroyed: it removes the file if that is still the one it made.
class admin_socket {
  public:
    // Throws std::runtime_error with the remedy (see admin_server::start).
    explicit admin_socket(std::string path);
    // Takes over the socket of the process before, or makes a new one where its file is not at the path any more.
    admin_socket(std::string path, inherited_socket const& from);
    ~admin_socket();
    admin_socket(admin_socket const&) = delete;
    admin_socket& operator=(admin_socket const&) = delete;

    int release() noexcept;
    // An inherited file is removed at the end only by who owns it.
    void own_file(bool ours) noexcept { owned_ = ours; }
    socket_file file() const noexcept { return file_; }

  private:
    void make();

    std::string path_;
    int descriptor_ = -1;
    socket_file file_;
    bool owned_ = true;
};

// True where the process at the other end runs as our user or as root.
bool peer_allowed(int descriptor) noexcept;

}  // namespace latchkey::portal
