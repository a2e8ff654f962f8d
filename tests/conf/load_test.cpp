#include "conf/load.hpp"

#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <string>

#include "conf/rules.hpp"
#include "tests/catch.hpp"

namespace conf = latchkey::conf;
using namespace std::chrono_literals;

namespace {

std::string const one_api = "[[api]]\nupstreams = [\"http://127.0.0.1:9000\"]\n";

std::filesystem::path shipped() { return std::filesystem::path(LATCHKEY_SOURCE_DIR) / "conf/latchkey.toml"; }

// Settings in front of a valid api.
conf::loaded with(std::string const& text) { return conf::load_text(text + "\n" + one_api, "t.toml"); }

std::string all(std::vector<conf::finding> const& findings) {
    std::string out;
    for (auto const& f : findings) out += conf::to_text(f) + "\n";
    return out;
}

bool has(std::string const& text, std::string const& part) { return text.find(part) != std::string::npos; }

struct folder {
    std::filesystem::path path;
    folder() {
        std::string name = (std::filesystem::temp_directory_path() / "latchkey-conf-XXXXXX").string();
        REQUIRE(mkdtemp(name.data()) != nullptr);
        path = name;
    }
    ~folder() { std::filesystem::remove_all(path); }
};

}  // namespace

TEST_CASE("the shipped latchkey.toml loads without findings and says the defaults") {
    auto const got = conf::load_file(shipped().string());
    REQUIRE(all(got.findings) == "");
    conf::settings const d;
    auto const& v = got.value;
    CHECK(v.listen.size() == 1);
    CHECK(v.listen[0].host == d.listen[0].host);
    CHECK(v.listen[0].port == d.listen[0].port);
    CHECK(v.admin_listen.port == d.admin_listen.port);
    CHECK(std::filesystem::path(v.data_dir).filename() == d.data_dir);
    CHECK(v.workers == d.workers);
    CHECK(v.io_uring == d.io_uring);
    CHECK(v.trusted_proxies.empty());
    CHECK(v.drain == d.drain);
    CHECK(v.takeover == d.takeover);
    CHECK(v.takeover_pause == d.takeover_pause);
    CHECK(v.resolve == d.resolve);
    CHECK(v.limit.head_bytes == d.limit.head_bytes);
    CHECK(v.limit.target_bytes == d.limit.target_bytes);
    CHECK(v.limit.fields == d.limit.fields);
    CHECK(v.limit.body_bytes == d.limit.body_bytes);
    CHECK(v.limit.connections == d.limit.connections);
    CHECK(v.limit.connections_per_address == d.limit.connections_per_address);
    CHECK(v.limit.requests_in_flight == d.limit.requests_in_flight);
    CHECK(v.limit.memory == d.limit.memory);
    CHECK(v.limit.requests_per_connection == d.limit.requests_per_connection);
    CHECK(v.limit.response_head_bytes == d.limit.response_head_bytes);
    CHECK(v.tls.listen.empty());
    CHECK(v.tls.certificates.empty());
    CHECK(v.tls.minimum_version == d.tls.minimum_version);
    CHECK(v.client.tls_handshake == d.client.tls_handshake);
    CHECK(v.client.head == d.client.head);
    CHECK(v.client.idle == d.client.idle);
    CHECK(v.client.takeover_idle == d.client.takeover_idle);
    CHECK(v.client.body_stall == d.client.body_stall);
    CHECK(v.client.write_stall == d.client.write_stall);
    CHECK(v.client.request == d.client.request);
    CHECK(v.client.linger == d.client.linger);
    CHECK(v.client.linger_silence == d.client.linger_silence);
    CHECK(v.keys.prefix == d.keys.prefix);
    CHECK(v.keys.bearer == d.keys.bearer);
    CHECK(v.keys.realm == d.keys.realm);
    CHECK(v.usage.ring_bytes == d.usage.ring_bytes);
    CHECK(v.usage.ring_dir == d.usage.ring_dir);
    CHECK(v.usage.flush_interval == d.usage.flush_interval);
    CHECK(v.usage.when_full == d.usage.when_full);
    CHECK(v.usage.retention_days == d.usage.retention_days);
    CHECK(v.log.level == d.log.level);
    CHECK(v.log.file == d.log.file);
    CHECK(v.log.json == d.log.json);
    REQUIRE(v.apis.size() == 1);
    conf::api const a;
    auto const& w = v.apis[0];
    CHECK(w.name == a.name);
    CHECK(w.hosts == a.hosts);
    CHECK(w.path_prefixes == a.path_prefixes);
    CHECK(w.strip_prefix == a.strip_prefix);
    CHECK(w.upstreams.size() == 1);
    CHECK(w.host == a.host);
    CHECK(w.slashes == a.slashes);
    CHECK(w.require_key == a.require_key);
    CHECK(w.forward_key == a.forward_key);
    CHECK(w.preflights == a.preflights);
    CHECK(w.body_bytes == a.body_bytes);
    CHECK(w.connections_per_target == a.connections_per_target);
    CHECK(w.idle_per_target == a.idle_per_target);
    CHECK(w.deadlines.connect == a.deadlines.connect);
    CHECK(w.deadlines.response_head == a.deadlines.response_head);
    CHECK(w.deadlines.body_stall == a.deadlines.body_stall);
    CHECK(w.deadlines.idle == a.deadlines.idle);
}

