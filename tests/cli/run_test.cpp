#include "cli/run.hpp"

#include <sys/stat.h>

#include <algorithm>
#include <boost/json.hpp>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <sstream>
#include <string>
#include <vector>

#include "cli/data_dir.hpp"
#include "tests/catch.hpp"
#include "tests/usage/support.hpp"

namespace cli = latchkey::cli;
namespace fs = std::filesystem;

namespace {

struct folder {
    fs::path path;
    folder() {
        std::string name = (fs::temp_directory_path() / "latchkey-cli-XXXXXX").string();
        REQUIRE(mkdtemp(name.data()) != nullptr);
        path = name;
    }
    ~folder() { fs::remove_all(path); }
    std::string data() const { return (path / "data").string(); }
};

struct outcome {
    int code = 0;
    std::string out, err;
};

outcome run(std::vector<std::string> args, std::string const& typed = {}, bool terminal = false) {
    args.insert(args.begin(), "latchkey");
    std::vector<char const*> argv;
    for (auto const& a : args) argv.push_back(a.c_str());
    std::istringstream in(typed);
    std::ostringstream out, err;
    outcome o;
    o.code = cli::run(static_cast<int>(argv.size()), argv.data(), {in, out, err, terminal});
    o.out = out.str();
    o.err = err.str();
    return o;
}

bool has(std::string const& text, std::string const& part) { return text.find(part) != std::string::npos; }

std::string make_key(folder const& f, std::string const& name = "Ann") {
    auto const made = run({"keys", "create", "--name", name, "--json", "--data", f.data()});
    REQUIRE(made.code == 0);
    return std::string(boost::json::parse(made.out).at("id").as_string());
}

// As a gateway does, with so many records.
void begin_account(folder const& f, std::uint64_t records = 0) {
    latchkey::usage::test::written account(cli::data_paths(f.data()).usage_db);
    if (records != 0) account.numbers(0, records);
}

}  // namespace

TEST_CASE("wrong arguments exit with 2 and say so on stderr") {
    for (auto const& args : std::vector<std::vector<std::string>>{{},
                                                                  {"nonsense"},
                                                                  {"keys"},
                                                                  {"keys", "create"},
                                                                  {"serve", "--workers", "257"},
                                                                  {"keys", "list", "--output", "xml"},
                                                                  {"keys", "show"},
                                                                  {"serve", "--demo", "--upstream", "http://a"},
                                                                  {"serve", "--listen", "localhost:80", "--upstream", "http://a"},
                                                                  {"serve", "--upstream", "https://a"},
                                                                  {"usage", "export", "--from", "yesterday"},
                                                                  {"check"},
                                                                  {"check", ""},
                                                                  {"check", "a.toml", "--config", "b.toml"},
                                                                  {"usage", "export", "--from", ""},
                                                                  {"usage", "export", "--to", ""},
                                                                  {"usage", "export", "--output", ""},
                                                                  {"usage", "export", "--key", ""},
                                                                  {"usage", "export", "--application", ""},
                                                                  {"keys", "create", "--application", ""},
                                                                  {"keys", "create", "--name", ""}}) {
        auto const got = run(args);
        INFO(got.out << got.err);
        CHECK(got.code == cli::exit_usage);
        CHECK_FALSE(got.err.empty());
        CHECK(got.out.empty());
    }
}

TEST_CASE("a mistyped command is told the nearest one") {
    CHECK(has(run({"keys", "crate"}).err, "did you mean 'keys create'?"));
    CHECK(has(run({"kees", "list"}).err, "did you mean 'keys'?"));
    CHECK(has(run({"keys", "qqqqqqqqqqqq"}).err, "keys qqqqqqqqqqqq"));
    CHECK_FALSE(has(run({"keys", "qqqqqqqqqqqq"}).err, "did you mean"));
}

TEST_CASE("a mistyped option is told the nearest one of its command") {
    CHECK(has(run({"serve", "--lisen", "127.0.0.1:1"}).err, "not expected: --lisen; did you mean '--listen'?"));
    CHECK(has(run({"serve", "--lisen=127.0.0.1:1"}).err, "--lisen; did you mean '--listen'?"));
    CHECK(has(run({"keys", "list", "--dta", "d"}).err, "--dta; did you mean '--data'?"));
    CHECK(has(run({"usage", "export", "--qqqqqqqqqqqq", "d"}).err, "--qqqqqqqqqqqq"));
    CHECK_FALSE(has(run({"usage", "export", "--qqqqqqqqqqqq", "d"}).err, "did you mean"));
    CHECK(run({"serve", "--lisen", "127.0.0.1:1"}).code == cli::exit_usage);
    // What stands where a value is wanted is one.
    CHECK(has(run({"usage", "export", "--from", "--to"}).err, "--to"));
    CHECK_FALSE(has(run({"keys", "list", "--data", "--dta"}).err, "not expected"));
}

