#include "gateway/admission.hpp"

#include <algorithm>

#include "gateway/text.hpp"

namespace latchkey::gateway {
namespace {

// The token of "Bearer <token>" (RFC 6750 section 2.1); empty where the field is of another scheme.
std::string_view bearer_token(std::string_view value) noexcept {
    constexpr std::string_view scheme = "bearer ";
    if (value.size() <= scheme.size() || !equals_lower(value.substr(0, scheme.size()), scheme)) return {};
    return trimmed(value.substr(scheme.size()));
}

bool of_a_keys_length(std::string_view text) noexcept {
    return text.size() >= keystore::key_chars_min && text.size() <= keystore::key_chars_max;
}

}  // namespace

void identity::assign(keystore::key_view const& k) noexcept {
    char* at = text_.data();
    auto const put = [&at](std::string_view s, std::size_t most) {
        std::size_t const n = std::min(s.size(), most);
        std::memcpy(at, s.data(), n);
        at += n;
        return static_cast<std::uint16_t>(n);
    };
    key_id_ = put(k.key_id, 64);
    application_id_ = put(k.application_id, 64);
    application_ = put(k.application, 200);
    known_ = true;
}

bool bearer_is_key(conf::key_settings const& settings, conf::api const& api, keystore::key_table const& table,
                   head const& h) noexcept {
    if (!settings.bearer || api.require_key) return settings.bearer;
    return std::any_of(h.begin(), h.end(), [&](field const& f) {
        if (f.id != field_id::authorization) return false;
        auto const token = bearer_token(f.value);
        if (!of_a_keys_length(token)) return false;
        keystore::key_view found;
        return keystore::shape_of(token, settings.prefix) == keystore::key_shape::ours ||
               table.find(keystore::digest_of(token), found);
    });
}

bool key_guess::look(std::string_view bytes) noexcept {
    forget();
    auto const line_end = size_ == 0 ? std::string_view::npos : bytes.find('\n');
    if (line_end == std::string_view::npos) return false;
    std::size_t const at = line_end + behind_line_;
    if (at + size_ >= bytes.size() || bytes[at - 1] != ' ' || bytes[at + size_] != '\r') return false;
    text_ = bytes.substr(at, size_);
    hash_ = keystore::digest_of(text_);
    return true;
}

bool key_guess::digest_of(std::string_view key, head const& h, keystore::digest& out) noexcept {
    bool const guessed = key.data() == text_.data() && key.size() == text_.size();
    out = guessed ? hash_ : keystore::digest_of(key);
    forget();
    auto const* const line_end = h.target.data() + h.target.size() + std::string_view(" HTTP/1.1\r").size();
    auto const behind = static_cast<std::size_t>(key.data() - line_end);
    size_ = behind <= UINT16_MAX ? static_cast<std::uint16_t>(key.size()) : std::uint16_t{0};
    behind_line_ = static_cast<std::uint16_t>(behind);
    return guessed;
}

credential read_credential(head const& h, conf::key_settings const& settings, key_guess* guess) noexcept {
    credential out;
    std::string_view key;
    unsigned keys = 0;
    for (field const& f : h) {
        if (f.id == field_id::api_key) {
            key = f.value;
            ++keys;
        } else if (f.id == field_id::authorization && settings.bearer) {
            if (auto const token = bearer_token(f.value); !token.empty()) {
                key = token;
                ++keys;
            }
        }
    }
    if (keys > 1) {
        out.why = refusal::duplicate_key;
    } else if (!key.empty()) {
        // Only what the table has is a key, so its form and checksum need not be looked at: of a good one that costs as much as
        // its digest, and who sends bad ones is told the same.
        out.why = of_a_keys_length(key) ? refusal::none : refusal::key_invalid;
        if (out.why == refusal::none && guess)
            out.guessed = guess->digest_of(key, h, out.hash);
        else if (out.why == refusal::none)
            out.hash = keystore::digest_of(key);
    }
    return out;
}

bool is_preflight(head const& h, request_frame const& frame) noexcept {
    if (h.method != "OPTIONS" || frame.body.kind != body_kind::none || frame.nominates) return false;
    unsigned origins = 0;
    unsigned methods = 0;
    for (field const& f : h) {
        if (f.id == field_id::api_key || f.id == field_id::authorization) return false;
        if (f.id != field_id::other) continue;
        if (equals_lower(f.name, "origin")) {
            if (f.value.empty()) return false;
            ++origins;
        } else if (equals_lower(f.name, "access-control-request-method")) {
            if (f.value.empty() || !all(f.value, char_class::token)) return false;
            ++methods;
        }
    }
    return origins == 1 && methods == 1;
}

refusal admit(credential const& shown, keystore::key_table const& table, std::int64_t wall_ms, identity& who,
              keystore::key_view& found) noexcept {
    if (shown.why != refusal::none) return shown.why;
    if (!table.find(shown.hash, found)) return refusal::key_invalid;
    who.assign(found);
    bool const expired = found.expires_ms != 0 && wall_ms >= found.expires_ms;
    return found.state == keystore::key_state::active && !expired ? refusal::none : refusal::key_invalid;
}

}  // namespace latchkey::gateway
