#include <fmt/format.h>

#include <boost/json.hpp>
#include <filesystem>
#include <fstream>
#include <sstream>

#include "base/clock.hpp"
#include "cli/commands.hpp"
#include "cli/key_access.hpp"
#include "usage/export.hpp"

namespace latchkey::cli {
namespace {

namespace json = boost::json;

constexpr std::size_t import_bytes_max = 512ULL << 20;

std::unique_ptr<key_access> keys_of(key_flags const& f, streams& s, missing if_missing) {
    auto const settings = settings_of(f.common, s);
    std::error_code ignored;
    bool const is_new = if_missing == missing::create && !std::filesystem::exists(settings.data_dir, ignored);
    auto keys = open_keys(data_paths(settings.data_dir), settings.keys.prefix, if_missing);
    if (is_new) s.err << fmt::format("The data directory {} is new: no gateway uses it yet.\n", settings.data_dir);
    return keys;
}

std::string_view state_of(keystore::key_row const& row) {
    if (row.revoked_ms != 0) return "revoked";
    return row.expires_ms != 0 && row.expires_ms <= wall_ms() ? "expired" : "active";
}

std::string time_text(std::int64_t ms) { return ms == 0 ? std::string{} : format_time(ms); }

json::object to_json(keystore::key_row const& r) {
    auto const time = [](std::int64_t ms) { return ms == 0 ? json::value(nullptr) : json::value(format_time(ms)); };
    return {{"id", r.id},
            {"application_id", r.application_id},
            {"name", r.name},
            {"prefix", r.prefix},
            {"last4", r.last4},
            {"state", state_of(r)},
            {"created", time(r.created_ms)},
            {"revoked", time(r.revoked_ms)},
            {"expires", time(r.expires_ms)}};
}

void csv_line(std::ostream& out, std::vector<std::string> const& cells) {
    std::string line;
    for (auto const& cell : cells) {
        if (&cell != &cells.front()) line += ',';
        usage::append_cell(line, cell);
    }
    out << line << "\r\n";
}

// Writes rows one by one, so that a list of any length needs no memory.
class row_writer {
  public:
    row_writer(std::ostream& out, std::string const& form) : out_(out), form_(form) {
        if (form_ == "csv")
            csv_line(out_, {"id", "application_id", "name", "prefix", "last4", "state", "created", "revoked", "expires"});
        if (form_ == "json") out_ << "[";
        if (form_ == "table")
            out_ << fmt::format("{:20}  {:20}  {:8}  {:24}  {:14}  {}\n", "ID", "APPLICATION", "STATE", "CREATED", "KEY", "NAME");
    }
    bool write(keystore::key_row const& r) {
        if (form_ == "csv")
            csv_line(out_, {r.id, r.application_id, r.name, r.prefix, r.last4, std::string(state_of(r)), time_text(r.created_ms),
                            time_text(r.revoked_ms), time_text(r.expires_ms)});
        else if (form_ == "json")
            out_ << (first_ ? "\n" : ",\n") << json::serialize(to_json(r));
        else
            out_ << fmt::format("{:20}  {:20}  {:8}  {:24}  {:14}  {}\n", r.id, r.application_id, state_of(r),
                                time_text(r.created_ms), fmt::format("{}...{}", r.prefix, r.last4), r.name);
        first_ = false;
        return out_.good();
    }
    void end() {
        if (form_ == "json") out_ << (first_ ? "]\n" : "\n]\n");
        out_.flush();
    }

