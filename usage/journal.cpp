#include "usage/journal.hpp"

#include <sys/stat.h>

#include <algorithm>
#include <array>
#include <span>

#include "base/sqlite.hpp"
#include "base/sqlite_steps.hpp"
#include "usage/block.hpp"

// usage.db, version 1:
//
//   blocks(id, first_ms, last_ms, records, data)   append only; ids only grow and are never given twice (AUTOINCREMENT)
//   rings(id, cursor)                              everything of ring `id` before position `cursor` is in `blocks`
//   notes(name, value)                             "ring_dir": the folder where the rings last lay; "other_ring_dirs": one a line
//
// Durability. WAL with synchronous=NORMAL: a committed transaction survives the end of the process, however it ends, because its
// pages are in the kernel's hands; a power cut may take the transactions since the last checkpoint's sync, and leaves a
// consistent file: block and cursor go or stay together.
//
// The log's bound. A checkpoint runs inside the commit that makes the log 256 pages (1 MiB) long, and cannot pass a reader's
// view. So no reader keeps a view: an export notes the span of ids at its start and takes block after block in statements of
// their own, which is the same as one view because blocks never change. A log that grew for another program's sake is cut to 16
// MiB.

namespace latchkey::usage {

namespace {

constexpr std::array<char const*, 1> migrations = {R"(
    CREATE TABLE blocks(id INTEGER PRIMARY KEY AUTOINCREMENT, first_ms INTEGER NOT NULL, last_ms INTEGER NOT NULL,
                        records INTEGER NOT NULL, data BLOB NOT NULL) STRICT;
    CREATE INDEX blocks_by_time ON blocks(last_ms, first_ms, records);
    CREATE TABLE rings(id TEXT PRIMARY KEY, cursor INTEGER NOT NULL) STRICT, WITHOUT ROWID;
    CREATE TABLE notes(name TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT, WITHOUT ROWID;
)"};

constexpr sqlite::schema schema{.application_id = 0x4c4b5573, .what = "the usage journal", .migrations = migrations};

constexpr std::chrono::milliseconds busy_timeout{1000};  // the flusher tries again anyway; its caller should not wait long

std::span<unsigned char const> bytes_of(std::string_view text) {
    return {reinterpret_cast<unsigned char const*>(text.data()), text.size()};
}

std::string_view text_of(std::span<unsigned char const> bytes) {
    return {reinterpret_cast<char const*>(bytes.data()), bytes.size()};
}

}  // namespace

struct journal::impl {
    sqlite::database db;
    sqlite::statement insert_block;
    sqlite::statement move_cursor;
    sqlite::statement cursor;
    sqlite::statement span;
    sqlite::statement next_block;
    sqlite::statement remove_some;
    block_opener opener;

