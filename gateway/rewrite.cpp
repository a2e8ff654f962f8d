#include "gateway/rewrite.hpp"

#include <algorithm>
#include <array>

namespace latchkey::gateway {
namespace {

// Fields that go on as they are. Those that stand side by side in the bytes that were read, in the usual form, are one copy.
class copier {
  public:
    explicit copier(writer& w) noexcept : w_(w) {}

    void add(field const& f) noexcept {
        char const* const value = f.value.data();
        bool const usual = value == f.name.data() + f.name.size() + 2 && value[-1] == ' ';
        if (!usual || !begin_ || f.name.data() != end_ + line_end) {
            flush();
            begin_ = f.name.data();
        }
        end_ = value + f.value.size();
        if (!usual) {
            w_.add(f.name, ": ", f.value, "\r\n");
            begin_ = nullptr;
        }
    }
    void flush() noexcept {
        if (begin_) w_.add(std::string_view(begin_, end_), "\r\n");
        begin_ = nullptr;
    }

  private:
    static constexpr std::ptrdiff_t line_end = 2;
    writer& w_;
    char const* begin_ = nullptr;  // of what is not written yet
    char const* end_ = nullptr;    // of the last value
};

void write_status_line(writer& w, head const& h) noexcept {
    w.add("HTTP/1.1 ", decimal(static_cast<std::uint64_t>(h.status)).view(), " ", h.reason, "\r\n");
}

// The field that frames the body, and the empty line. `tells_none`: that there is no body is said.
void write_framing(writer& w, framing const& body, bool tells_none) noexcept {
    if (body.kind == body_kind::chunked)
        w.add("Transfer-Encoding: chunked\r\n\r\n");
    else if (body.kind == body_kind::length)
        w.add("Content-Length: ", decimal(body.length).view(), "\r\n\r\n");
    else if (body.kind == body_kind::none && tells_none)
        w.add("Content-Length: 0\r\n\r\n");
    else
        w.add("\r\n");
}

// The prior value of a list field, joined in order, for peers that we trust.
void write_prior(writer& w, head const& h, field_id id) noexcept {
    for (field const& f : h)
        if (f.id == id && !f.value.empty()) w.add(f.value, ", ");
}

std::string_view single(head const& h, field_id id) noexcept {
    for (field const& f : h)
        if (f.id == id) return f.value;
    return {};
}

void write_forwarding(writer& w, head const& h, forward_context const& c) noexcept {
    auto const prior = [&](field_id id) { return c.trusted_peer ? single(h, id) : std::string_view{}; };
    auto const or_else = [](std::string_view told, std::string_view ours) { return told.empty() ? ours : told; };
    std::string_view const scheme = c.tls ? "https" : "http";
    std::string_view const client = c.client_address;
    std::string_view const asked = c.frame->host;

    w.add("X-Forwarded-For: ");
    if (c.trusted_peer) write_prior(w, h, field_id::forwarded_for);
    w.add(client, "\r\nX-Forwarded-Proto: ", or_else(prior(field_id::forwarded_proto), scheme),
          "\r\nX-Forwarded-Port: ", or_else(prior(field_id::forwarded_port), c.listener_port));
    if (auto const host = or_else(prior(field_id::forwarded_host), asked); !host.empty()) w.add("\r\nX-Forwarded-Host: ", host);

    w.add("\r\nForwarded: ");
    if (c.trusted_peer) write_prior(w, h, field_id::forwarded);
    if (client.find(':') == std::string_view::npos)
        w.add("for=", client);
    else
        w.add("for=\"[", client, "]\"");
    if (!asked.empty()) w.add(";host=\"", asked, "\"");
    w.add(";proto=", scheme, "\r\n");
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
        copier copy(w);
        copy.add(*parent);
        for (field const& f : h)
            if (f.id == field_id::tracestate) copy.add(f);
        copy.flush();
        return;
    }
    // Made where none came, or none that can be used; a tracestate without its parent means nothing.
    w.add("traceparent: 00-", c.trace_id, "-", c.span_id, "-01\r\n");
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
    w.add(method, " ", base_path, whole_server ? std::string_view{} : path, query, " HTTP/1.1\r\nHost: ", host, "\r\n");
}

std::size_t request_lines_max(std::string_view method, std::string_view path, std::string_view query,
                              std::string_view client_host, std::size_t target_bytes) noexcept {
    constexpr std::string_view around = "  HTTP/1.1\r\nHost: \r\n";
    return method.size() + path.size() + query.size() + client_host.size() + target_bytes + around.size();
}

void write_request_fields(writer& w, head const& h, forward_context const& c) noexcept {
    passage const passes(h, c.frame->nominates, c.preflight);
    copier copy(w);
    for (field const& f : h) {
        switch (f.id) {
            case field_id::other:
                if (!tells_who_calls(f.name) && (!tells_of_client(f.name) || (c.trusted_peer && plainly_spelled(f.name))) &&
                    passes(f))
                    copy.add(f);
                break;
            case field_id::api_key:
                if (c.api->forward_key) copy.add(f);
                break;
            case field_id::authorization:
                if (!(c.bearer_is_key && equals_lower(f.value.substr(0, 7), "bearer ")) && passes(f)) copy.add(f);
                break;
            case field_id::proxy_authenticate:
                if (!c.preflight) copy.add(f);
                break;
            default: break;  // hop-by-hop, framing, and what is ours to set
        }
    }
    copy.flush();
    if (c.frame->expects_continue) w.add("Expect: 100-continue\r\n");
    if (c.key)
        w.add("X-Consumer-Id: ", c.key->application_id, "\r\nX-Consumer-Username: ", c.key->username,
              "\r\nX-Credential-Identifier: ", c.key->key_id, "\r\n");
    w.add("X-Request-Id: ", c.request_id, "\r\n");
    write_trace(w, h, c);
    write_forwarding(w, h, c);
    write_framing(w, c.frame->body, !single(h, field_id::content_length).empty());
}

void write_response_head(writer& w, head const& h, answer_context const& c) noexcept {
    passage const passes(h, c.frame->nominates);
    copier copy(w);
    write_status_line(w, h);
    // To HEAD, and in a 304, the length is of the body that is not there; a 204 has none (RFC 9110 section 8.6).
    bool const keeps_length = c.body.kind == body_kind::none && (c.to_head || h.status == 304) && h.status != 204;
    bool dated = false;
    for (field const& f : h) {
        switch (f.id) {
            case field_id::content_length:
                if (keeps_length && !f.alias) copy.add(f);
                break;
            case field_id::transfer_encoding:
            case field_id::connection:
            case field_id::keep_alive:
            case field_id::proxy_connection:
            case field_id::upgrade:
            case field_id::te:
            case field_id::http2_settings:
                if (f.alias) copy.add(f);
                break;
            case field_id::request_id: break;
            default:
                if (passes(f)) {
                    dated = dated || equals_lower(f.name, "date");
                    copy.add(f);
                }
                break;
        }
    }
    copy.flush();
    w.add("X-Request-Id: ", c.request_id, "\r\n");
    if (!dated) w.add("Date: ", c.date, "\r\n");
    if (c.close)
        w.add("Connection: close\r\n");
    else if (c.http_1_0)
        w.add("Connection: keep-alive\r\n");
    write_framing(w, c.body, !keeps_length && h.status != 204 && h.status >= 200);
}

void write_interim_head(writer& w, head const& h) noexcept {
    write_status_line(w, h);
    nominations const named(h);
    copier copy(w);
    for (field const& f : h)
        if (f.id == field_id::other && !named.has(f.name)) copy.add(f);
    copy.flush();
    w.add("\r\n");
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
