// What a request pays for the decisions on its head: parse, frame check, admission, and the head that goes on; and the same for
// the response. Heads as a browser and an ordinary API send them.
#include <memory>
#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

#include "bench/micro/allocations.hpp"
#include "conf/settings.hpp"
#include "gateway/admission.hpp"
#include "gateway/frame.hpp"
#include "gateway/head.hpp"
#include "gateway/rewrite.hpp"
#include "gateway/text.hpp"
#include "keystore/key_format.hpp"
#include "keystore/key_table.hpp"

namespace latchkey::bench {
namespace {

constexpr gateway::parse_limits limits{16 * 1024, 8 * 1024, 100};

constexpr std::string_view response_text =
    "HTTP/1.1 200 OK\r\nServer: api\r\nDate: Thu, 01 Jan 2026 00:00:00 GMT\r\nContent-Type: application/json\r\n"
    "Cache-Control: no-cache\r\nETag: \"5f2c-61d\"\r\nVary: Accept-Encoding\r\nContent-Length: 1024\r\n\r\n";

std::string request_text(std::string_view key) {
    return "GET /v1/orders/4711?expand=lines HTTP/1.1\r\nHost: api.example.com\r\nUser-Agent: orders-app/3.2 (linux)\r\n"
           "Accept: application/json\r\nAccept-Encoding: gzip, deflate, br\r\nAccept-Language: en-GB,en;q=0.8\r\n"
           "Cookie: theme=dark; session=0123456789abcdef0123456789abcdef\r\nX-API-KEY: " +
           std::string(key) + "\r\nConnection: keep-alive\r\n\r\n";
}

// One request, parsed and checked, and the key it comes with.
struct sample {
    std::string key = keystore::make_key("lk");
    std::string text = request_text(key);
    std::unique_ptr<gateway::head> head = std::make_unique<gateway::head>();
    gateway::request_frame frame;
    keystore::key_table table;
    conf::key_settings settings;
    conf::api api;

    sample() {
        std::size_t searched = 0;
        auto why = gateway::refusal::none;
        bool const whole =
            gateway::parse_request_head(text.data(), text.size(), searched, limits, *head, why) == gateway::parsed::whole;
        if (!whole || gateway::check_request(*head, frame) != gateway::refusal::none)
            throw std::logic_error("the sample is refused");
        keystore::key_entry entry;
        entry.hash = keystore::digest_of(key);
        entry.key_id = "key_0123456789abcdef";
        entry.application_id = "app_0123456789abcdef";
        entry.application = "orders app";
        table.apply({{keystore::shard_of(entry.hash), std::make_shared<keystore::key_shard const>(std::vector{entry})}});
    }
};

void request_head_parse(benchmark::State& state) {
    sample const given;
    auto head = std::make_unique<gateway::head>();
    count_allocations const counted{state};
    for (auto _ : state) {
        std::size_t searched = 0;
        auto why = gateway::refusal::none;
        auto const done = gateway::parse_request_head(given.text.data(), given.text.size(), searched, limits, *head, why);
        if (done != gateway::parsed::whole) state.SkipWithError("not parsed");
        benchmark::DoNotOptimize(head->count);
    }
}
BENCHMARK(request_head_parse);

void request_frame_check(benchmark::State& state) {
    sample const given;
    gateway::request_frame frame;
    count_allocations const counted{state};
    for (auto _ : state) benchmark::DoNotOptimize(gateway::check_request(*given.head, frame));
}
BENCHMARK(request_frame_check);

void request_admission(benchmark::State& state) {
    sample const given;
    gateway::identity who;
    keystore::key_view found;
    count_allocations const counted{state};
    for (auto _ : state) {
        auto const said =
            gateway::admit(gateway::read_credential(*given.head, given.settings), given.table, 1'790'000'000'000, who, found);
        if (said != gateway::refusal::none) state.SkipWithError("not admitted");
        benchmark::DoNotOptimize(found);
    }
}
BENCHMARK(request_admission);

void request_head_rewrite(benchmark::State& state) {
    sample const given;
    gateway::identity who;
    keystore::key_view key;
    if (gateway::admit(gateway::read_credential(*given.head, given.settings), given.table, 1'790'000'000'000, who, key) !=
        gateway::refusal::none) {
        state.SkipWithError("not admitted");
        return;
    }
    gateway::forward_context context;
    context.api = &given.api;
    context.frame = &given.frame;
    context.key = &key;
    context.request_id = "0123456789abcdef0123456789abcdef";
    context.client_address = "192.0.2.17";
    context.listener_port = "8080";
    context.trace_id = "0123456789abcdef0123456789abcdef";
    context.span_id = "0123456789abcdef";
    std::vector<char> memory(32 * 1024);
    count_allocations const counted{state};
    for (auto _ : state) {
        gateway::writer out{memory.data(), memory.size()};
        gateway::write_request_lines(out, given.head->method, "", "/v1/orders/4711", "expand=lines", given.frame.host);
        gateway::write_request_fields(out, *given.head, context);
        if (out.overflowed()) state.SkipWithError("no room");
        benchmark::DoNotOptimize(out.size());
    }
}
BENCHMARK(request_head_rewrite);

void response_head_parse_and_check(benchmark::State& state) {
    auto head = std::make_unique<gateway::head>();
    gateway::response_frame frame;
    count_allocations const counted{state};
    for (auto _ : state) {
        std::size_t searched = 0;
        auto const done = gateway::parse_response_head(response_text.data(), response_text.size(), searched, limits, *head);
        if (done != gateway::parsed::whole || !gateway::check_response(*head, false, frame)) state.SkipWithError("not taken");
        benchmark::DoNotOptimize(frame);
    }
}
BENCHMARK(response_head_parse_and_check);

void response_head_rewrite(benchmark::State& state) {
    auto head = std::make_unique<gateway::head>();
    gateway::response_frame frame;
    std::size_t searched = 0;
    if (gateway::parse_response_head(response_text.data(), response_text.size(), searched, limits, *head) !=
            gateway::parsed::whole ||
        !gateway::check_response(*head, false, frame)) {
        state.SkipWithError("not taken");
        return;
    }
    gateway::answer_context context;
    context.body = frame.body;
    context.frame = &frame;
    context.request_id = "0123456789abcdef0123456789abcdef";
    std::vector<char> memory(64 * 1024);
    count_allocations const counted{state};
    for (auto _ : state) {
        gateway::writer out{memory.data(), memory.size()};
        gateway::write_response_head(out, *head, context);
        if (out.overflowed()) state.SkipWithError("no room");
        benchmark::DoNotOptimize(out.size());
    }
}
BENCHMARK(response_head_rewrite);

}  // namespace
}  // namespace latchkey::bench
