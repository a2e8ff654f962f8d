#include "keystore/store.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <bitset>
#include <numeric>
#include <optional>
#include <span>
#include <unordered_map>

#include "base/clock.hpp"
#include "base/ids.hpp"
#include "base/sqlite.hpp"
#include "base/utf8.hpp"
#include "keystore/schema.hpp"

namespace latchkey::keystore {
namespace {

using sqlite::reset_guard;
using sqlite::statement;
using sqlite::transaction;

constexpr std::size_t name_bytes_max = 200;
constexpr std::size_t id_chars_max = 64;
constexpr std::size_t import_rows_max = 5'000'000;
constexpr std::size_t list_limit_max = 10'000;

error invalid(std::string message) { return {errc::invalid_argument, std::move(message)}; }

// What is wrong with an application's name, or nothing.
std::optional<std::string_view> fault_of_name(std::string_view name) {
    if (name.find_first_not_of(' ') == std::string_view::npos) return name.empty() ? "the name is empty" : "the name is blank";
    if (name.size() > name_bytes_max) return "the name is longer than 200 bytes";
    while (!name.empty()) {
        std::size_t const bytes = utf8_character(name);
        if (bytes == 0) return "the name is not UTF-8";
        if (is_control(name.substr(0, bytes))) return "the name holds a control character";
        name.remove_prefix(bytes);
    }
    return std::nullopt;
}

bool can_be_id(std::string_view name) {
    auto const fits = [](char c) {
        return base62_alphabet.find(c) != std::string_view::npos || c == '.' || c == '_' || c == '-';
    };
    return !name.empty() && name.size() <= id_chars_max && std::all_of(name.begin(), name.end(), fits);
}

// Or a part of one.
bool looks_like_key_id(std::string_view text) {
    return text.starts_with("key_") && text.size() <= 4 + id_random_chars &&
           text.find_first_not_of(base62_alphabet, 4) == std::string_view::npos;
}

// The key's text may be given in the place of its id by mistake: what does not look like an id is not repeated. (A key may begin
// with "key_", too, but the gateway's own are longer.)
error no_such_key(std::string_view id) {
    if (looks_like_key_id(id)) return {errc::not_found, fmt::format("there is no key {}", id)};
    return {errc::not_found, "there is no key with that id (ids begin with key_)"};
}

// The columns of key_row, in this order everywhere.
constexpr std::string_view row_columns =
    "SELECT k.id, a.id, a.name, k.prefix, k.last4, k.created_ms, k.revoked_ms, k.expires_ms "
    "FROM keys k JOIN applications a ON a.seq = k.application ";

key_row row_of(statement const& s) {
    key_row r;
    r.id = s.text(0);
    r.application_id = s.text(1);
    r.name = s.text(2);
    r.prefix = s.text(3);
    r.last4 = s.text(4);
    r.created_ms = s.int64(5);
    r.revoked_ms = s.int64(6);
    r.expires_ms = s.int64(7);
    return r;
}

// The columns of key_entry. CROSS JOIN keeps SQLite from walking the applications first.
constexpr std::string_view entry_columns =
    "SELECT k.digest, k.id, a.id, a.name, k.expires_ms, k.revoked_ms, a.disabled_ms "
    "FROM keys k CROSS JOIN applications a ON a.seq = k.application ";

// False: a value that the schema's checks forbid, so the file is damaged.
bool read_entry(statement const& s, key_entry& out) {
    auto const hash = s.blob(0);
    if (hash.size() != out.hash.size()) return false;
    std::copy(hash.begin(), hash.end(), out.hash.begin());
    out.key_id = s.text(1);
    out.application_id = s.text(2);
    out.application = s.text(3);
    out.expires_ms = s.int64(4);
    out.state = s.int64(5) != 0 ? key_state::revoked : s.int64(6) != 0 ? key_state::disabled : key_state::active;
    return out.key_id.size() <= id_chars_max && out.application_id.size() <= id_chars_max &&
           out.application.size() <= name_bytes_max;
}

struct digest_range {
    std::array<unsigned char, 2> first{};
    std::array<unsigned char, 33> end{};  // not included; longer than any digest for the last shard
    std::size_t end_bytes = 0;
};

digest_range range_of(std::size_t shard) noexcept {
    digest_range r;
    auto const put = [](auto& bytes, std::size_t at) {
        bytes[0] = static_cast<unsigned char>(at >> 2U);
        bytes[1] = static_cast<unsigned char>((at & 3U) << 6U);
    };
    put(r.first, shard);
    if (shard + 1 < shard_count) {
        put(r.end, shard + 1);
        r.end_bytes = 2;
    } else {
        r.end.fill(0xff);
        r.end_bytes = r.end.size();
    }
    return r;
}

struct prepared_statements {
    statement find, list, page_start, shard, changed, counter, data_version;
    statement find_application, add_application, add_named_application, application_by_name, add_key, owner_of;
    statement revoke, remove_key, application_of, remove_application;
};

result<void> prepare_all(sqlite::database& db, prepared_statements& out) {
    std::string const columns(row_columns);
    std::pair<statement*, std::string> const wanted[] = {
        {&out.find, columns + "WHERE k.id = ?1"},
        {&out.list, columns + "WHERE (k.created_ms, k.id) > (?1, ?2) ORDER BY k.created_ms, k.id LIMIT ?3"},
        {&out.page_start, "SELECT created_ms FROM keys WHERE id = ?1"},
        {&out.shard, std::string(entry_columns) + "WHERE k.digest >= ?1 AND k.digest < ?2 ORDER BY k.digest"},
        {&out.changed, "SELECT prefix FROM changes WHERE number > ?1 ORDER BY prefix"},
        {&out.counter, "SELECT number FROM change_counter"},
        {&out.data_version, "PRAGMA data_version"},
        {&out.find_application, "SELECT seq, name FROM applications WHERE id = ?1"},
        {&out.add_application, "INSERT OR ROLLBACK INTO applications (id, name, created_ms) VALUES (?1, ?2, ?3)"},
        {&out.add_named_application,
         "INSERT OR ROLLBACK INTO applications (id, name, created_ms) VALUES (?1, ?2, ?3) "
         "ON CONFLICT (id) DO NOTHING"},
        {&out.application_by_name, "SELECT seq FROM applications WHERE name = ?1 ORDER BY seq LIMIT 1"},
        {&out.add_key,
         "INSERT OR ROLLBACK INTO keys (digest, id, application, prefix, last4, created_ms) VALUES (?1, ?2, ?3, ?4, ?5, ?6) ON "
         "CONFLICT (digest) DO NOTHING"},
        {&out.owner_of,
         "SELECT a.name, k.revoked_ms FROM keys k JOIN applications a ON a.seq = k.application WHERE k.digest = ?1"},
        {&out.revoke, "UPDATE keys SET revoked_ms = ?2 WHERE id = ?1 AND revoked_ms = 0"},
        {&out.application_of, "SELECT application FROM keys WHERE id = ?1"},
        {&out.remove_key, "DELETE FROM keys WHERE id = ?1"},
        {&out.remove_application,
         "DELETE FROM applications WHERE seq = ?1 AND NOT EXISTS "
         "(SELECT 1 FROM keys WHERE application = ?1)"},
    };
    for (auto const& [to, sql] : wanted) {
        auto made = db.prepare(sql);
        if (!made) return made.error();
        *to = std::move(*made);
    }
    return {};
}

// One row of an import after the checks that need no file.
struct import_item {
    digest hash;
    std::size_t row;
};

// The first 12 bits, by which the change log counts.
std::size_t prefix_of(std::span<unsigned char const> hash) noexcept {
    return static_cast<std::size_t>(hash[0]) << 4U | hash[1] >> 4U;
}

bool digest_order(import_item const& a, import_item const& b) { return a.hash != b.hash ? a.hash < b.hash : a.row < b.row; }

result<std::vector<import_item>> checked(std::vector<import_row> const& rows, std::string_view key_prefix) {
    if (rows.size() > import_rows_max) return invalid(fmt::format("more than {} rows: split the import", import_rows_max));
    std::vector<import_item> items;
    items.reserve(rows.size());
    for (std::size_t i = 0; i < rows.size(); ++i) {
        auto const& r = rows[i];
        if (auto const fault = fault_of_name(r.name)) return invalid(fmt::format("line {}: {}", r.line, *fault));
        switch (shape_of(r.key, key_prefix)) {
            case key_shape::ours:
            case key_shape::foreign: break;
            case key_shape::bad_checksum:
                return invalid(
                    fmt::format("line {}: the key begins with '{}_' but its check characters are wrong: a typing error?", r.line,
                                key_prefix));
            case key_shape::malformed:
                return invalid(fmt::format("line {}: a key is {} to {} visible ASCII characters without spaces", r.line,
                                           key_chars_min, key_chars_max));
        }
        items.push_back({digest_of(r.key), i});
    }
    // In digest order neighbouring rows land on neighbouring pages, and a key that stands twice meets itself.
    std::sort(items.begin(), items.end(), digest_order);
    return items;
}

// The rows that cannot go in, said for the first of them in the order of the file.
struct conflicts {
    std::size_t count = 0;
    std::size_t first_line = 0;

