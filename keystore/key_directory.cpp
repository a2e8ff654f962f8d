// One thread does all work on the store, in the order in which it was asked for. After each change, and when the poll sees that
// somebody else has committed, the same three steps follow: the change log names the shards that were touched, these are read
// anew, and they are published. A shard stays `pending_` from the first step until the last has succeeded, so that neither a
// store that cannot be read nor a worker that does not answer can make a change get lost; each poll tick tries again.

#include "keystore/key_directory.hpp"

#include <fmt/format.h>

#include <array>
#include <bitset>
#include <chrono>
#include <condition_variable>
#include <deque>
#include <exception>
#include <functional>
#include <future>
#include <mutex>
#include <optional>
#include <thread>

#include "base/log.hpp"

namespace latchkey::keystore {
namespace {

using clock = std::chrono::steady_clock;

constexpr std::chrono::milliseconds poll_interval{100};
constexpr std::chrono::seconds write_check_interval{1};
constexpr std::size_t tasks_max = 1024;  // each has a blocked caller behind it

// Errors of the file, as opposed to what the caller asked.
bool is_fault_of_store(errc code) {
    switch (code) {
        case errc::busy:
        case errc::corrupt:
        case errc::newer_schema:
        case errc::unavailable:
        case errc::io: return true;
        case errc::invalid_argument:
        case errc::not_found:
        case errc::conflict:
        case errc::not_allowed: return false;
    }
    return true;
}

error not_running() { return {errc::unavailable, "the key directory is not running"}; }

std::string id_in(created_key const& made) { return made.row.id; }
std::string id_in(key_row const& row) { return row.id; }
std::string id_in(import_report const&) { return {}; }

// A trouble that lasts: said in the log when it begins and when it ends, and in state() in between.
class trouble {
  public:
    explicit trouble(std::string_view name) : name_(name) {}

    void begin(std::string const& why) {
        if (text_.empty()) log::error(name_, "{}; requests are served with the keys in memory", why);
        text_ = why;
    }
    void end() {
        if (!text_.empty()) log::info(name_, "in order again");
        text_.clear();
    }
    bool lasts() const noexcept { return !text_.empty(); }
    std::string const& text() const noexcept { return text_; }

  private:
    std::string_view name_;
    std::string text_;
};

}  // namespace

struct key_directory::impl {
    impl(std::unique_ptr<store> s, std::string prefix) : store_(std::move(s)), prefix_(std::move(prefix)) {}

    // -- any thread
    template <class T>
    result<T> run(std::function<result<T>()> work);
    template <class T>
    result<T> change(std::function<result<T>()> work);
    bool enqueue(std::function<void()> task);

    // -- the store thread
    void loop();
    void poll();
    void guarded_poll();
    result<void> refresh();
    result<std::vector<shard_update>> collect();
    result<void> publish(std::vector<shard_update> const& updates);
    template <class T>
    result<T> read(std::function<result<T>()> const& work);
    template <class T>
    result<T> write(std::function<result<T>()> const& work);
    void check_writable();
    void tell();

    // The store thread's own (load() uses them before it starts).
    std::unique_ptr<store> store_;
    std::string const prefix_;
    publish_fn publish_;
    std::uint64_t newest_ = 0;                     // change number up to which shards are in `pending_` or in force
    std::optional<std::int64_t> seen_version_;     // data_version up to which the change log was read
    std::bitset<shard_count> pending_;             // touched, and not yet in force everywhere
    std::array<std::size_t, shard_count> keys_{};  // by shard, as built last
    trouble reading_{"key_store_unreadable"};
    trouble writing_{"key_store_unwritable"};
    trouble publishing_{"key_change_unconfirmed"};
    clock::time_point next_write_check_{};

