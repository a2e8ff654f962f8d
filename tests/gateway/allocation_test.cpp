// Law 2: a warm keep-alive request without a body allocates nothing. Counts every call of operator new, by thread: the gateway's
// worker is the thread that is neither the client (the test), nor the upstream, nor the flusher.

#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <array>
#include <atomic>
#include <csignal>
#include <cstdlib>
#include <cstring>
#include <ctime>
#include <filesystem>
#include <fstream>
#include <memory>
#include <new>
#include <string>
#include <vector>

#include "gateway/admission.hpp"
#include "gateway/frame_pool.hpp"
#include "gateway/rewrite.hpp"
#include "gateway/router.hpp"
#include "gateway/target.hpp"
#include "tests/gateway/support.hpp"
#include "tests/gateway/world.hpp"

namespace {

std::atomic<bool> counting{false};
std::atomic<std::uint64_t> worker_allocations{0};
thread_local std::uint64_t thread_allocations = 0;

// Named by worker::run(). Asked per call while counting: a thread may be named after its first allocation.
bool on_worker() noexcept {
    std::array<char, 16> name{};
    ::prctl(PR_GET_NAME, name.data());
    return std::strncmp(name.data(), "worker-", 7) == 0;
}

void* counted(std::size_t bytes, std::size_t alignment = 0) noexcept {
    ++thread_allocations;
    if (counting.load(std::memory_order_relaxed) && on_worker()) worker_allocations.fetch_add(1, std::memory_order_relaxed);
    if (alignment == 0) return std::malloc(bytes == 0 ? 1 : bytes);
    return std::aligned_alloc(alignment, (bytes + alignment - 1) / alignment * alignment);
}
void* counted_or_throw(std::size_t bytes, std::size_t alignment = 0) {
    void* const p = counted(bytes, alignment);
    if (!p) throw std::bad_alloc();
    return p;
}

}  // namespace

// Not inlined: GCC takes a visible malloc behind new, or free behind delete, for a mismatch.
[[gnu::noinline]] void* operator new(std::size_t n) { return counted_or_throw(n); }
[[gnu::noinline]] void* operator new[](std::size_t n) { return counted_or_throw(n); }
[[gnu::noinline]] void* operator new(std::size_t n, std::nothrow_t const&) noexcept { return counted(n); }
[[gnu::noinline]] void* operator new[](std::size_t n, std::nothrow_t const&) noexcept { return counted(n); }
[[gnu::noinline]] void* operator new(std::size_t n, std::align_val_t a) {
    return counted_or_throw(n, static_cast<std::size_t>(a));
}
[[gnu::noinline]] void* operator new[](std::size_t n, std::align_val_t a) {
    return counted_or_throw(n, static_cast<std::size_t>(a));
}
[[gnu::noinline]] void* operator new(std::size_t n, std::align_val_t a, std::nothrow_t const&) noexcept {
    return counted(n, static_cast<std::size_t>(a));
}
[[gnu::noinline]] void* operator new[](std::size_t n, std::align_val_t a, std::nothrow_t const&) noexcept {
    return counted(n, static_cast<std::size_t>(a));
}
[[gnu::noinline]] void operator delete(void* p) noexcept { std::free(p); }
[[gnu::noinline]] void operator delete[](void* p) noexcept { std::free(p); }
[[gnu::noinline]] void operator delete(void* p, std::size_t) noexcept { std::free(p); }
[[gnu::noinline]] void operator delete[](void* p, std::size_t) noexcept { std::free(p); }
[[gnu::noinline]] void operator delete(void* p, std::nothrow_t const&) noexcept { std::free(p); }
[[gnu::noinline]] void operator delete[](void* p, std::nothrow_t const&) noexcept { std::free(p); }
[[gnu::noinline]] void operator delete(void* p, std::align_val_t) noexcept { std::free(p); }
[[gnu::noinline]] void operator delete[](void* p, std::align_val_t) noexcept { std::free(p); }
[[gnu::noinline]] void operator delete(void* p, std::align_val_t, std::nothrow_t const&) noexcept { std::free(p); }
[[gnu::noinline]] void operator delete[](void* p, std::align_val_t, std::nothrow_t const&) noexcept { std::free(p); }
[[gnu::noinline]] void operator delete(void* p, std::size_t, std::align_val_t) noexcept { std::free(p); }
[[gnu::noinline]] void operator delete[](void* p, std::size_t, std::align_val_t) noexcept { std::free(p); }

