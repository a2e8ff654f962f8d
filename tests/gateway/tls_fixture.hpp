#pragma once
// A stream that speaks TLS, over a socketpair. The other side is OpenSSL's client in memory, so that the test decides which bytes
// arrive when.

#include <fcntl.h>

#include <algorithm>
#include <deque>
#include <string>
#include <vector>

#include "gateway/pieces.hpp"
#include "gateway/stream.hpp"
#include "gateway/task.hpp"
#include "gateway/tls_session.hpp"
#include "tests/base/scratch.hpp"
#include "tests/gateway/certificates.hpp"
#include "tests/gateway/loop.hpp"

namespace latchkey::gateway::test::tls {

struct seen {
    bool done = false;
    error_code ec;
    std::string text;
};

inline detached shake(stream& s, tls_context const& c, seen& out) {
    do {
        out.ec = co_await s.handshake(c);
        if (out.ec != asio::error::would_block) break;
        out.ec = co_await s.writable();
    } while (!out.ec);
    out.done = true;
}
inline detached read_next(stream& s, buffer_pool& pool, lease& into, seen& out) {
    io_result const r = co_await s.read_next(pool, into);
    out.ec = r.ec;
    out.text.assign(r.n > 0 ? into.data() : "", r.n);
    out.done = true;
}
inline detached read_all(stream& s, std::size_t size, seen& out) {
    std::vector<char> memory(64 * 1024);
    while (out.text.size() < size) {
        io_result const r = co_await s.read_more(memory.data(), std::min(memory.size(), size - out.text.size()));
        out.ec = r.ec;
        if (r.ec || r.n == 0) break;
        out.text.append(memory.data(), r.n);
    }
    out.done = true;
}
// All pieces, as a session sends them: what is left is tried again.
inline detached send_all(stream& s, std::vector<std::string> const& texts, seen& out) {
    for (std::size_t at = 0; at < texts.size(); at += 6) {
        pieces p;
        for (std::size_t i = at; i < std::min(at + 6, texts.size()); ++i) p.add(texts[i]);
        while (p.left() > 0) {
            io_result const r = s.write_now(p.rest());
            p.advance(r.n);
            if (r.ec && r.ec != asio::error::would_block) {
                out.ec = r.ec;
                co_return;
            }
            if (p.left() > 0) out.ec = co_await s.writable();
        }
    }
    out.done = true;
}

inline std::string noise(std::size_t size) {
    std::string out(size, '\0');
    std::uint32_t x = 2463534242U;
    for (char& c : out) {
        x ^= x << 13U;
        x ^= x >> 17U;
        x ^= x << 5U;
        c = static_cast<char>(x);
    }
    return out;
}

struct fixture {
    testing::scratch_dir folder;
    std::unique_ptr<tls_context> rules = load();
    loop l;
    pair p;
    buffer_pool pool{4096, 65536, 2};
    stream s{l.poller};
    lease into;
    seen got;
    tls_peer peer;

    explicit fixture(int version = TLS1_3_VERSION, char const* groups = nullptr) : peer(version, groups) {
        REQUIRE_FALSE(s.open(p.ours));
    }
    ~fixture() {
        s.close();
        l.until([&] { return !s.read_pending(); });
        l.turn();
    }
    std::unique_ptr<tls_context> load() const {
        auto const made = make_certificate(make_ec_key().get(), "localhost");
        testing::write_file(folder.file("c"), made.chain);
        testing::write_file(folder.file("k"), made.key);
        conf::tls_settings settings;
        settings.certificates = {{folder.file("c"), folder.file("k")}};
        std::vector<conf::finding> mistakes;
        std::vector<conf::finding> warnings;
        auto out = tls_context::load(settings, mistakes, warnings);
        REQUIRE(out);
        return out;
    }
    void to_server(std::string_view bytes) {
        while (!bytes.empty()) {
            ssize_t const n = ::send(p.theirs, bytes.data(), bytes.size(), MSG_NOSIGNAL);
            if (n > 0) bytes.remove_prefix(static_cast<std::size_t>(n));
            l.turn();
        }
    }
    // What the server has said, and nothing if it is silent. At most `most` bytes.
    std::string from_server(std::size_t most = SIZE_MAX) {
        std::string out;
        std::array<char, 4096> block;
        while (out.size() < most) {
            ssize_t const n = ::recv(p.theirs, block.data(), std::min(block.size(), most - out.size()), MSG_DONTWAIT);
            if (n <= 0) break;
            out.append(block.data(), static_cast<std::size_t>(n));
        }
        return out;
    }
    // Of that, what the client reads: plain text.
    std::string taken(std::size_t most = SIZE_MAX) {
        peer.hear(from_server(most));
        return peer.take();
    }
    // A handshake, and the ticket behind it. `step`: bytes that arrive at one time.
    void connect(std::size_t step = SIZE_MAX) {
        shake(s, *rules, got);
        REQUIRE(l.until([&] {
            peer.shake_hands();
            auto const said = peer.said();
            for (std::size_t at = 0; at < said.size(); at += std::min(step, said.size() - at)) {
                to_server(std::string_view(said).substr(at, step));
                if (step == 1) l.turn();
            }
            l.turn();
            peer.hear(from_server());
            return got.done && SSL_is_init_finished(peer.ssl) == 1;
        }));
        REQUIRE_FALSE(got.ec);
        REQUIRE(s.tls());
        got = {};
    }
    std::string exchange(std::string_view text) {  // the client's records that carry a text
        peer.say(text);
        return peer.said();
    }
    seen next() {
        got = {};
        into.reset();
        read_next(s, pool, into, got);
        l.turn();
        return got;
    }
};

}  // namespace latchkey::gateway::test::tls
