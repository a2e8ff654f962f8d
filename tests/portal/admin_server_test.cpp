#include "portal/admin_server.hpp"

#include <fcntl.h>

#include <fstream>

#include "tests/portal/world.hpp"

using namespace portal_test;

namespace {

bool has(std::string const& text, std::string const& part) { return text.find(part) != std::string::npos; }

std::string start_error(world& w, portal::admin_options o) {
    portal::admin_server server(std::move(o), *w.keys, *w.recorder, w.view());
    try {
        server.start();
    } catch (std::runtime_error const& e) {
        return e.what();
    }
    return "";
}

// A socket file that a killed process left: bound, never answered again.
void leave_socket(std::string const& path) {
    int const fd = ::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    sockaddr_un name{};
    name.sun_family = AF_UNIX;
    std::memcpy(name.sun_path, path.data(), path.size());
    REQUIRE(::bind(fd, reinterpret_cast<sockaddr*>(&name), sizeof name) == 0);
    ::close(fd);
}

}  // namespace

TEST_CASE("a key's life: made, listed, found, revoked, removed") {
    running r;
    auto const made = r.admin("POST", "/v1/keys", R"({"name": "Ann"})");
    REQUIRE(status_of(made) == 201);
    auto const key = json_of(made);
    CHECK(key.at("name") == "Ann");
    CHECK(key.at("key").as_string().starts_with("lk_"));
    CHECK(r.published > 0);
    std::string const id = key.at("id").as_string().c_str();

    auto const found = json_of(r.admin("GET", "/v1/keys/" + id));
    CHECK(found.at("state") == "active");
    CHECK(found.at("revoked").is_null());
    CHECK_FALSE(found.contains("key"));

    auto const second = json_of(
        r.admin("POST", "/v1/keys", R"({"application_id": ")" + std::string(key.at("application_id").as_string()) + "\"}"));
    CHECK(second.at("application_id") == key.at("application_id"));

    auto const page = json_of(r.admin("GET", "/v1/keys?limit=1"));
    REQUIRE(page.at("keys").as_array().size() == 1);
    auto const rest = json_of(r.admin("GET", "/v1/keys?limit=5&after=" + std::string(page.at("next").as_string())));
    CHECK(rest.at("keys").as_array().size() == 1);
    CHECK(rest.at("next").is_null());

    CHECK(json_of(r.admin("POST", "/v1/keys/" + id + "/revoke")).at("state") == "revoked");
    CHECK(status_of(r.admin("DELETE", "/v1/keys/" + id)) == 200);
    auto const gone = r.admin("GET", "/v1/keys/" + id);
    CHECK(status_of(gone) == 404);
    CHECK(has(gone, "application/problem+json"));
    CHECK(json_of(gone).at("code") == "not_found");
}

TEST_CASE("a change that a worker did not take in time is an error to the caller") {
    running r;
    r.publish_fails = true;
    auto const made = r.admin("POST", "/v1/keys", R"({"name": "Ann"})");
    CHECK(status_of(made) == 503);
    CHECK(json_of(made).at("code") == "unavailable");
    r.publish_fails = false;
}

TEST_CASE("an import reports, and a wrong line is refused whole without echoing a key") {
    running r;
    auto const good = r.admin("POST", "/v1/keys/import", "name,key\nAnn,0123456789abcdefghij\n", "text/csv; charset=utf-8");
    REQUIRE(status_of(good) == 200);
    CHECK(json_of(good).at("imported") == 1);
    auto const again = r.admin("POST", "/v1/keys/import", "name,key\nAnn,0123456789abcdefghij\n", "text/csv");
    CHECK(json_of(again).at("unchanged") == 1);
    auto const bad = r.admin("POST", "/v1/keys/import", "name,key\nBob,ABCDEFGHIJKLMNOPQRST\nEve,short\n", "text/csv");
    CHECK(status_of(bad) == 400);
    CHECK(has(bad, "3"));
    CHECK_FALSE(has(bad, "ABCDEFGHIJ"));
    CHECK(json_of(r.admin("GET", "/v1/keys")).at("keys").as_array().size() == 1);
    CHECK(status_of(r.admin("POST", "/v1/keys/import", "name,key\n", "application/json")) == 415);
}

