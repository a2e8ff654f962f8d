#pragma once
// What a single value may look like, apart from where it was written: pure rules over texts, used by the loader (which adds
// file, line and column) and by the parsers of flags. Any thread.

#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace latchkey::conf {

// `what` names the text and the broken rule, `remedy` what to write instead. Neither ends in a full stop.
struct problem {
    std::string what;
    std::string remedy;
};

// 1..64 of A-Za-z0-9._-
std::optional<problem> api_name_problem(std::string_view);

// A lower-case host name or literal address without port (IPv6 in brackets), or "*." and a name of at least one label.
std::optional<problem> host_problem(std::string_view);

// A path as it is compared after normalization: from '/', no "//", no dot segment, no '%', no query or fragment, visible ASCII.
std::optional<problem> path_prefix_problem(std::string_view);

// A literal address, or a network "address/bits" whose host bits are zero (RFC 4632 section 3.1).
std::optional<problem> cidr_problem(std::string_view);

// 2..16 of a-z0-9
std::optional<problem> key_prefix_problem(std::string_view);

// 1..128 visible ASCII characters without '"' and '\' (it stands in a quoted-string, RFC 9110 section 5.6.4).
std::optional<problem> realm_problem(std::string_view);

// The text in single quotes, control bytes escaped, cut after 80 bytes: safe in a message on a terminal.
std::string shown(std::string_view text);

// A decimal number without sign, blanks or leading '+'; nullopt where it is none or does not fit.
std::optional<unsigned long long> decimal(std::string_view text) noexcept;

// The name nearest to `wrong` by edits (insert, delete, replace, swap of neighbours), if it is near enough to be meant.
std::optional<std::string> nearest(std::string_view wrong, std::vector<std::string> const& names);

}  // namespace latchkey::conf