using namespace latchkey;
using namespace latchkey::gateway;
using namespace latchkey::gateway::test;

TEST_CASE("all decisions on a request and its response allocate nothing") {
    std::string const key = keystore::make_key("lk");
    std::string const request =
        "GET /v1/./orders%2D1/4711?expand=lines HTTP/1.1\r\nHost: api.example.com\r\nUser-Agent: x/1\r\nConnection: keep-alive, "
        "X-Hop\r\n"
        "X-Hop: 1\r\nX-API-KEY: " +
        key + "\r\n\r\n";
    std::string const response =
        "HTTP/1.1 200 OK\r\nServer: x\r\nConnection: X-Hop\r\nX-Hop: 1\r\nContent-Type: application/json\r\nContent-Length: "
        "1024\r\n\r\n";
    keystore::key_table table;
    table.apply(shard_with(key, keystore::key_state::active));
    conf::key_settings const settings;
    conf::api one;
    one.hosts = {"*.example.com"};
    one.path_prefixes = {"/v1/orders-1"};
    router const routes({one});
    auto const request_head = std::make_unique<head>();
    auto const response_head = std::make_unique<head>();
    std::string bytes = request;
    std::vector<char> memory(64 * 1024);

    key_guess guess;
    std::uint64_t const before = thread_allocations;
    bool good = true;
    for (int i = 0; i < 100; ++i) {
        std::memcpy(bytes.data(), request.data(), request.size());  // normalising works in place
        good = good && guess.look({bytes.data(), bytes.size()}) == (i != 0);
        std::size_t searched = 0;
        auto why = refusal::none;
        good = good && parse_request_head(bytes.data(), bytes.size(), searched, wide_limits, *request_head, why) == parsed::whole;
        request_frame frame;
        good = good && check_request(*request_head, frame) == refusal::none;
        request_target target;
        char* const at = bytes.data() + (request_head->target.data() - bytes.data());
        good = good && normalise_target(at, request_head->target.size(), request_head->method, target) == refusal::none;
        host_name name;
        good = good && parse_host(frame.host, name);
        auto const found = routes.find(name.view(), target.path);
        good = good && found && found->prefix == 12;
        identity who;
        keystore::key_view view;
        credential const shown = read_credential(*request_head, settings, &guess);
        good = good && shown.guessed == (i != 0) && admit(shown, table, 1, who, view) == refusal::none;
        forward_context c;
        c.api = &one;
        c.frame = &frame;
        c.key = &view;
        c.request_id = "id";
        c.client_address = "192.0.2.1";
        c.listener_port = "80";
        c.trace_id = "0af7651916cd43dd8448eb211c80319c";
        c.span_id = "b7ad6b7169203331";
        writer w(memory.data(), memory.size());
        write_request_fields(w, *request_head, c);
        write_request_lines(w, request_head->method, "", target.path, target.query, frame.host);
        searched = 0;
        response_frame answer;
        good =
            good && parse_response_head(response.data(), response.size(), searched, wide_limits, *response_head) == parsed::whole;
        good = good && check_response(*response_head, false, answer);
        answer_context a;
        a.body = answer.body;
        a.frame = &answer;
        a.request_id = "id";
        write_response_head(w, *response_head, a);
        good = good && !w.overflowed();
    }
    std::uint64_t const made = thread_allocations - before;
    CHECK(good);
    CHECK(made == 0);
}

