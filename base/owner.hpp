#pragma once
// Files that root makes in a folder of another user. Any thread; nothing is owned.

#include <string>

namespace latchkey {

// Gives the new file `fd` in `folder` to the folder's owner and group if this process is root and they differ: the gateway runs
// as that user, and could not open what root's commands made. Only for a file that the caller made itself with O_EXCL: of any
// other one the folder's owner may have chosen what it is. 0, or errno.
int give_to_owner_of(std::string const& folder, int fd) noexcept;

}  // namespace latchkey
