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
    tcp_socket() : descriptor(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, IPPROTO_TCP)) {}
    tcp_socket(tcp_socket const&) = delete;
    ~tcp_socket() {
        if (descriptor >= 0) ::close(descriptor);
    }
    int const descriptor;
};

std::string chosen_for(char const* peer) {
    tcp_socket const s;
    choose_congestion_control(s.descriptor, asio::ip::make_address(peer));
    return control_of(s.descriptor);
}

using end_of = int (*)(int, sockaddr*, socklen_t*);

// 0 where it is no IPv4 socket, or has no such end.
std::uint16_t port_at(end_of end, int descriptor) {
    sockaddr_storage a{};
    socklen_t size = sizeof a;
    if (end(descriptor, reinterpret_cast<sockaddr*>(&a), &size) != 0 || a.ss_family != AF_INET) return 0;
    return ntohs(reinterpret_cast<sockaddr_in const&>(a).sin_port);
}

// Of this process's connections that have this port at that end.
std::vector<std::string> controls_of(end_of end, std::uint16_t port) {
    std::vector<std::string> found;
    for (int fd = 0; fd < 1024; ++fd)
        if (port_at(::getpeername, fd) != 0 && port_at(end, fd) == port) found.push_back(control_of(fd));
    return found;
}

}  // namespace

TEST_CASE("a connection within the host has the plain congestion control, another the system's") {
    std::string const usual = control_of(tcp_socket().descriptor);
    REQUIRE_FALSE(usual.empty());
    if (usual == "reno") WARN("the system's is the plain one: this test tells nothing here");
    for (char const* peer : {"127.0.0.1", "127.255.0.7", "::1", "::ffff:127.0.0.1"}) CHECK(chosen_for(peer) == "reno");
    for (char const* peer : {"10.0.0.1", "0.0.0.0", "128.0.0.1", "::", "2001:db8::1", "::ffff:10.0.0.1"})
        CHECK(chosen_for(peer) == usual);
}

// (And one that has run bbr is not as free of pacing as one that never had it; the name does not tell.)
TEST_CASE("clients and upstreams on this host have it, whatever address the gateway listens at") {
    for (char const* host : {"127.0.0.1", "0.0.0.0"}) {
        world w([&](conf::settings& s) { s.listen = {{host, 0}}; });
        wire client = wire::to(w.port);
        client.send(w.request());
        REQUIRE_FALSE(client.message().empty());
        CHECK(controls_of(::getsockname, w.port) == std::vector<std::string>{"reno"});
        CHECK(controls_of(::getpeername, w.behind.port()) == std::vector<std::string>{"reno"});
    }
}
