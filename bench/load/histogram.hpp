#pragma once
// Latencies in constant memory: buckets that grow with the value, 64 to each power of two, so a percentile read back is at most
// 1.6 % above the value that was recorded. One thread.

#include <algorithm>
#include <array>
#include <bit>
#include <cstddef>
#include <cstdint>

namespace load {

class histogram {
  public:
    // Nanoseconds; what is negative counts as 0, what is above about 18 minutes counts as that.
    void add(std::int64_t ns) noexcept {
        auto const value = std::min(static_cast<std::uint64_t>(std::max<std::int64_t>(ns, 0)), value_max);
        ++counts_[bucket_of(value)];
        ++total_;
        max_ = std::max(max_, value);
    }

    std::uint64_t count() const noexcept { return total_; }
    std::uint64_t max() const noexcept { return max_; }

    // The smallest bucket bound that at least `share` (0..1) of the values do not exceed; never above max(). 0 when empty.
    std::uint64_t at(double share) const noexcept {
        auto const wanted =
            std::max<std::uint64_t>(1, static_cast<std::uint64_t>(share * static_cast<double>(total_) + 0.999999));
        std::uint64_t seen = 0;
        for (std::size_t i = 0; i < counts_.size(); ++i) {
            seen += counts_[i];
            if (seen >= wanted) return std::min(upper_bound_of(i), max_);
        }
        return max_;
    }

  private:
    static constexpr unsigned sub_bits = 6;
    static constexpr std::uint64_t sub_count = std::uint64_t{1} << sub_bits;
    static constexpr unsigned value_bits = 40;
    static constexpr std::uint64_t value_max = (std::uint64_t{1} << value_bits) - 1;

    // Values below sub_count have a bucket each. Above, the top sub_bits + 1 bits choose it: `shift` names the power of two,
    // the rest the place within it.
    static std::size_t bucket_of(std::uint64_t value) noexcept {
        if (value < sub_count) return static_cast<std::size_t>(value);
        auto const shift = static_cast<unsigned>(std::bit_width(value)) - sub_bits - 1;
        return static_cast<std::size_t>((std::uint64_t{shift} << sub_bits) + (value >> shift));
    }
    static std::uint64_t upper_bound_of(std::size_t bucket) noexcept {
        if (bucket < 2 * sub_count) return bucket;
        auto const shift = (bucket >> sub_bits) - 1;
        auto const top = (bucket & (sub_count - 1)) + sub_count;
        return ((top + 1) << shift) - 1;
    }

    std::array<std::uint64_t, (value_bits - sub_bits + 1) * sub_count> counts_{};
    std::uint64_t total_ = 0;
    std::uint64_t max_ = 0;
};

}  // namespace load
