#include "gateway/buffer_pool.hpp"

#include <cstring>
#include <vector>

#include "tests/catch.hpp"

using namespace latchkey::gateway;

TEST_CASE("a lease gives its buffer back, and the next one gets the same memory") {
    buffer_pool pool(4096, 65536, 2);
    char* first = nullptr;
    {
        lease a = pool.small();
        REQUIRE(a);
        CHECK(a.size() == 4096);
        std::memset(a.data(), 1, a.size());
        first = a.data();
        CHECK(pool.lent_bytes() == buffer_pool::cost(4096));
    }
    CHECK(pool.lent_bytes() == 0);
    lease b = pool.small();
    CHECK(b.data() == first);
}

TEST_CASE("moving a lease moves the buffer and leaves nothing behind") {
    buffer_pool pool(4096, 65536, 2);
    lease a = pool.small();
    char* const memory = a.data();
    lease b = std::move(a);
    CHECK_FALSE(a);  // NOLINT(bugprone-use-after-move): it is specified
    CHECK(b.data() == memory);
    CHECK(pool.lent_bytes() == buffer_pool::cost(4096));
    lease c = pool.small();
    c = std::move(b);  // gives its own back first
    CHECK(c.data() == memory);
    CHECK(pool.lent_bytes() == buffer_pool::cost(4096));
    auto& itself = c;
    c = std::move(itself);
    CHECK(c.data() == memory);
    c.reset();
    c.reset();
    CHECK(pool.lent_bytes() == 0);
}

TEST_CASE("when all large buffers are lent, a small one is") {
    buffer_pool pool(4096, 65536, 2);
    lease a = pool.large();
    lease b = pool.large();
    lease c = pool.large();
    CHECK(a.size() == 65536);
    CHECK(b.size() == 65536);
    CHECK(c.size() == 4096);
    b.reset();
    lease d = pool.large();
    CHECK(d.size() == 65536);
    c.reset();
    lease e = pool.large();  // a small one given back makes no large one free
    CHECK(e.size() == 4096);
    std::memset(a.data(), 1, a.size());
    std::memset(d.data(), 2, d.size());
}

TEST_CASE("trimming keeps what is lent and frees what is not") {
    buffer_pool pool(4096, 65536, 4);
    lease kept = pool.small();
    std::memset(kept.data(), 7, kept.size());
    {
        std::vector<lease> many;
        for (int i = 0; i < 10; ++i) many.push_back(pool.small());
        for (int i = 0; i < 4; ++i) many.push_back(pool.large());
    }
    pool.trim(2);  // all were wanted a moment ago
    CHECK(pool.mapped_bytes() == 11 * buffer_pool::cost(4096) + 4 * buffer_pool::cost(65536));
    pool.trim(2);
    CHECK(pool.mapped_bytes() == 3 * buffer_pool::cost(4096));
    pool.trim(0);
    CHECK(pool.mapped_bytes() == buffer_pool::cost(4096));
    CHECK(kept.data()[4095] == 7);
    lease again = pool.large();
    std::memset(again.data(), 1, again.size());
    CHECK(pool.lent_bytes() == buffer_pool::cost(4096) + buffer_pool::cost(65536));
}

TEST_CASE("trimming spares what was wanted since the last time, and needs several times for very much") {
    buffer_pool pool(65536, 524288, 32);
    auto const rush = [&](int small, int large) {
        std::vector<lease> many;
        for (int i = 0; i < small; ++i) many.push_back(pool.small());
        for (int i = 0; i < large; ++i) many.push_back(pool.large());
    };
    auto const small = buffer_pool::cost(65536);
    rush(1000, 0);
    pool.trim(0);
    for (int i = 0; i < 50; ++i) {
        rush(900, 0);
        pool.trim(0);
    }
    CHECK(pool.mapped_bytes() == 900 * small);
    int times = 0;
    for (auto before = pool.mapped_bytes(); pool.mapped_bytes() != 0; before = pool.mapped_bytes(), ++times) {
        REQUIRE(times < 40);
        pool.trim(0);
        CHECK(before - pool.mapped_bytes() <= std::max(before / 8, std::size_t{1} << 20U));
    }
    CHECK(times > 8);
    rush(0, 32);
    pool.trim(0);
    for (int i = 0; i < 5; ++i) {
        rush(0, 30);
        pool.trim(0);
    }
    CHECK(pool.mapped_bytes() == 30 * buffer_pool::cost(524288));
}

TEST_CASE("more buffers than the pool keeps can be lent and given back") {
    buffer_pool pool(4096, 65536, 1);
    std::vector<lease> many;
    for (int i = 0; i < 1500; ++i) many.push_back(pool.small());
    CHECK(pool.lent_bytes() == 1500 * buffer_pool::cost(4096));
    many.clear();
    CHECK(pool.lent_bytes() == 0);
}

TEST_CASE("pools whose sizes are the same keep their counts apart") {
    buffer_pool pool(4096, 4096, 1);
    lease small = pool.small();
    lease large = pool.large();
    small.reset();
    lease other = pool.large();  // the only large one is still lent
    CHECK(pool.lent_bytes() == 2 * buffer_pool::cost(4096));
    large.reset();
    other.reset();
    CHECK(pool.lent_bytes() == 0);
}