    std::mutex guard_;  // for all below
    std::condition_variable wake_;
    std::deque<std::function<void()>> tasks_;
    bool running_ = false;
    health health_;
    std::thread thread_;  // touched by start() and stop() only
};

bool key_directory::impl::enqueue(std::function<void()> task) {
    {
        std::lock_guard const lock(guard_);
        if (!running_ || tasks_.size() >= tasks_max) return false;
        tasks_.push_back(std::move(task));
    }
    wake_.notify_one();
    return true;
}

template <class T>
result<T> key_directory::impl::run(std::function<result<T>()> work) {
    auto answer = std::make_shared<std::promise<result<T>>>();
    auto future = answer->get_future();
    bool const taken = enqueue([this, answer, work = std::move(work)] {
        std::optional<result<T>> done;
        try {
            done = work();
        } catch (std::exception const& e) {
            done = error{errc::io, e.what()};
        }
        tell();  // before the caller goes on, so that state() agrees with what the caller was told
        answer->set_value(std::move(*done));
    });
    if (!taken) return not_running();
    return future.get();
}

template <class T>
result<T> key_directory::impl::read(std::function<result<T>()> const& work) {
    auto done = work();
    if (!done && is_fault_of_store(done.error().code)) reading_.begin(done.error().message);
    return done;
}

template <class T>
result<T> key_directory::impl::write(std::function<result<T>()> const& work) {
    auto done = work();
    if (!done) {
        if (is_fault_of_store(done.error().code)) {
            writing_.begin(done.error().message);
            next_write_check_ = clock::now() + write_check_interval;
        }
        return done;
    }
    writing_.end();
    auto const confirmed = refresh();
    if (confirmed) return done;
    auto const id = id_in(*done);
    constexpr bool lost = std::is_same_v<T, created_key>;
    return error{errc::unavailable,
                 fmt::format("the change{}{} is stored, but not confirmed everywhere yet, and will be tried again: {}{}",
                             id.empty() ? "" : " of ", id, confirmed.error().message,
                             lost ? "; the new key's text is not shown: revoke it and create another" : "")};
}

template <class T>
result<T> key_directory::impl::change(std::function<result<T>()> work) {
    return run<T>([this, work = std::move(work)] { return write<T>(work); });
}

// Reads the change log and builds every shard that is not in force yet.
result<std::vector<shard_update>> key_directory::impl::collect() {
    auto const failed = [this](error const& e) {
        reading_.begin(e.message);
        return e;
    };
    auto const found = store_->changed_since(newest_);
    if (!found) return failed(found.error());
    for (std::size_t const index : found->shards) pending_.set(index);
    newest_ = found->newest;
    std::vector<shard_update> updates;
    updates.reserve(pending_.count());
    for (std::size_t index = 0; index < shard_count; ++index) {
        if (!pending_.test(index)) continue;
        auto const entries = store_->shard(index);
        if (!entries) return failed(entries.error());
        updates.push_back({index, std::make_shared<key_shard const>(*entries)});
        keys_[index] = entries->size();
    }
    reading_.end();
    return updates;
}

result<void> key_directory::impl::publish(std::vector<shard_update> const& updates) {
    if (updates.empty()) return {};
    result<void> answer;
    try {
        answer = publish_(updates);
    } catch (std::exception const& e) {
        answer = error{errc::unavailable, e.what()};
    }
    if (!answer) {
        publishing_.begin(answer.error().message);
        return answer.error();
    }
    publishing_.end();
    pending_.reset();
    return {};
}

result<void> key_directory::impl::refresh() {
    auto const updates = collect();
    if (!updates) return updates.error();
    return publish(*updates);
}

void key_directory::impl::poll() {
    if (writing_.lasts() && clock::now() >= next_write_check_) check_writable();
    // The version is read before the change log: a commit between the two is then found by both rather than by neither.
    auto const version = store_->data_version();
    if (!version) return reading_.begin(version.error().message);
    // While reading is in trouble the log is read whatever the version says: that is the proof that reading works again.
    if (seen_version_ == *version && pending_.none() && !reading_.lasts()) return;
    // What fails from here on is noted in `reading_` or `publishing_`, and the next tick tries again.
    auto const updates = collect();
    if (!updates) return;
    seen_version_ = *version;
    static_cast<void>(publish(*updates));
}

void key_directory::impl::guarded_poll() {
    try {
        poll();
    } catch (std::exception const& e) {
        reading_.begin(e.what());
    }
    tell();
}

void key_directory::impl::check_writable() {
    next_write_check_ = clock::now() + write_check_interval;
    if (auto const r = store_->check_writable(); !r)
        writing_.begin(r.error().message);
    else
        writing_.end();
}

void key_directory::impl::tell() {
    health now;
    for (auto const* const t : {&reading_, &writing_, &publishing_}) {
        if (!t->lasts()) continue;
        now.ok = false;
        if (now.detail.find(t->text()) != std::string::npos) continue;  // a deleted file is found by reading and by writing
        if (!now.detail.empty()) now.detail += "; ";
        now.detail += t->text();
    }
    for (std::size_t const keys : keys_) now.keys += keys;
    std::lock_guard const lock(guard_);
    health_ = std::move(now);
}

void key_directory::impl::loop() {
    auto next_poll = clock::now();
    std::unique_lock lock(guard_);
    for (;;) {
        wake_.wait_until(lock, next_poll, [this] { return !tasks_.empty() || !running_; });
        if (!tasks_.empty()) {
            auto const task = std::move(tasks_.front());
            tasks_.pop_front();
            lock.unlock();
            task();
            lock.lock();
        } else if (!running_) {
            return;
        }
        if (clock::now() < next_poll) continue;
        lock.unlock();
        guarded_poll();
        next_poll = clock::now() + poll_interval;
        lock.lock();
    }
}

key_directory::key_directory(std::unique_ptr<store> s, std::string key_prefix)
    : impl_(std::make_unique<impl>(std::move(s), std::move(key_prefix))) {}

key_directory::~key_directory() { stop(); }

result<std::vector<shard_update>> key_directory::load() {
    auto& d = *impl_;
    // Both before the rows: a change that falls in between is then read twice rather than never.
    auto const version = d.store_->data_version();
    if (!version) return version.error();
    auto const found = d.store_->changed_since(0);
    if (!found) return found.error();
    std::vector<shard_update> all;
    all.reserve(shard_count);
    shard_arena arena;
    auto const read = d.store_->each_shard([&](std::size_t index, std::vector<key_entry> const& entries) {
        all.push_back({index, std::make_shared<key_shard const>(entries, &arena)});
        d.keys_[index] = entries.size();
    });
    if (!read) return read.error();
    d.seen_version_ = *version;
    d.newest_ = found->newest;
    d.tell();
    return all;
}

result<std::vector<shard_update>> key_directory::catch_up() {
    auto updates = impl_->collect();
    if (updates) impl_->pending_.reset();
    impl_->tell();
    return updates;
}

void key_directory::start(publish_fn publish) {
    if (impl_->thread_.joinable()) return;
    impl_->publish_ = std::move(publish);
    {
        std::lock_guard const lock(impl_->guard_);
        impl_->running_ = true;
    }
    impl_->thread_ = std::thread([d = impl_.get()] { d->loop(); });
}

void key_directory::stop() {
    {
        std::lock_guard const lock(impl_->guard_);
        impl_->running_ = false;
    }
    impl_->wake_.notify_one();
    if (impl_->thread_.joinable()) impl_->thread_.join();
}

result<void> key_directory::refresh() {
    return impl_->run<void>([d = impl_.get()] { return d->refresh(); });
}

result<created_key> key_directory::create_key(std::string name, std::string application_id) {
    return impl_->change<created_key>([d = impl_.get(), name = std::move(name), application_id = std::move(application_id)] {
        return d->store_->create_key(name, d->prefix_, application_id);
    });
}

result<import_report> key_directory::import_keys(std::vector<import_row> rows) {
    return impl_->change<import_report>(
        [d = impl_.get(), rows = std::move(rows)] { return d->store_->import_keys(rows, d->prefix_); });
}

result<key_row> key_directory::find(std::string id) {
    return impl_->run<key_row>(
        [d = impl_.get(), id = std::move(id)] { return d->read<key_row>([&] { return d->store_->find(id); }); });
}

result<std::vector<key_row>> key_directory::list(std::string after, std::size_t limit) {
    return impl_->run<std::vector<key_row>>([d = impl_.get(), after = std::move(after), limit] {
        return d->read<std::vector<key_row>>([&] { return d->store_->list(after, limit); });
    });
}

result<key_row> key_directory::revoke(std::string id) {
    return impl_->change<key_row>([d = impl_.get(), id = std::move(id)] { return d->store_->revoke(id); });
}

result<key_row> key_directory::remove(std::string id) {
    return impl_->change<key_row>([d = impl_.get(), id = std::move(id)] { return d->store_->remove(id); });
}

key_directory::health key_directory::state() const {
    std::lock_guard const lock(impl_->guard_);
    return impl_->health_;
}

}  // namespace latchkey::keystore
