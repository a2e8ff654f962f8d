#pragma once
// The two listeners beside the proxy: the admin API on a Unix socket for the commands of this machine, and health on TCP for
// probes (plain HTTP: /livez, /readyz, /metrics and nothing else). One thread with a context of its own speaks HTTP; a few
// threads make the calls that block.
//
// Who may use the admin socket: its file has mode 0600, and every peer's credentials (SO_PEERCRED) must be our own user's or
// root's. There is no other sign-in.
//
// Threads: construct, start and stop from one thread; the referenced objects outlive the server and are called from its threads.

#include <sys/types.h>

#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>

#include "conf/settings.hpp"
#include "keystore/key_directory.hpp"
#include "portal/gateway_view.hpp"
#include "usage/recorder.hpp"

namespace latchkey::portal {

// Which file a socket is bound to.
struct socket_file {
    dev_t device = 0;
    ino_t inode = 0;
};
struct inherited_socket {
    int descriptor = -1;
    socket_file file;
};

struct admin_options {
    std::string socket_path;                          // of any length; a file that is no socket is never replaced
    conf::endpoint health;                            // a literal address; port 0: the kernel chooses
    std::uint64_t import_bytes_max = 512ULL << 20;    // body of an import, held in memory, one at a time; more is 413
    std::uint64_t body_bytes_max = 64ULL << 10;       // every other body; more is 413
    unsigned connections_max = 64;                    // of each listener; more are closed at once
    std::chrono::milliseconds idle_timeout{10'000};   // without a whole request head; then closed
    std::chrono::milliseconds stall_timeout{30'000};  // no byte of a body, or a reply that is not taken; then closed
    unsigned calls_max = 4;                           // admin calls at one time; more wait
    inherited_socket admin_before;                    // of the process before; descriptor -1: none
    int health_before = -1;                           // likewise
    conf::endpoint health_before_at;                  // as its settings said
    reload_call reload;                               // POST /v1/reload; may block for long
    flush_call flush_elsewhere;                       // of a process that still drains; with POST /v1/usage/flush
};

class admin_server {
  public:
    admin_server(admin_options, keystore::key_directory&, usage::recorder&, gateway_view);
    ~admin_server();  // stop()

    // Binds the health address or takes it over; nobody can wait at a new one before listen(). Throw as start().
    void bind();
    void listen();

    // bind() and listen() where they were not called, binds the admin socket and starts the threads. The caller holds the data
    // directory's lock, so a socket file that nobody answers on was left by a killed process and is replaced. Throws
    // std::runtime_error with the remedy: somebody answers on the socket, the path is not a socket, the health address is taken.
    void start();

    // --- for a restart in place
    // Answers no further admin call: clients wait in the queue of the socket. True when all that had come have their answer, but
    // for calls of reload; false where that takes longer than `patience`. resume() goes on.
    bool pause(std::chrono::milliseconds patience);
    void resume();
    // The file of an inherited socket is ours to remove from now on.
    void own_socket_file();
    // Another process accepts on our sockets now, and owns the socket file: lets go of them, and returns when no
    // connection is accepted any more. Calls that run, and a client that is new, get their answer. stop() follows.
    void hand_over();
    inherited_socket admin_listener() const noexcept;  // as pause() to hand_over() leave it
    int health_listener() const noexcept;

    // Ends idle connections, lets running calls answer (at most 10 s), removes the socket file. Idempotent.
    void stop();

    // The port really bound.
    std::uint16_t health_port() const noexcept;

  private:
    struct impl;
    std::unique_ptr<impl> impl_;
};

}  // namespace latchkey::portal
