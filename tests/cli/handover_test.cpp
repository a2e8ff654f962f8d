#include "cli/handover.hpp"

#include <fcntl.h>
#include <poll.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <future>
#include <vector>

#include "tests/catch.hpp"

namespace cli = latchkey::cli;
using namespace std::chrono_literals;

namespace {

// Says what a successor says; `dd` takes one message each time. It ends with the pair of sockets, not by the SIGTERM that a
// process which is to stop may pass on.
constexpr char const* successor = R"(
trap '' TERM
hear() { dd bs=65536 count=1 <&3 >/dev/null 2>&1; }
hear; printf prepared >&3
hear; printf 'serving []' >&3
hear; hear
)";

bool readable(int descriptor) {
    pollfd p{descriptor, POLLIN, 0};
    return ::poll(&p, 1, 30'000) == 1;
}

}  // namespace

TEST_CASE("a process that hands over does not go down before it has let go") {
    int const any = ::open("/dev/null", O_RDONLY | O_CLOEXEC);
    REQUIRE(any >= 0);
    std::promise<void> begun, go_on;
    std::atomic<bool> let_go = false;
    cli::handover::hooks h;
    h.give = [&] { return cli::estate{any, {"127.0.0.1", 1}, any, {any, {}}, {}}; };
    h.quiet = [](auto) { return latchkey::result<void>{}; };
    h.resume = [](bool) {};
    h.let_go = [&](auto const&) {
        begun.set_value();
        go_on.get_future().wait();
        let_go = true;
    };
    h.refresh = h.flush = [] { return latchkey::result<void>{}; };
    h.fallen = [](auto) { return false; };
    cli::handover next({"/bin/sh", {"sh", "-c", successor}}, {20s, 20s}, h);
    auto said = std::async(std::launch::async, [&] { return next.reload(); });
    REQUIRE(readable(next.wake()));
    CHECK_FALSE(next.turn());
    REQUIRE(begun.get_future().wait_for(30s) == std::future_status::ready);

    next.predecessor_gone();  // whatever wakes the main thread just now
    CHECK_FALSE(next.turn());
    auto stopped = std::async(std::launch::async, [&] {
        next.cancel();
        return let_go.load();
    });
    go_on.set_value();
    CHECK(stopped.get());
    REQUIRE(readable(next.wake()));
    CHECK(next.turn());
    auto const pid = said.get();
    REQUIRE(pid.has_value());
    next.close();
    int status = -1;
    CHECK(::waitpid(static_cast<pid_t>(*pid), &status, 0) == *pid);
    CHECK(status == 0);
    ::close(any);
}
