#include "base/sqlite.hpp"

#include <fcntl.h>
#include <fmt/format.h>
#include <sqlite3.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cassert>
#include <cerrno>
#include <filesystem>
#include <system_error>
#include <thread>
#include <utility>

#include "base/clock.hpp"
#include "base/owner.hpp"
#include "base/sqlite_steps.hpp"

namespace latchkey::sqlite {

struct connection {
    sqlite3* raw = nullptr;
    std::string file;       // as it was given: for messages
    std::string real_file;  // without links in its folders: for SQLite
    bool read_only = false;
    std::chrono::milliseconds busy_timeout{5000};
    dev_t device = 0;  // the file that was opened, whatever the path leads to later
    ino_t inode = 0;

    connection() = default;
    connection(connection const&) = delete;
    connection& operator=(connection const&) = delete;
    ~connection() {
        // Fails only while statements are alive: our own bug, and v2 then closes with the last of them.
        if (raw) static_cast<void>(sqlite3_close_v2(raw));
    }
};

namespace {

std::string system_text(int number) { return std::generic_category().message(number); }

bool means_no_space(int number) { return number == ENOSPC || number == EDQUOT || number == EFBIG; }

error no_space(std::string const& file) {
    return {errc::io,
            fmt::format("no space left to write {}: free some on its file system; nothing of this change is kept", file)};
}

error damaged(std::string const& file, std::string_view finding) {
    return {errc::corrupt,
            fmt::format("{} is damaged ({}): stop what uses it, put it and its -wal and -shm files aside and restore a backup",
                        file, finding)};
}

// The one translation of SQLite's result codes. `code` is an extended one.
error failure(connection const& on, int code) {
    std::string_view const said = on.raw ? sqlite3_errmsg(on.raw) : sqlite3_errstr(code);
    int const system = on.raw ? sqlite3_system_errno(on.raw) : 0;
    switch (code & 0xff) {
        case SQLITE_BUSY:
        case SQLITE_LOCKED:
            return {errc::busy, fmt::format("another process holds {} (waited {} ms): try again when it has finished", on.file,
                                            on.busy_timeout.count())};
        case SQLITE_NOTADB:
            return {errc::corrupt,
                    fmt::format("{} is not a SQLite database (or its first page is damaged): check the path, or put "
                                "it aside and restore a backup",
                                on.file)};
        case SQLITE_CORRUPT: return damaged(on.file, said);
        case SQLITE_FULL: return no_space(on.file);
        case SQLITE_READONLY:
            if (code == SQLITE_READONLY_DBMOVED) break;
            return {errc::io,
                    fmt::format("{} cannot be written ({}): check owner and mode of the file and of its folder", on.file, said)};
        case SQLITE_CANTOPEN:
        case SQLITE_PERM:
            return {errc::io, fmt::format("cannot open {} ({}): check owner and mode of the file and of its folder", on.file,
                                          system != 0 ? system_text(system) : std::string(said))};
        case SQLITE_CONSTRAINT: return {errc::conflict, fmt::format("{} refuses the change: {}", on.file, said)};
        case SQLITE_IOERR: {
            if (means_no_space(system)) return no_space(on.file);
            auto const why = system != 0 ? system_text(system) : std::string(said);
            if (code != SQLITE_IOERR_WRITE) return {errc::io, fmt::format("cannot read or write {}: {}", on.file, why)};
            return {errc::io,
                    fmt::format("cannot write {} ({}): nothing of this change is kept; check the space left on its file "
                                "system and its quotas",
                                on.file, why)};
        }
        default: break;
    }
    return {errc::io, fmt::format("{}: {}", on.file, said)};
}

error cannot_open(std::string const& file, int number) {
    if (number == ENOENT) return {errc::io, fmt::format("cannot create {}: its folder does not exist", file)};
    if (means_no_space(number)) return no_space(file);
    return {errc::io,
            fmt::format("cannot open {}: {}; check owner and mode of the file and of its folder", file, system_text(number))};
}

// A descriptor that only names a file (O_PATH): it opens nothing, so it needs no permission, waits for no FIFO, and its end does
// not release the POSIX locks of SQLite on that file, as that of any other descriptor of this process would.
class named_file {
  public:
    explicit named_file(std::string const& path) noexcept : fd_(::open(path.c_str(), O_PATH | O_NOFOLLOW | O_CLOEXEC)) {}
    ~named_file() {
        if (fd_ >= 0) ::close(fd_);
    }
    named_file(named_file const&) = delete;
    named_file& operator=(named_file const&) = delete;

