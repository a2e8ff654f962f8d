#include "base/sqlite_steps.hpp"

#include <sqlite3.h>

#include <cerrno>
#include <utility>

// Files are opened and handled by SQLite's own file layer; only the table of methods of an open file (sqlite3_io_methods, which a
// file layer gives when it opens one) is replaced by a copy in which two stand for ours.

namespace latchkey::sqlite {

namespace {

thread_local std::function<void()> const* between = nullptr;

// SQLite asks for errno only after a method has returned.
void stop_by() noexcept {
    if (between == nullptr || !*between) return;
    int const kept = errno;
    (*between)();
    errno = kept;
}

// One for each kind of file, because SQLite's own methods differ between them.
template <int kind>
class stepped {
  public:
    static void take(sqlite3_file& file) noexcept {
        static sqlite3_io_methods const methods = [&] {
            own_ = file.pMethods;
            auto m = *own_;
            m.xRead = read;
            m.xWrite = write;
            return m;
        }();
        if (file.pMethods == own_) file.pMethods = &methods;  // else of an unusual file system: left as it is
    }

  private:
    static int read(sqlite3_file* file, void* to, int bytes, sqlite3_int64 at) noexcept {
        int const code = own_->xRead(file, to, bytes, at);
        stop_by();
        return code;
    }
    static int write(sqlite3_file* file, void const* from, int bytes, sqlite3_int64 at) noexcept {
        int const code = own_->xWrite(file, from, bytes, at);
        stop_by();
        return code;
    }
    inline static sqlite3_io_methods const* own_ = nullptr;
};

int open(sqlite3_vfs*, char const* name, sqlite3_file* file, int flags, int* flags_out) noexcept {
    auto* const own = sqlite3_vfs_find(nullptr);
    int const code = own->xOpen(own, name, file, flags, flags_out);
    if (code != SQLITE_OK || file->pMethods == nullptr) return code;
    if ((flags & SQLITE_OPEN_MAIN_DB) != 0) stepped<SQLITE_OPEN_MAIN_DB>::take(*file);
    if ((flags & SQLITE_OPEN_WAL) != 0) stepped<SQLITE_OPEN_WAL>::take(*file);
    return code;
}

}  // namespace

char const* stepping_vfs() noexcept {
    static constexpr char const* name = "latchkey-steps";
    static bool const registered = [] {
        auto const* const own = sqlite3_vfs_find(nullptr);
        if (own == nullptr) return false;
        static sqlite3_vfs ours = *own;
        ours.zName = name;
        ours.xOpen = open;
        return sqlite3_vfs_register(&ours, 0) == SQLITE_OK;
    }();
    return registered ? name : nullptr;
}

between_accesses::between_accesses(std::function<void()> const& f) noexcept : before_(std::exchange(between, &f)) {}
between_accesses::~between_accesses() { between = before_; }

}  // namespace latchkey::sqlite
