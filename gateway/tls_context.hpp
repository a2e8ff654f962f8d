#pragma once
// Certificates, keys and the rules of TLS towards clients: what every connection's tls_session begins from. Loaded once at start,
// then shared by all workers and never changed (OpenSSL counts references to it by atomics). So a session ticket that one worker
// gave is good on every other.
//
// TLS 1.2 and 1.3; in 1.2 only what has forward secrecy and an AEAD (the "intermediate" set of Mozilla's server-side TLS, less
// finite-field DH). No renegotiation, no compression, no early data, no client certificates. ALPN: "http/1.1" (RFC 7301).

#include <memory>
#include <vector>

#include "conf/load.hpp"
#include "conf/settings.hpp"

struct bio_method_st;
struct ssl_ctx_st;
struct ssl_st;
struct x509_st;

namespace latchkey::gateway {

class tls_context {
  public:
    // Reads and checks every certificate with its key; blocking, at start only. Null where there are mistakes (a file that is
    // missing, not PEM, encrypted, a key that is another certificate's). Warnings do not stop it: a date that is past, a key that
    // others may read. A finding's file is the PEM file that is meant.
    static std::unique_ptr<tls_context> load(conf::tls_settings const&, std::vector<conf::finding>& mistakes,
                                             std::vector<conf::finding>& warnings);
    ~tls_context();
    tls_context(tls_context const&) = delete;
    tls_context& operator=(tls_context const&) = delete;

  private:
    friend class tls_session;
    struct identity {  // a certificate as it is shown to clients; both held
        ssl_ctx_st* rules = nullptr;
        x509_st* certificate = nullptr;
    };
    tls_context() = default;
    bool add(conf::certificate const&, conf::tls_version, std::vector<conf::finding>& mistakes,
             std::vector<conf::finding>& warnings);
    static int choose(ssl_st*, int*, void* self) noexcept;

    std::vector<identity> identities_;  // in the order of the settings; the first holds the ticket keys of all
    bio_method_st* method_ = nullptr;   // tls_session's way to the socket
};

}  // namespace latchkey::gateway
