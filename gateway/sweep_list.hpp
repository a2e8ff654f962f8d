#pragma once
// The sessions of a worker, and when its sweep has to look at each: together in one array, so that a sweep over thousands of idle
// connections reads some pages in a row and touches none of them.
//
// Threads: one. Times are those of steady_ns().

#include <cassert>
#include <cstddef>
#include <cstdint>
#include <new>
#include <vector>

namespace latchkey::gateway {

inline constexpr std::int64_t sweep_interval_ns = 100'000'000;

class sweep_list {
  public:
    // To derive from. One that is in a list stays where it is in memory.
    class member {
        friend class sweep_list;
        std::size_t place_ = 0;
    };

    // From now on it is looked at by each sweep. False: no memory, and it is not in the list.
    bool add(member& m) noexcept {
        try {
            all_.push_back({&m, 0});
        } catch (std::bad_alloc const&) {
            return false;
        }
        m.place_ = all_.size() - 1;
        return true;
    }

    // The last one takes its place.
    void remove(member& m) noexcept {
        assert(has(m));
        all_[m.place_] = all_.back();
        all_[m.place_].of->place_ = m.place_;
        all_.pop_back();
    }

    // Sweeps before `ns` pass it over.
    void not_before(member const& m, std::int64_t ns) noexcept {
        assert(has(m));
        all_[m.place_].due_ns = ns;
    }

    // f(T&) for those whose time has come, or all. It may change times, but neither add nor remove.
    template <class T, class F>
    void each_due(std::int64_t now_ns, F f) {
        for (auto const& e : all_)
            if (e.due_ns <= now_ns) f(static_cast<T&>(*e.of));
    }
    template <class T, class F>
    void each(F f) {
        for (auto const& e : all_) f(static_cast<T&>(*e.of));
    }

    bool empty() const noexcept { return all_.empty(); }

  private:
    struct entry {
        member* of;
        std::int64_t due_ns;
    };
    bool has(member const& m) const noexcept { return m.place_ < all_.size() && all_[m.place_].of == &m; }

    std::vector<entry> all_;
};

}  // namespace latchkey::gateway