TEST_CASE("the shipped latchkey.toml leaves no setting out") {
    std::ifstream in(shipped());
    std::string const text((std::istreambuf_iterator<char>(in)), {});
    // An unknown name makes the loader list every name it knows in that section.
    for (std::string const section : {"", "[limits]\n", "[tls]\n", "[client]\n", "[keys]\n", "[usage]\n", "[log]\n"}) {
        auto const got = conf::load_text(section + "zzzzzzzzzzzzzzzz = 1\n" + one_api, "t");
        REQUIRE(got.findings.size() == 1);
        auto names = got.findings[0].remedy.substr(got.findings[0].remedy.rfind(": ") + 2);
        std::size_t count = 0;
        for (std::size_t at = 0; at != std::string::npos; ++count) {
            auto const end = names.find(", ", at);
            auto const name = names.substr(at, end == std::string::npos ? end : end - at);
            at = end == std::string::npos ? end : end + 2;
            INFO(section << name);
            CHECK((has(text, "\n" + name + " = ") || has(text, "[" + name + "]") || has(text, "." + name + "]")));
        }
        CHECK(count >= 3);
    }
}

TEST_CASE("every section's values arrive") {
    auto const got = conf::load_text(R"(
listen = [":80", "[::1]:81"]
admin_listen = "9"
data_dir = "/var/d"
workers = 3
io_uring = false
trusted_proxies = ["10.0.0.0/8", "::1"]
drain = 0
[limits]
head_bytes = "8KiB"
target_bytes = 100
requests_in_flight = 5
[tls]
listen = [":443", "[::1]:444"]
minimum_version = "1.3"
[[tls.certificate]]
chain = "/etc/a.pem"
key = "/etc/a.key"
[[tls.certificate]]
chain = "b.pem"
key = "b.key"
[client]
tls_handshake = "2s"
request = 0
idle = "1h"
[keys]
prefix = "acme1"
bearer = true
[usage]
ring_bytes = "64KiB"
when_full = "refuse"
[log]
level = "off"
json = false
[[api]]
name = "a"
hosts = ["*.example.com", "[::1]"]
path_prefixes = ["/v1/", "/"]
strip_prefix = true
upstreams = "http://UP.example:81/base/"
host = "upstream"
slashes = "keep"
require_key = false
preflight = "forward"
forward_key = true
[api.deadlines]
connect = "50ms"
[[api]]
name = "b"
hosts = ["b.example.com"]
upstreams = ["http://[::1]", "http://10.0.0.1:1"]
)",
                                     "t.toml");
    REQUIRE(all(got.findings) == "");
    auto const& v = got.value;
    REQUIRE(v.listen.size() == 2);
    CHECK(v.listen[0].host == "0.0.0.0");
    CHECK(v.listen[1].host == "::1");
    CHECK(v.admin_listen.port == 9);
    CHECK(v.data_dir == "/var/d");
    CHECK(v.workers == 3);
    CHECK_FALSE(v.io_uring);
    CHECK(v.trusted_proxies.size() == 2);
    CHECK(v.drain == 0ms);
    CHECK(v.limit.head_bytes == 8192);
    CHECK(v.limit.target_bytes == 100);
    CHECK(v.limit.requests_in_flight == 5);
    REQUIRE(v.tls.listen.size() == 2);
    CHECK(v.tls.listen[0].port == 443);
    CHECK(v.tls.minimum_version == conf::tls_version::v1_3);
    REQUIRE(v.tls.certificates.size() == 2);
    CHECK(v.tls.certificates[0].key == "/etc/a.key");
    CHECK(v.tls.certificates[1].chain == "b.pem");
    CHECK(v.client.tls_handshake == 2s);
    CHECK(v.client.request == 0ms);
    CHECK(v.client.idle == 1h);
    CHECK(v.keys.prefix == "acme1");
    CHECK(v.keys.bearer);
    CHECK(v.usage.ring_bytes == 65536);
    CHECK(v.usage.when_full == conf::ring_full::refuse);
    CHECK(v.log.level == "off");
    CHECK_FALSE(v.log.json);
    REQUIRE(v.apis.size() == 2);
    auto const& a = v.apis[0];
    CHECK(a.path_prefixes == std::vector<std::string>{"/v1", "/"});
    CHECK(a.strip_prefix);
    REQUIRE(a.upstreams.size() == 1);
    CHECK(a.upstreams[0].at.host == "up.example");
    CHECK(a.upstreams[0].at.port == 81);
    CHECK(a.upstreams[0].base_path == "/base");
    CHECK(a.host == conf::host_header::upstream);
    CHECK(a.slashes == conf::encoded_slash::keep);
    CHECK_FALSE(a.require_key);
    CHECK(a.preflights == conf::preflight::forward);
    CHECK(a.forward_key);
    CHECK(a.deadlines.connect == 50ms);
    CHECK(v.apis[1].upstreams[0].at.port == 80);
}

