#include "cli/key_access.hpp"

#include <fmt/format.h>

#include <boost/json.hpp>
#include <utility>

#include "base/clock.hpp"
#include "cli/gateway_client.hpp"
#include "cli/run.hpp"

namespace latchkey::cli {
namespace {

namespace json = boost::json;
using verb = boost::beast::http::verb;
using namespace std::chrono_literals;

constexpr auto command_patience = 10s;
constexpr auto gateway_patience = 2s;  // a gateway that just starts has the lock before it has the socket
constexpr std::size_t page_rows = 1000;

template <class T>
T got(result<T> r) {
    if (!r) throw failure(r.error());
    return std::move(*r);
}

class direct final : public key_access {
  public:
    direct(std::unique_ptr<data_lock> lock, data_paths const& at, std::string prefix, missing if_missing)
        : lock_(std::move(lock)),
          prefix_(std::move(prefix)),
          store_(got(keystore::store::open(at.keys_db, {if_missing == missing::create}))) {}

    created create(std::string const& name, std::string const& application_id) override {
        auto const made = got(store_->create_key(name, prefix_, application_id));
        return {made.row.id, made.key, made.row.application_id, made.row.name};
    }
    keystore::key_row find(std::string const& id) override { return got(store_->find(id)); }
    keystore::key_row revoke(std::string const& id) override { return got(store_->revoke(id)); }
    keystore::key_row remove(std::string const& id) override { return got(store_->remove(id)); }
    keystore::import_report import(std::string csv) override {
        auto const rows = got(keystore::parse_import_csv(csv));
        return got(store_->import_keys(rows, prefix_));
    }
    void each(std::function<bool(keystore::key_row const&)> const& visit) override {
        for (std::string after;;) {
            auto const rows = got(store_->list(after, page_rows));
            for (auto const& row : rows)
                if (!visit(row)) return;
            if (rows.size() < page_rows) return;
            after = rows.back().id;
        }
    }

  private:
    std::unique_ptr<data_lock> lock_;
    std::string prefix_;
    std::unique_ptr<keystore::store> store_;
};

std::string text_of(json::object const& o, char const* name) {
    auto const* const v = o.if_contains(name);
    return v != nullptr && v->is_string() ? std::string(std::string_view(v->get_string())) : std::string{};
}

std::int64_t time_of(json::object const& o, char const* name) {
    auto const text = text_of(o, name);
    return text.empty() ? 0 : got(parse_time(text));
}

keystore::key_row row_of(json::value const& v) {
    auto const& o = v.as_object();
    return {text_of(o, "id"),    text_of(o, "application_id"), text_of(o, "name"),    text_of(o, "prefix"),
            text_of(o, "last4"), time_of(o, "created"),        time_of(o, "revoked"), time_of(o, "expires")};
}

// An id becomes part of a request line: what no id can be is not sent.
std::string const& sendable(std::string const& id) {
    constexpr std::string_view allowed = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz._-";
    if (id.empty() || id.size() > 64 || id.find_first_not_of(allowed) != std::string::npos)
        throw failure(exit_not_found, "there is no key with that id");
    return id;
}

class remote final : public key_access {
  public:
    explicit remote(data_paths const& at) : gateway_(at.admin_socket), importer_(at.admin_socket, 10min) {}

    created create(std::string const& name, std::string const& application_id) override {
        json::object body;
        if (!name.empty()) body["name"] = name;
        if (!application_id.empty()) body["application_id"] = application_id;
        auto const made = got(gateway_.call(verb::post, "/v1/keys", json::serialize(body))).as_object();
        return {text_of(made, "id"), text_of(made, "key"), text_of(made, "application_id"), text_of(made, "name")};
    }
    keystore::key_row find(std::string const& id) override {
        return row_of(got(gateway_.call(verb::get, "/v1/keys/" + sendable(id))));
    }
    keystore::key_row revoke(std::string const& id) override {
        return row_of(got(gateway_.call(verb::post, "/v1/keys/" + sendable(id) + "/revoke")));
    }
    keystore::key_row remove(std::string const& id) override {
        return row_of(got(gateway_.call(verb::delete_, "/v1/keys/" + sendable(id))));
    }
    keystore::import_report import(std::string csv) override {
        auto const said = got(importer_.call(verb::post, "/v1/keys/import", std::move(csv), "text/csv"));
        auto const* const revoked = said.as_object().if_contains("revoked");  // a gateway of before 2026-11-29 does not say
        return {said.at("imported").to_number<std::size_t>(), said.at("unchanged").to_number<std::size_t>(),
                revoked ? revoked->to_number<std::size_t>() : 0};
    }
    void each(std::function<bool(keystore::key_row const&)> const& visit) override {
        for (std::string after;;) {
            auto const page = got(gateway_.call(verb::get, fmt::format("/v1/keys?limit={}&after={}", page_rows, after)));
            for (auto const& row : page.at("keys").as_array())
                if (!visit(row_of(row))) return;
            after = text_of(page.as_object(), "next");
            if (after.empty()) return;
        }
    }

  private:
    gateway_client gateway_;
    gateway_client importer_;
};

}  // namespace

std::unique_ptr<data_lock> lock_or_gateway(data_paths const& at) {
    gateway_client const gateway(at.admin_socket);
    auto const until = std::chrono::steady_clock::now() + command_patience;
    auto const gateway_until = std::chrono::steady_clock::now() + gateway_patience;
    for (;;) {
        if (gateway.listening()) return nullptr;
        auto lock = data_lock::take(at, "command", 100ms);
        if (lock) return std::make_unique<data_lock>(std::move(*lock));
        if (lock.error().code != errc::busy) throw failure(lock.error());
        auto const now = std::chrono::steady_clock::now();
        if (lock_holder(at).starts_with("gateway") && now >= gateway_until)
            throw failure(
                exit_unreachable,
                fmt::format("a gateway runs on {} ({}) but does not answer on {}; look at its log, or stop it and try again",
                            at.dir, lock_holder(at), at.admin_socket));
        if (now >= until) throw failure(exit_conflict, lock.error().message + "; try again when it has ended");
    }
}

std::unique_ptr<key_access> open_keys(data_paths const& at, std::string const& key_prefix, missing if_missing) {
    if (if_missing == missing::create)
        if (auto const made = make_data_dir(at.dir); !made) throw failure(made.error());
    auto lock = lock_or_gateway(at);
    if (!lock) return std::make_unique<remote>(at);
    return std::make_unique<direct>(std::move(lock), at, key_prefix, if_missing);
}

}  // namespace latchkey::cli