TEST_CASE("a warm keep-alive request allocates nothing on its worker, end to end") {
    world w;
    wire client = wire::to(w.port);
    std::string const request = w.request("/v1/things");
    std::array<char, 4096> answer{};
    auto const ask = [&] {
        client.send(request);
        std::size_t n = 0;
        while (n == 0 || std::string_view(answer.data(), n).find("\r\n\r\nok") == std::string_view::npos) {
            auto const more = client.receive(answer.data() + n, answer.size() - n);
            if (more == 0) return false;
            n += more;
        }
        return std::string_view(answer.data(), n).starts_with("HTTP/1.1 200 OK\r\n");
    };
    for (int i = 0; i < 50; ++i) REQUIRE(ask());
    std::size_t const chunks = frame_pool::mapped_bytes();
    counting = true;
    int answered = 0;
    for (int i = 0; i < 200; ++i) answered += ask() ? 1 : 0;
    counting = false;
    CHECK(answered == 200);
    CHECK(worker_allocations.load() == 0);
    CHECK(frame_pool::mapped_bytes() <= chunks);

    // The counter does count the worker: what Asio keeps for a new connection is allocated.
    worker_allocations = 0;
    counting = true;
    client = wire::to(w.port);
    REQUIRE(ask());
    counting = false;
    CHECK(worker_allocations.load() > 0);
}

namespace {

std::atomic<bool> halted{false};
std::atomic<bool> halting{false};

// While it lives the worker runs nothing: what comes meanwhile is found at one look.
class halted_worker {
  public:
    halted_worker() {
        struct sigaction stand {};
        stand.sa_handler = [](int) {
            halting = true;
            timespec const pause{0, 1'000'000};
            while (halted) ::nanosleep(&pause, nullptr);
            halting = false;
        };
        REQUIRE(::sigaction(SIGUSR2, &stand, &before_) == 0);
        halted = true;
        for (auto const& task : std::filesystem::directory_iterator("/proc/self/task")) {
            std::string name;
            std::getline(std::ifstream(task.path() / "comm"), name);
            if (name == "worker-0") ::syscall(SYS_tgkill, ::getpid(), std::stoi(task.path().filename()), SIGUSR2);
        }
        REQUIRE(testing::eventually([] { return halting.load(); }));
    }
    ~halted_worker() {
        halted = false;
        testing::eventually([] { return !halting.load(); });
        ::sigaction(SIGUSR2, &before_, nullptr);
    }
    halted_worker(halted_worker const&) = delete;
    halted_worker& operator=(halted_worker const&) = delete;

  private:
    struct sigaction before_ {};
};

}  // namespace

TEST_CASE("warm requests that come together allocate nothing on their worker, those that are refused neither") {
    bool const io_uring = GENERATE(true, false);
    world w([&](conf::settings& s) { s.io_uring = io_uring; });
    constexpr std::size_t count = 24;
    std::vector<wire> clients;
    for (std::size_t i = 0; i < count; ++i) clients.push_back(wire::to(w.port));
    std::string const good = w.request("/v1/things");
    std::string const bad = "GET / HTTP/1.1\r\nHost: h\r\nX-API-KEY: no-such-key-000000000000000\r\n\r\n";
    std::array<char, 4096> answer{};
    // All ask before the first reads. Whole answers, for each comes by one send and is read after all were.
    auto const ask = [&] {
        for (std::size_t i = 0; i < count; ++i) clients[i].send(i % 4 == 3 ? bad : good);
    };
    auto const answered = [&] {
        std::size_t right = 0;
        for (std::size_t i = 0; i < count; ++i) {
            auto const n = clients[i].receive(answer.data(), answer.size());
            right += std::string_view(answer.data(), n).starts_with(i % 4 == 3 ? "HTTP/1.1 401 " : "HTTP/1.1 200 ") ? 1 : 0;
        }
        return right;
    };
    // Warm is a worker that had as many in hand at once as can be: so all are found at one look, and none is answered before each
    // has an upstream connection.
    ask();
    REQUIRE(answered() == count);
    w.behind.hold = true;
    w.behind.requests = 0;
    {
        halted_worker const all_at_once;
        ask();
    }
    REQUIRE(testing::eventually([&] { return w.behind.requests == count / 4 * 3; }));
    w.behind.hold = false;
    REQUIRE(answered() == count);
    for (int i = 0; i < 50; ++i) {
        ask();
        REQUIRE(answered() == count);
    }
    std::size_t const chunks = frame_pool::mapped_bytes();
    worker_allocations = 0;
    counting = true;
    std::size_t right = 0;
    for (int i = 0; i < 100; ++i) {
        ask();
        right += answered();
    }
    counting = false;
    CHECK(right == 100 * count);
    CHECK(worker_allocations.load() == 0);
    CHECK(frame_pool::mapped_bytes() <= chunks);
}
