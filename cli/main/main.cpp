#include <unistd.h>

#include <iostream>

#include "cli/run.hpp"

int main(int argc, char** argv) {
    bool const terminal = ::isatty(STDIN_FILENO) == 1 && ::isatty(STDERR_FILENO) == 1;
    return latchkey::cli::run(argc, argv, {std::cin, std::cout, std::cerr, terminal});
}
