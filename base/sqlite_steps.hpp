#pragma once
// A place to stop behind every read and write that SQLite makes of a database file or its log, so that a long transaction leaves
// the processor to others. Any thread.

#include <functional>

namespace latchkey::sqlite {

// While it lives, `f` is called after every such read and write that this thread makes by a connection with `in_steps`
// (sqlite.hpp). Between two lie microseconds of work; more where a statement makes its pages before it writes the first (0.2 ms
// for a blob of 140 KB), and in a checkpoint's sync. `f` may sleep; who waits for the file's lock waits then, too. It must not
// use the database, nor throw, and must live as long.
class between_accesses {
  public:
    explicit between_accesses(std::function<void()> const& f) noexcept;
    explicit between_accesses(std::function<void()>&&) = delete;
    ~between_accesses();
    between_accesses(between_accesses const&) = delete;
    between_accesses& operator=(between_accesses const&) = delete;

  private:
    std::function<void()> const* before_;
};

// For sqlite.cpp: the name of the file layer (VFS) that does it, for sqlite3_open_v2(). Null, which stands for SQLite's own,
// where it cannot be registered.
char const* stepping_vfs() noexcept;

}  // namespace latchkey::sqlite
