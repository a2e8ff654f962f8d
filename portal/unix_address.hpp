#pragma once
// The address of a Unix socket file of any path length. sockaddr_un takes 107 bytes; a longer path is reached through its
// open folder as /proc/self/fd/N/name, so the object must live for as long as the address is used. Any thread.

#include <string>

#include "base/error.hpp"

namespace latchkey::portal {

class unix_address {
  public:
    // Error: `io` where the folder cannot be opened (only for long paths), `invalid_argument` where the name alone is too long.
    static result<unix_address> of(std::string const& path);
    ~unix_address();
    unix_address(unix_address&& other) noexcept;
    unix_address& operator=(unix_address&&) = delete;

    std::string const& text() const noexcept { return text_; }  // at most 107 bytes

  private:
    unix_address(std::string text, int folder) : text_(std::move(text)), folder_(folder) {}
    std::string text_;
    int folder_ = -1;
};

}  // namespace latchkey::portal