    explicit operator bool() const noexcept { return fd_ >= 0; }
    int status(struct stat& into) const noexcept { return ::fstat(fd_, &into) == 0 ? 0 : errno; }
    // Of the file that was named, whatever the path leads to by now; fchmod() does not take such a descriptor.
    int set_mode(mode_t mode) const { return ::chmod(fmt::format("/proc/self/fd/{}", fd_).c_str(), mode) == 0 ? 0 : errno; }

  private:
    int fd_;
};

// A new file with mode 0600, of its folder's owner. EEXIST: another process was faster, and its file is as good.
int make_file(std::string const& path, std::string const& folder) {
    int const made = ::open(path.c_str(), O_RDWR | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0600);
    if (made < 0) return errno == EEXIST ? 0 : errno;
    int const given = give_to_owner_of(folder, made);
    if (given != 0) ::unlink(path.c_str());
    ::close(made);  // a real descriptor: but nobody of this process has opened this new file with SQLite yet
    return given;
}

// The file's path without links in its folders: SQLite's NOFOLLOW refuses those too, while a data directory may well be reached
// through one (systemd's /var/lib/latchkey is one with DynamicUser).
result<std::string> resolved(std::string const& file, std::string& folder, bool create) {
    std::filesystem::path const given(file);
    std::error_code ec;
    folder = std::filesystem::canonical(given.has_parent_path() ? given.parent_path() : ".", ec).string();
    if (!ec) return (std::filesystem::path(folder) / given.filename()).string();
    if (ec.value() == ENOENT && !create) return error{errc::not_found, fmt::format("there is no file {}", file)};
    return cannot_open(file, ec.value());
}

// SQLite gives the -wal and -shm files the mode of the database file, and as root its owner, so that one is made, or tightened,
// before SQLite sees it. No link is followed: who may write to the folder would choose with it whose file is changed.
result<void> make_private(connection& on, database::options const& how) {
    bool const create = how.create && !how.read_only;
    std::string folder;
    auto real = resolved(on.file, folder, create);
    if (!real) return real.error();
    on.real_file = std::move(*real);
    struct stat now {};
    if (create && ::lstat(on.real_file.c_str(), &now) != 0 && errno == ENOENT)
        if (int const failed = make_file(on.real_file, folder); failed != 0) return cannot_open(on.file, failed);
    named_file const named(on.real_file);
    if (!named) {
        if (errno == ENOENT && !create) return error{errc::not_found, fmt::format("there is no file {}", on.file)};
        return cannot_open(on.file, errno);
    }
    if (int const failed = named.status(now); failed != 0) return cannot_open(on.file, failed);
    if (S_ISLNK(now.st_mode))
        return error{errc::io, fmt::format("{} is a link, and links to such a file are not followed: put the file itself there, "
                                           "or name the folder that holds it",
                                           on.file)};
    if (S_ISDIR(now.st_mode)) return error{errc::io, fmt::format("{} is a folder: a file is needed", on.file)};
    if (!S_ISREG(now.st_mode)) return error{errc::io, fmt::format("{} is not a regular file: move it away", on.file)};
    if ((now.st_mode & 0077) != 0 && !how.read_only)
        if (int const failed = named.set_mode(now.st_mode & 0700); failed != 0)
            return error{errc::io,
                         fmt::format("others may read {} and its mode cannot be changed ({}): run chmod 600 as its owner",
                                     on.file, system_text(failed))};
    on.device = now.st_dev;
    on.inode = now.st_ino;
    return {};
}

}  // namespace

statement::statement(statement&& other) noexcept
    : on_(std::exchange(other.on_, nullptr)),
      raw_(std::exchange(other.raw_, nullptr)),
      bind_error_(std::exchange(other.bind_error_, 0)) {}

statement& statement::operator=(statement&& other) noexcept {
    std::swap(on_, other.on_);
    std::swap(raw_, other.raw_);
    std::swap(bind_error_, other.bind_error_);
    return *this;
}

statement::~statement() {
    // The result repeats the error of the last step, which its caller has had.
    static_cast<void>(sqlite3_finalize(raw_));
}

statement& statement::bind(int parameter, std::int64_t value) noexcept {
    int const code = sqlite3_bind_int64(raw_, parameter, value);
    if (bind_error_ == SQLITE_OK) bind_error_ = code;
    return *this;
}

statement& statement::bind(int parameter, std::string_view text) noexcept {
    // A null pointer would bind NULL where an empty text is meant.
    char const* const from = text.data() ? text.data() : "";
    int const code = sqlite3_bind_text64(raw_, parameter, from, text.size(), SQLITE_STATIC, SQLITE_UTF8);
    if (bind_error_ == SQLITE_OK) bind_error_ = code;
    return *this;
}

statement& statement::bind_blob(int parameter, std::span<unsigned char const> bytes) noexcept {
    int const code = bytes.empty() ? sqlite3_bind_zeroblob(raw_, parameter, 0)
                                   : sqlite3_bind_blob64(raw_, parameter, bytes.data(), bytes.size(), SQLITE_STATIC);
    if (bind_error_ == SQLITE_OK) bind_error_ = code;
    return *this;
}

statement& statement::bind_null(int parameter) noexcept {
    int const code = sqlite3_bind_null(raw_, parameter);
    if (bind_error_ == SQLITE_OK) bind_error_ = code;
    return *this;
}

result<bool> statement::step() {
    if (int const code = std::exchange(bind_error_, SQLITE_OK); code != SQLITE_OK) {
        reset();
        return error{errc::io, fmt::format("{}: a value does not fit its statement: {}", on_->file, sqlite3_errstr(code))};
    }
    int const code = sqlite3_step(raw_);
    if (code == SQLITE_ROW) return true;
    if (code == SQLITE_DONE) {
        reset();
        return false;
    }
    error const what = failure(*on_, code);  // before reset(), which overwrites the message
    reset();
    return what;
}

result<void> statement::run() {
    for (;;) {
        auto const more = step();
        if (!more) return more.error();
        if (!*more) return {};
    }
}

void statement::reset() noexcept {
    // The result repeats the error of the last step, which its caller has had.
    if (raw_) static_cast<void>(sqlite3_reset(raw_));
}

std::int64_t statement::int64(int column) const noexcept { return sqlite3_column_int64(raw_, column); }

std::string_view statement::text(int column) const noexcept {
    auto const* const from = sqlite3_column_text(raw_, column);  // before the size, which is of the form asked for last
    if (!from) return {};
    return {reinterpret_cast<char const*>(from), static_cast<std::size_t>(sqlite3_column_bytes(raw_, column))};
}

std::span<unsigned char const> statement::blob(int column) const noexcept {
    auto const* const from = static_cast<unsigned char const*>(sqlite3_column_blob(raw_, column));
    if (!from) return {};
    return {from, static_cast<std::size_t>(sqlite3_column_bytes(raw_, column))};
}

database::database(std::unique_ptr<connection> from) noexcept : connection_(std::move(from)) {}
database::database(database&&) noexcept = default;
database& database::operator=(database&&) noexcept = default;
database::~database() = default;

std::string const& database::file() const noexcept { return connection_->file; }
std::int64_t database::changed_rows() const noexcept { return sqlite3_changes64(connection_->raw); }
std::int64_t database::last_rowid() const noexcept { return sqlite3_last_insert_rowid(connection_->raw); }

result<database> database::open(std::string const& file, options how) {
    database made(std::make_unique<connection>());
    auto& on = *made.connection_;
    on.file = file;
    on.read_only = how.read_only;
    on.busy_timeout = how.busy_timeout;
    // SQLite reads "", ":memory:" and "file:..." as something else than a path.
    if (file.empty() || file.front() == ':' || file.starts_with("file:") || file.find('\0') != std::string::npos)
        return error{errc::invalid_argument, fmt::format("'{}' is not the path of a file", file)};
    if (auto const r = make_private(on, how); !r) return r.error();
    int const access = how.read_only ? SQLITE_OPEN_READONLY : SQLITE_OPEN_READWRITE;
    int const code = sqlite3_open_v2(on.real_file.c_str(), &on.raw,
                                     access | SQLITE_OPEN_NOFOLLOW | SQLITE_OPEN_NOMUTEX | SQLITE_OPEN_EXRESCODE,
                                     how.in_steps ? stepping_vfs() : nullptr);
    if (code != SQLITE_OK) return failure(on, code);
    if (!how.read_only && sqlite3_db_readonly(on.raw, "main") == 1)  // SQLite falls back to reading by itself
        return error{errc::io, fmt::format("{} cannot be written: check owner and mode of the file", file)};
    if (auto const r = made.set_up(how); !r) return r.error();
    return made;
}

result<void> database::set_up(options const& how) {
    int const code = sqlite3_busy_timeout(connection_->raw, static_cast<int>(how.busy_timeout.count()));
    if (code != SQLITE_OK) return failure(*connection_, code);
    return exec(
        "PRAGMA foreign_keys = ON; PRAGMA synchronous = FULL; PRAGMA trusted_schema = OFF; PRAGMA temp_store = MEMORY; PRAGMA "
        "cell_size_check = ON;");
}

result<void> database::exec(char const* sql) {
    int const code = sqlite3_exec(connection_->raw, sql, nullptr, nullptr, nullptr);
    if (code != SQLITE_OK) return failure(*connection_, code);
    return {};
}

result<statement> database::prepare(std::string_view sql) {
    sqlite3_stmt* raw = nullptr;
    int const code =
        sqlite3_prepare_v3(connection_->raw, sql.data(), static_cast<int>(sql.size()), SQLITE_PREPARE_PERSISTENT, &raw, nullptr);
    if (code != SQLITE_OK) return failure(*connection_, code);
    return statement(connection_.get(), raw);
}

result<std::int64_t> database::int64(std::string_view sql) {
    auto asked = prepare(sql);
    if (!asked) return asked.error();
    auto const row = asked->step();
    if (!row) return row.error();
    return *row ? asked->int64(0) : 0;
}

result<void> database::quick_check() {
    auto asked = prepare("PRAGMA quick_check(1)");
    if (!asked) return asked.error();
    auto const row = asked->step();
    if (!row) return row.error();
    if (!*row || asked->text(0) != "ok") return damaged(file(), *row ? asked->text(0) : "quick_check says nothing");
    return {};
}

result<void> database::still_there() const {
    struct stat now {};
    if (::stat(file().c_str(), &now) != 0) {
        if (errno == ENOENT)
            return error{errc::io,
                         fmt::format("{} was deleted or moved while in use: put it back with its -wal and -shm files, or "
                                     "restore a backup and restart",
                                     file())};
        return cannot_open(file(), errno);
    }
    if (now.st_dev == connection_->device && now.st_ino == connection_->inode) return {};
    return error{
        errc::io,
        fmt::format("{} was replaced by another file while in use: put the old one back, or restart to use the new one", file())};
}

result<int> database::version_of(schema const& wanted) {
    auto const id = int64("PRAGMA application_id");
    if (!id) return id.error();
    auto const version = int64("PRAGMA user_version");
    if (!version) return version.error();
    if (*id != wanted.application_id) {
        auto const tables = int64("SELECT count(*) FROM sqlite_schema");
        if (!tables) return tables.error();
        if (*id != 0 || *version != 0 || *tables != 0)
            return error{errc::corrupt,
                         fmt::format("{} is a SQLite database, but of another program: it is not {}", file(), wanted.what)};
        return 0;
    }
    auto const newest = static_cast<std::int64_t>(wanted.migrations.size());
    if (*version < 0) return damaged(file(), fmt::format("schema version {}", *version));
    if (*version > newest)
        return error{errc::newer_schema,
                     fmt::format("{} has schema version {}, and this program knows none above {}: use the Latchkey "
                                 "that wrote it, or a later one",
                                 file(), *version, newest)};
    return static_cast<int>(*version);
}

result<void> database::adopt(schema const& wanted) {
    auto const version = version_of(wanted);
    if (!version) return version.error();
    auto const newest = static_cast<int>(wanted.migrations.size());
    if (connection_->read_only) {
        if (*version == newest) return {};
        return error{errc::unavailable, fmt::format("{} has schema version {}, and {} is needed: start Latchkey on it once",
                                                    file(), *version, newest)};
    }
    if (auto const r = use_wal(); !r) return r.error();
    if (*version < newest) return migrate(wanted);
    return {};
}

result<void> database::use_wal() {
    // Two processes that switch a new file at once can see each other's lock without SQLite waiting for it.
    auto const deadline = steady_ns() + connection_->busy_timeout.count() * 1'000'000;
    for (;;) {
        auto asked = prepare("PRAGMA journal_mode = WAL");
        if (!asked) return asked.error();
        auto const row = asked->step();
        if (row && *row && asked->text(0) == "wal") return {};
        if (row)
            return error{errc::io, fmt::format("the file system of {} cannot hold a write-ahead log: use a local one", file())};
        if (row.error().code != errc::busy || steady_ns() >= deadline) return row.error();
        std::this_thread::sleep_for(std::chrono::milliseconds(5));
    }
}

result<void> database::migrate(schema const& wanted) {
    auto lock = transaction::begin(*this, transaction::kind::write);
    if (!lock) return lock.error();
    auto const version = version_of(wanted);  // again: another process may have migrated since
    if (!version) return version.error();
    for (auto at = static_cast<std::size_t>(*version); at < wanted.migrations.size(); ++at)
        if (auto const r = exec(wanted.migrations[at]); !r) return r.error();
    auto const mark =
        fmt::format("PRAGMA application_id = {}; PRAGMA user_version = {}", wanted.application_id, wanted.migrations.size());
    if (auto const r = exec(mark.c_str()); !r) return r.error();
    return lock->commit();
}

namespace {

// Fails only for an option that SQLite does not know, and this one is older than our oldest SQLite.
void fire_triggers(sqlite3* on, int yes) {
    [[maybe_unused]] int const code = sqlite3_db_config(on, SQLITE_DBCONFIG_ENABLE_TRIGGER, yes, nullptr);
    assert(code == SQLITE_OK);
}

}  // namespace

no_triggers::no_triggers(database& on) : on_(on.connection_.get()) { fire_triggers(on_->raw, 0); }
no_triggers::~no_triggers() { fire_triggers(on_->raw, 1); }

result<transaction> transaction::begin(database& on, kind wanted) {
    auto const begun = on.exec(wanted == kind::write ? "BEGIN IMMEDIATE" : "BEGIN DEFERRED");
    if (!begun) return begun.error();
    return transaction(on.connection_.get());
}

transaction::transaction(transaction&& other) noexcept : on_(std::exchange(other.on_, nullptr)) {}

transaction::~transaction() {
    // SQLite may have rolled back by itself (no space, input error); then there is nothing left to do. A ROLLBACK fails in no
    // other case that leaves the transaction open.
    if (on_ && sqlite3_get_autocommit(on_->raw) == 0)
        static_cast<void>(sqlite3_exec(on_->raw, "ROLLBACK", nullptr, nullptr, nullptr));
}

result<void> transaction::commit() {
    int const code = sqlite3_exec(on_->raw, "COMMIT", nullptr, nullptr, nullptr);
    if (code != SQLITE_OK) return failure(*on_, code);  // the destructor rolls back
    on_ = nullptr;
    return {};
}

}  // namespace latchkey::sqlite