TEST_CASE("an unknown setting is named with its place and the nearest name") {
    auto const got = with("\n  lisen = \"127.0.0.1:1\"");
    REQUIRE(got.findings.size() == 1);
    CHECK(conf::to_text(got.findings[0]) == "t.toml:2:3: unknown setting 'lisen'; did you mean 'listen'?");
}

TEST_CASE("a setting in the wrong section is told where it belongs") {
    CHECK(has(all(with("write_stall = \"1s\"").findings), "it belongs in [client]"));
    CHECK(has(all(with("[keys]\nworkers = 1").findings), "it belongs at the top of the file"));
    CHECK(has(all(with("[client]\nhead_bytes = 1024").findings), "it belongs in [limits]"));
}

TEST_CASE("all mistakes of a file are found at once, in the order of the file") {
    auto const got =
        conf::load_text("workers = 257\ndrain = \"30\"\n[limits]\nfields = 7\n[nonsense]\n[[api]]\nname = \"a b\"\n", "t");
    auto const text = all(got.findings);
    INFO(text);
    CHECK(got.findings.size() == 6);
    for (auto const* part :
         {"t:1:11: 'workers'", "t:2:9: 'drain'", "t:4:10: 'fields'", "t:5:2: unknown setting 'nonsense'", "'a b'", "no upstream"})
        CHECK(has(text, part));
    for (std::size_t i = 1; i < got.findings.size(); ++i) CHECK(got.findings[i - 1].line <= got.findings[i].line);
}

