#pragma once
// Keys of a data directory, wherever they can be changed right now: through the gateway that runs on it, so that a change is in
// force when the call returns, or in the store itself when none runs. One thread. Errors are thrown as `failure`.

#include <functional>
#include <memory>
#include <string>

#include "cli/data_dir.hpp"
#include "keystore/store.hpp"

namespace latchkey::cli {

struct created {
    std::string id, key, application_id, name;
};

class key_access {
  public:
    virtual ~key_access() = default;
    virtual created create(std::string const& name, std::string const& application_id) = 0;
    virtual keystore::key_row find(std::string const& id) = 0;
    virtual keystore::key_row revoke(std::string const& id) = 0;
    virtual keystore::key_row remove(std::string const& id) = 0;
    virtual keystore::import_report import(std::string csv) = 0;
    virtual void each(std::function<bool(keystore::key_row const&)> const& visit) = 0;  // false stops
};

enum class missing { create, fail };  // what to do where the data directory does not exist

// Decides which of the two it is (see lock_or_gateway()) and holds the lock while it works on the store itself.
std::unique_ptr<key_access> open_keys(data_paths const&, std::string const& key_prefix, missing);

// Takes the lock for a command; null: a gateway runs and answers on its socket. Throws failure: exit 6 where a gateway holds
// the lock and does not answer, 5 where another command holds it for longer than 10 s, 3 where there is no such folder.
std::unique_ptr<data_lock> lock_or_gateway(data_paths const&);

}  // namespace latchkey::cli