TEST_CASE("a missing data directory is named, with the remedy") {
    folder f;
    auto const got = run({"keys", "list", "--data", f.data()});
    CHECK(got.code == cli::exit_not_found);
    CHECK(has(got.err, "there is no data directory " + f.data()));
    CHECK(has(got.err, "--data or --config"));
}

TEST_CASE("a command whose settings file is wrong is told how to go on without it") {
    folder f;
    make_key(f, "Ann");
    auto const file = (f.path / "wrong.toml").string();
    auto const list = [&](std::string const& text) {
        std::ofstream(file) << text;
        auto const got = run({"keys", "list", "--config", file});
        CHECK(got.code == cli::exit_error);
        CHECK(got.out.empty());
        return got.err;
    };
    auto const said = list("data_dir = \"data\"\nnonsense = 1\n");
    CHECK(has(said, file + ":2:1: "));
    CHECK(has(said, "without --config"));
    CHECK(has(said, "--data " + f.data() + "\n"));
    CHECK(run({"keys", "list", "--data", f.data()}).code == 0);
    // Where the file says no data directory that can be relied on, none is named.
    CHECK(has(list("data_dri = \"data\"\n"), "--data DIR\n"));
    CHECK(has(list("data_dir = \"data\n"), "--data DIR\n"));
    CHECK(has(run({"serve", "--config", file}).err, "correct them first"));
}

TEST_CASE("help and version go to stdout and exit with 0") {
    CHECK(has(run({"--help"}).out, "serve"));
    CHECK(run({"keys", "create", "--help"}).code == 0);
    CHECK(has(run({"--version"}).out, LATCHKEY_VERSION));
    CHECK(has(run({"version"}).out, LATCHKEY_VERSION));
}

TEST_CASE("keys create prints the key alone, or one JSON object") {
    folder const f;
    auto const plain = run({"keys", "create", "--name", "Ann", "--data", f.data()});
    REQUIRE(plain.code == 0);
    CHECK(plain.out.starts_with("lk_"));
    CHECK(plain.out.size() == 3 + 36 + 1);
    CHECK_FALSE(has(plain.err, plain.out.substr(0, 39)));
    struct stat s {};
    REQUIRE(::stat(f.data().c_str(), &s) == 0);
    CHECK((s.st_mode & 0777U) == 0700U);
    CHECK(has(plain.err, f.data() + " is new"));  // a mistyped one would not be noticed otherwise

    auto const as_json = run({"keys", "create", "--name", "Bob", "--json", "--data", f.data()});
    auto const o = boost::json::parse(as_json.out).as_object();
    CHECK(o.size() == 4);
    CHECK(o.at("name") == "Bob");
    CHECK(as_json.err.empty());
    auto const more =
        run({"keys", "create", "--application", std::string(o.at("application_id").as_string()), "--json", "--data", f.data()});
    CHECK(boost::json::parse(more.out).at("application_id") == o.at("application_id"));
}

TEST_CASE("a key for nobody is refused with the reason") {
    folder const f;
    for (auto const& [name, reason] : {std::pair{"  ", "the name is blank"}, {"\xff", "not UTF-8"}}) {
        auto const got = run({"keys", "create", "--name", name, "--data", f.data()});
        CHECK(got.code == cli::exit_error);
        CHECK(has(got.err, reason));
        CHECK(got.out.empty());
    }
}

