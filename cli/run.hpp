#pragma once
// The command line. run() is the whole program but for the process's own streams, so tests can call it. One thread; `serve`
// starts its own and changes signal masks and limits of the process.

#include <istream>
#include <ostream>
#include <stdexcept>
#include <string>

#include "base/error.hpp"

namespace latchkey::cli {

struct streams {
    std::istream& in;
    std::ostream& out;      // data
    std::ostream& err;      // messages
    bool terminal = false;  // a person can be asked
    // After a write to `out` has failed: did its reader go away, as `head` does when it has enough? Null: no.
    bool (*reader_is_gone)() = nullptr;
};

enum exit_code : int {
    exit_ok = 0,
    exit_error = 1,
    exit_usage = 2,
    exit_not_found = 3,
    exit_not_allowed = 4,
    exit_conflict = 5,
    exit_unreachable = 6,
    exit_findings = 7,
};

// Ends a command with a sentence on stderr and an exit code.
struct failure : std::runtime_error {
    failure(exit_code c, std::string const& message) : std::runtime_error(message), code(c) {}
    explicit failure(error const&);
    exit_code code;
};

int run(int argc, char const* const* argv, streams);

}  // namespace latchkey::cli
