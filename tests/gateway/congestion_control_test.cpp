#include "gateway/congestion_control.hpp"

#include <array>
#include <string>

#include "tests/gateway/support.hpp"
#include "tests/gateway/world.hpp"

using namespace latchkey;
using namespace latchkey::gateway;
using namespace latchkey::gateway::test;

namespace {

// Empty where it is no TCP socket.
std::string control_of(int descriptor) {
    std::array<char, 16> name{};  // TCP_CA_NAME_MAX
    socklen_t size = name.size();
    if (::getsockopt(descriptor, IPPROTO_TCP, TCP_CONGESTION, name.data(), &size) != 0) return {};
    return name.data();
}

struct tcp_socket {
    explicit tcp_socket(int family) : descriptor(::socket(family, SOCK_STREAM | SOCK_CLOEXEC, IPPROTO_TCP)) {}
    tcp_socket(tcp_socket const&) = delete;
    ~tcp_socket() {
        if (descriptor >= 0) ::close(descriptor);
    }
    int descriptor;
};

std::string chosen_for(char const* peer) {
    tcp_socket const s(AF_INET);
    choose_congestion_control(s.descriptor, asio::ip::make_address(peer));
    return control_of(s.descriptor);
}

// Of this process's connections those whose own port this is: what the gateway accepted there.
std::vector<std::string> controls_at(std::uint16_t port) {
    std::vector<std::string> found;
    for (int fd = 0; fd < 1024; ++fd) {
        sockaddr_in own{};
        sockaddr_in peer{};
        socklen_t size = sizeof own;
        if (::getsockname(fd, reinterpret_cast<sockaddr*>(&own), &size) != 0 || ntohs(own.sin_port) != port) continue;
        if (::getpeername(fd, reinterpret_cast<sockaddr*>(&peer), &size) == 0) found.push_back(control_of(fd));
    }
    return found;
}

// And those that lead there.
std::vector<std::string> controls_to(std::uint16_t port) {
    std::vector<std::string> found;
    for (int fd = 0; fd < 1024; ++fd) {
        sockaddr_in peer{};
        socklen_t size = sizeof peer;
        if (::getpeername(fd, reinterpret_cast<sockaddr*>(&peer), &size) == 0 && ntohs(peer.sin_port) == port)
            found.push_back(control_of(fd));
    }
    return found;
}

}  // namespace

TEST_CASE("a connection within the host has the plain congestion control, another the system's") {
    std::string const usual = control_of(tcp_socket(AF_INET).descriptor);
    REQUIRE_FALSE(usual.empty());
    for (char const* peer : {"127.0.0.1", "127.255.0.7", "::1"}) CHECK(chosen_for(peer) == "reno");
    for (char const* peer : {"10.0.0.1", "0.0.0.0", "128.0.0.1", "::", "2001:db8::1"}) CHECK(chosen_for(peer) == usual);
}

TEST_CASE("a descriptor that is no TCP socket is left alone") {
    choose_congestion_control(-1, asio::ip::address_v4::loopback());
    std::array<int, 2> pipe{};
    REQUIRE(::pipe(pipe.data()) == 0);
    choose_congestion_control(pipe[0], asio::ip::address_v4::loopback());
    for (int const fd : pipe) ::close(fd);
}

TEST_CASE("clients and upstreams on this host have it, whatever address the gateway listens at") {
    for (char const* host : {"127.0.0.1", "0.0.0.0"}) {
        world w([&](conf::settings& s) { s.listen = {{host, 0}}; });
        wire client = wire::to(w.port);
        client.send(w.request());
        REQUIRE_FALSE(client.message().empty());
        CHECK(controls_at(w.port) == std::vector<std::string>{"reno"});
        CHECK(controls_to(w.behind.port()) == std::vector<std::string>{"reno"});
    }
}
