#pragma once
// Reads one TOML table setting by setting and notes what is wrong with each, with its place. Internal to this room; the tables
// must outlive the readers. A setting that is absent or wrong leaves `out` as it was.

#include <toml++/toml.h>
#include <functional>
#include <initializer_list>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "conf/load.hpp"
#include "conf/rules.hpp"

namespace latchkey::conf {

using rule = std::optional<problem> (*)(std::string_view);

// What the readers of one file share: its name, the findings, and which settings belong where, so that a setting in the wrong
// section can be told so.
class notes {
  public:
    explicit notes(std::string file) : file_(std::move(file)) {}

    void add(toml::source_region const& at, std::string what, std::string remedy);
    void add(finding f) { findings_.push_back(std::move(f)); }
    void knows(std::string const& section, std::string_view name);
    void unknown(std::string const& section, toml::key const& key);

    // Turns what was unknown into findings, now that every section has said what it knows; sorted by place.
    std::vector<finding> take();

    std::string const& file() const noexcept { return file_; }

  private:
    struct misplaced {
        std::string section;
        std::string name;
        toml::source_region at;
    };
    std::string remedy_for(misplaced const&) const;

    std::string file_;
    std::vector<finding> findings_;
    std::vector<std::pair<std::string, std::string>> known_;  // section, name
    std::vector<misplaced> unknown_;
};

struct range {
    std::uint64_t least = 0;
    std::uint64_t most = 0;
    bool or_zero = false;  // 0 is allowed too and has a meaning of its own
};

class reader {
  public:
    // `section` as it stands in the file: "" (top), "[client]", "[[api]]", "[api.deadlines]". `table` null: every setting absent.
    reader(notes& to, std::string section, toml::table const* table) : notes_(to), section_(std::move(section)), table_(table) {}

    void flag(std::string_view name, bool& out);
    void duration(std::string_view name, milliseconds& out, milliseconds least, milliseconds most, bool or_zero = false);
    void text(std::string_view name, std::string& out, rule holds = nullptr);
    // Texts that break the rule are in `out` too, so that checks of the whole do not find consequences of one mistake.
    void texts(std::string_view name, std::vector<std::string>& out, rule holds);

    template <class Number>
    void number(std::string_view name, Number& out, range in) {
        if (auto const v = number_value(name, in, false)) out = static_cast<Number>(*v);
    }
    template <class Number>
    void bytes(std::string_view name, Number& out, range in) {
        if (auto const v = number_value(name, in, true)) out = static_cast<Number>(*v);
    }
    template <class Enum>
    void choice(std::string_view name, Enum& out, std::initializer_list<std::pair<std::string_view, Enum>> options) {
        std::vector<std::string_view> names;
        for (auto const& o : options) names.push_back(o.first);
        if (auto const i = choice_index(name, names)) out = (options.begin() + *i)->second;
    }

    // Calls `each` with the text (and its place) or, where `name` holds an array, with every text in it. False: absent or wrong.
    bool each_text(std::string_view name, std::function<void(std::string const&, toml::source_region const&)> const& each,
                   bool single_allowed);

    // The value of `name`, now known; null where it is absent.
    toml::node const* find(std::string_view name);
    void wrong(toml::node const& at, std::string what, std::string remedy) {
        notes_.add(at.source(), std::move(what), std::move(remedy));
    }
    void wrong(toml::node const& at, problem p) { notes_.add(at.source(), std::move(p.what), std::move(p.remedy)); }
    toml::table const* table() const noexcept { return table_; }

    // Every name in the table that nothing asked for is unknown.
    void finish();

  private:
    std::optional<std::uint64_t> number_value(std::string_view name, range in, bool as_bytes);
    std::optional<std::ptrdiff_t> choice_index(std::string_view name, std::vector<std::string_view> const& names);

    notes& notes_;
    std::string section_;
    toml::table const* table_;
    std::vector<std::string> asked_;
};

}  // namespace latchkey::conf
