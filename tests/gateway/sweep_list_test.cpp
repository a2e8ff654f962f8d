#include "gateway/sweep_list.hpp"

#include <deque>
#include <string>

#include "tests/catch.hpp"

using namespace latchkey::gateway;

namespace {

struct swept : sweep_list::member {
    explicit swept(char n) : name(n) {}
    char name;
};

std::string due(sweep_list& l, std::int64_t now) {
    std::string names;
    l.each_due<swept>(now, [&](swept& s) { names += s.name; });
    return names;
}

}  // namespace

TEST_CASE("who was added is looked at by each sweep, until it names a time", "[sweep]") {
    sweep_list l;
    std::deque<swept> m;
    for (char const c : {'a', 'b', 'c'}) REQUIRE(l.add(m.emplace_back(c)));
    CHECK_FALSE(l.empty());
    CHECK(due(l, 1) == "abc");
    l.not_before(m[1], 100);
    CHECK(due(l, 99) == "ac");
    CHECK(due(l, 100) == "abc");
    l.not_before(m[0], 200);
    l.not_before(m[1], 0);
    CHECK(due(l, 100) == "bc");
}

TEST_CASE("who is removed is not looked at, and the others keep their times", "[sweep]") {
    sweep_list l;
    std::deque<swept> m;
    for (char const c : {'a', 'b', 'c', 'd'}) REQUIRE(l.add(m.emplace_back(c)));
    l.not_before(m[3], 100);
    l.remove(m[0]);  // d moves to its place
    CHECK(due(l, 99) == "bc");
    CHECK(due(l, 100) == "dbc");
    l.not_before(m[3], 50);
    CHECK(due(l, 50) == "dbc");
    l.remove(m[2]);
    l.remove(m[3]);
    CHECK(due(l, 100) == "b");
    REQUIRE(l.add(m[0]));
    CHECK(due(l, 100) == "ba");
    l.remove(m[0]);
    l.remove(m[1]);
    CHECK(l.empty());
}

TEST_CASE("one that is looked at may name another time", "[sweep]") {
    sweep_list l;
    std::deque<swept> m;
    for (char const c : {'a', 'b'}) REQUIRE(l.add(m.emplace_back(c)));
    int looks = 0;
    l.each_due<swept>(1, [&](swept& s) { ++looks, l.not_before(s, 10); });
    CHECK(looks == 2);
    CHECK(due(l, 9).empty());
    std::string all;
    l.each<swept>([&](swept& s) { all += s.name; });
    CHECK(all == "ab");
}
