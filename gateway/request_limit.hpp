#pragma once
// limits.requests_in_flight, for all workers together. Each keeps some places ready, so that most of its requests ask nobody
// else.

#include <atomic>
#include <cstdint>

namespace latchkey::gateway {

// Any thread.
class request_limit {
  public:
    // `most` 0: no limit.
    request_limit(std::uint64_t most, unsigned workers) noexcept;

    // A worker's part; all that it keeps is given back with it. One thread.
    class part;

  private:
    std::uint64_t take(std::uint64_t wanted) noexcept;  // as many of these as are free
    void give_back(std::uint64_t n) noexcept;

    bool limited_;
    // What a worker takes at once. It keeps twice as many ready at most, so of all places no more than a sixteenth are kept from
    // those who need them; of few places none.
    std::uint64_t batch_;
    std::atomic<std::uint64_t> free_;
};

class request_limit::part {
  public:
    explicit part(request_limit& all) noexcept;
    ~part();
    part(part const&) = delete;
    part& operator=(part const&) = delete;

    // False: there are as many as may be, and this one is not counted.
    bool enter() noexcept {
        if (used_ == held_ && !more()) return false;
        ++used_;
        return true;
    }
    void leave() noexcept {
        --used_;
        if (held_ - used_ > ready_max_) less();
    }

  private:
    bool more() noexcept;
    void less() noexcept;

    request_limit& all_;
    std::uint64_t used_ = 0;
    std::uint64_t held_ = 0;
    std::uint64_t ready_max_;
};

}  // namespace latchkey::gateway
