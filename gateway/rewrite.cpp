#include "gateway/rewrite.hpp"

#include <algorithm>
#include <array>

namespace latchkey::gateway {
namespace {

void write_field(writer& w, field const& f) noexcept {
    // One copy where name and value stand in the usual form in the bytes that were read.
    if (f.value.data() == f.name.data() + f.name.size() + 2 && f.name.data()[f.name.size() + 1] == ' ')
        w << std::string_view(f.name.data(), f.name.size() + 2 + f.value.size()) << "\r\n";
    else
        w << f.name << ": " << f.value << "\r\n";
}

// The prior value of a list field, joined in order, for peers that we trust.
void write_prior(writer& w, head const& h, field_id id) noexcept {
    for (field const& f : h)
        if (f.id == id && !f.value.empty()) w << f.value << ", ";
}

std::string_view single(head const& h, field_id id) noexcept {
    for (field const& f : h)
        if (f.id == id) return f.value;
    return {};
}

void write_forwarding(writer& w, head const& h, forward_context const& c) noexcept {
    w << "X-Forwarded-For: ";
    if (c.trusted_peer) write_prior(w, h, field_id::forwarded_for);
    w << c.client_address << "\r\n";

    auto const prior = [&](field_id id) { return c.trusted_peer ? single(h, id) : std::string_view{}; };
    auto const proto = prior(field_id::forwarded_proto);
    auto const host = prior(field_id::forwarded_host);
    auto const port = prior(field_id::forwarded_port);
    std::string_view const ours = c.tls ? "https" : "http";
    w << "X-Forwarded-Proto: " << (proto.empty() ? ours : proto) << "\r\n";
    if (!host.empty() || !c.frame->host.empty()) w << "X-Forwarded-Host: " << (host.empty() ? c.frame->host : host) << "\r\n";
    w << "X-Forwarded-Port: " << (port.empty() ? c.listener_port : port) << "\r\n";

    w << "Forwarded: ";
    if (c.trusted_peer) write_prior(w, h, field_id::forwarded);
    bool const v6 = c.client_address.find(':') != std::string_view::npos;
    w << (v6 ? "for=\"[" : "for=") << c.client_address << (v6 ? "]\"" : "");
    if (!c.frame->host.empty()) w << ";host=\"" << c.frame->host << "\"";
    if (c.tls)
        w << ";proto=https\r\n";
    else
        w << ";proto=http\r\n";
}

void write_trace(writer& w, head const& h, forward_context const& c) noexcept {
    field const* parent = nullptr;
    unsigned parents = 0;
    for (field const& f : h)
        if (f.id == field_id::traceparent) {
            parent = &f;
            ++parents;
        }
    if (parents == 1 && good_traceparent(parent->value)) {
        write_field(w, *parent);
        for (field const& f : h)
            if (f.id == field_id::tracestate) write_field(w, f);
        return;
    }
    // Made where none came, or none that can be used; a tracestate without its parent means nothing.
    w << "traceparent: 00-" << c.trace_id << "-" << c.span_id << "-01\r\n";
}

// What browsers send with a preflight, and upstreams answer it by. Anything else (a cookie, X-HTTP-Method-Override) could make
// more of a request without a key than a question.
bool of_preflight(std::string_view name) noexcept {
    constexpr std::array<std::string_view, 9> names{"origin",
                                                    "access-control-request-method",
                                                    "access-control-request-headers",
                                                    "access-control-request-private-network",
                                                    "accept",
                                                    "accept-language",
                                                    "accept-encoding",
                                                    "referer",
                                                    "user-agent"};
    return std::any_of(names.begin(), names.end(), [&](std::string_view n) { return equals_lower(name, n); });
}

// Which of a message's end-to-end fields go on. Mostly all, so that one flag is looked at.
class passage {
  public:
    passage(head const& h, bool nominates, bool preflight = false) noexcept
        : all_(!nominates && !preflight), preflight_(preflight) {
        if (nominates) named_ = nominations(h);
    }
    bool operator()(field const& f) const noexcept {
        return all_ || (!named_.has(f.name) && (!preflight_ || of_preflight(f.name)));
    }

