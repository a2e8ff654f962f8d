#include "portal/admin_api.hpp"

#include <fmt/format.h>

#include <array>
#include <boost/beast/http/status.hpp>
#include <boost/json.hpp>
#include <charconv>
#include <optional>
#include <utility>

#include "base/clock.hpp"
#include "portal/metrics.hpp"

namespace latchkey::portal {
namespace {

namespace http = boost::beast::http;
namespace json = boost::json;
using verb = http::verb;

constexpr std::array<std::pair<errc, std::string_view>, 9> code_names{{{errc::invalid_argument, "invalid_argument"},
                                                                       {errc::not_found, "not_found"},
                                                                       {errc::conflict, "conflict"},
                                                                       {errc::not_allowed, "not_allowed"},
                                                                       {errc::busy, "busy"},
                                                                       {errc::corrupt, "corrupt"},
                                                                       {errc::newer_schema, "newer_schema"},
                                                                       {errc::unavailable, "unavailable"},
                                                                       {errc::io, "io"}}};

unsigned status_of(errc code) noexcept {
    switch (code) {
        case errc::invalid_argument: return 400;
        case errc::not_found: return 404;
        case errc::conflict: return 409;
        case errc::not_allowed: return 403;
        case errc::busy:
        case errc::unavailable: return 503;
        case errc::corrupt:
        case errc::newer_schema:
        case errc::io: return 500;
    }
    return 500;
}

reply failed(error const& e) { return problem(status_of(e.code), code_name(e.code), e.message); }
reply invalid(std::string_view detail) { return problem(400, code_name(errc::invalid_argument), detail); }

reply wrong_method(std::string allow) {
    auto out = problem(405, "method_not_allowed", fmt::format("this resource takes {}", allow));
    out.allow = std::move(allow);
    return out;
}

reply as_json(json::value const& value, unsigned status = 200) {
    return {status, "application/json", json::serialize(value), {}};
}

json::value time_or_null(std::int64_t ms) { return ms == 0 ? json::value(nullptr) : json::value(format_time(ms)); }

std::string_view state_of(keystore::key_row const& row) {
    if (row.revoked_ms != 0) return "revoked";
    return row.expires_ms != 0 && row.expires_ms <= wall_ms() ? "expired" : "active";
}

json::object to_json(keystore::key_row const& row) {
    return {{"id", row.id},
            {"application_id", row.application_id},
            {"name", row.name},
            {"prefix", row.prefix},
            {"last4", row.last4},
            {"state", state_of(row)},
            {"created", time_or_null(row.created_ms)},
            {"revoked", time_or_null(row.revoked_ms)},
            {"expires", time_or_null(row.expires_ms)}};
}

// The media type without its parameters, lower-cased.
std::string media_type(std::string_view field) {
    field = field.substr(0, field.find(';'));
    while (!field.empty() && (field.back() == ' ' || field.back() == '\t')) field.remove_suffix(1);
    std::string out(field);
    for (char& c : out)
        if (c >= 'A' && c <= 'Z') c = static_cast<char>(c - 'A' + 'a');
    return out;
}

struct page {
    std::string after;
    std::size_t limit = page_keys_default;
};

// Ids are A-Za-z0-9._- only, so nothing in this query needs percent-decoding.
std::optional<page> parse_page(std::string_view query) {
    page out;
    while (!query.empty()) {
        auto const pair = query.substr(0, query.find('&'));
        query.remove_prefix(pair.size() == query.size() ? pair.size() : pair.size() + 1);
        auto const equals = pair.find('=');
        if (equals == std::string_view::npos) return std::nullopt;
        auto const name = pair.substr(0, equals);
        auto const value = pair.substr(equals + 1);
        if (name == "after") {
            out.after = value;
        } else if (name == "limit") {
            auto const [end, ec] = std::from_chars(value.data(), value.data() + value.size(), out.limit);
            if (ec != std::errc{} || end != value.data() + value.size() || out.limit < 1 || out.limit > page_keys_max)
                return std::nullopt;
        } else {
            return std::nullopt;
        }
    }
    return out;
}

struct create_request {
    std::string name;
    std::string application_id;
};

result<create_request> parse_create(std::string const& body) {
    auto const wrong = [](std::string message) { return error{errc::invalid_argument, std::move(message)}; };
    boost::system::error_code ec;
    auto const parsed = json::parse(body, ec);
    if (ec || !parsed.is_object()) return wrong("the body is not a JSON object in UTF-8; send {\"name\": \"...\"}");
    create_request out;
    for (auto const& [key, value] : parsed.get_object()) {
        bool const name = key == "name";
        if (!name && key != "application_id")
            return wrong("the body has an unknown member; send \"name\" and \"application_id\" only");
        if (!value.is_string()) return wrong(fmt::format("\"{}\" is not a string", name ? "name" : "application_id"));
        (name ? out.name : out.application_id) = std::string(std::string_view(value.get_string()));
    }
    if (out.name.empty() && out.application_id.empty())
        return wrong("a key needs a \"name\", or the \"application_id\" of an application");
    return out;
}

}  // namespace

std::string_view code_name(errc code) noexcept {
    for (auto const& [c, name] : code_names)
        if (c == code) return name;
    return "io";
}

errc code_of(std::string_view name) noexcept {
    for (auto const& [c, n] : code_names)
        if (n == name) return c;
    return errc::io;
}

reply problem(unsigned status, std::string_view code, std::string_view detail) {
    json::object const body{{"type", "about:blank"},
                            {"title", std::string_view(http::obsolete_reason(http::int_to_status(status)))},
                            {"status", status},
                            {"detail", detail},
                            {"code", code}};
    return {status, "application/problem+json", json::serialize(body), {}};
}

bool is_import(verb method, std::string_view target) noexcept { return method == verb::post && target == "/v1/keys/import"; }

bool is_reload(verb method, std::string_view target) noexcept { return method == verb::post && target == "/v1/reload"; }

admin_api::admin_api(keystore::key_directory& keys, usage::recorder& usage, gateway_view gateway, reload_call reload,
                     flush_call flush_elsewhere)
    : keys_(keys),
      usage_(usage),
      gateway_(std::move(gateway)),
      reload_(std::move(reload)),
      flush_elsewhere_(std::move(flush_elsewhere)) {}

reply admin_api::answer(request const& r) {
    std::string_view const target = r.target;
    auto const path = target.substr(0, target.find('?'));
    auto const query = path.size() == target.size() ? std::string_view{} : target.substr(path.size() + 1);
    constexpr std::string_view keys = "/v1/keys";
    if (path == keys) return keys_collection(r, query);
    if (!query.empty()) return invalid("this resource takes no query");
    if (path == "/v1/keys/import") return r.method == verb::post ? import(r) : wrong_method("POST");
    if (path == "/v1/usage/flush") return r.method == verb::post ? flush() : wrong_method("POST");
    if (path == "/v1/reload" && reload_) return r.method == verb::post ? reload() : wrong_method("POST");
    if (path == "/v1/status") return r.method == verb::get ? status() : wrong_method("GET");
    if (path.starts_with("/v1/keys/")) return one_key(r, path.substr(keys.size() + 1));
    return problem(404, "no_route", "the admin API has no such resource");
}

reply admin_api::keys_collection(request const& r, std::string_view query) {
    if (r.method == verb::post) return query.empty() ? create(r) : invalid("this request takes no query");
    if (r.method != verb::get) return wrong_method("GET, POST");
    auto const asked = parse_page(query);
    if (!asked) return invalid("the query is not after=ID&limit=1..1000");
    auto const rows = keys_.list(asked->after, asked->limit);
    if (!rows) return failed(rows.error());
    json::array list;
    list.reserve(rows->size());
    for (auto const& row : *rows) list.push_back(to_json(row));
    json::value const next = rows->size() == asked->limit ? json::value(rows->back().id) : json::value(nullptr);
    return as_json({{"keys", std::move(list)}, {"next", next}});
}

reply admin_api::create(request const& r) {
    if (auto const type = media_type(r.content_type); !type.empty() && type != "application/json")
        return problem(415, "unsupported_media_type", "send application/json");
    auto const asked = parse_create(r.body);
    if (!asked) return failed(asked.error());
    auto const made = keys_.create_key(asked->name, asked->application_id);
    if (!made) return failed(made.error());
    return as_json(
        {{"id", made->row.id}, {"key", made->key}, {"application_id", made->row.application_id}, {"name", made->row.name}}, 201);
}

reply admin_api::import(request const& r) {
    if (media_type(r.content_type) != "text/csv") return problem(415, "unsupported_media_type", "send text/csv");
    auto rows = keystore::parse_import_csv(r.body);
    if (!rows) return failed(rows.error());
    auto const report = keys_.import_keys(std::move(*rows));
    if (!report) return failed(report.error());
    return as_json({{"imported", report->imported}, {"unchanged", report->unchanged}, {"revoked", report->revoked}});
}

reply admin_api::one_key(request const& r, std::string_view rest) {
    auto const slash = rest.find('/');
    std::string const id(rest.substr(0, slash));
    auto const answer_with = [](result<keystore::key_row> const& row) {
        return row ? as_json(to_json(*row)) : failed(row.error());
    };
    if (slash == std::string_view::npos) {
        if (r.method == verb::get) return answer_with(keys_.find(id));
        if (r.method == verb::delete_) return answer_with(keys_.remove(id));
        return wrong_method("GET, DELETE");
    }
    if (rest.substr(slash) != "/revoke") return problem(404, "no_route", "the admin API has no such resource");
    return r.method == verb::post ? answer_with(keys_.revoke(id)) : wrong_method("POST");
}

reply admin_api::flush() {
    auto done = usage_.flush();
    if (done && flush_elsewhere_) done = flush_elsewhere_();
    return done ? as_json({{"flushed", true}}) : failed(done.error());
}

reply admin_api::reload() {
    auto const pid = reload_();
    return pid ? as_json({{"pid", *pid}}) : failed(pid.error());
}

reply admin_api::status() {
    auto const gateway = gateway_();
    auto const store = keys_.state();
    auto const usage = usage_.state();
    json::object figures;
    for (auto const& f : gateway.figures)
        figures[f.labels.empty() ? f.name : fmt::format("{}{{{}}}", f.name, f.labels)] = f.value;
    json::array listen(gateway.listen.begin(), gateway.listen.end());
    json::array tls_listen(gateway.tls_listen.begin(), gateway.tls_listen.end());
    return as_json({{"version", gateway.version},
                    {"pid", ::getpid()},
                    {"ready", gateway.ready && !gateway.draining},
                    {"draining", gateway.draining},
                    {"started", format_time(gateway.started_ms)},
                    {"workers", gateway.workers},
                    {"listen", std::move(listen)},
                    {"tls_listen", std::move(tls_listen)},
                    {"data_dir", gateway.data_dir},
                    {"store", {{"ok", store.ok}, {"detail", store.detail}, {"keys", store.keys}}},
                    {"usage",
                     {{"ok", usage.ok},
                      {"detail", usage.detail},
                      {"appended", usage.appended},
                      {"journalled", usage.journalled},
                      {"dropped", usage.dropped},
                      {"recovered", gateway.recovered},
                      {"ring_fill", usage.fill},
                      {"power_cut_cost", gateway.power_cut_cost}}},
                    {"gateway", std::move(figures)}});
}

reply admin_api::health(verb method, std::string_view target) {
    auto const path = target.substr(0, target.find('?'));
    bool const known = path == "/livez" || path == "/readyz" || path == "/metrics";
    if (!known) return problem(404, "no_route", "here are /livez, /readyz and /metrics");
    if (method != verb::get && method != verb::head) return wrong_method("GET, HEAD");
    if (path == "/livez") return {200, "text/plain; charset=utf-8", "ok\n", {}};
    return path == "/readyz" ? ready() : metrics();
}

reply admin_api::ready() {
    auto const gateway = gateway_();
    json::array problems;
    if (auto const store = keys_.state(); !store.ok) problems.emplace_back("store: " + store.detail);
    if (auto const usage = usage_.state(); !usage.ok) problems.emplace_back("usage: " + usage.detail);
    bool const ready = gateway.ready && !gateway.draining;
    if (gateway.draining) problems.emplace_back("draining");
    return as_json({{"ready", ready}, {"problems", std::move(problems)}}, ready ? 200 : 503);
}

reply admin_api::metrics() {
    auto const gateway = gateway_();
    auto const store = keys_.state();
    auto const usage = usage_.state();
    auto figures = gateway.figures;
    auto const add = [&](char const* name, char const* help, bool counter, double value) {
        figures.push_back({name, help, {}, counter, value});
    };
    add("ready", "1 while requests are served", false, gateway.ready && !gateway.draining ? 1 : 0);
    add("start_time_seconds", "Unix time of the start", false, static_cast<double>(gateway.started_ms) / 1000.0);
    add("store_ok", "0 while keys.db cannot be read or written", false, store.ok ? 1 : 0);
    add("keys", "Keys in the store", false, static_cast<double>(store.keys));
    add("usage_ok", "0 while usage.db cannot be written", false, usage.ok ? 1 : 0);
    add("usage_records_total", "Usage records since start", true, static_cast<double>(usage.appended));
    add("usage_journalled_total", "Usage records written to usage.db since start", true, static_cast<double>(usage.journalled));
    add("usage_dropped_total", "Usage records that found no room", true, static_cast<double>(usage.dropped));
    add("usage_recovered_total", "Usage records taken over from an earlier process at start", true,
        static_cast<double>(gateway.recovered));
    add("usage_ring_fill_ratio", "How full the fullest ring is, 0 to 1", false, usage.fill);
    return {200, "text/plain; version=0.0.4; charset=utf-8", to_prometheus(figures), {}};
}

}  // namespace latchkey::portal
