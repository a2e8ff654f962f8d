// The CSV of an import. Strict, because each row hands out access: what could be read in two ways is an error with its line, and
// no message holds a field's text, as it may be a key.

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <string>

#include "keystore/store.hpp"

namespace latchkey::keystore {
namespace {

constexpr std::size_t row_bytes_max = 4096;
constexpr std::size_t rows_max = 5'000'000;

class csv_reader {
  public:
    explicit csv_reader(std::string_view text) : text_(text) {}

    struct csv_row {
        std::array<std::string, 2> fields;
        std::size_t count = 0;  // 0: an empty line
        std::size_t line = 0;   // where it begins
    };

    bool at_end() const { return at_ == text_.size(); }

    result<csv_row> next() {
        csv_row row;
        row.line = line_;
        row_start_ = at_;
        if (take_line_end()) return row;
        for (;;) {
            std::string field;
            bool const quoted = !at_end() && text_[at_] == '"';
            if (auto const r = quoted ? read_quoted(field, row.line) : read_plain(field); !r) return r.error();
            if (row.count < row.fields.size()) row.fields[row.count] = std::move(field);
            ++row.count;
            if (at_end() || take_line_end()) break;
            if (text_[at_] != ',') return fail("text stands behind a closing quote", line_);
            ++at_;
        }
        if (row.count != row.fields.size())
            return fail(fmt::format("{} fields where 2 are needed (name,key)", row.count), row.line);
        return row;
    }

    static error fail(std::string_view why, std::size_t line) {
        return {errc::invalid_argument, fmt::format("line {}: {}", line, why)};
    }

  private:
    // A line ends with LF or CRLF. True: it was one, and is behind us.
    bool take_line_end() {
        auto const rest = text_.substr(at_);
        std::size_t const bytes = rest.starts_with('\n') ? 1 : rest.starts_with("\r\n") ? 2 : 0;
        at_ += bytes;
        if (bytes != 0) ++line_;
        return bytes != 0;
    }

    bool too_long() const { return at_ - row_start_ > row_bytes_max; }
    error row_too_long(std::size_t line) const {
        return fail(fmt::format("the row is longer than {} bytes (is a quote not closed?)", row_bytes_max), line);
    }

    result<void> read_plain(std::string& field) {
        for (; !at_end(); ++at_) {
            char const c = text_[at_];
            if (c == ',' || c == '\n' || text_.substr(at_).starts_with("\r\n")) return {};
            if (c == '"') return fail("a quote inside a field that does not begin with one", line_);
            if (c == '\r') return fail("a carriage return without a line feed", line_);
            if (too_long()) return row_too_long(line_);
            field.push_back(c);
        }
        return {};
    }

    // From the opening quote to behind the closing one; "" is one quote.
    result<void> read_quoted(std::string& field, std::size_t row_line) {
        for (++at_; !at_end(); ++at_) {
            char const c = text_[at_];
            if (too_long()) return row_too_long(row_line);
            if (c == '"') {
                ++at_;
                if (at_end() || text_[at_] != '"') return {};
            }
            if (c == '\n') ++line_;
            field.push_back(c);
        }
        return fail("a quote is not closed", row_line);
    }

    std::string_view text_;
    std::size_t at_ = 0;
    std::size_t row_start_ = 0;
    std::size_t line_ = 1;
};

bool same_word(std::string_view field, std::string_view word) {
    auto const first = field.find_first_not_of(" \t");
    if (first == std::string_view::npos) return false;
    field = field.substr(first, field.find_last_not_of(" \t") - first + 1);
    auto const lower = [](char c) { return c >= 'A' && c <= 'Z' ? static_cast<char>(c - 'A' + 'a') : c; };
    return std::equal(field.begin(), field.end(), word.begin(), word.end(), [&](char a, char b) { return lower(a) == b; });
}

}  // namespace

result<std::vector<import_row>> parse_import_csv(std::string_view text) {
    constexpr std::string_view bom = "\xEF\xBB\xBF";
    constexpr std::string_view header_wanted = "the first line must be the header: name,key";
    if (text.starts_with(bom)) text.remove_prefix(bom.size());
    csv_reader reader(text);
    if (reader.at_end()) return csv_reader::fail(header_wanted, 1);
    auto const header = reader.next();
    if (!header || header->count != 2 || !same_word(header->fields[0], "name") || !same_word(header->fields[1], "key"))
        return csv_reader::fail(header_wanted, 1);

    std::vector<import_row> rows;
    while (!reader.at_end()) {
        auto row = reader.next();
        if (!row) return row.error();
        if (row->count == 0) continue;
        if (rows.size() == rows_max)
            return csv_reader::fail(fmt::format("more than {} rows: split the file", rows_max), row->line);
        rows.push_back({std::move(row->fields[0]), std::move(row->fields[1]), row->line});
    }
    return rows;
}

}  // namespace latchkey::keystore
