#include <fcntl.h>
#include <fmt/format.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <filesystem>
#include <functional>
#include <memory>
#include <system_error>
#include <utility>

#include "base/clock.hpp"
#include "base/log.hpp"
#include "cli/commands.hpp"
#include "cli/gateway_client.hpp"
#include "cli/key_access.hpp"
#include "usage/export.hpp"
#include "usage/recorder.hpp"

namespace latchkey::cli {
namespace {

// Warnings about damaged blocks reach the person on stderr while the command runs.
struct plain_log {
    plain_log() { log::start(log::level::warning, "", false); }
    ~plain_log() { log::stop(); }
};

std::int64_t time_flag(std::string const& text, std::int64_t absent) {
    if (text.empty()) return absent;
    auto const t = parse_time(text);
    if (!t) throw failure(exit_usage, t.error().message);
    return *t;
}

usage::filter filter_of(usage_flags const& f) {
    usage::filter out;
    out.from_ms = time_flag(f.from, out.from_ms);
    out.to_ms = time_flag(f.to, out.to_ms);
    if (out.from_ms >= out.to_ms) throw failure(exit_usage, "--from is not before --to: no record can lie between them");
    out.key_id = f.key;
    out.application_id = f.application;
    return out;
}

// Brings every record into usage.db: the gateway's flush, or recovery of what an ended gateway left in its rings. Returns the
// lock, held for as long as no gateway may start.
std::unique_ptr<data_lock> gather(data_paths const& at) {
    auto lock = lock_or_gateway(at);
    if (!lock) {
        auto const done = gateway_client(at.admin_socket).call(boost::beast::http::verb::post, "/v1/usage/flush");
        if (!done) throw failure(done.error());
        return lock;
    }
    usage::recorder_options o;
    o.journal_file = at.usage_db;  // which remembers where the rings lay; a folder made here could stand in a gateway's way
    auto const recovered = usage::recorder::open(o);
    if (!recovered) throw failure(recovered.error());
    return lock;
}

// No account was ever kept here: no gateway runs, and there is no usage.db, which alone knows where rings could lie. Then nothing
// is made either, no lock: what root made here would stand in the way of a gateway that runs as another user.
bool nothing_kept(data_paths const& at) {
    std::error_code ec;
    return std::filesystem::is_directory(at.dir, ec) &&
           std::filesystem::symlink_status(at.usage_db, ec).type() == std::filesystem::file_type::not_found &&
           !gateway_client(at.admin_socket).listening();
}

// Why the store does not have it; empty where it has. An application is there as long as it has a key.
std::string no_key(key_access& keys, std::string const& id) {
    try {
        if (!id.empty()) keys.find(id);
        return {};
    } catch (failure const& e) {
        if (e.code != exit_not_found) throw;
        return e.what();
    }
}
std::string no_application(key_access& keys, std::string const& id) {
    bool found = id.empty();
    if (!found) keys.each([&](keystore::key_row const& row) { return !(found = row.application_id == id); });
    return found ? "" : "there is no application with that id";
}

// Where no record fits a key or an application, it may be one that never was: the id is mistyped then, and whoever waits for its
// account should learn of it. A deleted one is not in the store, but has records of other times. Where the store cannot be asked,
// nothing is said.
void must_have_been(usage::filter const& wanted, data_paths const& at, std::string const& key_prefix, usage::journal& journal) {
    std::string key;
    std::string application;
    try {
        auto const keys = open_keys(at, key_prefix, missing::fail);
        key = no_key(*keys, wanted.key_id);
        application = no_application(*keys, wanted.application_id);
    } catch (failure const&) {
        return;
    }  // (its lock is not needed while the account is read)
    auto const never = [&](std::string usage::filter::*which) {
        usage::filter of_all_times;
        of_all_times.*which = wanted.*which;
        auto const recorded = usage::has_record(journal, of_all_times);
        return recorded && !*recorded;
    };
    for (auto const& [why, which] :
         {std::pair{key, &usage::filter::key_id}, std::pair{application, &usage::filter::application_id}})
        if (!why.empty() && never(which)) throw failure(exit_not_found, fmt::format("{}; `latchkey keys list` shows them", why));
}

// FILE appears whole or not at all: written beside it under a name of its own and renamed at the end.
class output_file {
  public:
    explicit output_file(std::string path) : path_(std::move(path)), temporary_(fmt::format("{}.tmp-{}", path_, ::getpid())) {
        fd_ = ::open(temporary_.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW, 0600);
        if (fd_ < 0) fail();
    }
    ~output_file() {
        if (fd_ >= 0) ::close(fd_);
        if (!done_) ::unlink(temporary_.c_str());
    }
    output_file(output_file const&) = delete;
    output_file& operator=(output_file const&) = delete;

