// check, status, reload, and where every command's settings come from.

#include <fmt/format.h>

#include <boost/json.hpp>
#include <filesystem>
#include <thread>
#include <utility>

#include "cli/commands.hpp"
#include "cli/gateway_client.hpp"
#include "cli/key_access.hpp"
#include "conf/load.hpp"
#include "gateway/tls_context.hpp"

namespace latchkey::cli {
namespace {

void print(boost::json::object const& o, std::string const& before, std::ostream& out) {
    for (auto const& [key, value] : o) {
        auto const name = before + std::string(std::string_view(key));
        if (value.is_object())
            print(value.get_object(), name + ".", out);
        else if (value.is_string())
            out << fmt::format("{:38} {}\n", name, std::string_view(value.get_string()));
        else if (value.is_double())
            out << fmt::format("{:38} {}\n", name, value.get_double());
        else
            out << fmt::format("{:38} {}\n", name, boost::json::serialize(value));
    }
}

// A command needs no more of the file than the data directory. It is not taken from a file with mistakes, for one of them may be
// in its name, and `keys create` would begin a new one; but the person can be told what to write.
std::string way_on(common_flags const& f, std::string const& data_dir, std::string const& by_default) {
    std::error_code ec;
    if (!std::filesystem::exists(f.config, ec)) return "nothing was done";  // it lies where nobody may look
    if (f.serves) return fmt::format("{} has mistakes; correct them first", f.config);
    auto const said_nothing = (std::filesystem::path(f.config).parent_path() / by_default).string();
    auto const folder = f.data.empty() ? data_dir : f.data;
    return fmt::format(
        "{} has mistakes; correct them, or give the command without --config and with the gateway's data directory: --data {}",
        f.config, folder.empty() || folder == said_nothing ? "DIR" : folder);
}

void must_exist(std::string const& file) {
    std::error_code ec;
    if (std::filesystem::status(file, ec).type() == std::filesystem::file_type::not_found)
        throw failure(exit_not_found, fmt::format("there is no file {}", file));
}

}  // namespace

conf::settings settings_of(common_flags const& f, streams& s, bool needs_api) {
    conf::settings out;
    if (!f.config.empty()) {
        must_exist(f.config);
        auto loaded = conf::load_file(f.config);
        if (!needs_api) std::erase_if(loaded.findings, [](auto const& finding) { return finding.what == conf::no_api; });
        for (auto const& finding : loaded.findings) s.err << conf::to_text(finding) << "\n";
        if (!loaded.findings.empty()) throw failure(exit_error, way_on(f, loaded.value.data_dir, out.data_dir));
        out = std::move(loaded.value);
    }
    if (!f.data.empty()) out.data_dir = f.data;
    return out;
}

int check(std::string const& file, streams& s) {
    must_exist(file);
    auto const loaded = conf::load_file(file);
    for (auto const& finding : loaded.findings) s.err << conf::to_text(finding) << "\n";
    if (!loaded.findings.empty()) return exit_findings;
    std::vector<conf::finding> mistakes;
    std::vector<conf::finding> warnings;
    if (!loaded.value.tls.certificates.empty()) gateway::tls_context::load(loaded.value.tls, mistakes, warnings);
    for (auto const* const list : {&mistakes, &warnings})
        for (auto const& finding : *list) s.err << (list == &warnings ? "warning: " : "") << conf::to_text(finding) << "\n";
    if (!mistakes.empty()) return exit_findings;
    s.out << fmt::format("{}: ok\n", file);
    return exit_ok;
}

int status(common_flags const& f, std::string const& output, streams& s) {
    auto const settings = settings_of(f, s);
    data_paths const at(settings.data_dir);
    if (lock_or_gateway(at))
        throw failure(exit_unreachable, fmt::format("no gateway runs on {}; start one with `latchkey serve`", at.dir));
    auto const said = gateway_client(at.admin_socket).call(boost::beast::http::verb::get, "/v1/status");
    if (!said) throw failure(said.error());
    if (output == "json")
        s.out << boost::json::serialize(*said) << "\n";
    else
        print(said->as_object(), "", s.out);
    return exit_ok;
}

// One reload at a time, and none while the process before still drains: until then the gateway says `busy`, and it is asked
// again.
int reload(common_flags const& f, streams& s) {
    constexpr auto answer_within = std::chrono::minutes(11);  // `takeover` is 10 at most
    constexpr auto pause = std::chrono::milliseconds(50);
    auto const settings = settings_of(f, s);
    data_paths const at(settings.data_dir);
    for (bool told = false;;) {
        if (lock_or_gateway(at))
            throw failure(exit_unreachable, fmt::format("no gateway runs on {}; start one with `latchkey serve`", at.dir));
        auto const said = gateway_client(at.admin_socket, answer_within).call(boost::beast::http::verb::post, "/v1/reload");
        if (said) {
            s.out << fmt::format("process {} serves\n", said->at("pid").to_number<std::int64_t>());
            return exit_ok;
        }
        if (said.error().code != errc::busy) throw failure(exit_error, said.error().message);
        if (!std::exchange(told, true)) s.err << "latchkey: waiting: " << said.error().message << "\n" << std::flush;
        std::this_thread::sleep_for(pause);
    }
}

}  // namespace latchkey::cli
