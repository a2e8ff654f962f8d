#include "usage/record.hpp"

namespace latchkey::usage {

std::string_view to_string(outcome o) noexcept {
    switch (o) {
        case outcome::served: return "served";
        case outcome::refused: return "refused";
        case outcome::upstream_failed: return "upstream_failed";
        case outcome::upstream_aborted: return "upstream_aborted";
        case outcome::client_aborted: return "client_aborted";
        case outcome::timed_out: return "timed_out";
        case outcome::shut_down: return "shut_down";
    }
    return "unknown";
}

}  // namespace latchkey::usage
