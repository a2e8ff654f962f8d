#include "gateway/tls_context.hpp"

#include <fmt/format.h>
#include <openssl/err.h>
#include <openssl/pem.h>
#include <openssl/ssl.h>
#include <openssl/x509v3.h>
#include <sys/stat.h>

#include <cerrno>
#include <cstdio>
#include <cstring>
#include <string>
#include <string_view>
#include <system_error>

#include "gateway/tls_session.hpp"

namespace latchkey::gateway {
namespace {

constexpr std::size_t pem_bytes_max = 1U << 20;

constexpr char const* ciphers_of_1_2 =
    "ECDHE-ECDSA-AES128-GCM-SHA256:ECDHE-RSA-AES128-GCM-SHA256:ECDHE-ECDSA-AES256-GCM-SHA384:ECDHE-RSA-AES256-GCM-SHA384:"
    "ECDHE-ECDSA-CHACHA20-POLY1305:ECDHE-RSA-CHACHA20-POLY1305";
constexpr char const* groups = "X25519:P-256:P-384";

template <auto F>
struct freed_by {
    template <class T>
    void operator()(T* p) const noexcept {
        F(p);
    }
};
using bio_ptr = std::unique_ptr<BIO, freed_by<BIO_free>>;
using x509_ptr = std::unique_ptr<X509, freed_by<X509_free>>;
using pkey_ptr = std::unique_ptr<EVP_PKEY, freed_by<EVP_PKEY_free>>;
using ctx_ptr = std::unique_ptr<SSL_CTX, freed_by<SSL_CTX_free>>;
using file_ptr = std::unique_ptr<std::FILE, freed_by<std::fclose>>;

struct pem_file {
    std::string text;
    std::string problem;       // empty: it was read
    bool open_to_all = false;  // its mode lets everyone read it
};

pem_file read_pem(std::string const& path) {
    pem_file out;
    auto const failed = [&] { out.problem = fmt::format("cannot be read: {}", std::generic_category().message(errno)); };
    file_ptr const file(std::fopen(path.c_str(), "re"));
    if (!file) return failed(), out;
    struct stat about {};
    out.open_to_all = ::fstat(::fileno(file.get()), &about) == 0 && (about.st_mode & S_IROTH) != 0;
    out.text.resize(pem_bytes_max + 1);
    out.text.resize(std::fread(out.text.data(), 1, out.text.size(), file.get()));
    if (std::ferror(file.get()) != 0) return failed(), out;
    if (out.text.size() > pem_bytes_max) out.problem = "is larger than 1 MiB";
    return out;
}

bool has(std::string_view text, std::string_view part) { return text.find(part) != std::string_view::npos; }

// OpenSSL's word for what went wrong last.
std::string reason() {
    char const* const text = ERR_reason_error_string(ERR_peek_last_error());
    ERR_clear_error();
    return text ? text : "no reason given";
}

bio_ptr reader_of(std::string const& text) { return bio_ptr(BIO_new_mem_buf(text.data(), static_cast<int>(text.size()))); }

int no_passphrase(char*, int, int, void*) { return -1; }

int choose_protocol(SSL*, unsigned char const** out, unsigned char* out_size, unsigned char const* in, unsigned in_size,
                    void*) noexcept {
    constexpr std::string_view ours = "http/1.1";
    for (unsigned at = 0; at < in_size; at += in[at] + 1U) {
        if (in[at] != ours.size() || at + 1 + ours.size() > in_size) continue;
        if (std::memcmp(in + at + 1, ours.data(), ours.size()) != 0) continue;
        *out = in + at + 1;
        *out_size = in[at];
        return SSL_TLSEXT_ERR_OK;
    }
    return SSL_TLSEXT_ERR_ALERT_FATAL;  // no_application_protocol (RFC 7301 section 3.2)
}

ctx_ptr rules_for(conf::tls_version least) {
    ctx_ptr ctx(SSL_CTX_new(TLS_server_method()));
    if (!ctx) return ctx;
    SSL_CTX* const c = ctx.get();
    SSL_CTX_set_min_proto_version(c, least == conf::tls_version::v1_3 ? TLS1_3_VERSION : TLS1_2_VERSION);
    // Where a client's connection ends without close_notify, the framing of HTTP says whether a message is whole.
    SSL_CTX_set_options(c, SSL_OP_NO_RENEGOTIATION | SSL_OP_NO_COMPRESSION | SSL_OP_IGNORE_UNEXPECTED_EOF);
    // RELEASE_BUFFERS: an idle connection holds no record buffers. What a write could not send is sent by the next one, which may
    // find the same bytes elsewhere.
    SSL_CTX_set_mode(c, SSL_MODE_RELEASE_BUFFERS | SSL_MODE_ENABLE_PARTIAL_WRITE | SSL_MODE_ACCEPT_MOVING_WRITE_BUFFER);
    SSL_CTX_set_read_ahead(c, 1);                           // one recv() a record, not one for its header and one for the rest
    SSL_CTX_set_session_cache_mode(c, SSL_SESS_CACHE_OFF);  // sessions are resumed by tickets, which need no memory here
    constexpr std::string_view name = "latchkey";
    SSL_CTX_set_session_id_context(c, reinterpret_cast<unsigned char const*>(name.data()), static_cast<unsigned>(name.size()));
    SSL_CTX_set_num_tickets(c, 1);
    SSL_CTX_set_alpn_select_cb(c, choose_protocol, nullptr);
    bool const good = SSL_CTX_set_cipher_list(c, ciphers_of_1_2) == 1 && SSL_CTX_set1_groups_list(c, groups) == 1;
    return good ? std::move(ctx) : nullptr;
}

}  // namespace

std::unique_ptr<tls_context> tls_context::load(conf::tls_settings const& s, std::vector<conf::finding>& mistakes,
                                               std::vector<conf::finding>& warnings) {
    std::unique_ptr<tls_context> out(new tls_context);
    out->method_ = tls_session::make_method();
    bool good = out->method_ != nullptr;
    for (auto const& c : s.certificates) good = out->add(c, s.minimum_version, mistakes, warnings) && good;
    if (good && out->identities_.size() > 1) {
        SSL_CTX* const first = out->identities_.front().rules;
        SSL_CTX_set_tlsext_servername_callback(first, &tls_context::choose);
        SSL_CTX_set_tlsext_servername_arg(first, out.get());
    }
    if (!good && mistakes.empty())
        mistakes.push_back({{}, 0, 0, "TLS cannot be set up: " + reason(), "check the OpenSSL library"});
    return good && !out->identities_.empty() ? std::move(out) : nullptr;
}

tls_context::~tls_context() {
    for (auto const& i : identities_) {
        X509_free(i.certificate);
        SSL_CTX_free(i.rules);
    }
    BIO_meth_free(method_);
}

bool tls_context::add(conf::certificate const& c, conf::tls_version least, std::vector<conf::finding>& mistakes,
                      std::vector<conf::finding>& warnings) {
    auto const before = mistakes.size();
    auto const wrong = [&](std::string const& file, std::string what, std::string remedy) {
        mistakes.push_back({file, 0, 0, std::move(what), std::move(remedy)});
    };
    auto const odd = [&](std::string const& file, std::string what, std::string remedy) {
        warnings.push_back({file, 0, 0, std::move(what), std::move(remedy)});
    };
    ERR_clear_error();
    auto const chain = read_pem(c.chain);
    auto secret = read_pem(c.key);
    if (!chain.problem.empty()) wrong(c.chain, chain.problem, "check `chain` and the file's permissions");
    if (!secret.problem.empty()) wrong(c.key, secret.problem, "check `key` and the file's permissions");

    x509_ptr leaf;
    std::vector<x509_ptr> others;
    if (chain.problem.empty()) {
        auto const from = reader_of(chain.text);
        leaf.reset(PEM_read_bio_X509(from.get(), nullptr, no_passphrase, nullptr));
        while (leaf) {
            x509_ptr next(PEM_read_bio_X509(from.get(), nullptr, no_passphrase, nullptr));
            if (!next) break;
            others.push_back(std::move(next));
        }
        bool const ended = ERR_GET_REASON(ERR_peek_last_error()) == PEM_R_NO_START_LINE;
        if (!leaf && ended)
            wrong(c.chain, "has no certificate in PEM form",
                  has(chain.text, "PRIVATE KEY-----") ? "`chain` names a key: are the two swapped?"
                                                      : "write it as PEM (openssl x509 -inform DER -in FILE -out FILE.pem)");
        else if (!ended)
            wrong(c.chain, fmt::format("certificate {} in it is damaged: {}", others.size() + (leaf ? 2 : 1), reason()),
                  "copy the file again");
        ERR_clear_error();
    }
    pkey_ptr key;
    if (secret.problem.empty()) {
        key.reset(PEM_read_bio_PrivateKey(reader_of(secret.text).get(), nullptr, no_passphrase, nullptr));
        if (!key && has(secret.text, "ENCRYPTED"))
            wrong(c.key, "is encrypted, and nobody is there to type its passphrase",
                  fmt::format("decrypt it: openssl pkey -in {} -out NEW, and chmod 600 NEW", c.key));
        else if (!key && !has(secret.text, "PRIVATE KEY-----"))
            wrong(c.key, "has no private key in PEM form", "write it as PEM (openssl pkey -inform DER -in FILE -out FILE.pem)");
        else if (!key)
            wrong(c.key, "the private key in it cannot be read: " + reason(), "copy the file again");
        if (key && secret.open_to_all)
            odd(c.key, "is a private key that everyone may read", fmt::format("run: chmod o-r {}", c.key));
        ERR_clear_error();
    }
    OPENSSL_cleanse(secret.text.data(), secret.text.size());
    if (mistakes.size() != before) return false;

    if (X509_check_private_key(leaf.get(), key.get()) != 1) {
        wrong(c.key, fmt::format("is not the key of the first certificate in {}", c.chain),
              "give the two that were made together; the server's own certificate stands first");
        ERR_clear_error();
        return false;
    }
    if (X509_cmp_current_time(X509_get0_notBefore(leaf.get())) > 0)
        odd(c.chain, "is not valid yet: clients will not accept it", "check the machine's clock, or wait");
    if (X509_cmp_current_time(X509_get0_notAfter(leaf.get())) < 0)
        odd(c.chain, "has expired: clients will not accept it", "renew the certificate");
    if (!others.empty() && X509_check_issued(others.front().get(), leaf.get()) != X509_V_OK)
        odd(c.chain, "the second certificate did not issue the first: clients may not accept it",
            "put the server's certificate first, then its issuer, and so on");
    ERR_clear_error();

    ctx_ptr rules = rules_for(least);
    bool good =
        rules && SSL_CTX_use_certificate(rules.get(), leaf.get()) == 1 && SSL_CTX_use_PrivateKey(rules.get(), key.get()) == 1;
    for (auto& o : others) {
        if (!good) break;
        good = SSL_CTX_add0_chain_cert(rules.get(), o.get()) == 1;
        if (good) o.release();  // the rules own it now
    }
    if (!good) {
        wrong(c.chain, "cannot be used: " + reason(), "make a certificate of EC P-256, or of RSA with 2048 bits or more");
        return false;
    }
    identities_.push_back({rules.release(), leaf.release()});
    return true;
}

// OpenSSL calls it with the client's first message: the first certificate that has the name asked for is shown (RFC 6066 section
// 3).
int tls_context::choose(SSL* ssl, int*, void* self) noexcept {
    auto const& all = static_cast<tls_context*>(self)->identities_;
    char const* const name = SSL_get_servername(ssl, TLSEXT_NAMETYPE_host_name);
    if (!name) return SSL_TLSEXT_ERR_NOACK;
    for (auto const& i : all) {
        if (X509_check_host(i.certificate, name, std::strlen(name), X509_CHECK_FLAG_NO_PARTIAL_WILDCARDS, nullptr) != 1) continue;
        if (i.rules != all.front().rules) SSL_set_SSL_CTX(ssl, i.rules);
        return SSL_TLSEXT_ERR_OK;
    }
    return SSL_TLSEXT_ERR_NOACK;
}

}  // namespace latchkey::gateway
