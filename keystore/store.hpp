#pragma once
// The SQLite store (`keys.db`), the one source of truth: applications and their keys. WAL, foreign keys on, synchronous=FULL,
// mode 0600, schema migrations by `user_version`. A key in clear is never in it: SHA-256, prefix and last four only.
//
// Threads: one thread at a time. Errors: `corrupt`, `newer_schema`, `busy` (another writer held it for 5 s), `io`, each with a
// sentence that names the file and the remedy; `not_found`, `conflict`, `invalid_argument` for what the caller asked.

#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "base/error.hpp"
#include "keystore/key_format.hpp"
#include "keystore/key_table.hpp"

namespace latchkey::keystore {

struct key_row {
    std::string id;              // "key_..."
    std::string application_id;  // "app_...", or the imported name where that is 1..64 of A-Za-z0-9._- and free
    std::string name;            // the application's name: 1..200 bytes of UTF-8 without control characters
    std::string prefix;          // what stands before '_' in keys of ours, else the first four characters
    std::string last4;
    std::int64_t created_ms = 0;
    std::int64_t revoked_ms = 0;  // 0: not revoked
    std::int64_t expires_ms = 0;  // 0: never
};

struct created_key {
    key_row row;
    std::string key;  // in clear: shown once, by the caller
};

struct import_row {
    std::string name;
    std::string key;
    std::size_t line = 0;  // for messages
};

struct import_report {
    std::size_t imported = 0;
    std::size_t unchanged = 0;  // the same key under the same name was there already
    std::size_t revoked = 0;    // so was this one, revoked; an import does not bring it back
};

class store {
  public:
    struct open_options {
        bool create = true;                            // false: a missing file is `not_found`
        std::chrono::milliseconds busy_timeout{5000};  // how long a call waits for another process's lock
        // false: the caller calls check() before it trusts what it read, so that reading need not wait for it. A file that has to
        // be migrated is checked all the same.
        bool check = true;
    };

    // Opens, checks (check(), schema version) and migrates. Refuses a file that others may read (mode is set to 0600 on
    // creation; a laxer mode on an existing file is tightened).
    static result<std::unique_ptr<store>> open(std::string const& file, open_options);
    // `corrupt` with the first finding if the file is damaged anywhere. Reads all of it (`quick_check`: 1 ms for 1,000 keys) on a
    // connection of its own: may run on any thread while a store on the same file is in use.
    static result<void> check(std::string const& file);
    ~store();
    store(store const&) = delete;
    store& operator=(store const&) = delete;

    // A new application with one key; or one more key of `application_id`, if that is not empty (then `name` is ignored).
    result<created_key> create_key(std::string_view name, std::string_view key_prefix, std::string_view application_id = {});

    // All or nothing, one transaction. A key that is there under another name: `conflict` with its line, never with the key's
    // text. Malformed keys, and keys of our format with a wrong checksum: `invalid_argument` with the line.
    result<import_report> import_keys(std::vector<import_row> const& rows, std::string_view key_prefix);

    result<key_row> find(std::string_view id);
    // In order of creation, then id; `after` is the last id of the previous page, or empty. limit 1..10000.
    result<std::vector<key_row>> list(std::string_view after, std::size_t limit);
    // Revoking twice is fine and keeps the first time.
    result<key_row> revoke(std::string_view id);
    // Removes the key, and its application if that was its last key. Returns what was removed.
    result<key_row> remove(std::string_view id);

    // Rows of one shard (a range of the digest index), and of all shards in digest order.
    result<std::vector<key_entry>> shard(std::size_t index);
    result<void> each_shard(std::function<void(std::size_t index, std::vector<key_entry> const&)> const& visit);

    // Digest shards touched since change number `since`, by whatever process and statement (triggers write the change log),
    // and the newest change number. Prunes nothing.
    struct changes {
        std::uint64_t newest = 0;
        std::vector<std::size_t> shards;  // sorted, unique
    };
    result<changes> changed_since(std::uint64_t since);

    // PRAGMA data_version: differs from the last call's value when another connection has committed. Microseconds. `io` where
    // the path no longer leads to the file that was opened (deleted, replaced); every other call says so too.
    result<std::int64_t> data_version();

    // Writes one row as it is, without waiting for another's lock: whether a change would go through now.
    result<void> check_writable();

    result<std::uint64_t> key_count();

  private:
    struct impl;
    explicit store(std::unique_ptr<impl>);
    std::unique_ptr<impl> impl_;
};

// CSV with the header `name,key` (RFC 4180; LF or CRLF; a BOM is skipped). Errors name the line.
result<std::vector<import_row>> parse_import_csv(std::string_view text);

}  // namespace latchkey::keystore
