// What certificates.hpp promises; the name lets the build find it.

#include "tests/gateway/certificates.hpp"

#include <openssl/pem.h>

#include "tests/catch.hpp"

namespace latchkey::gateway::test {
namespace {

std::string text_of(BIO* b) {
    char* data = nullptr;
    long const size = BIO_get_mem_data(b, &data);
    std::string out(data, static_cast<std::size_t>(size));
    BIO_free(b);
    return out;
}

}  // namespace

key_ptr make_ec_key() { return key_ptr(EVP_EC_gen("P-256")); }

std::string key_text(EVP_PKEY* key, char const* passphrase) {
    BIO* const b = BIO_new(BIO_s_mem());
    auto const* const word = reinterpret_cast<unsigned char const*>(passphrase);
    int const size = passphrase ? static_cast<int>(std::string_view(passphrase).size()) : 0;
    REQUIRE(PEM_write_bio_PrivateKey(b, key, passphrase ? EVP_aes_256_cbc() : nullptr, word, size, nullptr, nullptr) == 1);
    return text_of(b);
}

pem make_certificate(EVP_PKEY* key, std::string const& name, long from_s, long to_s) {
    certificate_ptr const c(X509_new());
    X509_set_version(c.get(), 2);
    ASN1_INTEGER_set(X509_get_serialNumber(c.get()), 1);
    X509_gmtime_adj(X509_getm_notBefore(c.get()), from_s);
    X509_gmtime_adj(X509_getm_notAfter(c.get()), to_s);
    X509_set_pubkey(c.get(), key);
    X509_NAME* const subject = X509_get_subject_name(c.get());
    X509_NAME_add_entry_by_txt(subject, "CN", MBSTRING_UTF8, reinterpret_cast<unsigned char const*>(name.c_str()), -1, -1, 0);
    X509_set_issuer_name(c.get(), subject);
    X509_EXTENSION* const names = X509V3_EXT_conf_nid(nullptr, nullptr, NID_subject_alt_name, ("DNS:" + name).c_str());
    X509_add_ext(c.get(), names, -1);
    X509_EXTENSION_free(names);
    REQUIRE(X509_sign(c.get(), key, EVP_sha256()) > 0);
    BIO* const b = BIO_new(BIO_s_mem());
    REQUIRE(PEM_write_bio_X509(b, c.get()) == 1);
    return {text_of(b), key_text(key)};
}

tls_peer::tls_peer(int version, char const* groups)
    : rules_(SSL_CTX_new(TLS_client_method())), in_(BIO_new(BIO_s_mem())), out_(BIO_new(BIO_s_mem())) {
    SSL_CTX_set_min_proto_version(rules_, version);
    SSL_CTX_set_max_proto_version(rules_, version);
    if (groups) REQUIRE(SSL_CTX_set1_groups_list(rules_, groups) == 1);
    ssl = SSL_new(rules_);
    SSL_set_bio(ssl, in_, out_);
    SSL_set_connect_state(ssl);
}

tls_peer::~tls_peer() {
    SSL_free(ssl);
    SSL_CTX_free(rules_);
}

std::string tls_peer::take() {
    std::string out;
    char block[16384];
    for (int n = 0; (n = SSL_read(ssl, block, sizeof block)) > 0;) out.append(block, static_cast<std::size_t>(n));
    return out;
}

std::string tls_peer::said() {
    std::string out;
    char block[16384];
    for (int n = 0; (n = BIO_read(out_, block, sizeof block)) > 0;) out.append(block, static_cast<std::size_t>(n));
    return out;
}

}  // namespace latchkey::gateway::test

TEST_CASE("a throw-away certificate belongs to its key and has its name") {
    using namespace latchkey::gateway::test;
    auto const key = make_ec_key();
    auto const made = make_certificate(key.get(), "a.example");
    BIO* const b = BIO_new_mem_buf(made.chain.data(), static_cast<int>(made.chain.size()));
    certificate_ptr const c(PEM_read_bio_X509(b, nullptr, nullptr, nullptr));
    BIO_free(b);
    REQUIRE(c);
    CHECK(X509_check_private_key(c.get(), key.get()) == 1);
    CHECK(X509_check_host(c.get(), "a.example", 9, 0, nullptr) == 1);
}