TEST_CASE("keys list and show write table, JSON and CSV without secrets") {
    folder const f;
    auto const id = make_key(f, "=Ann, \"A\"");
    auto const table = run({"keys", "list", "--data", f.data()});
    CHECK(has(table.out, id));
    auto const as_json = boost::json::parse(run({"keys", "list", "--output", "json", "--data", f.data()}).out).as_array();
    REQUIRE(as_json.size() == 1);
    CHECK_FALSE(as_json[0].as_object().contains("key"));
    auto const csv = run({"keys", "list", "--output", "csv", "--data", f.data()}).out;
    CHECK(has(csv, "id,application_id,name,prefix,last4,state,created,revoked,expires\r\n"));
    CHECK(has(csv, "\"'=Ann, \"\"A\"\"\""));
    CHECK(boost::json::parse(run({"keys", "show", id, "--output", "json", "--data", f.data()}).out).at("state") == "active");
    CHECK(run({"keys", "show", "key_none", "--data", f.data()}).code == cli::exit_not_found);
}

TEST_CASE("revoke and delete need --yes in a script and a yes from a person") {
    folder const f;
    auto const id = make_key(f);
    auto const state = [&] {
        return std::string(
            boost::json::parse(run({"keys", "show", id, "--output", "json", "--data", f.data()}).out).at("state").as_string());
    };
    auto const script = run({"keys", "revoke", id, "--data", f.data()}, "y\n");
    CHECK(script.code == cli::exit_usage);
    CHECK(has(script.err, "--yes"));
    CHECK(run({"keys", "delete", id, "--data", f.data()}).code == cli::exit_usage);
    CHECK(run({"keys", "revoke", id, "--data", f.data()}, "n\n", true).code == cli::exit_error);
    CHECK(run({"keys", "revoke", id, "--data", f.data()}, "", true).code == cli::exit_error);
    CHECK(state() == "active");
    CHECK(run({"keys", "revoke", id, "--data", f.data()}, "y\n", true).code == 0);
    CHECK(state() == "revoked");
    auto const again = run({"keys", "revoke", id, "--yes", "--data", f.data()});
    CHECK(again.code == 0);
    CHECK(has(again.err, "revoked already, at 20"));
    CHECK(run({"keys", "delete", id, "--yes", "--data", f.data()}).code == 0);
    CHECK(run({"keys", "show", id, "--data", f.data()}).code == cli::exit_not_found);
    CHECK(run({"keys", "revoke", id, "--yes", "--data", f.data()}).code == cli::exit_not_found);
}

TEST_CASE("keys import takes a file or stdin and names wrong lines without the key") {
    folder const f;
    std::ofstream(f.path / "k.csv") << "name,key\nAnn,0123456789abcdefghij\n";
    CHECK(run({"keys", "import", (f.path / "k.csv").string(), "--data", f.data()}).out == "imported 1, unchanged 0\n");
    CHECK(run({"keys", "import", "-", "--data", f.data()}, "name,key\nAnn,0123456789abcdefghij\n").out ==
          "imported 0, unchanged 1\n");
    auto const id = run({"keys", "list", "--data", f.data(), "--output", "csv"}).out;
    auto const at = id.find("key_");
    REQUIRE(run({"keys", "revoke", id.substr(at, id.find(',', at) - at), "--yes", "--data", f.data()}).code == 0);
    CHECK(run({"keys", "import", "-", "--data", f.data()}, "name,key\nAnn,0123456789abcdefghij\n").out ==
          "imported 0, unchanged 0, revoked before and still so 1\n");
    auto const conflict = run({"keys", "import", "-", "--data", f.data()}, "name,key\nEve,0123456789abcdefghij\n");
    CHECK(conflict.code == cli::exit_conflict);
    CHECK_FALSE(has(conflict.err, "0123456789"));
    CHECK(run({"keys", "import", "/nonexistent.csv", "--data", f.data()}).code == cli::exit_not_found);
}

TEST_CASE("commands on a folder that is not there do not make one") {
    folder const f;
    CHECK(run({"keys", "list", "--data", f.data()}).code == cli::exit_not_found);
    CHECK(run({"usage", "export", "--data", f.data()}).code == cli::exit_not_found);
    CHECK_FALSE(fs::exists(f.data()));
}

TEST_CASE("a folder that others may write to is refused") {
    folder const f;
    fs::create_directory(f.data());
    REQUIRE(::chmod(f.data().c_str(), 0777) == 0);
    auto const got = run({"keys", "create", "--name", "a", "--data", f.data()});
    CHECK(got.code == cli::exit_not_allowed);
    CHECK(has(got.err, "chmod 700"));
}

