#pragma once
// Usage records as a busy gateway makes them: so many keys of a tenth as many applications, 200 paths of which a quarter carry a
// number, random ids and times.

#include <cstdio>
#include <random>
#include <string>
#include <string_view>
#include <vector>

#include "usage/record.hpp"

namespace latchkey::bench {

inline constexpr std::size_t few_keys = 500;

// Prepared records, so that making them up is not measured.
struct traffic {
    std::vector<std::string> texts;
    std::vector<usage::record> records;

    explicit traffic(std::size_t count, std::size_t keys_wanted = few_keys) {
        std::size_t const applications_wanted = keys_wanted / 10;
        std::mt19937_64 random(7);
        texts.reserve(count * 2 + keys_wanted * 2 + 2000);
        auto const text = [&](std::string t) -> std::string_view { return texts.emplace_back(std::move(t)); };
        std::vector<std::string_view> applications;
        std::vector<std::string_view> application_ids;
        std::vector<std::string_view> keys;
        std::vector<std::string_view> paths;
        keys.reserve(keys_wanted);
        paths.reserve(200);
        char id[33];
        for (std::size_t i = 0; i < applications_wanted; ++i) {
            applications.push_back(text("application " + std::to_string(i)));
            application_ids.push_back(text("app_" + std::to_string(1'000'000'000'000'000ULL + random() % 1'000'000'000ULL)));
        }
        for (std::size_t i = 0; i < keys_wanted; ++i)
            keys.push_back(text("key_" + std::to_string(1'000'000'000'000'000ULL + random() % 1'000'000'000ULL)));
        for (int i = 0; i < 200; ++i) paths.push_back(text("/v1/resource/" + std::to_string(i) + "/items"));
        std::int64_t now = 1'790'000'000'000;
        for (std::size_t n = 0; n < count; ++n) {
            usage::record r;
            auto const key = random() % keys.size();
            std::snprintf(id, sizeof id, "%016llx%016llx", static_cast<unsigned long long>(random()),
                          static_cast<unsigned long long>(random()));
            r.time_ms = now += static_cast<std::int64_t>(random() % 2);
            r.request_id = text(id);
            r.key_id = keys[key];
            r.application = applications[key % applications_wanted];
            r.application_id = application_ids[key % applications_wanted];
            r.api = "default";
            r.method = random() % 8 == 0 ? "POST" : "GET";
            r.host = "api.example.com";
            r.path =
                random() % 4 == 0 ? text("/v1/orders/" + std::to_string(random() % 1'000'000)) : paths[random() % paths.size()];
            r.status = random() % 50 == 0 ? 404 : 200;
            r.request_bytes = 250 + random() % 64;
            r.response_bytes = 500 + random() % 4096;
            r.duration_us = static_cast<std::uint32_t>(400 + random() % 3000);
            r.upstream_us = r.duration_us - 100;
            r.client_ip = {0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 10, 0, static_cast<unsigned char>(key % 4), 7};
            records.push_back(r);
        }
    }
};

}  // namespace latchkey::bench
