#pragma once
// Who asks: finds the one API key of a request and looks it up. Pure but for the table; no allocation.

#include <array>
#include <cstdint>
#include <cstring>
#include <string_view>

#include "conf/settings.hpp"
#include "gateway/frame.hpp"
#include "gateway/head.hpp"
#include "gateway/refusal.hpp"
#include "keystore/key_table.hpp"

namespace latchkey::gateway {

// Who a request turned out to come from. Copies: the table may change while the exchange runs.
class identity {
  public:
    void clear() noexcept { known_ = false; }
    void assign(keystore::key_view const&) noexcept;

    bool known() const noexcept { return known_; }
    std::string_view key_id() const noexcept { return {text_.data(), key_id_}; }
    std::string_view application_id() const noexcept { return {text_.data() + key_id_, application_id_}; }
    std::string_view application() const noexcept { return {text_.data() + key_id_ + application_id_, application_}; }

  private:
    bool known_ = false;
    std::uint16_t key_id_ = 0;
    std::uint16_t application_id_ = 0;
    std::uint16_t application_ = 0;
    std::array<char, 64 + 64 + 200> text_;
};

// Whether an `Authorization: Bearer` of this request is a credential of ours, to be removed: on an api that wants a key, any; on
// an open one, what has the form of our keys or is one (imported, or made when the prefix was another).
bool bearer_is_key(conf::key_settings const&, conf::api const&, keystore::key_table const&, head const&) noexcept;

// Where a connection's next key will stand. Its requests mostly have the same fields, so as far behind the request line as the
// last one: what stands there can be digested before the head is parsed, and the key's place in the table asked for that much
// earlier. Only a guess: a digest counts for the very bytes that it was made of, and whether they are the key is for the head to
// say.
class key_guess {
  public:
    // To be called with a request's first bytes, which then stay where they are, or forget() is called. True: there may be a key,
    // with this digest.
    bool look(std::string_view bytes) noexcept;
    keystore::digest const& hash() const noexcept { return hash_; }
    void forget() noexcept { text_ = {}; }

    // The digest of the key that the head shows, from whose place the next guess is made. Whether it had been guessed.
    bool digest_of(std::string_view key, head const&, keystore::digest& out) noexcept;

  private:
    std::string_view text_;  // what hash_ is of; empty: nothing
    keystore::digest hash_{};
    std::uint16_t behind_line_ = 0;  // bytes from the end of the request line to the key
    std::uint16_t size_ = 0;         // of the key; 0: none was seen yet, or none so near
};

// The one key that a request shows: its digest, or why there is none to look up (missing, two of them, too short or too long).
struct credential {
    refusal why = refusal::key_missing;
    bool guessed = false;   // so its slot in the table was asked for before
    keystore::digest hash;  // where `why` is none
};
credential read_credential(head const& h, conf::key_settings const&, key_guess* guess = nullptr) noexcept;

// Whether this is a CORS preflight as browsers send it (Fetch standard, section 4.8), and nothing that could pass for one:
// OPTIONS without a body, one Origin, one Access-Control-Request-Method, no credential, not even an empty one, and nothing
// nominated.
bool is_preflight(head const&, request_frame const&) noexcept;

// Decides on the key. On success, and where a known key may not be used (revoked, expired), `who` is set; callers are told the
// same for every bad key (conventions: the caller cannot tell unknown from disabled). `found` is valid until the table changes.
refusal admit(credential const&, keystore::key_table const&, std::int64_t wall_ms, identity& who,
              keystore::key_view& found) noexcept;

}  // namespace latchkey::gateway