TEST_CASE("each range is enforced at both ends") {
    struct row {
        char const *setting, *bad_low, *least, *most, *bad_high;
    };
    row const rows[] = {
        {"workers =", "-1", "0", "256", "257"},
        {"drain =", "\"-1s\"", "0", "\"1h\"", "\"3601s\""},
        {"[limits]\ntarget_bytes = 64\nhead_bytes =", "1023", "1024", "\"64KiB\"", "65537"},
        {"[limits]\nhead_bytes = \"64KiB\"\ntarget_bytes =", "63", "64", "65536", "65537"},
        {"[limits]\nfields =", "7", "8", "1000", "1001"},
        {"[limits]\nconnections =", "0", "1", "1000000", "1000001"},
        {"[limits]\nresponse_head_bytes =", "1023", "\"1KiB\"", "\"64KiB\"", "\"65KiB\""},
        {"[limits]\nconnections_per_address =", "-1", "0", "4294967295", "4294967296"},
        {"takeover =", "\"999ms\"", "\"1s\"", "\"10m\"", "\"11m\""},
        {"takeover_pause =", "\"999ms\"", "\"1s\"", "\"10m\"", "\"11m\""},
        {"[client]\ntakeover_idle =", "\"-1s\"", "0", "\"1h\"", "\"61m\""},
        {"resolve =", "\"999ms\"", "\"1s\"", "\"1h\"", "\"61m\""},
        {"workers = 1\n[limits]\nmemory =", "\"4095KiB\"", "\"4MiB\"", "\"1024GiB\"", "\"1025GiB\""},
        {"[client]\nhead =", "\"99ms\"", "\"100ms\"", "\"1h\"", "\"61m\""},
        {"[client]\nidle =", "0", "\"100ms\"", "\"24h\"", "\"2d\""},
        {"[client]\nrequest =", "\"999ms\"", "0", "\"1d\"", "\"25h\""},
        {"[usage]\nflush_interval =", "\"9ms\"", "\"10ms\"", "\"1m\"", "\"61s\""},
        {"[usage]\nring_bytes =", "\"32KiB\"", "\"64KiB\"", "\"1GiB\"", "\"2GiB\""},
        {"[usage]\nretention_days =", "-1", "0", "36500", "36501"},
    };
    for (auto const& r : rows) {
        INFO(r.setting);
        CHECK(with(std::string(r.setting) + r.bad_low).findings.size() == 1);
        CHECK(all(with(std::string(r.setting) + r.least).findings) == "");
        CHECK(all(with(std::string(r.setting) + r.most).findings) == "");
        CHECK(with(std::string(r.setting) + r.bad_high).findings.size() == 1);
    }
}

TEST_CASE("memory that is too little for the workers is named with its place, and is no default") {
    auto const refused = all(with("workers = 161\n[limits]\nfields = 9\nmemory = \"640MiB\"").findings);
    CHECK(refused ==
          "t.toml:4:10: limits.memory: 640 MiB are too few for 161 workers; write \"644MiB\" or more, or set fewer workers\n");
    CHECK(all(with("workers = 160\n[limits]\nmemory = \"640MiB\"").findings) == "");
    CHECK(all(with("workers = 256\n[limits]\nmemory = \"1GiB\"").findings) == "");
    CHECK(with("workers = 256\n[limits]\nmemory = \"3MiB\"").findings.size() == 1);  // out of its range: said once
    for (std::string const section : {"", "[limits]\nfields = 9\n"}) {
        auto const grown = with("workers = 256\n" + section);
        CHECK(all(grown.findings) == "");
        CHECK(grown.value.limit.memory == 1ULL << 30U);
    }
    CHECK(with("workers = 240").value.limit.memory == 960ULL << 20U);
    CHECK(with("workers = 1").value.limit.memory == 960ULL << 20U);
}

