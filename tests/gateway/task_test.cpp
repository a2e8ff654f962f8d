#include "gateway/task.hpp"

#include <stdexcept>
#include <string>

#include "tests/catch.hpp"

using namespace latchkey::gateway;

namespace {

task<int> value(int v) { co_return v; }
task<int> sum(int depth) {
    if (depth == 0) co_return 0;
    int const below = co_await sum(depth - 1);
    co_return below + 1;
}
task<int> waits(event& e, int v) {
    co_await e;
    co_return v;
}
task<int> fails(event& e) {
    co_await e;
    throw std::runtime_error("on purpose");
}

struct counted {
    explicit counted(int& n) : alive(n) { ++alive; }
    ~counted() { --alive; }
    counted(counted const&) = delete;
    counted& operator=(counted const&) = delete;
    int& alive;
};

detached run_value(int& out) { out = co_await value(7); }
detached run_sum(int& out, int depth) { out = co_await sum(depth); }
detached run_waits(event& e, int& out, int& alive) {
    counted const here(alive);
    out = co_await waits(e, 3);
}
detached run_fails(event& e, std::string& said, int& alive) {
    counted const here(alive);
    try {
        co_await fails(e);
    } catch (std::exception const& x) {
        said = x.what();
    }
}

}  // namespace

TEST_CASE("a task that never waits gives its value at once") {
    int out = 0;
    run_value(out);
    CHECK(out == 7);
}

TEST_CASE("tasks await tasks") {
    int out = 0;
    run_sum(out, 200);
    CHECK(out == 200);
}

TEST_CASE("a coroutine that waits for an event goes on when it is set, and frees what it held") {
    event e;
    int out = 0;
    int alive = 0;
    run_waits(e, out, alive);
    CHECK(out == 0);
    CHECK(alive == 1);
    e.set();
    CHECK(out == 3);
    CHECK(alive == 0);
}

TEST_CASE("an event that is set already makes nobody wait, until it is reset") {
    event e;
    e.set();
    CHECK(e.is_set());
    int out = 0;
    int alive = 0;
    run_waits(e, out, alive);
    CHECK(out == 3);
    e.reset();
    out = 0;
    run_waits(e, out, alive);
    CHECK(out == 0);
    e.set();
    CHECK(out == 3);
    CHECK(alive == 0);
}

TEST_CASE("an exception reaches the coroutine that awaits") {
    event e;
    std::string said;
    int alive = 0;
    run_fails(e, said, alive);
    CHECK(said.empty());
    e.set();
    CHECK(said == "on purpose");
    CHECK(alive == 0);
}

TEST_CASE("a task that nobody awaits is destroyed without having run") {
    event e;
    { auto const t = waits(e, 1); }
    e.set();
    CHECK(e.is_set());
}
