#pragma once
// Keys as a running gateway keeps them: the store, one thread that does all its writing, and the promise that a change is in
// force everywhere when the call returns (law 5). Also finds rows that other processes changed, within 250 ms.
//
// Threads: every public function may be called from any thread but a worker's; each blocks until the store thread has done
// the work and `publish` has returned. Owns the store.

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "base/error.hpp"
#include "keystore/store.hpp"

namespace latchkey::keystore {

class key_directory {
  public:
    // Hands changed shards to every worker and returns when all obey; an error says who did not answer in time. The
    // directory keeps such shards and publishes them again until it succeeds; the caller gets the error.
    using publish_fn = std::function<result<void>(std::vector<shard_update> const&)>;

    explicit key_directory(std::unique_ptr<store>, std::string key_prefix);
    ~key_directory();  // stops the store thread after what is queued

    // Builds every shard from the store, for a table that workers start with. Call before start().
    result<std::vector<shard_update>> load();

    // What others changed since load(). Before start().
    result<std::vector<shard_update>> catch_up();

    // Starts the store thread and the poll for changes of others (every 100 ms; data_version, then the change log).
    void start(publish_fn);
    void stop();

    // Publishes now what others changed, without waiting for the poll; in force when it returns.
    result<void> refresh();

    result<created_key> create_key(std::string name, std::string application_id = {});
    result<import_report> import_keys(std::vector<import_row> rows);
    result<key_row> find(std::string id);
    result<std::vector<key_row>> list(std::string after, std::size_t limit);
    result<key_row> revoke(std::string id);
    result<key_row> remove(std::string id);

    // What the operator should know: false with a sentence while the store cannot be read or written (the gateway then
    // serves from memory; said in the log once, on /readyz, and in `status`), true again when it can.
    struct health {
        bool ok = true;
        std::string detail;
        std::uint64_t keys = 0;
    };
    health state() const;

  private:
    struct impl;
    std::unique_ptr<impl> impl_;
};

}  // namespace latchkey::keystore
