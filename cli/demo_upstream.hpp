#pragma once
// The built-in demo API: GET /hello, GET and POST /echo, GET /bytes/N (at most 16 MiB). For trying things out, not for load: one
// thread, at most 128 connections, 1 MiB a body, 30 s of waiting.

#include <cstdint>
#include <memory>

#include "conf/settings.hpp"

namespace latchkey::cli {

class demo_server {
  public:
    // Binds and starts its thread. Throws std::runtime_error with address and reason.
    explicit demo_server(conf::endpoint const& at);
    ~demo_server();  // closes everything and ends the thread
    std::uint16_t port() const noexcept;

  private:
    struct impl;
    std::unique_ptr<impl> impl_;
};

}  // namespace latchkey::cli