TEST_CASE("workers that are set after the file grow the memory that nobody set, and only that") {
    for (bool const said : {false, true}) {
        auto settings = with(said ? "workers = 1\n[limits]\nmemory = \"8MiB\"" : "workers = 1").value;
        settings.workers = 250;
        conf::settle(settings);
        CHECK(settings.limit.memory == (said ? 8ULL << 20U : 1000ULL << 20U));
        CHECK(has(all(conf::check(settings)), "too few for 250 workers") == said);
    }
}

TEST_CASE("values of the wrong type are named with what to write") {
    CHECK(has(all(with("workers = \"2\"").findings), "not a whole number"));
    CHECK(has(all(with("workers = 2.0").findings), "not a whole number"));
    CHECK(has(all(with("drain = 30").findings), "needs its unit"));
    CHECK(has(all(with("[keys]\nbearer = \"yes\"").findings), "true or false"));
    CHECK(has(all(with("[keys]\nprefix = 5").findings), "double quotes"));
    CHECK(has(all(with("limits = 5").findings), "[limits]"));
    CHECK(has(all(with("listen = [1]").findings), "not a text"));
    CHECK(has(all(with("[usage]\nwhen_full = \"wait\"").findings), "\"drop\" or \"refuse\""));
    CHECK(has(all(with("[usage]\nring_bytes = 100000").findings), "128KiB"));
    CHECK(has(all(conf::load_text("[api]\nname = \"a\"\n", "t").findings), "[[api]]"));
}

TEST_CASE("texts that are not TOML are refused with line, column and remedy") {
    struct row {
        char const *text, *place, *remedy;
    };
    row const rows[] = {
        {"a = 1\ndrain = 30s\n", "t:2:", "double quotes"},
        {"drain =\n", "t:1:", "behind '='"},
        {"workers = 1\nworkers = 2\n", "t:2:", "remove one"},
        {"just words\n", "t:1:", "name = value"},
        {"listen = \"127\n", "t:1:", "closed"},
        {"listen = \"\xff\"\n", "t:1:", "UTF-8"},
    };
    for (auto const& r : rows) {
        auto const got = conf::load_text(r.text, "t");
        INFO(r.text << all(got.findings));
        REQUIRE(got.findings.size() == 1);
        CHECK(has(conf::to_text(got.findings[0]), r.place));
        CHECK(has(conf::to_text(got.findings[0]), "not TOML"));
        CHECK(has(got.findings[0].remedy, r.remedy));
        CHECK(got.findings[0].column > 0);
    }
}

