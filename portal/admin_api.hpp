#pragma once
// The admin API without its sockets: a request in, a reply out. Also what the health listener says.
//
//   GET    /v1/keys?after=ID&limit=1..1000   {"keys": [...], "next": ID or null}
//   POST   /v1/keys                          {"name", "application_id"?} -> 201 {"id", "key", "application_id", "name"}
//   GET    /v1/keys/{id}
//   POST   /v1/keys/{id}/revoke
//   DELETE /v1/keys/{id}                     what was removed
//   POST   /v1/keys/import                   text/csv -> {"imported", "unchanged", "revoked"}
//   POST   /v1/usage/flush                   {"flushed": true}
//   POST   /v1/reload                        {"pid": of the process that serves from now on}
//   GET    /v1/status
//
// Errors are application/problem+json (RFC 9457) with `code`: the name of an errc, or one of method_not_allowed, no_route,
// unsupported_media_type. A reply to a change is made after the change is in force on every worker (law 5).
//
// Threads: answer() blocks for as long as the store does and may be called by several threads at once; never by a worker.

#include <boost/beast/http/verb.hpp>
#include <string>
#include <string_view>

#include "keystore/key_directory.hpp"
#include "portal/gateway_view.hpp"
#include "usage/recorder.hpp"

namespace latchkey::portal {

struct request {
    boost::beast::http::verb method = boost::beast::http::verb::get;
    std::string target;        // origin form
    std::string content_type;  // as sent; empty where absent
    std::string body;
};

struct reply {
    unsigned status = 200;
    std::string type = "application/json";
    std::string body;
    std::string allow;  // the Allow field of a 405
};

inline constexpr std::size_t page_keys_max = 1000;
inline constexpr std::size_t page_keys_default = 100;

// The stable name of an error ("not_found"), and back; nullopt-like `io` for a name that is none.
std::string_view code_name(errc) noexcept;
errc code_of(std::string_view name) noexcept;

reply problem(unsigned status, std::string_view code, std::string_view detail);

// True for POST /v1/keys/import, whose body may be large.
bool is_import(boost::beast::http::verb method, std::string_view target) noexcept;
// True for POST /v1/reload, which takes long and must not be waited for by what it does.
bool is_reload(boost::beast::http::verb method, std::string_view target) noexcept;

class admin_api {
  public:
    // All three outlive the object.
    admin_api(keystore::key_directory& keys, usage::recorder& usage, gateway_view gateway, reload_call reload = {},
              flush_call flush_elsewhere = {});

    reply answer(request const&);

    // GET /livez, /readyz, /metrics. /livez answers 200 while the process turns; /readyz 200 while requests are served (a store
    // or disk that fails is named there, but the gateway serves from memory), 503 before that and while draining.
    reply health(boost::beast::http::verb method, std::string_view target);

  private:
    reply keys_collection(request const&, std::string_view query);
    reply one_key(request const&, std::string_view rest);
    reply create(request const&);
    reply import(request const&);
    reply flush();
    reply reload();
    reply status();
    reply ready();
    reply metrics();

    keystore::key_directory& keys_;
    usage::recorder& usage_;
    gateway_view gateway_;
    reload_call reload_;
    flush_call flush_elsewhere_;
};

}  // namespace latchkey::portal
