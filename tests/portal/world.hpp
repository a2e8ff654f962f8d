#pragma once
// A data folder with a store, a key directory, a recorder and an admin server on it, and a plain client of both listeners.

#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <arpa/inet.h>
#include <poll.h>

#include <atomic>
#include <boost/json.hpp>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <memory>
#include <string>

#include "keystore/key_directory.hpp"
#include "portal/admin_server.hpp"
#include "portal/unix_address.hpp"
#include "tests/catch.hpp"
#include "usage/recorder.hpp"

namespace portal_test {

namespace fs = std::filesystem;
using namespace latchkey;

struct folder {
    fs::path path;
    folder() {
        std::string name = (fs::temp_directory_path() / "latchkey-portal-XXXXXX").string();
        REQUIRE(mkdtemp(name.data()) != nullptr);
        path = name;
    }
    ~folder() { fs::remove_all(path); }
};

class client {
  public:
    static client unix_socket(std::string const& path) {
        client c(AF_UNIX);
        auto const address = portal::unix_address::of(path);
        REQUIRE(address.has_value());
        sockaddr_un name{};
        name.sun_family = AF_UNIX;
        std::memcpy(name.sun_path, address->text().data(), address->text().size());
        c.connected_ = ::connect(c.fd_, reinterpret_cast<sockaddr*>(&name), sizeof name) == 0;
        return c;
    }
    static client tcp(std::uint16_t port) {
        client c(AF_INET);
        sockaddr_in name{};
        name.sin_family = AF_INET;
        name.sin_port = htons(port);
        name.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
        c.connected_ = ::connect(c.fd_, reinterpret_cast<sockaddr*>(&name), sizeof name) == 0;
        return c;
    }
    client(client&& o) noexcept : fd_(std::exchange(o.fd_, -1)), connected_(o.connected_) {}
    client& operator=(client&&) = delete;
    ~client() {
        if (fd_ >= 0) ::close(fd_);
    }

    bool connected() const { return connected_; }
    void send(std::string_view text) {
        while (!text.empty()) {
            auto const n = ::send(fd_, text.data(), text.size(), MSG_NOSIGNAL);
            if (n <= 0) return;
            text.remove_prefix(static_cast<std::size_t>(n));
        }
    }
    // Everything up to the end of the connection; fails the test after 10 s without a byte.
    std::string read_all() {
        std::string out;
        char piece[4096];
        for (;;) {
            pollfd p{fd_, POLLIN, 0};
            REQUIRE(::poll(&p, 1, 10'000) == 1);
            auto const n = ::recv(fd_, piece, sizeof piece, 0);
            if (n <= 0) return out;
            out.append(piece, static_cast<std::size_t>(n));
        }
    }

  private:
    explicit client(int family) : fd_(::socket(family, SOCK_STREAM | SOCK_CLOEXEC, 0)) { REQUIRE(fd_ >= 0); }
    int fd_;
    bool connected_ = false;
};

inline int status_of(std::string const& response) { return response.size() < 12 ? 0 : std::atoi(response.c_str() + 9); }
inline std::string body_of(std::string const& response) {
    auto const end = response.find("\r\n\r\n");
    return end == std::string::npos ? "" : response.substr(end + 4);
}
inline boost::json::object json_of(std::string const& response) { return boost::json::parse(body_of(response)).as_object(); }

struct world {
    folder data;
    std::unique_ptr<keystore::key_directory> keys;
    std::unique_ptr<usage::recorder> recorder;
    std::atomic<bool> draining = false;
    std::atomic<unsigned> published = 0;
    std::atomic<bool> publish_fails = false;

    world() {
        auto store = keystore::store::open((data.path / "keys.db").string(), {});
        REQUIRE(store.has_value());
        keys = std::make_unique<keystore::key_directory>(std::move(*store), "lk");
        REQUIRE(keys->load().has_value());
        keys->start([this](auto const&) -> result<void> {
            ++published;
            if (publish_fails) return error{errc::unavailable, "worker 0 did not answer"};
            return {};
        });
        fs::create_directory(data.path / "rings");
        auto opened = usage::recorder::open({(data.path / "usage.db").string(), (data.path / "rings").string(), 1, 1U << 16U,
                                             std::chrono::milliseconds(1000), 0});
        REQUIRE(opened.has_value());
        recorder = std::move(*opened);
        recorder->start();
    }
    ~world() {
        recorder->stop();
        keys->stop();
    }

    std::string socket_path() const { return (data.path / "admin.sock").string(); }
    portal::admin_options options() const {
        portal::admin_options o;
        o.socket_path = socket_path();
        return o;
    }
    portal::gateway_view view() {
        return [this] {
            portal::gateway_state s;
            s.ready = true;
            s.draining = draining;
            s.version = "1.2.3";
            s.workers = 1;
            s.listen = {"127.0.0.1:1"};
            s.figures = {{"requests_total", "Requests", "", true, 7},
                         {"responses_total", "Responses", "class=\"2xx\"", true, 5},
                         {"responses_total", "Responses", "class=\"5xx\"", true, 2}};
            return s;
        };
    }
};

struct running : world {
    portal::admin_server server;
    explicit running(void (*change)(portal::admin_options&) = [](portal::admin_options&) {})
        : server(changed(options(), change), *keys, *recorder, view()) {
        server.start();
    }
    static portal::admin_options changed(portal::admin_options o, void (*change)(portal::admin_options&)) {
        change(o);
        return o;
    }
    ~running() { server.stop(); }

    std::string admin(std::string const& method, std::string const& target, std::string const& body = {},
                      std::string const& type = "application/json") {
        auto c = client::unix_socket(socket_path());
        REQUIRE(c.connected());
        c.send(method + " " + target + " HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Type: " + type +
               "\r\nContent-Length: " + std::to_string(body.size()) + "\r\n\r\n" + body);
        return c.read_all();
    }
    std::string health(std::string const& method, std::string const& target) {
        auto c = client::tcp(server.health_port());
        REQUIRE(c.connected());
        c.send(method + " " + target + " HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
        return c.read_all();
    }
};

}  // namespace portal_test
