#include <fcntl.h>
#include <poll.h>
#include <unistd.h>

#include <cerrno>
#include <iostream>

#include "cli/run.hpp"

namespace {

// One that is closed would be given to the next file or socket, which would then get what is meant for it. What is written to
// standard output fails instead.
void hold_standard_descriptors() {
    for (int const fd : {STDIN_FILENO, STDOUT_FILENO, STDERR_FILENO})
        if (::fcntl(fd, F_GETFD) < 0 && errno == EBADF)
            static_cast<void>(::open("/dev/null", fd == STDERR_FILENO ? O_WRONLY : O_RDONLY));
}

// Of a pipe or socket, poll() says so at any time; of files, /dev/full and /dev/null it says that they can be written.
bool reader_is_gone() {
    pollfd out{STDOUT_FILENO, POLLOUT, 0};
    return ::poll(&out, 1, 0) == 1 && (out.revents & (POLLERR | POLLHUP)) != 0;
}

}  // namespace

int main(int argc, char** argv) {
    hold_standard_descriptors();
    bool const terminal = ::isatty(STDIN_FILENO) == 1 && ::isatty(STDERR_FILENO) == 1;
    return latchkey::cli::run(argc, argv, {std::cin, std::cout, std::cerr, terminal, reader_is_gone});
}
