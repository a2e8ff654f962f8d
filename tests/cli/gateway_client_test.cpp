#include "cli/gateway_client.hpp"

#include <boost/asio.hpp>
#include <filesystem>
#include <string>

#include "tests/base/scratch.hpp"
#include "tests/catch.hpp"

namespace asio = boost::asio;
using latchkey::cli::gateway_client;
using verb = boost::beast::http::verb;

TEST_CASE("who does not answer a change may not have made it, and that is said, but not of a question") {
    latchkey::testing::scratch_dir const folder;
    auto const at = folder.file("admin.sock");
    asio::io_context io;
    asio::local::stream_protocol::acceptor const stuck(io, at);  // the kernel takes connections, and nobody reads them
    gateway_client const client(at, std::chrono::milliseconds(50));
    auto const change = client.call(verb::post, "/v1/keys/key_x/revoke");
    REQUIRE_FALSE(change);
    CHECK(change.error().code == latchkey::errc::unavailable);
    CHECK(change.error().message.find("may not have done what it was told") != std::string::npos);
    auto const question = client.call(verb::get, "/v1/keys");
    REQUIRE_FALSE(question);
    CHECK(question.error().code == latchkey::errc::unavailable);
    CHECK(question.error().message.find("may not") == std::string::npos);
}

TEST_CASE("where nobody listens nothing was told to anybody") {
    latchkey::testing::scratch_dir const folder;
    auto const change = gateway_client(folder.file("admin.sock")).call(verb::post, "/v1/keys");
    REQUIRE_FALSE(change);
    CHECK(change.error().message.find("may not") == std::string::npos);
}