TEST_CASE("no buffer is lent beyond the memory, and a place that is given back can be taken again") {
    std::size_t const cost = buffer_pool::cost(4096);
    buffer_pool pool(4096, 65536, 2, 3 * cost);
    std::vector<lease> all;
    for (int i = 0; i < 3; ++i) all.push_back(pool.small());
    CHECK(all.back());
    CHECK(pool.lent_bytes() == 3 * cost);
    CHECK_FALSE(pool.small());
    CHECK_FALSE(pool.large());
    CHECK(pool.lent_bytes() == 3 * cost);
    all.pop_back();
    CHECK(pool.small());
    CHECK(pool.mapped_bytes() == 3 * cost);
}

TEST_CASE("where a large buffer does not fit a small one is lent, and unused large ones make room for small ones") {
    buffer_pool pool(4096, 65536, 2, buffer_pool::cost(65536) + buffer_pool::cost(4096));
    {
        lease a = pool.large();
        CHECK(a.size() == 65536);
        lease b = pool.large();
        CHECK(b.size() == 4096);
        CHECK_FALSE(pool.large());
    }
    std::vector<lease> many;
    for (int i = 0; i < 3; ++i) many.push_back(pool.small());
    CHECK(many.back());
    CHECK(pool.mapped_bytes() <= buffer_pool::cost(65536) + buffer_pool::cost(4096));
}

TEST_CASE("what is promised is lent to nobody else") {
    std::size_t const cost = buffer_pool::cost(4096);
    buffer_pool pool(4096, 65536, 2, 3 * cost);
    promise p;
    REQUIRE(pool.promise_small(p));
    CHECK(pool.promise_small(p));  // it has one
    CHECK(pool.lent_bytes() == cost);
    CHECK(pool.mapped_bytes() == 0);
    std::vector<lease> others;
    others.push_back(pool.small());
    others.push_back(pool.small());
    CHECK(others.back());
    CHECK_FALSE(pool.small());
    CHECK_FALSE(pool.large());
    promise none;
    CHECK_FALSE(pool.promise_small(none));
    CHECK_FALSE(none);
    CHECK_FALSE(pool.redeem(none, false));
    lease mine = pool.redeem(p, true);
    CHECK(mine.size() == 4096);
    CHECK_FALSE(p);
    CHECK_FALSE(pool.redeem(p, false));  // once
    CHECK(pool.mapped_bytes() == 3 * cost);
    mine.reset();
    CHECK(pool.promise_small(p));
}

TEST_CASE("a promise that is not redeemed is returned") {
    buffer_pool pool(4096, 65536, 2, buffer_pool::cost(4096));
    {
        promise p;
        REQUIRE(pool.promise_small(p));
        CHECK_FALSE(pool.small());
    }
    CHECK(pool.lent_bytes() == 0);
    CHECK(pool.small());
}

TEST_CASE("large buffers leave what is promised, and a promise can become a large one where there is room") {
    std::size_t const small = buffer_pool::cost(4096);
    buffer_pool pool(4096, 65536, 2, 2 * buffer_pool::cost(65536) + small - 1);
    lease first = pool.large();
    CHECK(first.size() == 65536);
    promise p;
    REQUIRE(pool.promise_small(p));
    CHECK(pool.large().size() == 4096);  // there was room for a large one, and then none for what is promised
    lease mine = pool.redeem(p, true);   // in the memory of the small one, which lies unused
    CHECK(mine.size() == 65536);
    CHECK(pool.lent_bytes() == 2 * buffer_pool::cost(65536));
}

TEST_CASE("a large buffer shrinks to a small one with what is used of it, where that goes") {
    buffer_pool pool(4096, 65536, 2, buffer_pool::cost(65536) + buffer_pool::cost(4096));
    lease l = pool.large();
    REQUIRE(l.size() == 65536);
    for (std::size_t i = 0; i < 4097; ++i) l.data()[i] = static_cast<char>(i % 251);
    char const* const before = l.data();
    pool.shrink(l, 4097);
    CHECK(l.data() == before);
    {
        lease const last = pool.small();
        pool.shrink(l, 4096);
        CHECK(l.data() == before);  // no memory for both
    }
    pool.shrink(l, 4096);
    REQUIRE(l.size() == 4096);
    bool same = true;
    for (std::size_t i = 0; i < 4096; ++i) same = same && l.data()[i] == static_cast<char>(i % 251);
    CHECK(same);
    CHECK(pool.lent_bytes() == buffer_pool::cost(4096));
    char const* const after = l.data();
    pool.shrink(l, 10);
    CHECK(l.data() == after);
}

TEST_CASE("a small buffer is exchanged for a large one where one can be had") {
    buffer_pool pool(4096, 65536, 1);
    lease first = pool.small();
    lease second = pool.small();
    pool.enlarge(first);
    CHECK(first.size() == 65536);
    char const* const large = first.data();
    char const* const small = second.data();
    pool.enlarge(first);
    CHECK(first.data() == large);
    pool.enlarge(second);  // there is but one
    CHECK(second.data() == small);
    CHECK(second.size() == 4096);
    CHECK(pool.lent_bytes() == buffer_pool::cost(65536) + buffer_pool::cost(4096));
}

TEST_CASE("of the large buffers half are to spare for who may hold one for long") {
    buffer_pool pool(4096, 65536, 4);
    std::vector<lease> lent;
    for (bool const spare : {true, true, false, false}) {
        CHECK(pool.large_to_spare() == spare);
        lent.push_back(pool.large());
    }
    CHECK_FALSE(pool.large_to_spare());
    lent.resize(1);
    CHECK(pool.large_to_spare());
    buffer_pool const none(4096, 65536, 0);
    CHECK_FALSE(none.large_to_spare());
}
