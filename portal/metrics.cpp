#include "portal/metrics.hpp"

#include <fmt/format.h>

#include <cmath>
#include <iterator>

namespace latchkey::portal {
namespace {

constexpr double exact_max = 9007199254740992.0;  // 2^53: whole numbers up to here are exact

std::string value_text(double v) {
    if (v >= 0 && v <= exact_max && std::floor(v) == v) return fmt::format("{}", static_cast<std::uint64_t>(v));
    return fmt::format("{}", v);
}

}  // namespace

std::string to_prometheus(std::vector<figure> const& figures) {
    std::string out;
    auto const to = std::back_inserter(out);
    std::string_view last;
    for (auto const& f : figures) {
        if (f.name != last)
            fmt::format_to(to, "# HELP latchkey_{0} {1}\n# TYPE latchkey_{0} {2}\n", f.name, f.help,
                           f.counter ? "counter" : "gauge");
        last = f.name;
        auto const labels = f.labels.empty() ? std::string{} : fmt::format("{{{}}}", f.labels);
        fmt::format_to(to, "latchkey_{}{} {}\n", f.name, labels, value_text(f.value));
    }
    return out;
}

}  // namespace latchkey::portal
