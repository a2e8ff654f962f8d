#include "conf/reader.hpp"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <tuple>

namespace latchkey::conf {
namespace {

std::string bytes_text(std::uint64_t n) {
    constexpr std::pair<unsigned, std::string_view> units[] = {{40, "TiB"}, {30, "GiB"}, {20, "MiB"}, {10, "KiB"}};
    for (auto const& [shift, name] : units)
        if (n != 0 && (n & ((1ULL << shift) - 1)) == 0) return fmt::format("{}{}", n >> shift, name);
    return fmt::format("{}", n);
}

std::string duration_text(milliseconds d) {
    auto const ms = d.count();
    constexpr std::pair<std::int64_t, std::string_view> units[] = {{3'600'000, "h"}, {60'000, "m"}, {1'000, "s"}};
    for (auto const& [factor, name] : units)
        if (ms != 0 && ms % factor == 0) return fmt::format("{}{}", ms / factor, name);
    return fmt::format("{}ms", ms);
}

std::string range_text(std::string const& least, std::string const& most, bool or_zero) {
    return or_zero ? fmt::format("take 0, or {} to {}", least, most) : fmt::format("take {} to {}", least, most);
}

// Where a setting belongs, in words.
std::string place(std::string const& section) {
    return section.empty() ? "at the top of the file, before the first [section]" : fmt::format("in {}", section);
}

}  // namespace

void notes::add(toml::source_region const& at, std::string what, std::string remedy) {
    findings_.push_back({file_, at.begin.line, at.begin.column, std::move(what), std::move(remedy)});
}

void notes::knows(std::string const& section, std::string_view name) {
    auto const pair = std::pair{section, std::string(name)};
    if (std::find(known_.begin(), known_.end(), pair) == known_.end()) known_.push_back(pair);
}

void notes::unknown(std::string const& section, toml::key const& key) {
    unknown_.push_back({section, std::string(key.str()), key.source()});
}

std::string notes::remedy_for(misplaced const& m) const {
    std::vector<std::string> here;
    for (auto const& [section, name] : known_)
        if (section == m.section) here.push_back(name);
    auto const near = nearest(m.name, here);
    for (auto const& [section, name] : known_)
        if (name == m.name) return fmt::format("it belongs {}", place(section));
    if (near) return fmt::format("did you mean '{}'?", *near);
    std::sort(here.begin(), here.end());
    return fmt::format("remove it; the settings here are: {}", fmt::join(here, ", "));
}

std::vector<finding> notes::take() {
    for (auto const& m : unknown_) {
        auto const where = m.section.empty() ? std::string{} : fmt::format(" in {}", m.section);
        add(m.at, fmt::format("unknown setting {}{}", shown(m.name), where), remedy_for(m));
    }
    unknown_.clear();
    std::stable_sort(findings_.begin(), findings_.end(),
                     [](finding const& a, finding const& b) { return std::tie(a.line, a.column) < std::tie(b.line, b.column); });
    return std::move(findings_);
}

toml::node const* reader::find(std::string_view name) {
    notes_.knows(section_, name);
    asked_.emplace_back(name);
    return table_ == nullptr ? nullptr : table_->get(name);
}

void reader::finish() {
    if (table_ == nullptr) return;
    for (auto const& [key, value] : *table_)
        if (std::find(asked_.begin(), asked_.end(), key.str()) == asked_.end()) notes_.unknown(section_, key);
}

void reader::flag(std::string_view name, bool& out) {
    auto const* const node = find(name);
    if (node == nullptr) return;
    if (auto const v = node->value_exact<bool>())
        out = *v;
    else
        wrong(*node, fmt::format("'{}' is not a truth value", name), "write true or false, without quotes");
}

void reader::duration(std::string_view name, milliseconds& out, milliseconds least, milliseconds most, bool or_zero) {
    auto const* const node = find(name);
    if (node == nullptr) return;
    auto const limits = range_text(duration_text(least), duration_text(most), or_zero);
    auto text = node->value_exact<std::string>();
    if (!text && node->value_exact<std::int64_t>() == 0) text = "0";
    if (!text)
        return wrong(*node, fmt::format("'{}' is a duration and needs its unit", name),
                     "write it in quotes, like \"30s\"; " + limits);
    auto const parsed = parse_duration(*text);
    if (!parsed) return wrong(*node, fmt::format("'{}': {}", name, parsed.error().message), limits);
    bool const zero = or_zero && parsed->count() == 0;
    if (!zero && (*parsed < least || *parsed > most))
        return wrong(*node, fmt::format("'{}' is out of range: {}", name, *text), limits);
    out = *parsed;
}

std::optional<std::uint64_t> reader::number_value(std::string_view name, range in, bool as_bytes) {
    auto const* const node = find(name);
    if (node == nullptr) return std::nullopt;
    auto const show = [&](std::uint64_t n) { return as_bytes ? bytes_text(n) : fmt::format("{}", n); };
    auto const limits = range_text(show(in.least), show(in.most), in.or_zero);
    std::optional<std::uint64_t> value;
    if (auto const n = node->value_exact<std::int64_t>()) {
        if (*n >= 0) value = static_cast<std::uint64_t>(*n);
    } else if (auto const text = node->value_exact<std::string>(); text && as_bytes) {
        auto const parsed = parse_bytes(*text);
        if (!parsed) {
            wrong(*node, fmt::format("'{}': {}", name, parsed.error().message), limits);
            return std::nullopt;
        }
        value = *parsed;
    } else {
        wrong(*node, fmt::format("'{}' is not a {}", name, as_bytes ? "size" : "whole number"),
              (as_bytes ? "write it like \"16KiB\" or 16384; " : "write it without quotes and fraction; ") + limits);
        return std::nullopt;
    }
    if (value && ((in.or_zero && *value == 0) || (*value >= in.least && *value <= in.most))) return value;
    wrong(*node, fmt::format("'{}' is out of range", name), limits);
    return std::nullopt;
}

void reader::text(std::string_view name, std::string& out, rule holds) {
    auto const* const node = find(name);
    if (node == nullptr) return;
    auto const v = node->value_exact<std::string>();
    if (!v) return wrong(*node, fmt::format("'{}' is not a text", name), "write it in double quotes");
    if (v->find('\0') != std::string::npos) return wrong(*node, fmt::format("'{}' has a NUL character", name), "remove it");
    if (holds != nullptr)
        if (auto p = holds(*v)) return wrong(*node, std::move(*p));
    out = *v;
}

bool reader::each_text(std::string_view name, std::function<void(std::string const&, toml::source_region const&)> const& each,
                       bool single_allowed) {
    auto const* const node = find(name);
    if (node == nullptr) return false;
    if (auto const single = node->value_exact<std::string>(); single && single_allowed) {
        each(*single, node->source());
        return true;
    }
    auto const* const list = node->as_array();
    if (list == nullptr) {
        wrong(*node, fmt::format("'{}' is not a list of texts", name), fmt::format("write {} = [\"...\"]", name));
        return false;
    }
    bool good = true;
    for (auto const& element : *list) {
        auto const text = element.value_exact<std::string>();
        if (!text) {
            wrong(element, fmt::format("'{}' holds something that is not a text", name), "put every element in double quotes");
            good = false;
            continue;
        }
        each(*text, element.source());
    }
    return good;
}

void reader::texts(std::string_view name, std::vector<std::string>& out, rule holds) {
    std::vector<std::string> values;
    auto const one = [&](std::string const& text, toml::source_region const& at) {
        if (auto p = holds(text)) notes_.add(at, std::move(p->what), std::move(p->remedy));
        if (std::find(values.begin(), values.end(), text) != values.end())
            notes_.add(at, fmt::format("{} stands twice in '{}'", shown(text), name), "remove one of the two");
        else
            values.push_back(text);
    };
    if (each_text(name, one, false)) out = std::move(values);
}

std::optional<std::ptrdiff_t> reader::choice_index(std::string_view name, std::vector<std::string_view> const& names) {
    auto const* const node = find(name);
    if (node == nullptr) return std::nullopt;
    auto const v = node->value_exact<std::string>();
    auto const at = v ? std::find(names.begin(), names.end(), *v) : names.end();
    if (at != names.end()) return at - names.begin();
    wrong(*node, fmt::format("'{}' is none of its choices", name), fmt::format("write \"{}\"", fmt::join(names, "\" or \"")));
    return std::nullopt;
}

}  // namespace latchkey::conf
