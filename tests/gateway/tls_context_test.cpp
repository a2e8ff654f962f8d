#include "gateway/tls_context.hpp"

#include <filesystem>
#include <fstream>

#include "tests/base/scratch.hpp"
#include "tests/catch.hpp"
#include "tests/gateway/certificates.hpp"

using namespace latchkey;
using namespace latchkey::gateway;
using namespace latchkey::gateway::test;

namespace {

struct fixture {
    testing::scratch_dir folder;
    key_ptr key = make_ec_key();
    pem good = make_certificate(key.get(), "localhost");
    std::vector<conf::finding> mistakes, warnings;

    std::string file(char const* name, std::string const& text) {
        auto const path = folder.file(name);
        std::ofstream(path) << text;
        std::filesystem::permissions(path, std::filesystem::perms::owner_read | std::filesystem::perms::owner_write);
        return path;
    }
    std::unique_ptr<tls_context> load(std::string const& chain, std::string const& secret) {
        conf::tls_settings s;
        s.certificates = {{chain, secret}};
        mistakes.clear();
        warnings.clear();
        return tls_context::load(s, mistakes, warnings);
    }
    // What is wrong with a pair of texts.
    std::string mistake(std::string const& chain, std::string const& secret) {
        CHECK_FALSE(load(file("chain", chain), file("key", secret)));
        REQUIRE(mistakes.size() == 1);
        auto const text = conf::to_text(mistakes[0]);
        return text.substr(folder.file("").size());
    }
};

bool has(std::string const& text, std::string const& part) { return text.find(part) != std::string::npos; }

}  // namespace

TEST_CASE("a certificate with its key loads without a word") {
    fixture f;
    CHECK(f.load(f.file("chain", f.good.chain), f.file("key", f.good.key)));
    CHECK(f.mistakes.empty());
    CHECK(f.warnings.empty());
}

TEST_CASE("a file that is missing, a folder or empty is named with its reason") {
    fixture f;
    CHECK_FALSE(f.load(f.folder.file("none"), f.folder.file("nothing")));
    REQUIRE(f.mistakes.size() == 2);
    CHECK(f.mistakes[0].file == f.folder.file("none"));
    CHECK(f.mistakes[0].what == "cannot be read: No such file or directory");
    CHECK(f.mistakes[0].remedy == "check `chain` and the file's permissions");
    CHECK(f.mistakes[1].remedy == "check `key` and the file's permissions");
    CHECK_FALSE(f.load(f.folder.file(""), f.file("key", f.good.key)));
    REQUIRE(f.mistakes.size() == 1);
    CHECK(f.mistakes[0].what == "cannot be read: Is a directory");
    CHECK(has(f.mistake("", f.good.key), "chain: has no certificate in PEM form"));
    CHECK(has(f.mistake(f.good.chain, ""), "key: has no private key in PEM form"));
}

TEST_CASE("what is not PEM is told so, with the command that makes it PEM") {
    fixture f;
    CHECK(has(f.mistake("\x30\x82\x01", f.good.key), "has no certificate in PEM form; write it as PEM (openssl x509"));
    CHECK(has(f.mistake(f.good.chain, "\x30\x82\x01"), "has no private key in PEM form; write it as PEM (openssl pkey"));
    auto damaged = f.good.chain;
    damaged[100] = '!';
    CHECK(has(f.mistake(damaged, f.good.key), "certificate 1 in it is damaged"));
    CHECK(has(f.mistake(f.good.chain + damaged, f.good.key), "certificate 2 in it is damaged"));
    auto broken = f.good.key;
    broken[60] = '!';
    CHECK(has(f.mistake(f.good.chain, broken), "the private key in it cannot be read"));
}

TEST_CASE("chain and key that are swapped are told so") {
    fixture f;
    CHECK_FALSE(f.load(f.file("chain", f.good.key), f.file("key", f.good.chain)));
    REQUIRE(f.mistakes.size() == 2);
    CHECK(has(f.mistakes[0].remedy, "are the two swapped?"));
}

TEST_CASE("an encrypted key is told so, with the command that decrypts it") {
    fixture f;
    auto const text = f.mistake(f.good.chain, key_text(f.key.get(), "secret"));
    CHECK(has(text, "key: is encrypted"));
    CHECK(has(text, "openssl pkey -in"));
}

TEST_CASE("a key of another certificate is told so") {
    fixture f;
    auto const other = make_ec_key();
    CHECK(has(f.mistake(f.good.chain, key_text(other.get())), "is not the key of the first certificate in "));
}

TEST_CASE("a key that is too weak for clients is told so") {
    fixture f;
    key_ptr const weak(EVP_RSA_gen(1024));
    auto const text = f.mistake(make_certificate(weak.get(), "localhost").chain, key_text(weak.get()));
    CHECK(has(text, "cannot be used: ee key too small; make a certificate of EC P-256"));
}

TEST_CASE("dates that clients will not accept are warned of, and do not stop the start") {
    fixture f;
    auto const old = make_certificate(f.key.get(), "localhost", -7200, -3600);
    CHECK(f.load(f.file("chain", old.chain), f.file("key", old.key)));
    REQUIRE(f.warnings.size() == 1);
    CHECK(f.warnings[0].what == "has expired: clients will not accept it");
    auto const early = make_certificate(f.key.get(), "localhost", 3600, 7200);
    CHECK(f.load(f.file("chain", early.chain), f.file("key", early.key)));
    REQUIRE(f.warnings.size() == 1);
    CHECK(f.warnings[0].what == "is not valid yet: clients will not accept it");
}

TEST_CASE("a key that everyone may read is warned of") {
    fixture f;
    auto const secret = f.file("key", f.good.key);
    std::filesystem::permissions(secret, std::filesystem::perms::others_read, std::filesystem::perm_options::add);
    CHECK(f.load(f.file("chain", f.good.chain), secret));
    REQUIRE(f.warnings.size() == 1);
    CHECK(f.warnings[0].file == secret);
    CHECK(has(f.warnings[0].remedy, "chmod o-r"));
}

TEST_CASE("a chain in the wrong order is warned of") {
    fixture f;
    auto const other = make_ec_key();
    auto const stranger = make_certificate(other.get(), "stranger");
    CHECK(f.load(f.file("chain", f.good.chain + stranger.chain), f.file("key", f.good.key)));
    REQUIRE(f.warnings.size() == 1);
    CHECK(has(f.warnings[0].what, "did not issue the first"));
}

TEST_CASE("every mistake is found, not only the first certificate's") {
    fixture f;
    conf::tls_settings s;
    s.certificates = {{f.folder.file("a"), f.file("key", f.good.key)}, {f.folder.file("b"), f.file("key2", f.good.key)}};
    CHECK_FALSE(tls_context::load(s, f.mistakes, f.warnings));
    CHECK(f.mistakes.size() == 2);
}
