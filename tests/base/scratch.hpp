#pragma once
// What tests of files share: a folder of their own, another process on the same SQLite file, waiting with a bound, and results
// that print what went wrong.

#include <fcntl.h>
#include <spawn.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <chrono>
#include <filesystem>
#include <fstream>
#include <functional>
#include <stdexcept>
#include <string>
#include <thread>

#include "base/error.hpp"
#include "tests/catch.hpp"

template <class T>
struct Catch::StringMaker<boost::system::result<T, latchkey::error>> {
    static std::string convert(boost::system::result<T, latchkey::error> const& r) {
        return r ? std::string("a value") : "error: " + r.error().message;
    }
};

namespace latchkey::testing {

class scratch_dir {
  public:
    scratch_dir() {
        std::string name = (std::filesystem::temp_directory_path() / "latchkey-test-XXXXXX").string();
        if (!::mkdtemp(name.data())) throw std::runtime_error("mkdtemp");
        path_ = name;
    }
    ~scratch_dir() {
        std::error_code ignored;
        std::filesystem::remove_all(path_, ignored);
    }
    scratch_dir(scratch_dir const&) = delete;
    scratch_dir& operator=(scratch_dir const&) = delete;
    std::string file(std::string const& name) const { return (path_ / name).string(); }

  private:
    std::filesystem::path path_;
};

inline std::string read_file(std::string const& path) {
    std::ifstream in(path, std::ios::binary);
    return {std::istreambuf_iterator<char>(in), {}};
}

inline void write_file(std::string const& path, std::string const& content) {
    std::ofstream out(path, std::ios::binary | std::ios::trunc);
    out << content;
    out.close();
    REQUIRE(out.good());
}

inline unsigned mode_of(std::string const& path) {
    struct stat s {};
    return ::stat(path.c_str(), &s) == 0 ? s.st_mode & 0777U : 0U;
}

// True as soon as `holds` is; false when 20 s have gone without it.
inline bool eventually(std::function<bool()> const& holds) {
    auto const until = std::chrono::steady_clock::now() + std::chrono::seconds(20);
    while (!holds()) {
        if (std::chrono::steady_clock::now() > until) return false;
        std::this_thread::sleep_for(std::chrono::milliseconds(1));
    }
    return true;
}

// The sqlite3 shell as another process on `file`. It lives, and keeps what locks it took, until the object goes.
class sqlite_shell {
  public:
    explicit sqlite_shell(std::string const& file) {
        std::array<int, 2> in{};
        std::array<int, 2> out{};
        REQUIRE(::pipe2(in.data(), O_CLOEXEC) == 0);
        REQUIRE(::pipe2(out.data(), O_CLOEXEC) == 0);
        posix_spawn_file_actions_t actions;
        posix_spawn_file_actions_init(&actions);
        posix_spawn_file_actions_adddup2(&actions, in[0], 0);
        posix_spawn_file_actions_adddup2(&actions, out[1], 1);
        posix_spawn_file_actions_adddup2(&actions, out[1], 2);
        std::string program = "sqlite3";
        std::string option = "-batch";
        std::string path = file;
        std::array<char*, 4> arguments{program.data(), option.data(), path.data(), nullptr};
        int const spawned = ::posix_spawnp(&process_, "sqlite3", &actions, nullptr, arguments.data(), environ);
        posix_spawn_file_actions_destroy(&actions);
        ::close(in[0]);
        ::close(out[1]);
        to_ = in[1];
        from_ = out[0];
        REQUIRE(spawned == 0);
    }
    ~sqlite_shell() {
        ::close(to_);
        ::close(from_);
        ::waitpid(process_, nullptr, 0);
    }
    sqlite_shell(sqlite_shell const&) = delete;
    sqlite_shell& operator=(sqlite_shell const&) = delete;

    // Runs SQL and returns what the shell printed, errors too, without the last line feed.
    std::string run(std::string const& sql) {
        std::string const text = sql + ";\n.print end-of-answer\n";
        REQUIRE(::write(to_, text.data(), text.size()) == static_cast<ssize_t>(text.size()));
        std::string said;
        std::string const end = "end-of-answer\n";
        while (!said.ends_with(end)) {
            std::array<char, 4096> piece{};
            auto const bytes = ::read(from_, piece.data(), piece.size());
            REQUIRE(bytes > 0);
            said.append(piece.data(), static_cast<std::size_t>(bytes));
        }
        said.resize(said.size() - end.size());
        if (said.ends_with('\n')) said.pop_back();
        return said;
    }

  private:
    pid_t process_ = -1;
    int to_ = -1;
    int from_ = -1;
};

inline std::string shell(std::string const& file, std::string const& sql) { return sqlite_shell(file).run(sql); }

// Runs `work` in a child process and returns its exit code, or 128 + the signal that ended it. The parent must have no
// database open: SQLite's locks do not survive a fork.
inline int in_child(std::function<int()> const& work) {
    pid_t const child = ::fork();
    REQUIRE(child >= 0);
    if (child == 0) ::_exit(work());
    int status = 0;
    REQUIRE(::waitpid(child, &status, 0) == child);
    return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

}  // namespace latchkey::testing
