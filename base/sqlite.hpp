#pragma once
// SQLite for the rooms that keep files: a connection, its statements and transactions, and one place that turns what SQLite says
// into an `error` that names the file and the remedy.
//
// Threads: a database and all that came from it belong to one thread at a time. A database owns its connection; statements and
// transactions must be gone before it. Moving a database leaves its statements valid.
//
// Errors: `busy` (another process held the lock for the whole time-out), `corrupt` (damaged, or no SQLite file), `conflict` (a
// constraint of the schema), `newer_schema`, `not_found` (no file and create = false), `io` (no space, no permission, the rest).

#include <chrono>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>

#include "base/error.hpp"

struct sqlite3_stmt;

namespace latchkey::sqlite {

struct connection;

// A prepared statement. Parameters count from 1, columns from 0. An error of a bind is kept and comes out of the next step(),
// so that binds can be written one after the other. The bytes of a bound text or blob must stay until the step is done.
class statement {
  public:
    statement() = default;
    statement(statement&&) noexcept;
    statement& operator=(statement&&) noexcept;
    ~statement();

    statement& bind(int parameter, std::int64_t value) noexcept;
    statement& bind(int parameter, std::string_view text) noexcept;
    statement& bind_blob(int parameter, std::span<unsigned char const> bytes) noexcept;
    statement& bind_null(int parameter) noexcept;

    // True: a row stands ready. False: there are no more. After false or an error the statement is reset for the next use.
    result<bool> step();
    // For statements without rows of interest: steps to the end.
    result<void> run();
    // Ends a statement before its last row; without it an unfinished SELECT keeps its read transaction open. Keeps bindings.
    void reset() noexcept;

    // Of the row that stands ready. Views live until the next step() or reset(). NULL reads as 0 or empty.
    std::int64_t int64(int column) const noexcept;
    std::string_view text(int column) const noexcept;
    std::span<unsigned char const> blob(int column) const noexcept;

  private:
    friend class database;
    statement(connection* on, sqlite3_stmt* raw) noexcept : on_(on), raw_(raw) {}

    connection* on_ = nullptr;
    sqlite3_stmt* raw_ = nullptr;
    int bind_error_ = 0;
};

// Runs `reset()` on every way out of a scope.
class reset_guard {
  public:
    explicit reset_guard(statement& s) noexcept : statement_(s) {}
    ~reset_guard() { statement_.reset(); }
    reset_guard(reset_guard const&) = delete;
    reset_guard& operator=(reset_guard const&) = delete;

  private:
    statement& statement_;
};

// What a file must be to be ours. `application_id` is written into the header of a new file and looked for in an old one, so that
// no other program's database is ever changed. Migration i takes the schema from version i to i + 1 and runs in one transaction
// with the new number; `user_version` is the number of migrations applied.
struct schema {
    std::int32_t application_id = 0;
    std::string_view what;  // "the key store": for messages
    std::span<char const* const> migrations;
};

class database {
  public:
    struct options {
        bool create = true;      // false: a missing file is `not_found`
        bool read_only = false;  // nothing is created, migrated or written
        std::chrono::milliseconds busy_timeout{5000};
        bool in_steps = false;  // see sqlite_steps.hpp
    };

    // A connection with foreign keys on and synchronous=FULL. A new file has mode 0600, and its -wal and -shm too; an existing
    // one that group or others may touch is tightened, or refused where that is not ours to do (`io`). `file` itself must be no
    // link
    // (`io`); its folders may be reached through some. What root makes belongs to the owner of the folder.
    static result<database> open(std::string const& file, options);

    database(database&&) noexcept;
    database& operator=(database&&) noexcept;
    ~database();

    // Checks that the file is empty or ours, sets WAL and applies the migrations that are missing. Safe against another process
    // that does the same at the same time. Read-only: checks, and refuses a schema that is older (`unavailable`) or newer.
    result<void> adopt(schema const&);

    // PRAGMA quick_check: reads the whole file (about 1 s a GB from the cache). `corrupt` with the first finding.
    result<void> quick_check();

    // `io` if the path no longer leads to the file that was opened: whatever is written then is lost with it. Microseconds.
    result<void> still_there() const;

    // One or more statements without parameters; rows are dropped.
    result<void> exec(char const* sql);
    // For statements that are kept and run often.
    result<statement> prepare(std::string_view sql);
    // The first column of the first row of `sql`; 0 where there is none.
    result<std::int64_t> int64(std::string_view sql);

    // Rows changed by the last INSERT, UPDATE or DELETE, without those of triggers.
    std::int64_t changed_rows() const noexcept;
    // The rowid of the last row inserted, not by a trigger.
    std::int64_t last_rowid() const noexcept;
    std::string const& file() const noexcept;

  private:
    friend class transaction;
    friend class no_triggers;
    explicit database(std::unique_ptr<connection>) noexcept;

    result<void> set_up(options const&);
    result<int> version_of(schema const&);
    result<void> use_wal();
    result<void> migrate(schema const&);

    std::unique_ptr<connection> connection_;
};

// While it lives, no trigger fires for what this connection writes; whoever makes one does by itself what they are there for.
// Prepared statements stay valid: SQLite compiles them anew at their next use.
class no_triggers {
  public:
    explicit no_triggers(database&);
    ~no_triggers();
    no_triggers(no_triggers const&) = delete;
    no_triggers& operator=(no_triggers const&) = delete;

  private:
    connection* on_;
};

// Rolls back unless commit() was called and went well.
class transaction {
  public:
    enum class kind {
        read,   // a consistent view from the first statement on
        write,  // takes the write lock at once, so that a later statement cannot fail for it
    };
    static result<transaction> begin(database&, kind);

    transaction(transaction&&) noexcept;
    transaction& operator=(transaction&&) = delete;
    ~transaction();

    // After an error nothing of the transaction is in the file.
    result<void> commit();

  private:
    explicit transaction(connection* on) noexcept : on_(on) {}
    connection* on_ = nullptr;
};

}  // namespace latchkey::sqlite