  private:
    std::ostream& out_;
    std::string const& form_;
    bool first_ = true;
};

void write_one(keystore::key_row const& row, key_flags const& f, streams& s) {
    if (f.output == "json") {
        s.out << json::serialize(to_json(row)) << "\n";
        return;
    }
    row_writer w(s.out, f.output);
    w.write(row);
    w.end();
}

// A person is asked; a script has to say --yes.
void confirm(key_flags const& f, std::string_view what, streams& s) {
    if (f.yes) return;
    if (!s.terminal) throw failure(exit_usage, fmt::format("this {} and nobody can be asked here; add --yes to do it", what));
    s.err << fmt::format("This {}. Go on? [y/N] ", what) << std::flush;
    std::string answer;
    std::getline(s.in, answer);
    if (answer != "y" && answer != "Y" && answer != "yes") throw failure(exit_error, "nothing was changed");
}

std::string read_import(std::string const& file, streams& s) {
    std::ifstream opened;
    if (file != "-") {
        opened.open(file, std::ios::binary);
        if (!opened) throw failure(exit_not_found, fmt::format("cannot read {}; check the path and its permissions", file));
    }
    std::istream& in = file == "-" ? s.in : opened;
    std::string text;
    std::vector<char> piece(1U << 16U);
    while (in.read(piece.data(), static_cast<std::streamsize>(piece.size())), in.gcount() > 0) {
        text.append(piece.data(), static_cast<std::size_t>(in.gcount()));
        if (text.size() > import_bytes_max) throw failure(exit_usage, "the import is larger than 512 MiB; split it");
    }
    if (in.bad()) throw failure(exit_error, fmt::format("cannot read {} to its end", file));
    return text;
}

// What finds no key or application of that id says where they are listed.
template <class Action>
auto looked_up(Action action) {
    try {
        return action();
    } catch (failure const& e) {
        if (e.code != exit_not_found) throw;
        throw failure(e.code, fmt::format("{}; `latchkey keys list` shows them", e.what()));
    }
}

}  // namespace

int keys_create(key_flags const& f, streams& s) {
    auto const keys = keys_of(f, s, missing::create);
    auto const made = looked_up([&] { return keys->create(f.name, f.application); });
    bool const as_json = f.json || f.output == "json";
    if (as_json)
        s.out << json::serialize(json::object{
                     {"id", made.id}, {"key", made.key}, {"application_id", made.application_id}, {"name", made.name}})
              << "\n";
    else
        s.out << made.key << "\n";
    s.out.flush();
    if (!s.out)
        throw failure(exit_error,
                      fmt::format("key {} was made, but it could not be written to standard output, so nobody has it: "
                                  "remove it with `latchkey keys delete {}`",
                                  made.id, made.id));
    if (as_json) return exit_ok;
    s.err << fmt::format(
        "Key {} for '{}' (application {}). It is shown this once and cannot be shown again; send it as X-API-KEY.\n", made.id,
        made.name, made.application_id);
    return exit_ok;
}

int keys_list(key_flags const& f, streams& s) {
    auto const keys = keys_of(f, s, missing::fail);
    row_writer w(s.out, f.output);
    keys->each([&](keystore::key_row const& row) { return w.write(row); });
    w.end();
    return exit_ok;
}

int keys_show(key_flags const& f, streams& s) {
    auto const keys = keys_of(f, s, missing::fail);
    write_one(looked_up([&] { return keys->find(f.id); }), f, s);
    return exit_ok;
}

int keys_revoke(key_flags const& f, streams& s) {
    confirm(f, fmt::format("revokes the key {} for good", f.id), s);
    auto const keys = keys_of(f, s, missing::fail);
    auto const before = looked_up([&] { return keys->find(f.id); });
    auto const row = looked_up([&] { return keys->revoke(f.id); });
    if (before.revoked_ms != 0)
        s.err << fmt::format("{} of '{}' was revoked already, at {}.\n", row.id, row.name, time_text(before.revoked_ms));
    else
        s.err << fmt::format("Revoked {} of '{}'.\n", row.id, row.name);
    return exit_ok;
}

int keys_delete(key_flags const& f, streams& s) {
    confirm(f, fmt::format("deletes the key {} for good (its usage records stay)", f.id), s);
    auto const keys = keys_of(f, s, missing::fail);
    auto const row = looked_up([&] { return keys->remove(f.id); });
    s.err << fmt::format("Deleted {} of '{}'.\n", row.id, row.name);
    return exit_ok;
}

int keys_import(key_flags const& f, streams& s) {
    auto text = read_import(f.id, s);
    auto const report = keys_of(f, s, missing::create)->import(std::move(text));
    if (f.json || f.output == "json")
        s.out << json::serialize(
                     json::object{{"imported", report.imported}, {"unchanged", report.unchanged}, {"revoked", report.revoked}})
              << "\n";
    else
        s.out << fmt::format("imported {}, unchanged {}{}\n", report.imported, report.unchanged,
                             report.revoked != 0 ? fmt::format(", revoked before and still so {}", report.revoked) : "");
    return exit_ok;
}

}  // namespace latchkey::cli