  private:
    bool all_;
    bool preflight_;
    nominations named_;
};

}  // namespace

void write_request_lines(writer& w, std::string_view method, std::string_view base_path, std::string_view path,
                         std::string_view query, std::string_view host) noexcept {
    bool const whole_server = path == "*" && !base_path.empty();  // OPTIONS *: the server, of which the base is all there is
    w << method << " " << base_path << (whole_server ? std::string_view{} : path) << query << " HTTP/1.1\r\nHost: " << host
      << "\r\n";
}

std::size_t request_lines_max(std::string_view method, std::string_view path, std::string_view query,
                              std::string_view client_host, std::size_t target_bytes) noexcept {
    constexpr std::string_view around = "  HTTP/1.1\r\nHost: \r\n";
    return method.size() + path.size() + query.size() + client_host.size() + target_bytes + around.size();
}

void write_request_fields(writer& w, head const& h, forward_context const& c) noexcept {
    passage const passes(h, c.frame->nominates, c.preflight);
    for (field const& f : h) {
        switch (f.id) {
            case field_id::other:
                if (!tells_who_calls(f.name) && (!tells_of_client(f.name) || (c.trusted_peer && plainly_spelled(f.name))) &&
                    passes(f))
                    write_field(w, f);
                break;
            case field_id::api_key:
                if (c.api->forward_key) write_field(w, f);
                break;
            case field_id::authorization:
                if (!(c.bearer_is_key && equals_lower(f.value.substr(0, 7), "bearer ")) && passes(f)) write_field(w, f);
                break;
            case field_id::expect:
                if (c.frame->expects_continue) w << "Expect: 100-continue\r\n";
                break;
            case field_id::proxy_authenticate:
                if (!c.preflight) write_field(w, f);
                break;
            default: break;  // hop-by-hop, framing, and what is ours to set
        }
    }
    if (c.key) {
        w << "X-Consumer-Id: " << c.key->application_id << "\r\nX-Consumer-Username: " << c.key->username
          << "\r\nX-Credential-Identifier: " << c.key->key_id << "\r\n";
    }
    w << "X-Request-Id: " << c.request_id << "\r\n";
    write_trace(w, h, c);
    write_forwarding(w, h, c);
    if (c.frame->body.kind == body_kind::chunked)
        w << "Transfer-Encoding: chunked\r\n";
    else if (c.frame->body.kind == body_kind::length)
        w << "Content-Length: " << number(c.frame->body.length) << "\r\n";
    else if (!single(h, field_id::content_length).empty())
        w << "Content-Length: 0\r\n";
    w << "\r\n";
}

void write_response_head(writer& w, head const& h, answer_context const& c) noexcept {
    passage const passes(h, c.frame->nominates);
    w << "HTTP/1.1 " << number(static_cast<std::uint64_t>(h.status)) << " " << h.reason << "\r\n";
    // To HEAD, and in a 304, the length is of the body that is not there; a 204 has none (RFC 9110 section 8.6).
    bool const keeps_length = c.body.kind == body_kind::none && (c.to_head || h.status == 304) && h.status != 204;
    for (field const& f : h) {
        switch (f.id) {
            case field_id::content_length:
                if (keeps_length && !f.alias) write_field(w, f);
                break;
            case field_id::transfer_encoding:
            case field_id::connection:
            case field_id::keep_alive:
            case field_id::proxy_connection:
            case field_id::upgrade:
            case field_id::te:
            case field_id::http2_settings:
                if (f.alias) write_field(w, f);
                break;
            case field_id::request_id: break;
            default:
                if (passes(f)) write_field(w, f);
                break;
        }
    }
    w << "X-Request-Id: " << c.request_id << "\r\n";
    if (c.close)
        w << "Connection: close\r\n";
    else if (c.http_1_0)
        w << "Connection: keep-alive\r\n";
    if (c.body.kind == body_kind::chunked)
        w << "Transfer-Encoding: chunked\r\n";
    else if (c.body.kind == body_kind::length)
        w << "Content-Length: " << number(c.body.length) << "\r\n";
    else if (c.body.kind == body_kind::none && !keeps_length && h.status != 204 && h.status >= 200)
        w << "Content-Length: 0\r\n";
    w << "\r\n";
}

void write_interim_head(writer& w, head const& h) noexcept {
    w << "HTTP/1.1 " << number(static_cast<std::uint64_t>(h.status)) << " " << h.reason << "\r\n";
    nominations const named(h);
    for (field const& f : h)
        if (f.id == field_id::other && !named.has(f.name)) write_field(w, f);
    w << "\r\n";
}

bool good_request_id(std::string_view id) noexcept { return !id.empty() && id.size() <= 128 && all(id, char_class::request_id); }

bool good_traceparent(std::string_view t) noexcept {
    if (t.size() < 55 || t[2] != '-' || t[35] != '-' || t[52] != '-') return false;
    auto const lower_hex = [&](std::size_t from, std::size_t n) {
        bool zero = true;
        for (char const c : t.substr(from, n)) {
            if (!is(c, char_class::hex) || (c >= 'A' && c <= 'F')) return 0;
            zero = zero && c == '0';
        }
        return zero ? 1 : 2;
    };
    auto const version = t.substr(0, 2);
    if (lower_hex(0, 2) == 0 || version == "ff" || lower_hex(3, 32) != 2 || lower_hex(36, 16) != 2 || lower_hex(53, 2) == 0)
        return false;
    return version == "00" ? t.size() == 55 : t.size() == 55 || t[55] == '-';
}

}  // namespace latchkey::gateway
