// The checks that need the whole picture.

#include <fmt/format.h>

#include <algorithm>
#include <map>
#include <thread>
#include <utility>

#include "conf/load.hpp"
#include "conf/rules.hpp"
#include "conf/whole.hpp"

namespace latchkey::conf {
namespace {

std::string shown_host(std::string const& host) { return host.empty() ? "any host" : fmt::format("host '{}'", host); }

class picture {
  public:
    picture(settings const& all, std::string const& file, places const& at) : all_(all), file_(file), at_(at) {}

    std::vector<finding> look() {
        listeners();
        tls();
        if (all_.limit.target_bytes > all_.limit.head_bytes)
            say(at_.limits,
                fmt::format("limits: target_bytes {} is more than head_bytes {}", all_.limit.target_bytes, all_.limit.head_bytes),
                "raise head_bytes or lower target_bytes");
        memory();
        if (all_.data_dir.empty()) say(at_.data_dir, "data_dir is empty", "name a folder, like \"latchkey-data\"");
        if (all_.apis.empty())
            say(place{}, std::string(no_api),
                "add an [[api]] with upstreams = [\"http://127.0.0.1:9000\"], or give --upstream URL");
        for (std::size_t i = 0; i < all_.apis.size(); ++i) api_at(i);
        return std::move(findings_);
    }

  private:
    void say(place at, std::string what, std::string remedy) {
        findings_.push_back({file_, at.line, at.column, std::move(what), std::move(remedy)});
    }

    void say(std::size_t api_index, std::string what, std::string remedy) {
        say(api_index < at_.apis.size() ? at_.apis[api_index] : place{}, std::move(what), std::move(remedy));
    }

    void memory() {
        auto const count = worker_count(all_);
        auto const least = count * memory_per_worker_min;
        if (all_.limit.memory >= least) return;
        say(at_.memory,
            fmt::format("limits.memory: {} MiB are too few for {} workers{}", all_.limit.memory >> 20U, count,
                        all_.workers == 0 ? " (one a core)" : ""),
            fmt::format("write \"{}MiB\" or more, or set fewer workers", least >> 20U));
    }

    void listeners() {
        if (all_.listen.empty() && all_.tls.listen.empty())
            say(at_.listen, "nothing to listen on", "give `listen` at least one address, like \"127.0.0.1:8080\"");
        std::map<std::pair<std::string, std::uint16_t>, std::string_view> seen;
        auto const first = [&](endpoint const& at, std::string_view name) {  // who has it already; empty: nobody
            if (at.port == 0) return std::string_view{};
            auto const [there, fresh] = seen.emplace(std::pair{at.host, at.port}, name);
            return fresh ? std::string_view{} : there->second;
        };
        auto const list = [&](std::vector<endpoint> const& all, std::string_view name, place where) {
            for (auto const& at : all) {
                auto const by = first(at, name);
                if (by == name)
                    say(where, fmt::format("`{}` has port {} of {} twice", name, at.port, at.host), "remove one of the two");
                else if (!by.empty())
                    say(where, fmt::format("`{}` has port {} of {}, which `{}` has too", name, at.port, at.host, by),
                        "a port speaks TLS or it does not: give the two different ports");
            }
        };
        list(all_.listen, "listen", at_.listen);
        list(all_.tls.listen, "tls.listen", at_.tls_listen);
        if (auto const by = first(all_.admin_listen, "admin_listen"); !by.empty())
            say(at_.admin_listen,
                fmt::format("admin_listen is port {} of {}, which `{}` has too", all_.admin_listen.port, all_.admin_listen.host,
                            by),
                "give the two different ports");
    }

    void tls() {
        auto const& t = all_.tls;
        if (!t.listen.empty() && t.certificates.empty())
            say(at_.tls_listen, "`tls.listen` has no certificate to show",
                "add [[tls.certificate]] with chain = \"fullchain.pem\" and key = \"privkey.pem\"");
        if (t.listen.empty() && !t.certificates.empty())
            say(at_.tls, "there is a certificate, but nothing listens with it",
                "give `listen` in [tls] an address, like \":8443\", or remove the certificate");
        for (auto const& c : t.certificates)
            if (c.chain.empty() || c.key.empty())
                say(at_.tls, fmt::format("a certificate has no {}", c.chain.empty() ? "`chain`" : "`key`"),
                    "give each [[tls.certificate]] both, as names of PEM files");
    }

    void api_at(std::size_t i) {
        auto const& a = all_.apis[i];
        if (auto p = api_name_problem(a.name)) say(i, std::move(p->what), std::move(p->remedy));
        if (!names_.emplace(a.name, i).second)
            say(i, fmt::format("two apis are named '{}'", a.name), "give each api a name of its own");
        if (a.upstreams.empty())
            say(i, fmt::format("api '{}' has no upstream", a.name), "add upstreams = [\"http://127.0.0.1:9000\"]");
        if (a.strip_prefix && a.path_prefixes.empty())
            say(i, fmt::format("api '{}' strips its prefix but has none", a.name), "add path_prefixes or remove strip_prefix");
        for (auto const& host : a.hosts.empty() ? std::vector<std::string>{""} : a.hosts)
            for (auto const& prefix : a.path_prefixes.empty() ? std::vector<std::string>{"/"} : a.path_prefixes)
                route(i, host, prefix);
    }

    void route(std::size_t i, std::string const& host, std::string const& prefix) {
        auto const [at, fresh] = routes_.emplace(std::pair{host, prefix}, i);
        if (fresh) return;
        say(i,
            fmt::format("apis '{}' and '{}' both serve path '{}' of {}", all_.apis[at->second].name, all_.apis[i].name, prefix,
                        shown_host(host)),
            "give them different hosts or path_prefixes");
    }

    settings const& all_;
    std::string const& file_;
    places const& at_;
    std::vector<finding> findings_;
    std::map<std::string, std::size_t> names_;
    std::map<std::pair<std::string, std::string>, std::size_t> routes_;
};

}  // namespace

std::vector<finding> check_whole(settings const& all, std::string const& file, places const& at) {
    return picture(all, file, at).look();
}

unsigned worker_count(settings const& s) {
    return s.workers != 0 ? s.workers : std::max(1U, std::thread::hardware_concurrency());
}

void settle(settings& s) {
    if (!s.limit.memory_said) s.limit.memory = std::max(s.limit.memory, worker_count(s) * memory_per_worker_min);
}

std::vector<finding> check(settings const& all) { return check_whole(all, {}, {}); }

}  // namespace latchkey::conf
