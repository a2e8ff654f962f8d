#include "gateway/refusal.hpp"

#include <array>
#include <cassert>

#include "gateway/text.hpp"

namespace latchkey::gateway {
namespace {

constexpr std::array<refusal_text, static_cast<std::size_t>(refusal::count_)> table{{
    {200, "OK", "none", "", false, false, 0},
    {400, "Bad Request", "malformed_request", "The request is not well-formed HTTP/1.1.", true, false, 0},
    {400, "Bad Request", "ambiguous_framing", "The request's length could be read in two ways.", true, false, 0},
    {400, "Bad Request", "invalid_chunk", "The chunked request body is not well-formed.", true, false, 0},
    {400, "Bad Request", "invalid_host", "The request needs exactly one valid Host that agrees with its target.", true, false, 0},
    {400, "Bad Request", "invalid_target", "The request target is not a valid path.", true, false, 0},
    {400, "Bad Request", "forbidden_field", "A field's name can be taken for another's, as X_API_KEY for X-API-KEY.", true, false,
     0},
    {501, "Not Implemented", "unknown_transfer_coding", "The only transfer coding taken is chunked.", true, false, 0},
    {505, "HTTP Version Not Supported", "version_not_supported", "The versions taken are HTTP/1.0 and HTTP/1.1.", true, false, 0},
    {400, "Bad Request", "tls_required", "This port takes HTTPS only: begin the address with https://.", true, false, 0},
    {405, "Method Not Allowed", "method_not_allowed", "CONNECT and TRACE are not passed on.", true, false, 0},
    {417, "Expectation Failed", "expectation_failed", "The only expectation taken is 100-continue.", true, false, 0},
    {431, "Request Header Fields Too Large", "head_too_large", "The request's header section is too large.", true, false, 0},
    {431, "Request Header Fields Too Large", "too_many_fields", "The request has too many header fields.", true, false, 0},
    {414, "URI Too Long", "target_too_long", "The request target is too long.", true, false, 0},
    {413, "Content Too Large", "body_too_large", "The request body is larger than this API takes.", true, false, 0},
    {408, "Request Timeout", "head_timeout", "The request head did not arrive in time.", true, false, 0},
    {408, "Request Timeout", "body_timeout", "The request body did not arrive in time.", true, false, 0},
    {401, "Unauthorized", "key_missing", "Send your API key in the X-API-KEY header.", false, true, 0},
    {401, "Unauthorized", "key_invalid", "The API key is not valid.", false, true, 0},
    {401, "Unauthorized", "duplicate_key", "Send exactly one API key.", false, true, 0},
    {404, "Not Found", "no_route", "No API is served at this host and path.", false, false, 0},
    {502, "Bad Gateway", "upstream_unreachable", "The API behind the gateway cannot be reached.", false, false, 0},
    {502, "Bad Gateway", "upstream_reset", "The API behind the gateway broke off before it answered.", false, false, 0},
    {502, "Bad Gateway", "upstream_invalid", "The API behind the gateway gave an invalid response.", false, false, 0},
    {504, "Gateway Timeout", "upstream_connect_timeout", "The API behind the gateway did not accept the connection in time.",
     false, false, 0},
    {504, "Gateway Timeout", "upstream_timeout", "The API behind the gateway did not answer in time.", false, false, 0},
    {503, "Service Unavailable", "overloaded", "The gateway is at its limit; try again shortly.", false, false, 1},
    {503, "Service Unavailable", "usage_full", "The gateway cannot keep account of requests at the moment.", false, false, 1},
    {503, "Service Unavailable", "shutting_down", "The gateway is shutting down.", true, false, 1},
}};
static_assert(table.back().status == 503);

}  // namespace

refusal_text const& text_of(refusal r) noexcept { return table[static_cast<std::size_t>(r)]; }

std::size_t write_refusal(char* out, refusal r, refusal_context const& c) noexcept {
    auto const& t = text_of(r);
    bool const close = t.close || c.close;

    constexpr std::string_view type = R"({"type":"urn:latchkey:problem:)";
    constexpr std::string_view title = R"(","title":")";
    constexpr std::string_view status = R"(","status":)";
    constexpr std::string_view detail = R"(,"detail":")";
    constexpr std::string_view instance = R"(","instance":"urn:latchkey:request:)";
    constexpr std::string_view code = R"(","code":")";
    constexpr std::string_view request_id = R"(","request_id":")";
    constexpr std::string_view end = "\"}\n";
    constexpr std::size_t frame = type.size() + title.size() + status.size() + detail.size() + instance.size() + code.size() +
                                  request_id.size() + end.size();
    constexpr std::size_t status_digits = 3;
    std::size_t const body_bytes =
        frame + status_digits + 2 * t.code.size() + t.reason.size() + t.detail.size() + 2 * c.request_id.size();

    writer w(out, refusal_bytes_max);
    decimal const digits(t.status);
    w.add("HTTP/1.1 ", digits.view(), " ", t.reason,
          "\r\nContent-Type: application/problem+json\r\nCache-Control: no-store\r\nDate: ", c.date);
    if (t.challenge) {
        w.add("\r\nWWW-Authenticate: ApiKey realm=\"", c.realm, "\"");
        if (c.bearer) w.add(", Bearer realm=\"", c.realm, "\"");
    }
    if (r == refusal::method_not_allowed) w.add("\r\nAllow: GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS");
    if (t.retry_after_s) w.add("\r\nRetry-After: ", decimal(t.retry_after_s).view());
    if (close)
        w.add("\r\nConnection: close");
    else if (c.http_1_0)
        w.add("\r\nConnection: keep-alive");
    w.add("\r\nX-Request-Id: ", c.request_id, "\r\nContent-Length: ", decimal(body_bytes).view(), "\r\n\r\n");
    if (!c.head_only) {
        [[maybe_unused]] auto const head_bytes = w.size();
        w.add(type, t.code, title, t.reason, status, digits.view(), detail, t.detail, instance, c.request_id, code, t.code,
              request_id, c.request_id, end);
        assert(w.size() - head_bytes == body_bytes);
    }
    assert(!w.overflowed());
    return w.size();
}

}  // namespace latchkey::gateway
