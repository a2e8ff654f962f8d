#pragma once
// What the tests of the key store share: a store of their own, rows to import, what an error says.

#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "keystore/store.hpp"
#include "tests/base/scratch.hpp"

namespace latchkey::keystore::test {

inline std::string const good_body = "qkJaB6MffYVzZXWqmcoF49yrUxP3wf";

inline std::unique_ptr<store> opened(std::string const& file) {
    auto s = store::open(file, {});
    INFO((s ? std::string() : s.error().message));
    REQUIRE(s);
    return std::move(*s);
}

inline std::vector<import_row> some_rows(std::size_t count, std::string const& stem = "user") {
    std::vector<import_row> rows;
    rows.reserve(count);
    for (std::size_t i = 0; i < count; ++i) rows.push_back({fmt::format("{}{:06}", stem, i), make_key("lk"), i + 2});
    return rows;
}

template <class T>
error refusal(result<T> const& r) {
    REQUIRE(r.has_error());
    INFO(r.error().message);
    CHECK_FALSE(r.error().message.empty());
    return r.error();
}

inline bool has(std::string const& text, std::string const& part) { return text.find(part) != std::string::npos; }

// As an operating system user that owns nothing here, where the tests run as root.
inline int as_nobody(std::function<int()> const& work) {
    return testing::in_child([&] {
        if (::geteuid() == 0 && (::setgid(65534) != 0 || ::setuid(65534) != 0)) return 99;
        return work();
    });
}

inline key_entry only_entry(store& s, std::string const& key) {
    auto const hash = digest_of(key);
    auto const entries = s.shard(shard_of(hash));
    REQUIRE(entries);
    auto const at = std::find_if(entries->begin(), entries->end(), [&](auto const& e) { return e.hash == hash; });
    REQUIRE(at != entries->end());
    return *at;
}

}  // namespace latchkey::keystore::test