    void write(std::string_view piece) {
        while (!piece.empty()) {
            auto const n = ::write(fd_, piece.data(), piece.size());
            if (n < 0 && errno == EINTR) continue;
            if (n < 0) fail();
            piece.remove_prefix(static_cast<std::size_t>(n));
        }
    }
    void finish() {
        if (::fsync(fd_) != 0 || ::rename(temporary_.c_str(), path_.c_str()) != 0) fail();
        done_ = true;
    }

  private:
    [[noreturn]] void fail() {
        auto const why = std::generic_category().message(errno);
        if (fd_ >= 0 && !done_) ::unlink(temporary_.c_str());
        throw failure(exit_error, fmt::format("cannot write {}: {}; name another file with --output", path_, why));
    }
    std::string path_, temporary_;
    int fd_ = -1;
    bool done_ = false;
};

}  // namespace

int usage_export(usage_flags const& f, streams& s) {
    auto const wanted = filter_of(f);
    auto const settings = settings_of(f.common, s);
    data_paths const at(settings.data_dir);
    plain_log const warnings;
    std::unique_ptr<data_lock> lock;
    std::unique_ptr<usage::journal> journal;
    if (!nothing_kept(at)) {
        lock = gather(at);
        auto opened = usage::journal::open(at.usage_db, usage::journal::mode::read_only);
        if (!opened) throw failure(opened.error());
        journal = std::move(*opened);
    }
    auto const header = fmt::format("{}\r\n", usage::csv_columns);
    auto const csv_into = [&](std::function<bool(std::string_view)> const& sink) -> result<std::uint64_t> {
        if (journal) return usage::export_csv(*journal, wanted, sink);
        sink(header);
        return 0;
    };
    auto const none_fits = [&] {
        if (!journal || (wanted.key_id.empty() && wanted.application_id.empty())) return;
        lock.reset();  // the store wants it
        must_have_been(wanted, at, settings.keys.prefix, *journal);
    };
    if (f.output.empty() || f.output == "-") {
        auto const write = [&](std::string_view piece) {
            return s.out.write(piece.data(), static_cast<std::streamsize>(piece.size())).good();
        };
        bool header_alone = false;  // it waits until it is known that what is asked for is none that never was
        auto const n = csv_into([&](std::string_view piece) {
            header_alone = piece == header;
            return header_alone || write(piece);
        });
        if (n && *n == 0) none_fits();
        if (header_alone) write(header);
        s.out.flush();
        if (!n) throw failure(n.error());
        if (*n == 0) s.err << "no record fits\n";
        return exit_ok;
    }
    output_file file(f.output);
    auto const n = csv_into([&](std::string_view piece) {
        file.write(piece);
        return true;
    });
    if (!n && n.error().code != errc::corrupt) throw failure(n.error());
    if (n && *n == 0) none_fits();
    file.finish();
    if (!n) throw failure(n.error());
    s.err << fmt::format("{} records written to {}\n", *n, f.output);
    return exit_ok;
}

}  // namespace latchkey::cli