TEST_CASE("requests the API does not know are problems with a code") {
    running r;
    struct row {
        char const *method, *target, *body;
        int status;
        char const* code;
    };
    for (auto const& x :
         {row{"GET", "/", "", 404, "no_route"}, row{"GET", "/v1/keys/a/b", "", 404, "no_route"},
          row{"PUT", "/v1/keys", "", 405, "method_not_allowed"}, row{"GET", "/v1/keys/import", "", 405, "method_not_allowed"},
          row{"GET", "/v1/keys?limit=0", "", 400, "invalid_argument"},
          row{"GET", "/v1/keys?limit=1001", "", 400, "invalid_argument"}, row{"GET", "/v1/keys?x=1", "", 400, "invalid_argument"},
          row{"GET", "/v1/status?x", "", 400, "invalid_argument"}, row{"POST", "/v1/keys", "", 400, "invalid_argument"},
          row{"POST", "/v1/keys", "[]", 400, "invalid_argument"}, row{"POST", "/v1/keys", "{}", 400, "invalid_argument"},
          row{"POST", "/v1/keys", R"({"name": 5})", 400, "invalid_argument"},
          row{"POST", "/v1/keys", R"({"name": "a", "key": "b"})", 400, "invalid_argument"},
          row{"POST", "/v1/keys", R"({"application_id": "app_none"})", 404, "not_found"},
          row{"POST", "/v1/keys/none/revoke", "", 404, "not_found"}, row{"DELETE", "/v1/keys/none", "", 404, "not_found"}}) {
        auto const got = r.admin(x.method, x.target, x.body);
        INFO(x.method << " " << x.target << " " << x.body << "\n" << got);
        CHECK(status_of(got) == x.status);
        CHECK(json_of(got).at("code") == x.code);
    }
    CHECK(has(r.admin("PUT", "/v1/keys"), "Allow: GET, POST"));
    CHECK(status_of(r.admin("POST", "/v1/keys", "{}", "text/plain")) == 415);
}

TEST_CASE("flush and status answer") {
    running r;
    CHECK(json_of(r.admin("POST", "/v1/usage/flush")).at("flushed") == true);
    auto const status = json_of(r.admin("GET", "/v1/status"));
    CHECK(status.at("version") == "1.2.3");
    CHECK(status.at("ready") == true);
    CHECK(status.at("store").at("ok") == true);
    CHECK(status.at("gateway").at("requests_total") == 7.0);
}