TEST_CASE("a gateway that holds the lock and does not answer is exit 6") {
    folder const f;
    make_key(f);
    auto const lock = cli::data_lock::take(cli::data_paths(f.data()), "gateway", std::chrono::milliseconds(0));
    REQUIRE(lock.has_value());
    auto const got = run({"keys", "list", "--data", f.data()});
    CHECK(got.code == cli::exit_unreachable);
    CHECK(has(got.err, "does not answer"));
}

TEST_CASE("status without a gateway is exit 6") {
    folder const f;
    make_key(f);
    CHECK(run({"status", "--data", f.data()}).code == cli::exit_unreachable);
}

TEST_CASE("an id that nobody has is answered with where ids are listed") {
    folder f;
    make_key(f, "Ann");
    for (std::vector<std::string> const& words : {std::vector<std::string>{"show", "key_none"},
                                                  {"revoke", "--yes", "key_none"},
                                                  {"delete", "--yes", "none"},
                                                  {"create", "--application", "app_none"}}) {
        std::vector<std::string> all{"keys"};
        all.insert(all.end(), words.begin(), words.end());
        all.insert(all.end(), {"--data", f.data()});
        auto const got = run(all);
        CHECK(got.code == cli::exit_not_found);
        CHECK(has(got.err, "`latchkey keys list` shows them\n"));
    }
}

TEST_CASE("usage export writes the header, to stdout or to a file that appears whole") {
    folder const f;
    make_key(f);
    auto const got = run({"usage", "export", "--data", f.data()});
    CHECK(got.err == "no record fits\n");
    CHECK(got.code == 0);
    CHECK(got.out.starts_with("time,request_id,"));
    auto const file = (f.path / "u.csv").string();
    CHECK(run({"usage", "export", "--output", file, "--data", f.data()}).code == 0);
    CHECK(fs::file_size(file) == got.out.size());
    CHECK(run({"usage", "export", "--output", "/nonexistent/x.csv", "--data", f.data()}).code == cli::exit_error);
    CHECK(std::distance(fs::directory_iterator(f.path), {}) == 2);
}

TEST_CASE("usage export of a key or an application that never was is exit 3, and no file") {
    std::string const what = GENERATE(as<std::string>(), "key", "application");
    CAPTURE(what);
    folder const f;
    auto const key = make_key(f);
    begin_account(f);
    auto const rows = boost::json::parse(run({"keys", "list", "--output", "json", "--data", f.data()}).out).as_array();
    auto const id = what == "key" ? key : std::string(rows.at(0).at("application_id").as_string());
    auto const file = (f.path / "none.csv").string();
    for (std::string const& unknown : {std::string("none"), id + "x"}) {
        auto const got = run({"usage", "export", "--" + what, unknown, "--data", f.data()});
        CHECK(got.code == cli::exit_not_found);
        CHECK(got.out.empty());
        CHECK(has(got.err, "there is no " + what));
        CHECK(has(got.err, "`latchkey keys list` shows them\n"));
        CHECK(run({"usage", "export", "--" + what, unknown, "--output", file, "--data", f.data()}).code == cli::exit_not_found);
        CHECK_FALSE(fs::exists(file));
    }
    auto const got = run({"usage", "export", "--" + what, id, "--data", f.data()});
    CHECK(got.code == cli::exit_ok);
    CHECK(got.err == "no record fits\n");
    CHECK(run({"usage", "export", "--" + what, id, "--output", file, "--data", f.data()}).code == cli::exit_ok);
    CHECK(fs::exists(file));
}

TEST_CASE("usage export of a key says nothing of it where there is no store to ask, or no account") {
    for (bool const account : {true, false}) {
        folder const f;
        make_key(f);
        if (account) {
            begin_account(f);
            fs::remove(cli::data_paths(f.data()).keys_db);
        }
        auto const got = run({"usage", "export", "--key", "key_none", "--data", f.data()});
        CHECK(got.code == cli::exit_ok);
        CHECK(got.err == "no record fits\n");
        CHECK(std::count(got.out.begin(), got.out.end(), '\n') == 1);
    }
}

