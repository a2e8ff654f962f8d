#pragma once
// The commands, as run() hands them over after the flags were read. Each returns an exit code or throws `failure`.

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "cli/run.hpp"
#include "conf/settings.hpp"

namespace latchkey::cli {

// --data and --config, which every command takes. The data directory is --data, else the file's, else the default.
struct common_flags {
    std::string data;
    std::string config;
    bool serves = false;  // `serve`, which needs all of the file
};

// The file's settings (or defaults) with --data on top. Findings go to stderr and end the command (exit 1; 3 where there is
// no such file); that there is no api is one where it `needs_api`.
conf::settings settings_of(common_flags const&, streams&, bool needs_api = false);

struct serve_flags {
    common_flags common;
    std::vector<std::string> listen;
    std::vector<std::string> tls_listen;
    std::string tls_cert;
    std::string tls_key;
    std::string admin_listen;
    std::string upstream;
    std::optional<std::uint32_t> workers;
    bool demo = false;
    std::string ready_file;
    std::vector<std::string> arguments;  // as the program was called
};

struct key_flags {
    common_flags common;
    std::string name;
    std::string application;
    std::string id;  // or the file to import
    std::string output = "table";
    bool json = false;
    bool yes = false;
};

struct usage_flags {
    common_flags common;
    std::string from, to, key, application;
    std::string output;  // empty or "-": stdout
};

int serve(serve_flags const&, streams&);
int demo_upstream(std::string const& listen, streams&);
int check(std::string const& file, streams&);
int status(common_flags const&, std::string const& output, streams&);
int reload(common_flags const&, streams&);
int keys_create(key_flags const&, streams&);
int keys_list(key_flags const&, streams&);
int keys_show(key_flags const&, streams&);
int keys_revoke(key_flags const&, streams&);
int keys_delete(key_flags const&, streams&);
int keys_import(key_flags const&, streams&);
int usage_export(usage_flags const&, streams&);

}  // namespace latchkey::cli