TEST_CASE("bodies and heads over their limits are refused") {
    running r([](portal::admin_options& o) {
        o.body_bytes_max = 100;
        o.import_bytes_max = 1000;
    });
    CHECK(status_of(r.admin("POST", "/v1/keys", std::string(101, 'x'))) == 413);
    CHECK(status_of(r.admin("POST", "/v1/keys/import", std::string(1001, 'x'), "text/csv")) == 413);
    CHECK(status_of(r.admin("POST", "/v1/keys/import", std::string(1000, 'x'), "text/csv")) == 400);
    CHECK(status_of(r.admin("GET", "/" + std::string(20'000, 'x'))) == 431);
    auto c = client::unix_socket(r.socket_path());
    c.send("POST /v1/keys HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n65\r\n" + std::string(0x65, 'x') +
           "\r\n0\r\n\r\n");
    CHECK(status_of(c.read_all()) == 413);
}

TEST_CASE("nonsense and hostile trailers end their connection and nothing else") {
    running r;
    auto c = client::unix_socket(r.socket_path());
    c.send("\x16\x03\x01 nonsense\r\n\r\n");
    CHECK(status_of(c.read_all()) == 400);
    auto t = client::unix_socket(r.socket_path());
    t.send("POST /v1/keys HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nX: " + std::string(100'000, 'x') +
           "\r\n\r\n");
    t.read_all();
    CHECK(status_of(r.admin("GET", "/v1/status")) == 200);
    CHECK(status_of(r.health("GET", "/livez")) == 200);
}

TEST_CASE("a client that stalls is closed") {
    running r([](portal::admin_options& o) {
        o.idle_timeout = std::chrono::milliseconds(50);
        o.stall_timeout = std::chrono::milliseconds(50);
    });
    auto idle = client::unix_socket(r.socket_path());
    auto half = client::unix_socket(r.socket_path());
    half.send("POST /v1/keys HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\n{");
    auto probe = client::tcp(r.server.health_port());
    probe.send("GET /livez HT");
    CHECK(idle.read_all() == "");
    CHECK(half.read_all() == "");
    CHECK(probe.read_all() == "");
}

TEST_CASE("connections over the limit are closed at once, the listed ones go on") {
    running r([](portal::admin_options& o) { o.connections_max = 1; });
    auto first = client::unix_socket(r.socket_path());
    first.send("GET /v1/status HTTP/1.1\r\nHost: x\r\n");
    auto probe = client::tcp(r.server.health_port());
    auto second = client::unix_socket(r.socket_path());
    CHECK(second.read_all() == "");
    first.send("Connection: close\r\n\r\n");
    CHECK(status_of(first.read_all()) == 200);
}

TEST_CASE("keep-alive and Expect: 100-continue work") {
    running r;
    auto c = client::unix_socket(r.socket_path());
    c.send("POST /v1/usage/flush HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n");
    c.send("POST /v1/keys HTTP/1.1\r\nHost: x\r\nContent-Length: 14\r\nExpect: 100-continue\r\nConnection: close\r\n\r\n");
    c.send(R"({"name": "Al"})");
    auto const all = c.read_all();
    CHECK(has(all, "\"flushed\":true"));
    CHECK(has(all, "HTTP/1.1 100 Continue"));
    CHECK(has(all, "HTTP/1.1 201"));
}

TEST_CASE("health: live, ready, draining, metrics") {
    running r;
    CHECK(body_of(r.health("GET", "/livez")) == "ok\n");
    CHECK(json_of(r.health("GET", "/readyz")).at("ready") == true);
    auto const metrics = body_of(r.health("GET", "/metrics"));
    CHECK(has(metrics, "# TYPE latchkey_requests_total counter\nlatchkey_requests_total 7\n"));
    CHECK(has(metrics, "latchkey_responses_total{class=\"2xx\"} 5\nlatchkey_responses_total{class=\"5xx\"} 2\n"));
    CHECK(has(metrics, "latchkey_usage_records_total 0\n"));
    r.draining = true;
    CHECK(status_of(r.health("GET", "/readyz")) == 503);
    CHECK(status_of(r.health("GET", "/livez")) == 200);
    CHECK(status_of(r.health("GET", "/v1/keys")) == 404);
    CHECK(status_of(r.health("POST", "/livez")) == 405);
    auto const head = r.health("HEAD", "/livez");
    CHECK(status_of(head) == 200);
    CHECK(body_of(head) == "");
    auto c = client::tcp(r.server.health_port());
    c.send("GET /livez HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nhello");
    CHECK(status_of(c.read_all()) == 200);
}

TEST_CASE("the socket file is ours alone and goes away with the server") {
    auto const old = ::umask(0);
    std::string path;
    {
        running r;
        path = r.socket_path();
        struct stat s {};
        REQUIRE(::lstat(path.c_str(), &s) == 0);
        CHECK((s.st_mode & 07777U) == 0600U);
        CHECK(S_ISSOCK(s.st_mode));
        r.server.stop();
        CHECK_FALSE(fs::exists(path));
        r.server.stop();
    }
    ::umask(old);
}

TEST_CASE("a socket file of a killed process is replaced, a live one and a plain file are not") {
    world w;
    leave_socket(w.socket_path());
    {
        portal::admin_server server(w.options(), *w.keys, *w.recorder, w.view());
        server.start();
        CHECK(client::unix_socket(w.socket_path()).connected());
        CHECK(has(start_error(w, w.options()), "another process answers"));
        CHECK(client::unix_socket(w.socket_path()).connected());
    }
    std::ofstream(w.socket_path()) << "precious";
    CHECK(has(start_error(w, w.options()), "not a socket"));
    CHECK(fs::file_size(w.socket_path()) == 8);
}

TEST_CASE("a socket path of more than 107 bytes works") {
    world w;
    auto o = w.options();
    auto const deep = w.data.path / std::string(100, 'd') / std::string(100, 'e');
    fs::create_directories(deep);
    o.socket_path = (deep / "admin.sock").string();
    portal::admin_server server(o, *w.keys, *w.recorder, w.view());
    server.start();
    CHECK(client::unix_socket(o.socket_path).connected());
    server.stop();
    CHECK_FALSE(fs::exists(o.socket_path));
    o.socket_path = (deep / std::string(100, 'f')).string();
    CHECK(has(start_error(w, o), "too long"));
}

TEST_CASE("a health address that is taken stops the start with address and remedy") {
    running r;
    world w;
    auto o = w.options();
    o.health.port = r.server.health_port();
    auto const said = start_error(w, o);
    CHECK(has(said, std::to_string(o.health.port)));
    CHECK(has(said, "admin_listen"));
    CHECK_FALSE(fs::exists(w.socket_path()));
}