    void add(std::size_t line) noexcept {
        first_line = count == 0 ? line : std::min(first_line, line);
        ++count;
    }
    error said() const {
        auto const more = count > 1 ? fmt::format(" ({} lines in all)", count) : std::string();
        return {errc::conflict,
                fmt::format("line {}: the key is there already under another name{}; nothing was imported", first_line, more)};
    }
};

// Room in SQLite's page cache for all pages that an import touches. Ids are random, so with the usual 2 MB nearly each row would
// write a page out and read it back. Given back at the end.
class page_cache {
  public:
    page_cache(sqlite::database& db, std::size_t rows) : db_(db) {
        constexpr std::size_t row_kib_max = 1;  // about 400 bytes of all tables and indexes, pages two thirds full
        constexpr std::size_t least_kib = 8 * 1024;
        constexpr std::size_t most_kib = 1024 * 1024;
        ready_ = db.exec(fmt::format("PRAGMA cache_size = -{}", std::clamp(rows * row_kib_max, least_kib, most_kib)).c_str());
    }
    ~page_cache() {
        // Memory is all that a failure here costs.
        static_cast<void>(db_.exec("PRAGMA cache_size = -2000; PRAGMA shrink_memory"));
    }
    page_cache(page_cache const&) = delete;
    page_cache& operator=(page_cache const&) = delete;
    result<void> const& ready() const noexcept { return ready_; }

