#pragma once
// What the usage tests share: a folder that goes away with the test, records that are told apart by a number, and a journal of
// them.

#include <unistd.h>

#include <cstdint>
#include <cstdlib>
#include <filesystem>
#include <memory>
#include <string>
#include <vector>

#include "tests/catch.hpp"
#include "usage/block.hpp"
#include "usage/journal.hpp"
#include "usage/record.hpp"

// A failed REQUIRE(result) says the error's message.
template <class T>
struct Catch::StringMaker<latchkey::result<T>> {
    static std::string convert(latchkey::result<T> const& r) { return r ? "a value" : r.error().message; }
};

namespace latchkey::usage::test {

class folder {
  public:
    // On tmpfs where there is one: that is where rings live.
    explicit folder(std::string base = "/dev/shm") {
        if (::access(base.c_str(), W_OK) != 0) base = std::filesystem::temp_directory_path().string();
        path_ = base + "/latchkey-test-XXXXXX";
        if (::mkdtemp(path_.data()) == nullptr) throw std::runtime_error("no folder for the test: " + path_);
    }
    ~folder() {
        std::error_code e;
        std::filesystem::remove_all(path_, e);
    }
    folder(folder const&) = delete;
    folder& operator=(folder const&) = delete;
    std::string operator/(std::string_view name) const { return path_ + "/" + std::string(name); }
    std::string const& path() const { return path_; }

  private:
    std::string path_;
};

inline std::string hex_id(std::uint64_t n) {
    std::string id(32, '0');
    for (std::size_t i = 32; i > 0 && n != 0; --i, n >>= 4U) id[i - 1] = "0123456789abcdef"[n & 15U];
    return id;
}

inline std::uint64_t number_of(std::string_view id) { return std::strtoull(std::string(id).c_str() + 16, nullptr, 16); }

// A record and the strings it looks at.
struct sample {
    std::string id;
    std::string path;
    record r;

    explicit sample(std::uint64_t n) : id(hex_id(n)), path("/v1/things/" + std::to_string(n % 1000)) {
        r.time_ms = 1'790'000'000'000 + static_cast<std::int64_t>(n);
        r.request_id = id;
        r.application = "Billing";
        r.application_id = "app_0123456789abcdef";
        r.key_id = n % 2 == 0 ? "key_even000000000000" : "key_odd0000000000000";
        r.api = "default";
        r.method = "GET";
        r.host = "api.example.com";
        r.path = path;
        r.status = 200;
        r.request_bytes = 300 + n % 100;
        r.response_bytes = n;
        r.duration_us = static_cast<std::uint32_t>(1000 + n % 5000);
        r.upstream_us = static_cast<std::uint32_t>(500 + n % 3000);
        r.client_ip = {0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 10, 0, 0, static_cast<unsigned char>(n % 250)};
    }
    sample(sample const&) = delete;
    sample& operator=(sample const&) = delete;
};

inline bool same(record const& a, record const& b) {
    return a.time_ms == b.time_ms && a.request_id == b.request_id && a.application == b.application &&
           a.application_id == b.application_id && a.key_id == b.key_id && a.api == b.api && a.method == b.method &&
           a.host == b.host && a.path == b.path && a.status == b.status && a.end == b.end && a.request_bytes == b.request_bytes &&
           a.response_bytes == b.response_bytes && a.duration_us == b.duration_us && a.upstream_us == b.upstream_us &&
           a.client_ip == b.client_ip;
}

// Everything in a journal, in its order.
template <class Visit>
void each_record(journal& j, Visit&& visit) {
    std::size_t damaged = 0;
    auto done = j.each_block(
        std::numeric_limits<std::int64_t>::min(), std::numeric_limits<std::int64_t>::max(),
        [&](std::string_view packed) {
            auto reader = block_reader::over(packed);
            REQUIRE(reader);
            record r;
            while (reader->next(r)) visit(r);
            REQUIRE_FALSE(reader->damaged());
            return true;
        },
        [&](std::int64_t, std::string_view) { ++damaged; });
    REQUIRE(done);
    REQUIRE(damaged == 0);
}

inline std::vector<std::uint64_t> numbers_in(std::string const& journal_file) {
    std::vector<std::uint64_t> numbers;
    auto j = journal::open(journal_file, journal::mode::read_only);
    REQUIRE(j);
    each_record(**j, [&](record const& r) { numbers.push_back(number_of(r.request_id)); });
    return numbers;
}

// A journal with records in it.
struct written {
    explicit written(std::string const& file) {
        auto opened = journal::open(file, journal::mode::read_write);
        REQUIRE(opened);
        j = std::move(*opened);
    }
    // As many blocks as it takes.
    void block(std::vector<record> const& records) {
        block_packer p;
        for (auto const& r : records) {
            if (p.add(r)) continue;
            seal(p);
            REQUIRE(p.add(r));
        }
        seal(p);
    }
    void seal(block_packer& p) {
        auto sealed = p.seal();
        REQUIRE(sealed);
        REQUIRE(j->append("r", ++cursor, p.meta(), *sealed));
        p.clear();
    }
    void numbers(std::uint64_t from, std::uint64_t to) {
        std::vector<std::unique_ptr<sample>> samples;
        std::vector<record> records;
        for (auto n = from; n < to; ++n) {
            samples.push_back(std::make_unique<sample>(n));
            records.push_back(samples.back()->r);
        }
        block(records);
    }
    std::unique_ptr<journal> j;
    std::uint64_t cursor = 0;
};

}  // namespace latchkey::usage::test
