// .NET Core 3.1 loads "libssl.so.1.1" and takes all of OpenSSL from there by name. Debian 12 has OpenSSL 3, which knows all the
// names that it asks for but these three: they have become macros. This is that library: these three, and OpenSSL 3 behind it.
#include <openssl/err.h>
#include <openssl/evp.h>
#include <openssl/ssl.h>

#undef EVP_MD_size
#undef SSL_get_peer_certificate
#undef ERR_put_error

int EVP_MD_size(const EVP_MD *md);
X509 *SSL_get_peer_certificate(const SSL *ssl);
void ERR_put_error(int library, int function, int reason, const char *file, int line);

int EVP_MD_size(const EVP_MD *md) { return EVP_MD_get_size(md); }

X509 *SSL_get_peer_certificate(const SSL *ssl) { return SSL_get1_peer_certificate(ssl); }

void ERR_put_error(int library, int function, int reason, const char *file, int line) {
    (void)function;
    ERR_new();
    ERR_set_debug(file, line, NULL);
    ERR_set_error(library, reason, NULL);
}
