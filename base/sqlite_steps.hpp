#pragma once
// SQLite's file layer (VFS) with a place to stop: behind every read and write of a database file or its log, `between_accesses`
// (sqlite.hpp) is called. For sqlite.cpp; any thread.

namespace latchkey::sqlite {

// Its name for sqlite3_open_v2(); null, which stands for SQLite's own, where it cannot be registered.
char const* stepping_vfs() noexcept;

}  // namespace latchkey::sqlite
