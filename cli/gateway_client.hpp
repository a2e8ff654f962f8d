#pragma once
// A call to a running gateway over its admin socket. One thread; each call is one connection and blocks with a bound.

#include <boost/beast/http/verb.hpp>
#include <boost/json/value.hpp>
#include <chrono>
#include <string>

#include "base/error.hpp"

namespace latchkey::cli {

class gateway_client {
  public:
    explicit gateway_client(std::string socket_path, std::chrono::milliseconds answer_within = std::chrono::seconds(30))
        : socket_path_(std::move(socket_path)), answer_within_(answer_within) {}

    // Somebody accepts connections there.
    bool listening() const;

    // The reply's JSON. Error: what the gateway said, by its `code`; `unavailable` where it does not answer in time.
    result<boost::json::value> call(boost::beast::http::verb, std::string const& target, std::string body = {},
                                    std::string const& content_type = "application/json") const;

  private:
    std::string socket_path_;
    std::chrono::milliseconds answer_within_;
};

}  // namespace latchkey::cli
