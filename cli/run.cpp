#include "cli/run.hpp"

#include <CLI/CLI.hpp>
#include <algorithm>
#include <csignal>
#include <functional>
#include <string_view>
#include <vector>

#include "cli/commands.hpp"
#include "conf/rules.hpp"

namespace latchkey::cli {
namespace {

exit_code exit_of(errc code) {
    switch (code) {
        case errc::invalid_argument: return exit_error;
        case errc::not_found: return exit_not_found;
        case errc::not_allowed: return exit_not_allowed;
        case errc::conflict:
        case errc::busy: return exit_conflict;
        case errc::unavailable: return exit_unreachable;
        case errc::corrupt:
        case errc::newer_schema:
        case errc::io: return exit_error;
    }
    return exit_error;
}

// Everything that flags can set, and what the chosen command does with it.
struct invocation {
    serve_flags serve;
    key_flags keys;
    usage_flags usage;
    common_flags status;
    common_flags reload;
    std::string status_output = "table";
    std::string check_file;
    std::string demo_listen = "127.0.0.1:0";
    std::function<int(streams&)> chosen;
};

// An empty value is a shell variable that was not set, and not the same as none: all keys, or the current folder.
std::string not_empty(std::string const& given) { return given.empty() ? "is empty" : ""; }

void add_common(CLI::App& to, common_flags& f) {
    to.add_option("--data", f.data, "Data directory (keys.db, usage.db, admin.sock)")->type_name("DIR")->check(not_empty);
    to.add_option("--config", f.config, "Settings file")->type_name("FILE")->check(not_empty);
}

void add_output(CLI::App& to, std::string& into) {
    to.add_option("--output", into, "table, json or csv")->check(CLI::IsMember({"table", "json", "csv"}));
}

void add_serve(CLI::App& app, invocation& v) {
    auto* const c = app.add_subcommand("serve", "Run the gateway");
    add_common(*c, v.serve.common);
    c->add_option("--listen", v.serve.listen, "Where clients come in; can be repeated")->type_name("ADDR:PORT")->take_all();
    c->add_option("--tls-listen", v.serve.tls_listen, "Where they come in by TLS; can be repeated")
        ->type_name("ADDR:PORT")
        ->take_all();
    auto* const cert =
        c->add_option("--tls-cert", v.serve.tls_cert, "PEM: the certificate for it, then its issuers")->type_name("FILE");
    auto* const key = c->add_option("--tls-key", v.serve.tls_key, "PEM: the certificate's key")->type_name("FILE");
    cert->needs(key);
    key->needs(cert);
    c->add_option("--admin-listen", v.serve.admin_listen, "/livez, /readyz, /metrics")->type_name("ADDR:PORT");
    c->add_option("--upstream", v.serve.upstream, "One API for every request, in place of the file's [[api]]")->type_name("URL");
    c->add_option("--workers", v.serve.workers, "Threads that serve; 0: one a core")->check(CLI::Range(0U, 256U));
    c->add_flag("--demo", v.serve.demo, "Serve a built-in demo API")->excludes("--upstream");
    c->add_option("--ready-file", v.serve.ready_file, "Written with the bound addresses (JSON) when everything is ready")
        ->type_name("FILE");
    c->callback([&v] { v.chosen = [&v](streams& s) { return serve(v.serve, s); }; });
}

CLI::App* add_key_command(CLI::App& keys, invocation& v, char const* name, char const* help,
                          int (*command)(key_flags const&, streams&)) {
    auto* const c = keys.add_subcommand(name, help);
    add_common(*c, v.keys.common);
    c->callback([&v, command] { v.chosen = [&v, command](streams& s) { return command(v.keys, s); }; });
    return c;
}

void add_keys(CLI::App& app, invocation& v) {
    auto* const keys = app.add_subcommand("keys", "Make, list and revoke keys");
    keys->require_subcommand(1);
    auto& f = v.keys;
    auto* c = add_key_command(*keys, v, "create", "Make a key and show it this once", keys_create);
    auto* const name = c->add_option("--name", f.name, "Who calls: a new application of this name")->check(not_empty);
    auto* const application =
        c->add_option("--application", f.application, "One more key for this application")->type_name("ID")->check(not_empty);
    name->excludes(application);
    c->add_flag("--json", f.json, "One JSON object with id, key, application_id and name");
    c = add_key_command(*keys, v, "list", "All keys, without their secrets", keys_list);
    add_output(*c, f.output);
    c = add_key_command(*keys, v, "show", "One key, without its secret", keys_show);
    c->add_option("id", f.id, "The key's id")->required();
    add_output(*c, f.output);
    for (bool const revoke : {true, false}) {
        c = revoke ? add_key_command(*keys, v, "revoke", "End a key at once; it stays listed", keys_revoke)
                   : add_key_command(*keys, v, "delete", "Remove a key for good", keys_delete);
        c->add_option("id", f.id, "The key's id")->required();
        c->add_flag("--yes", f.yes, "Do not ask");
    }
    c = add_key_command(*keys, v, "import", "Take keys over from CSV with the header name,key", keys_import);
    c->add_option("file", f.id, "The file, or - for standard input")->required();
    c->add_flag("--json", f.json, "One JSON object");
}

void add_usage(CLI::App& app, invocation& v) {
    auto* const usage = app.add_subcommand("usage", "The account of requests");
    usage->require_subcommand(1);
    auto* const c = usage->add_subcommand("export", "Every request as CSV");
    add_common(*c, v.usage.common);
    c->add_option("--from", v.usage.from, "First moment (2026-08-22 or 2026-08-22T10:11:12Z)")
        ->type_name("TIME")
        ->check(not_empty);
    c->add_option("--to", v.usage.to, "First moment that is left out")->type_name("TIME")->check(not_empty);
    c->add_option("--key", v.usage.key, "Only this key")->type_name("ID")->check(not_empty);
    c->add_option("--application", v.usage.application, "Only this application")->type_name("ID")->check(not_empty);
    c->add_option("--output", v.usage.output, "Write here, whole or not at all, instead of stdout")
        ->type_name("FILE")
        ->check(not_empty);
    c->callback([&v] { v.chosen = [&v](streams& s) { return usage_export(v.usage, s); }; });
}

void add_others(CLI::App& app, invocation& v) {
    auto* c = app.add_subcommand("check", "Check a settings file without starting anything");
    auto* const file = c->add_option("file", v.check_file, "The settings file")->check(not_empty);
    c->add_option("--config", v.check_file, "The same, as for the other commands")
        ->type_name("FILE")
        ->check(not_empty)
        ->excludes(file);
    c->callback([&v] {
        if (v.check_file.empty()) throw CLI::RequiredError("a settings file");
        v.chosen = [&v](streams& s) { return check(v.check_file, s); };
    });
    c = app.add_subcommand("status", "What the running gateway says of itself");
    add_common(*c, v.status);
    c->add_option("--output", v.status_output, "table or json")->check(CLI::IsMember({"table", "json"}));
    c->callback([&v] { v.chosen = [&v](streams& s) { return status(v.status, v.status_output, s); }; });
    c = app.add_subcommand("reload",
                           "Restart the running gateway in place: program and settings as they are now, and no request is lost");
    add_common(*c, v.reload);
    c->callback([&v] { v.chosen = [&v](streams& s) { return reload(v.reload, s); }; });
    c = app.add_subcommand("demo-upstream", "A small API to try the gateway on: /hello, /echo, /bytes/N");
    c->add_option("--listen", v.demo_listen, "Where")->type_name("ADDR:PORT");
    c->callback([&v] { v.chosen = [&v](streams& s) { return demo_upstream(v.demo_listen, s); }; });
    c = app.add_subcommand("version", "The version");
    c->callback([&v] {
        v.chosen = [](streams& s) {
            s.out << "latchkey " LATCHKEY_VERSION "\n";
            return static_cast<int>(exit_ok);
        };
    });
}

// CLI11 names a mistyped option behind its value, and as if only the value were wrong.
void check_options(CLI::App const& command, int argc, char const* const* argv) {
    for (int i = 0; i < argc && std::string_view(argv[i]) != "--"; ++i) {
        std::string_view const word = argv[i];
        if (!word.starts_with("--")) continue;
        std::string const name(word.substr(0, word.find('=')));
        if (auto const* const known = command.get_option_no_throw(name); known != nullptr) {
            if (name.size() == word.size()) i += known->get_expected_min();  // its value may begin with a dash
            continue;
        }
        std::vector<std::string> names;
        for (auto const* const o : command.get_options())
            for (auto const& n : o->get_lnames()) names.push_back("--" + n);
        auto const near = conf::nearest(name, names);
        throw CLI::ExtrasError("latchkey", {name + (near ? "; did you mean '" + *near + "'?" : "")});
    }
}

// CLI11 calls a mistyped command a missing one. Words that come before the first flag are commands where there are any to choose.
void check_words(CLI::App const& app, int argc, char const* const* argv) {
    CLI::App const* at = &app;
    std::string path;
    for (int i = 1; i < argc && !std::string_view(argv[i]).starts_with('-'); ++i) {
        auto const below = at->get_subcommands([](CLI::App const*) { return true; });
        if (below.empty()) break;
        CLI::App const* next = nullptr;
        std::vector<std::string> names;
        for (auto const* const c : below) {
            names.push_back(c->get_name());
            if (names.back() == argv[i]) next = c;
        }
        if (next == nullptr) {
            auto const near = conf::nearest(argv[i], names);
            throw CLI::ExtrasError("latchkey", {path + argv[i] + (near ? "; did you mean '" + path + *near + "'?" : "")});
        }
        path += next->get_name() + " ";
        at = next;
    }
    if (at->get_subcommands([](CLI::App const*) { return true; }).empty()) check_options(*at, argc - 1, argv + 1);
}

// CLI11 takes the next word, even a flag, for the value of `--data=`.
void check_values(int argc, char const* const* argv) {
    for (std::string_view const flag : {"--data=", "--config="})
        if (std::find(argv + 1, argv + argc, flag) != argv + argc)
            throw CLI::ValidationError(std::string(flag.substr(0, flag.size() - 1)), "is empty");
}

// What a command says it did must have arrived; who reads no further has what he wanted.
void check_written(streams& s) {
    s.out.flush();
    if (s.out.good() || (s.reader_is_gone != nullptr && s.reader_is_gone())) return;
    throw failure(exit_error, "standard output could not be written to its end: is its disk full, or is it closed?");
}

int guarded(std::function<int(streams&)> const& command, streams& s) {
    try {
        int const code = command(s);
        check_written(s);
        return code;
    } catch (failure const& e) {
        s.err << "latchkey: " << e.what() << "\n";
        return e.code;
    } catch (std::exception const& e) {
        s.err << "latchkey: " << e.what() << "\n";
        return exit_error;
    }
}

}  // namespace

failure::failure(error const& e) : std::runtime_error(e.message), code(exit_of(e.code)) {}

int run(int argc, char const* const* argv, streams s) {
    std::signal(SIGPIPE, SIG_IGN);  // a reader that goes away is an error of write(), and ends an export quietly
    CLI::App app("An API-key gateway: lets requests through only with a valid X-API-KEY and keeps an account of them.",
                 "latchkey");
    app.set_version_flag("--version", "latchkey " LATCHKEY_VERSION);
    app.require_subcommand(1);
    app.footer("Exit codes: 0 ok, 1 error, 2 usage, 3 not found, 4 not allowed, 5 conflict, 6 gateway unreachable, 7 findings.");
    invocation v;
    v.serve.arguments.assign(argv, argv + argc);
    v.serve.common.serves = true;
    add_serve(app, v);
    add_keys(app, v);
    add_usage(app, v);
    add_others(app, v);
    try {
        check_words(app, argc, argv);
        check_values(argc, argv);
        app.parse(argc, argv);
        if (auto const* const keys = app.get_subcommand("keys"); keys->parsed())
            if (auto const* const create = keys->get_subcommand("create");
                create->parsed() && create->count("--name") == 0 && v.keys.application.empty())
                throw CLI::RequiredError("--name (who calls) or --application");
    } catch (CLI::ParseError const& e) {
        if (app.exit(e, s.out, s.err) != 0) return exit_usage;
        v.chosen = [](streams&) { return static_cast<int>(exit_ok); };  // help or version was asked for
    }
    return guarded(v.chosen, s);
}

}  // namespace latchkey::cli
