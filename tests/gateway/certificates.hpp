#pragma once
// Throw-away certificates as PEM texts, and OpenSSL's client side as a peer whose bytes the test carries.

#include <openssl/ssl.h>
#include <openssl/x509v3.h>

#include <memory>
#include <string>
#include <string_view>

namespace latchkey::gateway::test {

template <auto F>
struct openssl_free {
    template <class T>
    void operator()(T* p) const {
        F(p);
    }
};
using key_ptr = std::unique_ptr<EVP_PKEY, openssl_free<EVP_PKEY_free>>;
using certificate_ptr = std::unique_ptr<X509, openssl_free<X509_free>>;

struct pem {
    std::string chain, key;
};

key_ptr make_ec_key();
// Signed by itself; valid from now + `from_s` to now + `to_s` seconds.
pem make_certificate(EVP_PKEY*, std::string const& name, long from_s = -3600, long to_s = 86400);
std::string key_text(EVP_PKEY*, char const* passphrase = nullptr);

// A client in memory: what it wants to say is in said(), what the server says goes into hear().
class tls_peer {
  public:
    explicit tls_peer(int version = TLS1_3_VERSION, char const* groups = nullptr);
    ~tls_peer();
    tls_peer(tls_peer const&) = delete;
    tls_peer& operator=(tls_peer const&) = delete;

    bool shake_hands() { return SSL_do_handshake(ssl) == 1; }
    void say(std::string_view text) { SSL_write(ssl, text.data(), static_cast<int>(text.size())); }
    std::string take();  // the plain bytes that have arrived whole
    std::string said();  // the cipher text to carry, once
    void hear(std::string_view cipher_text) { BIO_write(in_, cipher_text.data(), static_cast<int>(cipher_text.size())); }
    bool told_of_end() const { return (SSL_get_shutdown(ssl) & SSL_RECEIVED_SHUTDOWN) != 0; }

    SSL* ssl = nullptr;

  private:
    SSL_CTX* rules_ = nullptr;
    BIO* in_ = nullptr;
    BIO* out_ = nullptr;
};

}  // namespace latchkey::gateway::test