    explicit impl(sqlite::database d) : db(std::move(d)) {}
    result<void> set_up(bool read_only);
    result<std::string> note(std::string_view name);
    result<void> set_note(std::string_view name, std::string_view value);
};

result<void> journal::impl::set_up(bool read_only) {
    if (auto done = db.adopt(schema); !done) return done;
    if (!read_only)
        if (auto done = db.exec("PRAGMA synchronous = NORMAL; PRAGMA wal_autocheckpoint = 256;"
                                "PRAGMA journal_size_limit = 16777216");
            !done)
            return done;
    struct {
        sqlite::statement& to;
        char const* sql;
        bool writes;
    } const wanted[] = {
        {insert_block, "INSERT INTO blocks(first_ms, last_ms, records, data) VALUES (?1, ?2, ?3, ?4)", true},
        {move_cursor,
         "INSERT INTO rings(id, cursor) VALUES (?1, ?2) ON CONFLICT(id) DO UPDATE SET cursor = excluded.cursor "
         "WHERE excluded.cursor > cursor",
         true},
        // A full block takes a millisecond (its pages are visited one by one): so the oldest ones until they have as many bytes,
        // and at most so many that finding them takes no longer. (What length() needs stands in a row's header.)
        {remove_some,
         "DELETE FROM blocks WHERE id IN (SELECT id FROM (SELECT id, sum(bytes) OVER (ORDER BY last_ms, id) - bytes AS before "
         "FROM (SELECT id, last_ms, length(data) AS bytes FROM blocks WHERE last_ms < ?1 ORDER BY last_ms, id LIMIT 64)) "
         "WHERE before < ?2) RETURNING records",
         true},
        {cursor, "SELECT cursor FROM rings WHERE id = ?1", false},
        {span, "SELECT min(id), max(id) FROM blocks WHERE last_ms >= ?1 AND first_ms < ?2", false},
        // +: by id, never by the time index, which would have to be sorted for every block
        {next_block,
         "SELECT id, data FROM blocks WHERE id > ?1 AND id <= ?2 AND +last_ms >= ?3 AND +first_ms < ?4 ORDER BY id LIMIT 1",
         false},
    };
    for (auto const& w : wanted) {
        if (w.writes && read_only) continue;
        auto prepared = db.prepare(w.sql);
        if (!prepared) return prepared.error();
        w.to = std::move(*prepared);
    }
    return {};
}

journal::journal(std::unique_ptr<impl> i) : impl_(std::move(i)) {}
journal::~journal() = default;

result<std::unique_ptr<journal>> journal::open(std::string const& file, mode m) {
    bool const read_only = m == mode::read_only;
    auto db = sqlite::database::open(
        file, {.create = !read_only, .read_only = read_only, .busy_timeout = busy_timeout, .in_steps = !read_only});
    if (!db) return db.error();
    auto i = std::make_unique<impl>(std::move(*db));
    if (auto done = i->set_up(read_only); !done) return done.error();
    return std::unique_ptr<journal>(new journal(std::move(i)));
}

result<void> journal::append(std::string_view ring_id, std::uint64_t cursor, block_meta const& meta, std::string_view block,
                             std::function<void()> const& between) {
    auto& j = *impl_;
    sqlite::between_accesses const steps(between);
    if (auto there = j.db.still_there(); !there) return there;
    auto t = sqlite::transaction::begin(j.db, sqlite::transaction::kind::write);
    if (!t) return t.error();
    j.move_cursor.bind(1, ring_id).bind(2, static_cast<std::int64_t>(cursor));
    if (auto done = j.move_cursor.run(); !done) return done;
    if (j.db.changed_rows() != 1)
        return error{errc::conflict, "usage ring " + std::string(ring_id) + " is already journalled up to that position"};
    j.insert_block.bind(1, meta.first_ms).bind(2, meta.last_ms).bind(3, static_cast<std::int64_t>(meta.records));
    j.insert_block.bind_blob(4, bytes_of(block));
    if (auto done = j.insert_block.run(); !done) return done;
    return t->commit();
}

result<std::optional<std::uint64_t>> journal::cursor_of(std::string_view ring_id) {
    auto& s = impl_->cursor;
    sqlite::reset_guard const ended(s);
    s.bind(1, ring_id);
    auto row = s.step();
    if (!row) return row.error();
    std::optional<std::uint64_t> found;
    if (*row) found = static_cast<std::uint64_t>(s.int64(0));
    return found;
}

result<void> journal::forget_ring(std::string_view ring_id) {
    auto s = impl_->db.prepare("DELETE FROM rings WHERE id = ?1");
    if (!s) return s.error();
    return s->bind(1, ring_id).run();
}

result<std::string> journal::impl::note(std::string_view name) {
    auto s = db.prepare("SELECT value FROM notes WHERE name = ?1");
    if (!s) return s.error();
    auto row = s->bind(1, name).step();
    if (!row) return row.error();
    return *row ? std::string(s->text(0)) : std::string();
}

result<void> journal::impl::set_note(std::string_view name, std::string_view value) {
    auto s = db.prepare("INSERT INTO notes(name, value) VALUES (?1, ?2) ON CONFLICT(name) DO UPDATE SET value = excluded.value");
    if (!s) return s.error();
    return s->bind(1, name).bind(2, value).run();
}

result<std::string> journal::ring_dir() { return impl_->note("ring_dir"); }
result<void> journal::set_ring_dir(std::string_view folder) { return impl_->set_note("ring_dir", folder); }

result<std::vector<std::string>> journal::other_ring_dirs() {
    auto const lines = impl_->note("other_ring_dirs");
    if (!lines) return lines.error();
    std::vector<std::string> out;
    for (std::size_t at = 0; at < lines->size();) {
        auto const end = std::min(lines->find('\n', at), lines->size());
        out.push_back(lines->substr(at, end - at));
        at = end + 1;
    }
    return out;
}

result<void> journal::set_other_ring_dirs(std::vector<std::string> const& folders) {
    std::string lines;
    for (auto const& f : folders) lines += f + "\n";
    return impl_->set_note("other_ring_dirs", lines);
}

result<std::uint64_t> journal::remove_some(std::int64_t before_ms, std::function<void()> const& between) {
    auto& s = impl_->remove_some;
    sqlite::between_accesses const steps(between);
    sqlite::reset_guard const ended(s);
    constexpr std::int64_t bytes_at_once = 128 << 10;
    s.bind(1, before_ms).bind(2, bytes_at_once);
    std::uint64_t gone = 0;
    for (;;) {
        auto row = s.step();
        if (!row) return row.error();
        if (!*row) return gone;
        gone += static_cast<std::uint64_t>(s.int64(0));
    }
}

result<void> journal::each_block(std::int64_t from_ms, std::int64_t to_ms, std::function<bool(std::string_view)> const& visit,
                                 std::function<void(std::int64_t, std::string_view)> const& damaged) {
    auto& j = *impl_;
    j.span.bind(1, from_ms).bind(2, to_ms);
    auto found = j.span.step();
    if (!found) return found.error();
    auto after = j.span.int64(0) - 1;
    auto const last = j.span.int64(1);
    j.span.reset();
    std::string packed;
    while (after < last) {
        j.next_block.bind(1, after).bind(2, last).bind(3, from_ms).bind(4, to_ms);
        auto row = j.next_block.step();
        if (!row) return row.error();
        if (!*row) break;
        after = j.next_block.int64(0);
        auto opened = j.opener.open(text_of(j.next_block.blob(1)), packed);
        j.next_block.reset();
        if (!opened)
            damaged(after, opened.error().message);
        else if (!visit(packed))
            break;
    }
    return {};
}

std::optional<unsigned> journal::owner() const noexcept {
    struct stat about {};
    if (::stat(impl_->db.file().c_str(), &about) != 0) return std::nullopt;
    return about.st_uid;
}

result<std::uint64_t> journal::record_count() {
    auto n = impl_->db.int64("SELECT coalesce(sum(records), 0) FROM blocks");
    if (!n) return n.error();
    return static_cast<std::uint64_t>(*n);
}

}  // namespace latchkey::usage
