#include "conf/load.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <bit>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <memory>
#include <system_error>

#include "conf/reader.hpp"
#include "conf/whole.hpp"

namespace latchkey::conf {
namespace {

using namespace std::chrono_literals;

constexpr std::size_t file_bytes_max = 1U << 20;
constexpr std::ptrdiff_t dots_max = 1024;
constexpr std::uint64_t count_max = 1'000'000;
constexpr std::uint64_t uint32_max = 0xffff'ffffU;
constexpr std::uint64_t body_bytes_max = 1ULL << 63;
constexpr std::uint64_t retention_days_max = 36'500;

// The table of a section; null where it is absent. A value that is no table is a finding.
toml::table const* section(reader& top, std::string_view name, std::string_view written) {
    auto const* const node = top.find(name);
    if (node == nullptr) return nullptr;
    if (auto const* const table = node->as_table()) return table;
    top.wrong(*node, fmt::format("'{}' is not a section", name), fmt::format("write {} on a line of its own", written));
    return nullptr;
}

void read_limits(reader r, limits& out) {
    r.bytes("head_bytes", out.head_bytes, {1 << 10, 64 << 10});
    r.bytes("target_bytes", out.target_bytes, {64, 64 << 10});
    r.number("fields", out.fields, {8, 1000});
    r.bytes("body_bytes", out.body_bytes, {1, body_bytes_max, true});
    r.number("connections", out.connections, {1, count_max});
    r.number("connections_per_address", out.connections_per_address, {1, uint32_max, true});
    r.number("requests_in_flight", out.requests_in_flight, {1, uint32_max, true});
    std::uint64_t memory = 0;
    r.bytes("memory", memory, {memory_per_worker_min, 1ULL << 40});
    out.memory_said = memory != 0;
    if (out.memory_said) out.memory = memory;
    r.number("requests_per_connection", out.requests_per_connection, {1, body_bytes_max, true});
    r.bytes("response_head_bytes", out.response_head_bytes, {1 << 10, 64 << 10});
    r.finish();
}

void read_client(reader r, client_deadlines& out) {
    r.duration("tls_handshake", out.tls_handshake, 100ms, 1h);
    r.duration("head", out.head, 100ms, 1h);
    r.duration("idle", out.idle, 100ms, 24h);
    r.duration("takeover_idle", out.takeover_idle, 0ms, 1h);
    r.duration("body_stall", out.body_stall, 100ms, 1h);
    r.duration("write_stall", out.write_stall, 100ms, 1h);
    r.duration("request", out.request, 1s, 24h, true);
    r.duration("linger", out.linger, 100ms, 1h, true);
    r.duration("linger_silence", out.linger_silence, 100ms, 1h);
    r.finish();
}

void read_deadlines(reader r, upstream_deadlines& out) {
    r.duration("connect", out.connect, 50ms, 5min);
    r.duration("response_head", out.response_head, 100ms, 1h);
    r.duration("body_stall", out.body_stall, 100ms, 1h);
    r.duration("idle", out.idle, 100ms, 1h);
    r.finish();
}

void read_keys(reader r, key_settings& out) {
    r.text("prefix", out.prefix, key_prefix_problem);
    r.flag("bearer", out.bearer);
    r.text("realm", out.realm, realm_problem);
    r.finish();
}

void read_usage(reader r, usage_settings& out) {
    auto ring_bytes = out.ring_bytes;
    r.bytes("ring_bytes", ring_bytes, {64 << 10, 1 << 30});
    if (std::has_single_bit(ring_bytes))
        out.ring_bytes = ring_bytes;
    else
        r.wrong(*r.find("ring_bytes"), "'ring_bytes' is not a power of two",
                fmt::format("write {}KiB", std::bit_ceil(ring_bytes) >> 10U));
    r.text("ring_dir", out.ring_dir);
    r.duration("flush_interval", out.flush_interval, 10ms, 1min);
    r.choice("when_full", out.when_full, {{"drop", ring_full::drop}, {"refuse", ring_full::refuse}});
    r.number("retention_days", out.retention_days, {1, retention_days_max, true});
    r.finish();
}

void read_log(reader r, log_settings& out) {
    using text = std::string;
    r.choice<text>("level", out.level,
                   {{"debug", "debug"}, {"info", "info"}, {"warning", "warning"}, {"error", "error"}, {"off", "off"}});
    r.text("file", out.file);
    r.flag("json", out.json);
    r.finish();
}

// A trailing '/' means nothing where whole segments are compared.
void drop_trailing_slash(std::vector<std::string>& prefixes) {
    for (auto& p : prefixes)
        while (p.size() > 1 && p.back() == '/') p.pop_back();
}

api read_api(notes& to, toml::table const& table) {
    reader r(to, "[[api]]", &table);
    api out;
    r.text("name", out.name, api_name_problem);
    r.texts("hosts", out.hosts, host_problem);
    r.texts("path_prefixes", out.path_prefixes, path_prefix_problem);
    drop_trailing_slash(out.path_prefixes);
    r.flag("strip_prefix", out.strip_prefix);
    r.each_text(
        "upstreams",
        [&](std::string const& url, toml::source_region const& at) {
            auto const parsed = parse_target(url);
            out.upstreams.push_back(parsed ? *parsed : target{});  // a wrong one is not a missing one too
            if (!parsed) to.add(at, "'upstreams' has a wrong entry", parsed.error().message);
        },
        true);
    r.choice("host", out.host, {{"client", host_header::client}, {"upstream", host_header::upstream}});
    r.choice("slashes", out.slashes, {{"refuse", encoded_slash::refuse}, {"keep", encoded_slash::keep}});
    r.flag("require_key", out.require_key);
    r.flag("forward_key", out.forward_key);
    r.choice("preflight", out.preflights, {{"refuse", preflight::refuse}, {"forward", preflight::forward}});
    r.bytes("body_bytes", out.body_bytes, {1, body_bytes_max, true});
    r.number("connections_per_target", out.connections_per_target, {1, count_max, true});
    r.number("idle_per_target", out.idle_per_target, {0, count_max});
    read_deadlines({to, "[api.deadlines]", section(r, "deadlines", "[api.deadlines]")}, out.deadlines);
    r.finish();
    return out;
}

// `api_places` gets where each api stands. An api that was written but is wrong counts as one: "no api" would be a false finding.
std::vector<api> read_apis(notes& to, reader& top, std::vector<place>& api_places) {
    std::vector<api> out;
    auto const* const node = top.find("api");
    if (node == nullptr) return out;
    auto const* const list = node->as_array();
    if (list == nullptr || list->empty() || !list->is_homogeneous<toml::table>()) {
        top.wrong(*node, "'api' is not a list of sections", "write [[api]], with two brackets, above each api");
        return out;
    }
    for (auto const& element : *list) {
        out.push_back(read_api(to, *element.as_table()));
        api_places.push_back({element.source().begin.line, element.source().begin.column});
    }
    return out;
}

void read_listen(notes& to, reader& r, std::vector<endpoint>& out) {
    std::vector<endpoint> listen;
    auto const add = [&](std::string const& text, toml::source_region const& at) {
        if (auto const parsed = parse_listen(text))
            listen.push_back(*parsed);
        else
            to.add(at, "wrong address", parsed.error().message);
    };
    if (!r.each_text("listen", add, true)) return;
    if (!listen.empty())
        out = std::move(listen);
    else if (auto const* const list = r.table()->get_as<toml::array>("listen"); list != nullptr && list->empty())
        out.clear();
}

void read_listeners(notes& to, reader& top, settings& out) {
    read_listen(to, top, out.listen);
    std::string admin;
    top.text("admin_listen", admin);
    if (admin.empty()) return;
    if (auto const parsed = parse_listen(admin))
        out.admin_listen = *parsed;
    else
        top.wrong(*top.find("admin_listen"), "wrong address", parsed.error().message);
}

void read_tls(notes& to, reader r, tls_settings& out) {
    read_listen(to, r, out.listen);
    r.choice("minimum_version", out.minimum_version, {{"1.2", tls_version::v1_2}, {"1.3", tls_version::v1_3}});
    auto const* const node = r.find("certificate");
    auto const* const list = node == nullptr ? nullptr : node->as_array();
    if (node != nullptr && (list == nullptr || list->empty() || !list->is_homogeneous<toml::table>()))
        r.wrong(*node, "'certificate' is not a list of sections",
                "write [[tls.certificate]], with two brackets, above each certificate");
    else if (list != nullptr)
        for (auto const& element : *list) {
            auto& c = out.certificates.emplace_back();
            reader one(to, "[[tls.certificate]]", element.as_table());
            one.text("chain", c.chain);
            one.text("key", c.key);
            one.finish();
        }
    else
        for (char const* const name : {"chain", "key"}) to.knows("[[tls.certificate]]", name);
    r.finish();
}

place place_of(toml::table const& table, std::string_view name) {
    auto const* const node = table.get(name);
    return node == nullptr ? place{} : place{node->source().begin.line, node->source().begin.column};
}

settings read_all(notes& to, toml::table const& file, places& at) {
    settings out;
    reader top(to, "", &file);
    at.listen = place_of(file, "listen");
    at.admin_listen = place_of(file, "admin_listen");
    at.data_dir = place_of(file, "data_dir");
    at.limits = place_of(file, "limits");
    if (auto const* const table = file.get_as<toml::table>("limits")) at.memory = place_of(*table, "memory");
    at.tls = at.tls_listen = place_of(file, "tls");
    if (auto const* const table = file.get_as<toml::table>("tls"); table != nullptr && table->contains("listen"))
        at.tls_listen = place_of(*table, "listen");
    read_listeners(to, top, out);
    top.text("data_dir", out.data_dir);
    top.number("workers", out.workers, {1, 256, true});
    top.flag("io_uring", out.io_uring);
    top.texts("trusted_proxies", out.trusted_proxies, cidr_problem);
    top.duration("drain", out.drain, 0ms, 1h);
    top.duration("takeover", out.takeover, 1s, 10min);
    top.duration("takeover_pause", out.takeover_pause, 1s, 10min);
    top.duration("resolve", out.resolve, 1s, 1h);
    read_limits({to, "[limits]", section(top, "limits", "[limits]")}, out.limit);
    settle(out);
    read_tls(to, {to, "[tls]", section(top, "tls", "[tls]")}, out.tls);
    read_client({to, "[client]", section(top, "client", "[client]")}, out.client);
    read_keys({to, "[keys]", section(top, "keys", "[keys]")}, out.keys);
    read_usage({to, "[usage]", section(top, "usage", "[usage]")}, out.usage);
    read_log({to, "[log]", section(top, "log", "[log]")}, out.log);
    out.apis = read_apis(to, top, at.apis);
    if (file.get("api") == nullptr) read_api(to, {});  // only says which names an [[api]] knows
    top.finish();
    return out;
}

// Relative paths are relative to the file's folder, the default data_dir too: the file then means the same from everywhere.
void resolve_paths(settings& s, std::string const& file) {
    auto const folder = std::filesystem::path(file).parent_path();
    for (std::string* const path : {&s.data_dir, &s.usage.ring_dir, &s.log.file})
        if (!path->empty()) *path = (folder / *path).string();
    for (auto& c : s.tls.certificates)
        for (std::string* const path : {&c.chain, &c.key})
            if (!path->empty()) *path = (folder / *path).string();
}

std::string_view line_of(std::string_view text, unsigned number) {
    for (unsigned n = 1; n < number; ++n) {
        auto const end = text.find('\n');
        if (end == std::string_view::npos) return {};
        text.remove_prefix(end + 1);
    }
    return text.substr(0, text.find('\n'));
}

// The first line with more than dots_max dots, or 0. A key of so many parts makes tables so deep that the parser's stack
// overflows when they go; whether a dot stands in a text is not asked, for that is the parser's to know.
unsigned line_of_dots(std::string_view text) {
    for (unsigned number = 1; !text.empty(); ++number) {
        auto const line = text.substr(0, text.find('\n'));
        if (std::count(line.begin(), line.end(), '.') > dots_max) return number;
        text.remove_prefix(std::min(line.size() + 1, text.size()));
    }
    return 0;
}

std::string syntax_remedy(std::string_view description, std::string_view line) {
    auto const says = [&](std::string_view word) { return description.find(word) != std::string_view::npos; };
    if (says("redefine"))
        return "a name can be set once in its section; remove one of the two (repeated sections need [[two brackets]])";
    auto const equals = line.find('=');
    auto const value = equals == std::string_view::npos ? std::string_view::npos : line.find_first_not_of(" \t", equals + 1);
    if (says("UTF-8") || says("utf-8")) return "save the file as UTF-8";
    if (equals == std::string_view::npos && line.find('[') == std::string_view::npos)
        return "write `name = value`, `[section]` or a `# comment`";
    if (value == std::string_view::npos && equals != std::string_view::npos) return "write a value behind '='";
    if (value != std::string_view::npos && line[value] != '"' && line[value] != '\'' && line[value] != '[')
        return "put texts, durations and sizes with a unit in double quotes, like idle = \"60s\"";
    return "check that quotes and brackets on this line are closed (the format: https://toml.io)";
}

finding whole_file(std::string const& file, std::string what, std::string remedy) {
    return {file, 0, 0, std::move(what), std::move(remedy)};
}

struct closer {
    void operator()(std::FILE* f) const noexcept { std::fclose(f); }
};

}  // namespace

std::string to_text(finding const& f) {
    std::string out = f.file;
    if (f.line != 0) fmt::format_to(std::back_inserter(out), "{}{}:{}", out.empty() ? "" : ":", f.line, f.column);
    if (!out.empty()) out += ": ";
    out += f.what;
    if (!f.remedy.empty()) out += "; " + f.remedy;
    return out;
}

loaded load_text(std::string_view toml, std::string const& file_name) {
    loaded out;
    notes to(file_name);
    if (auto const line = line_of_dots(toml); line != 0) {
        out.findings.push_back(
            {file_name, line, 1, fmt::format("more than {} dots on one line", dots_max), "write its list over several lines"});
        return out;
    }
    try {
        auto const file = toml::parse(toml, file_name);
        places at;
        out.value = read_all(to, file, at);
        for (auto& f : check_whole(out.value, file_name, at)) {
            bool const said = f.what == no_api && file.get("api") != nullptr;
            if (!said) to.add(std::move(f));
        }
    } catch (toml::parse_error const& e) {
        auto const line = e.source().begin.line;
        to.add(e.source(), fmt::format("not TOML: {}", e.description()), syntax_remedy(e.description(), line_of(toml, line)));
    }
    out.findings = to.take();
    resolve_paths(out.value, file_name);
    return out;
}

loaded load_file(std::string const& path) {
    auto const failed = [&](std::string what, std::string remedy) {
        return loaded{{}, {whole_file(path, std::move(what), std::move(remedy))}};
    };
    auto const cannot_read = [&](int code) {
        return failed(fmt::format("cannot be read: {}", std::generic_category().message(code)),
                      "check the path and its permissions");
    };
    std::unique_ptr<std::FILE, closer> const file(std::fopen(path.c_str(), "re"));
    if (!file) return cannot_read(errno);
    std::string text(file_bytes_max + 1, '\0');
    text.resize(std::fread(text.data(), 1, text.size(), file.get()));
    if (std::ferror(file.get()) != 0) return cannot_read(errno);
    if (text.size() > file_bytes_max) return failed("is larger than 1 MiB", "check that this is the settings file");
    return load_text(text, path);
}

}  // namespace latchkey::conf
