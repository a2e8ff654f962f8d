#pragma once
// What can go wrong outside the proxy's own protocol work: in the store, the journal, the settings, the command line.
// Plain values, copyable, no globals; safe from any thread.

#include <boost/assert/source_location.hpp>
#include <boost/system/result.hpp>

#include <stdexcept>
#include <string>

namespace latchkey {

enum class errc {
    invalid_argument,  // the caller's input breaks a stated rule
    not_found,         // nothing has that id
    conflict,          // something with that identity exists already
    not_allowed,       // the caller may not
    busy,              // another process holds what is needed; a retry may succeed
    corrupt,           // the file is not what it must be
    newer_schema,      // the file was written by a later Latchkey
    unavailable,       // the other side does not answer
    io,                // the operating system said no
};

// `message` is one sentence for an operator: what happened, to what, and the remedy. It never holds a secret.
struct error {
    errc code;
    std::string message;
};

template <class T>
using result = boost::system::result<T, error>;

// Found by boost::system::result::value() on an error. Start-up code uses value(); code after start looks first.
[[noreturn]] inline void throw_exception_from_error(error const& e, boost::source_location const&) {
    throw std::runtime_error(e.message);
}

}  // namespace latchkey