  private:
    sqlite::database& db_;
    result<void> ready_;
};

}  // namespace

struct store::impl {
    sqlite::database db;
    std::chrono::milliseconds busy_timeout;
    prepared_statements sql;

    result<transaction> begin(transaction::kind kind) {
        // Before each use: what is read from a file that nobody else sees is stale, and what is written to it is lost.
        if (auto const there = db.still_there(); !there) return there.error();
        return transaction::begin(db, kind);
    }

    result<key_row> find(std::string_view id) {
        reset_guard const done(sql.find);
        auto const row = sql.find.bind(1, id).step();
        if (!row) return row.error();
        if (!*row) return no_such_key(id);
        return row_of(sql.find);
    }

    // 0: the id is taken.
    result<std::int64_t> add_application(statement& how, std::string_view id, std::string_view name, std::int64_t now) {
        if (auto const r = how.bind(1, id).bind(2, name).bind(3, now).run(); !r) return r.error();
        return db.changed_rows() == 0 ? 0 : db.last_rowid();
    }

    // False: there is a key with this digest already.
    result<bool> add_key(digest const& hash, std::string_view id, std::int64_t application, std::string_view key,
                         std::string_view prefix, std::int64_t now) {
        auto const last4 = key.substr(key.size() - 4);
        auto& add = sql.add_key.bind_blob(1, hash).bind(2, id).bind(3, application).bind(4, prefix).bind(5, last4).bind(6, now);
        if (auto const r = add.run(); !r) return r.error();
        return db.changed_rows() != 0;
    }

    // The application an imported name stands for: the oldest of that name, else a new one.
    result<std::int64_t> application_named(std::string_view name, std::int64_t now) {
        {
            reset_guard const done(sql.application_by_name);
            auto const row = sql.application_by_name.bind(1, name).step();
            if (!row) return row.error();
            if (*row) return sql.application_by_name.int64(0);
        }
        if (can_be_id(name)) {
            auto seq = add_application(sql.add_named_application, name, name, now);
            if (!seq || *seq != 0) return seq;
        }
        return add_application(sql.add_application, make_id("app_"), name, now);
    }

    struct key_owner {
        std::string name;  // of the application that has the key
        bool revoked = false;
    };
    result<key_owner> owner_of(digest const& hash) {
        reset_guard const done(sql.owner_of);
        auto const row = sql.owner_of.bind_blob(1, hash).step();
        if (!row) return row.error();
        if (!*row) return key_owner{};
        return key_owner{std::string(sql.owner_of.text(0)), sql.owner_of.int64(1) != 0};
    }