TEST_CASE("usage export that is cut short leaves no file") {
    folder const f;
    make_key(f);
    auto const db = cli::data_paths(f.data()).usage_db;
    auto const file = (f.path / "u.csv").string();
    constexpr std::uint64_t count = 40'000;
    begin_account(f, count);
    auto const whole = run({"usage", "export", "--data", f.data()});
    CHECK(whole.code == cli::exit_ok);
    CHECK(std::count(whole.out.begin(), whole.out.end(), '\n') == count + 1);
    CHECK(run({"usage", "export", "--output", file, "--data", f.data()}).code == cli::exit_ok);
    CHECK(fs::file_size(file) == whole.out.size());
    fs::remove(file);
    std::fstream(db, std::ios::in | std::ios::out | std::ios::binary).seekp(static_cast<std::streamoff>(fs::file_size(db) / 2))
        << std::string(65536, '\xff');
    auto const cut = run({"usage", "export", "--data", f.data()});
    CHECK(cut.code == cli::exit_error);
    CHECK(whole.out.starts_with(cut.out));
    for (std::string const& key : {std::string(), std::string("key_none")}) {
        std::vector<std::string> words{"usage", "export", "--output", file, "--data", f.data()};
        if (!key.empty()) words.insert(words.end(), {"--key", key});
        CHECK(run(words).code == cli::exit_error);
        CHECK_FALSE(fs::exists(file));
    }
}

TEST_CASE("a key's text in the place of its id is not repeated, whatever it begins with") {
    folder const f;
    make_key(f);
    begin_account(f);
    for (std::string const text :
         {"key_live_4f9a8b7c6d5e4f3a2b1c", "key_FERyoHdiszGR2FnL9pF1VQFgmJGOrp2STEtg", "lk_UerGRUwgGKOO6C8"}) {
        for (std::vector<std::string> words :
             {std::vector<std::string>{"keys", "show", text}, {"usage", "export", "--key", text}}) {
            words.insert(words.end(), {"--data", f.data()});
            auto const got = run(words);
            CHECK(got.code == cli::exit_not_found);
            CHECK_FALSE(has(got.err, text));
        }
    }
}

TEST_CASE("a settings file that is not there is exit 3 for every command") {
    folder const f;
    make_key(f);
    for (std::vector<std::string> words :
         {std::vector<std::string>{"check"}, {"serve"}, {"keys", "list"}, {"usage", "export"}, {"status"}}) {
        words.insert(words.end(), {"--config", "/nonexistent.toml"});
        auto const got = run(words);
        CHECK(got.code == cli::exit_not_found);
        CHECK(has(got.err, "there is no file /nonexistent.toml\n"));
    }
}

TEST_CASE("check exits with 7 and all findings, or 0 and ok") {
    folder const f;
    auto const file = (f.path / "l.toml").string();
    std::ofstream(file) << "lisen = 1\nworkers = 999\n[[api]]\nupstreams = [\"http://a\"]\n";
    auto const bad = run({"check", file});
    CHECK(bad.code == cli::exit_findings);
    CHECK(has(bad.err, file + ":1:1: "));
    CHECK(has(bad.err, file + ":2:11: "));
    CHECK(bad.out.empty());
    std::ofstream(file) << "[[api]]\nupstreams = [\"http://a\"]\n";
    CHECK(run({"check", file}).out == file + ": ok\n");
    CHECK(run({"check", "--config", file}).out == file + ": ok\n");
    CHECK(run({"check"}).code == cli::exit_usage);
    CHECK(run({"check", file, "--config", file}).code == cli::exit_usage);
    CHECK(run({"check", "/nonexistent.toml"}).code == cli::exit_not_found);
    CHECK_FALSE(has(run({"keys", "list", "--config", "/nonexistent.toml"}).err, "mistakes"));
}

TEST_CASE("serve without any api says what to give") {
    folder const f;
    auto const got = run({"serve", "--data", f.data()});
    CHECK(got.code == cli::exit_error);
    CHECK(has(got.err, "--upstream"));
}

TEST_CASE("a settings file without an api is enough where none is needed") {
    folder f;
    make_key(f, "Ann");
    auto const file = (f.path / "l.toml").string();
    std::ofstream(file) << "data_dir = \"data\"\n";
    CHECK(has(run({"keys", "list", "--config", file}).out, "Ann"));
    auto const alone = run({"serve", "--config", file});
    CHECK(alone.code == cli::exit_error);
    CHECK(has(alone.err, file + ": no api is defined"));
    CHECK(run({"check", file}).code == cli::exit_findings);
    // With an upstream it goes on to the next thing that is wrong.
    auto const with = run({"serve", "--config", file, "--upstream", "nonsense"});
    CHECK_FALSE(has(with.err, "no api"));
    CHECK(has(with.err, "nonsense"));
}
