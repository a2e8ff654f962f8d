#pragma once
// A data directory and its lock. One process at a time works on it; flock() on DATA/lock says which, and goes with the process.

#include <chrono>
#include <string>
#include <string_view>

#include "base/error.hpp"

namespace latchkey::cli {

struct data_paths {
    explicit data_paths(std::string const& dir);
    std::string dir, lock, keys_db, usage_db, admin_socket;
};

// Makes the folder with mode 0700 where it is missing. Error: `io` where that fails; `not_allowed` where others may write to it.
result<void> make_data_dir(std::string const& dir);

class data_lock {
  public:
    // Waits up to `patience` for another process to end. `holder` is written into the file ("gateway 123", "command 124").
    // Error: `busy` names the holder as it stands in the file; `not_found` where the folder is missing; `io`.
    static result<data_lock> take(data_paths const&, std::string const& kind, std::chrono::milliseconds patience);
    // The lock that the process before holds: it goes with the last process that has `descriptor`. Error: `not_allowed` where
    // that is another data directory's.
    static result<data_lock> inherit(data_paths const&, int descriptor);
    ~data_lock();

    // Writes the holder into the file.
    result<void> name_holder(data_paths const&, std::string const& kind) const;
    int descriptor() const noexcept { return descriptor_; }
    data_lock(data_lock&& other) noexcept;
    data_lock& operator=(data_lock&&) = delete;

  private:
    explicit data_lock(int descriptor) : descriptor_(descriptor) {}
    int descriptor_ = -1;
};

std::string holder_name(std::string_view kind, int process);
// What the holder wrote; empty where nobody ever did.
std::string lock_holder(data_paths const&);

}  // namespace latchkey::cli