    using prefixes = std::bitset<4096>;  // first 12 bits of digests
    result<void> note_import(prefixes const& touched);
    result<void> mark_waiting(prefixes& touched);
    result<import_report> import_items(std::vector<import_row> const& rows, std::vector<import_item> const& items,
                                       std::string_view key_prefix);
    result<std::uint64_t> counter();
};

store::store(std::unique_ptr<impl> from) : impl_(std::move(from)) {}
store::~store() = default;

result<std::unique_ptr<store>> store::open(std::string const& file, open_options how) {
    auto db = sqlite::database::open(file, {.create = how.create, .read_only = false, .busy_timeout = how.busy_timeout});
    if (!db) return db.error();
    sqlite::schema const ours{.application_id = store_application_id, .what = "the key store", .migrations = migrations};
    auto const version = db->int64("PRAGMA user_version");
    if (!version) return version.error();
    if (how.check || static_cast<std::size_t>(*version) != migrations.size())
        if (auto const r = db->quick_check(); !r) return r.error();
    if (auto const r = db->adopt(ours); !r) return r.error();
    auto made = std::make_unique<impl>(impl{std::move(*db), how.busy_timeout, {}});
    if (auto const r = prepare_all(made->db, made->sql); !r) return r.error();
    return std::unique_ptr<store>(new store(std::move(made)));
}

result<void> store::check(std::string const& file) {
    auto db = sqlite::database::open(file, {.create = false});
    if (!db) return db.error();
    // It looks at each page once: a cache would only leave its memory behind.
    if (auto const r = db->exec("PRAGMA cache_size = -64"); !r) return r.error();
    return db->quick_check();
}

result<created_key> store::create_key(std::string_view name, std::string_view key_prefix, std::string_view application_id) {
    if (application_id.empty())
        if (auto const fault = fault_of_name(name)) return invalid(std::string(*fault));
    auto lock = impl_->begin(transaction::kind::write);
    if (!lock) return lock.error();
    created_key made{{}, make_key(key_prefix)};
    auto const now = wall_ms();
    std::int64_t application = 0;
    if (application_id.empty()) {
        auto const seq = impl_->add_application(impl_->sql.add_application, make_id("app_"), name, now);
        if (!seq) return seq.error();
        application = *seq;
    } else {
        auto& find = impl_->sql.find_application;
        reset_guard const done(find);
        auto const row = find.bind(1, application_id).step();
        if (!row) return row.error();
        if (!*row)
            return error{errc::not_found, fmt::format("there is no application {}", application_id.substr(0, id_chars_max))};
        application = find.int64(0);
    }
    auto const id = make_id("key_");
    auto const added = impl_->add_key(digest_of(made.key), id, application, made.key, key_prefix, now);
    if (!added) return added.error();
    if (!*added) return error{errc::io, "the new key equals an old one: the random generator of this system is broken"};
    auto row = impl_->find(id);
    if (!row) return row.error();
    made.row = std::move(*row);
    if (auto const r = lock->commit(); !r) return r.error();
    return made;
}

result<import_report> store::import_keys(std::vector<import_row> const& rows, std::string_view key_prefix) {
    auto const items = checked(rows, key_prefix);
    if (!items) return items.error();
    page_cache const room(impl_->db, items->size());
    if (!room.ready()) return room.ready().error();
    sqlite::no_triggers const quiet(impl_->db);
    auto lock = impl_->begin(transaction::kind::write);
    if (!lock) return lock.error();
    auto report = impl_->import_items(rows, *items, key_prefix);
    if (!report) return report.error();
    if (auto const r = lock->commit(); !r) return r.error();
    return report;
}

result<import_report> store::impl::import_items(std::vector<import_row> const& rows, std::vector<import_item> const& items,
                                                std::string_view key_prefix) {
    import_report report;
    conflicts wrong;
    std::unordered_map<std::string_view, std::int64_t> applications;
    auto const now = wall_ms();
    prefixes touched;
    if (auto const r = mark_waiting(touched); !r) return r.error();
    for (auto const& item : items) {
        auto const& r = rows[item.row];
        auto const [at, unknown] = applications.try_emplace(r.name, 0);
        if (unknown) {
            auto const seq = application_named(r.name, now);
            if (!seq) return seq.error();
            at->second = *seq;
        }
        bool const ours = shape_of(r.key, key_prefix) == key_shape::ours;
        std::string_view const prefix = ours ? key_prefix : std::string_view(r.key).substr(0, 4);
        auto const added = add_key(item.hash, make_id("key_"), at->second, r.key, prefix, now);
        if (!added) return added.error();
        if (*added) {
            ++report.imported;
            touched.set(prefix_of(item.hash));
            continue;
        }
        auto const owner = owner_of(item.hash);
        if (!owner) return owner.error();
        if (owner->name != r.name)
            wrong.add(r.line);  // and on, to say how many there are
        else
            ++(owner->revoked ? report.revoked : report.unchanged);
    }
    if (wrong.count != 0) return wrong.said();
    if (auto const r = note_import(touched); !r) return r.error();
    return report;
}

// Keys whose application is away (a shell has foreign keys off) and whose number a new application could be given: it would
// bring them back.
result<void> store::impl::mark_waiting(prefixes& touched) {
    auto waiting = db.prepare("SELECT digest FROM keys WHERE application > (SELECT coalesce(max(seq), 0) FROM applications)");
    if (!waiting) return waiting.error();
    for (;;) {
        auto const row = waiting->step();
        if (!row) return row.error();
        if (!*row) return {};
        if (auto const hash = waiting->blob(0); hash.size() > 1) touched.set(prefix_of(hash));
    }
}

// What the triggers do for each row, once for each prefix. Fired row by row they would take nearly half of an import's time.
result<void> store::impl::note_import(prefixes const& touched) {
    if (touched.none()) return {};
    if (auto const r = db.exec("UPDATE change_counter SET number = number + 1"); !r) return r.error();
    auto note = db.prepare(
        "INSERT INTO changes SELECT ?1, number FROM change_counter WHERE true "
        "ON CONFLICT (prefix) DO UPDATE SET number = excluded.number");
    if (!note) return note.error();
    for (std::size_t prefix = 0; prefix < touched.size(); ++prefix) {
        if (!touched.test(prefix)) continue;
        auto const digits = fmt::format("{:03X}", prefix);
        if (auto const r = note->bind(1, digits).run(); !r) return r.error();
    }
    return {};
}

result<key_row> store::find(std::string_view id) {
    if (auto const there = impl_->db.still_there(); !there) return there.error();
    return impl_->find(id);
}

result<std::vector<key_row>> store::list(std::string_view after, std::size_t limit) {
    if (limit < 1 || limit > list_limit_max) return invalid(fmt::format("a page has 1 to {} keys", list_limit_max));
    auto const view = impl_->begin(transaction::kind::read);
    if (!view) return view.error();
    std::int64_t after_ms = INT64_MIN;
    if (!after.empty()) {
        auto& start = impl_->sql.page_start;
        reset_guard const done(start);
        auto const row = start.bind(1, after).step();
        if (!row) return row.error();
        if (!*row) return no_such_key(after);
        after_ms = start.int64(0);
    }
    std::vector<key_row> rows;
    auto& list = impl_->sql.list;
    reset_guard const done(list);
    list.bind(1, after_ms).bind(2, after).bind(3, static_cast<std::int64_t>(limit));
    for (;;) {
        auto const row = list.step();
        if (!row) return row.error();
        if (!*row) return rows;
        rows.push_back(row_of(list));
    }
}

result<key_row> store::revoke(std::string_view id) {
    auto lock = impl_->begin(transaction::kind::write);
    if (!lock) return lock.error();
    if (auto const r = impl_->sql.revoke.bind(1, id).bind(2, wall_ms()).run(); !r) return r.error();
    auto row = impl_->find(id);
    if (!row) return row.error();
    if (auto const r = lock->commit(); !r) return r.error();
    return row;
}

result<key_row> store::remove(std::string_view id) {
    auto lock = impl_->begin(transaction::kind::write);
    if (!lock) return lock.error();
    auto row = impl_->find(id);
    if (!row) return row.error();
    std::int64_t application = 0;
    {
        auto& asked = impl_->sql.application_of;
        reset_guard const done(asked);
        auto const found = asked.bind(1, id).step();
        if (!found) return found.error();
        application = asked.int64(0);
    }
    if (auto const r = impl_->sql.remove_key.bind(1, id).run(); !r) return r.error();
    if (auto const r = impl_->sql.remove_application.bind(1, application).run(); !r) return r.error();
    if (auto const r = lock->commit(); !r) return r.error();
    return row;
}

result<std::vector<key_entry>> store::shard(std::size_t index) {
    if (index >= shard_count) return invalid(fmt::format("there is no shard {}", index));
    if (auto const there = impl_->db.still_there(); !there) return there.error();
    auto const range = range_of(index);
    std::vector<key_entry> entries;
    auto& rows = impl_->sql.shard;
    reset_guard const done(rows);
    rows.bind_blob(1, range.first).bind_blob(2, std::span(range.end).first(range.end_bytes));
    for (;;) {
        auto const row = rows.step();
        if (!row) return row.error();
        if (!*row) return entries;
        if (!read_entry(rows, entries.emplace_back()))
            return error{errc::corrupt,
                         fmt::format("{} holds a row that its schema forbids: restore a backup", impl_->db.file())};
    }
}

result<void> store::each_shard(std::function<void(std::size_t, std::vector<key_entry> const&)> const& visit) {
    if (auto const there = impl_->db.still_there(); !there) return there.error();
    auto rows = impl_->db.prepare(std::string(entry_columns) + "ORDER BY k.digest");
    if (!rows) return rows.error();
    std::size_t index = 0;
    std::vector<key_entry> entries;
    for (;;) {
        key_entry next;
        auto const row = rows->step();
        if (!row) return row.error();
        if (*row && !read_entry(*rows, next))
            return error{errc::corrupt,
                         fmt::format("{} holds a row that its schema forbids: restore a backup", impl_->db.file())};
        for (std::size_t const reached = *row ? shard_of(next.hash) : shard_count; index < reached; ++index) {
            visit(index, entries);
            entries.clear();
        }
        if (!*row) return impl_->db.exec("PRAGMA shrink_memory");  // pages that nobody asks for again soon
        entries.push_back(std::move(next));
    }
}

result<std::uint64_t> store::impl::counter() {
    reset_guard const done(sql.counter);
    auto const row = sql.counter.step();
    if (!row) return row.error();
    if (!*row) return error{errc::corrupt, fmt::format("the change counter of {} is gone: restore a backup", db.file())};
    return static_cast<std::uint64_t>(sql.counter.int64(0));
}

result<store::changes> store::changed_since(std::uint64_t since) {
    auto const view = impl_->begin(transaction::kind::read);
    if (!view) return view.error();
    auto const newest = impl_->counter();
    if (!newest) return newest.error();
    changes found{*newest, {}};
    if (since > *newest) {  // not the history that the caller knows
        found.shards.resize(shard_count);
        std::iota(found.shards.begin(), found.shards.end(), std::size_t{0});
        return found;
    }
    auto& rows = impl_->sql.changed;
    reset_guard const done(rows);
    rows.bind(1, static_cast<std::int64_t>(since));
    for (;;) {
        auto const row = rows.step();
        if (!row) return row.error();
        if (!*row) return found;
        std::size_t twelve_bits = 0;
        for (char const c : rows.text(0)) {
            auto const digit = std::string_view("0123456789ABCDEF").find(c);
            if (digit == std::string_view::npos || twelve_bits > 0xff)
                return error{errc::corrupt, fmt::format("the change log of {} is damaged: restore a backup", impl_->db.file())};
            twelve_bits = twelve_bits << 4U | digit;
        }
        std::size_t const index = twelve_bits >> 2U;
        if (found.shards.empty() || found.shards.back() != index) found.shards.push_back(index);
    }
}

result<std::int64_t> store::data_version() {
    if (auto const there = impl_->db.still_there(); !there) return there.error();
    auto& asked = impl_->sql.data_version;
    reset_guard const done(asked);
    auto const row = asked.step();
    if (!row) return row.error();
    return asked.int64(0);
}

result<void> store::check_writable() {
    if (auto const r = impl_->db.exec("PRAGMA busy_timeout = 0"); !r) return r.error();
    auto tried = [&]() -> result<void> {
        auto lock = impl_->begin(transaction::kind::write);
        if (!lock) return lock.error();
        if (auto const r = impl_->db.exec("UPDATE change_counter SET number = number"); !r) return r.error();
        return lock->commit();
    }();
    auto const back = fmt::format("PRAGMA busy_timeout = {}", impl_->busy_timeout.count());
    if (auto const r = impl_->db.exec(back.c_str()); !r) return r.error();
    return tried;
}

result<std::uint64_t> store::key_count() {
    if (auto const there = impl_->db.still_there(); !there) return there.error();
    auto const count = impl_->db.int64("SELECT count(*) FROM keys");
    if (!count) return count.error();
    return static_cast<std::uint64_t>(*count);
}

}  // namespace latchkey::keystore