TEST_CASE("deep nesting is refused, not a crash") {
    CHECK(conf::load_text("a = " + std::string(100'000, '['), "t").findings.size() == 1);
    std::string parts = "a";  // nested by dots, which the parser does not count
    for (int i = 0; i < 200'000; ++i) parts += ".a";
    for (auto const& text :
         {"# a comment\n" + parts + " = 1\n", "\n[" + parts + "]\n", "x = \"\"\"\"\"\"\n\"a\"." + parts + "=1"}) {
        auto const got = conf::load_text(text, "t");
        REQUIRE(got.findings.size() == 1);
        CHECK(has(conf::to_text(got.findings[0]), "t:2:1: more than 1024 dots"));
    }
}

TEST_CASE("a file that cannot be read is a finding that says why") {
    folder const f;
    auto const missing = conf::load_file((f.path / "none.toml").string());
    REQUIRE(missing.findings.size() == 1);
    CHECK(has(conf::to_text(missing.findings[0]), "No such file"));
    CHECK(missing.findings[0].line == 0);
    CHECK(conf::load_file(f.path.string()).findings.size() == 1);
    std::ofstream(f.path / "big.toml") << std::string((1U << 20) + 1, '#');
    CHECK(has(all(conf::load_file((f.path / "big.toml").string()).findings), "larger than 1 MiB"));
}

TEST_CASE("relative paths start at the file's folder, the default data folder too") {
    folder const f;
    auto const file = f.path / "l.toml";
    std::ofstream(file) << "[log]\nfile = \"x.log\"\n[usage]\nring_dir = \"/abs\"\n" << one_api;
    auto const got = conf::load_file(file.string());
    REQUIRE(all(got.findings) == "");
    CHECK(got.value.log.file == (f.path / "x.log").string());
    CHECK(got.value.usage.ring_dir == "/abs");
    CHECK(got.value.data_dir == (f.path / "latchkey-data").string());
}

TEST_CASE("hosts, prefixes, names and networks that could be misread are refused") {
    auto const api = [](std::string const& line) {
        return all(conf::load_text("[[api]]\nupstreams = [\"http://h:1\"]\n" + line + "\n", "t").findings);
    };
    for (auto const* host :
         {"Example.com", "a:80", "a.", "*", "*.", "a.*.b", "http://a", "", "a..b", "-a", "::1", "[::1]:80", "[x]", "a b"}) {
        INFO(host);
        CHECK(has(api("hosts = [\"" + std::string(host) + "\"]"), "t:3:10:"));
    }
    for (auto const* host : {"a", "*.a.b", "xn--a.example", "127.0.0.1", "[::1]", "a_b"})
        CHECK(api("hosts = [\"" + std::string(host) + "\"]") == "");
    for (auto const* prefix : {"v1", "", "/a/../b", "/.", "/a%20b", "//a", "/a//b", "/a?b", "/a#b", "/a b", "/\xc3\xa4"}) {
        INFO(prefix);
        CHECK(has(api("path_prefixes = [\"" + std::string(prefix) + "\"]"), "t:3:18:"));
    }
    CHECK(has(api("path_prefixes = ['/a\\b']"), "backslash"));
    for (auto const* prefix : {"/", "/a", "/a.b/..c/d;e=1"})
        CHECK(api("path_prefixes = [\"" + std::string(prefix) + "\"]") == "");
    for (auto const* name : {"", "a/b", "\\u00e4"}) CHECK(has(api("name = \"" + std::string(name) + "\""), "cannot name an api"));
    for (auto const* net : {"10.0.0.1/8", "10.0.0.0/33", "10.0.0/8", "::1/129", "x", "10.0.0.0/", "1.2.3.4/+8"})
        CHECK(with("trusted_proxies = [\"" + std::string(net) + "\"]").findings.size() == 1);
    CHECK(has(all(with("trusted_proxies = [\"10.1.2.3/8\"]").findings), "'10.0.0.0/8'"));
    for (auto const* prefix : {"a", "Ab", "a_b", "aaaaaaaaaaaaaaaaa"})
        CHECK(with("[keys]\nprefix = \"" + std::string(prefix) + "\"").findings.size() == 1);
    CHECK(with("[keys]\nrealm = 'a\"b'").findings.size() == 1);
}

TEST_CASE("two apis that would serve the same requests are refused at the second") {
    auto const text = [](std::string const& a, std::string const& b) {
        return all(conf::load_text("[[api]]\nname = \"a\"\nupstreams = [\"http://h:1\"]\n" + a +
                                       "\n[[api]]\nname = \"b\"\nupstreams = [\"http://h:1\"]\n" + b + "\n",
                                   "t")
                       .findings);
    };
    CHECK(has(text("", ""), "t:5:1: apis 'a' and 'b' both serve path '/' of any host"));
    CHECK(has(text("path_prefixes = [\"/\"]", ""), "both serve"));
    CHECK(has(text("hosts = [\"x\"]\npath_prefixes = [\"/v/\"]", "hosts = [\"y\", \"x\"]\npath_prefixes = [\"/v\"]"),
              "path '/v' of host 'x'"));
    CHECK(text("hosts = [\"x\"]", "hosts = [\"y\"]") == "");
    CHECK(text("path_prefixes = [\"/a\"]", "path_prefixes = [\"/b\"]") == "");
    CHECK(has(text("hosts = [\"x\"]", "hosts = [\"y\"]\nstrip_prefix = true"), "strips its prefix"));
}

TEST_CASE("check() finds in flags what the file's loader finds in files") {
    conf::settings s;
    CHECK(has(all(conf::check(s)), "no api is defined"));
    s.apis.resize(1);
    CHECK(has(all(conf::check(s)), "no upstream"));
    s.apis[0].upstreams.resize(1);
    CHECK(all(conf::check(s)) == "");
    s.admin_listen = s.listen[0];
    CHECK(has(all(conf::check(s)), "admin_listen"));
    s.admin_listen.port = 0;
    s.listen.push_back(s.listen[0]);
    CHECK(has(all(conf::check(s)), "twice"));
    s.listen.clear();
    CHECK(has(all(conf::check(s)), "nothing to listen on"));
    CHECK(has(all(with("[limits]\nhead_bytes = 1024").findings), "t.toml:1:1: limits: target_bytes"));
}

TEST_CASE("nearest() suggests slips of the finger and nothing far off") {
    std::vector<std::string> const names{"listen", "workers", "drain"};
    CHECK(conf::nearest("lsiten", names) == "listen");
    CHECK(conf::nearest("worker", names) == "workers");
    CHECK(conf::nearest("darin", names) == "drain");
    CHECK_FALSE(conf::nearest("colour", names));
    CHECK_FALSE(conf::nearest(std::string(5000, 'l'), names));
}

TEST_CASE("TLS that cannot work is named with its remedy") {
    std::string const cert = "[[tls.certificate]]\nchain = \"c.pem\"\nkey = \"k.pem\"\n";
    CHECK(has(all(with("[tls]\nlisten = \":443\"").findings), "t.toml:2:10: `tls.listen` has no certificate to show; add"));
    CHECK(has(all(with(cert).findings), "nothing listens with it"));
    CHECK(has(all(with("[tls]\nlisten = \":443\"\n[[tls.certificate]]\nchain = \"c.pem\"").findings), "has no `key`"));
    CHECK(has(all(with("[tls]\nlisten = \":443\"\ncertificate = \"c.pem\"").findings), "write [[tls.certificate]]"));
    CHECK(has(all(with("[tls]\nlisten = \"443x\"\n" + cert).findings), "wrong address"));
    CHECK(has(all(with("[tls]\nlisten = \":443\"\nminimum_version = \"1.1\"\n" + cert).findings),
              "'minimum_version' is none of its choices; write \"1.2\" or \"1.3\""));
    CHECK(has(all(with("[client]\ntls_handshake = \"50ms\"").findings), "'tls_handshake' is out of range"));
    CHECK(has(all(with("chain = \"c.pem\"").findings), "it belongs in [[tls.certificate]]"));
}

TEST_CASE("one port cannot be both plain and TLS, nor that of the admin side") {
    std::string const tls = "[tls]\nlisten = [\":443\", \":443\"]\n[[tls.certificate]]\nchain = \"c\"\nkey = \"k\"";
    CHECK(has(all(with(tls).findings), "`tls.listen` has port 443 of 0.0.0.0 twice"));
    CHECK(has(all(with("listen = \":443\"\n" + tls).findings), "`tls.listen` has port 443 of 0.0.0.0, which `listen` has too"));
    CHECK(has(all(with("admin_listen = \":443\"\n" + tls).findings), "which `tls.listen` has too"));
}

TEST_CASE("a gateway may speak nothing but TLS") {
    auto const got = with("listen = []\n[tls]\nlisten = \":443\"\n[[tls.certificate]]\nchain = \"c.pem\"\nkey = \"k.pem\"");
    CHECK(all(got.findings) == "");
    CHECK(got.value.listen.empty());
}
