"""The admin listener and the command line's manners."""
import json
import os
import pathlib
import re
import shutil
import socket
import stat
import subprocess

import pytest

from conftest import run
from harness import PROGRAM, Gateway, bound, problem, served, toml, unique, wait_until


def test_live_and_ready(gateway):
    assert gateway.admin("/livez").status == 200
    assert gateway.admin("/readyz").status == 200


def test_metrics_are_prometheus_text_with_one_prefix(gateway, client, key):
    served(client.get("/" + unique(), key))
    r = gateway.admin("/metrics")
    assert r.status == 200 and r.fields.get("content-type").startswith("text/plain")
    names = {m[1] for line in r.body.decode().splitlines() if (m := re.match(r"([a-zA-Z_:][a-zA-Z0-9_:]*)(?:\{.*\})? [0-9.e+-]+$", line))}
    lines = [line for line in r.body.decode().splitlines() if line and not line.startswith("#")]
    assert names and len(lines) >= len(names)
    assert all(n.startswith(("latchkey_", "process_")) for n in names), names
    assert key not in r.body.decode()


def test_metrics_tell_how_many_got_which_problem(up):
    for g in run(Gateway(up)):
        key = g.create_key()["key"]
        codes = lambda: dict(re.findall(r'^latchkey_problems_total\{code="(\w+)"\} (\d+)$', g.admin("/metrics").body.decode(), re.M))  # noqa: E731
        assert len(codes()) > 25 and set(codes().values()) == {"0"}
        up.on("/reset", lambda x: x.reset())
        with g.client() as c:
            served(c.get("/x", key))
            problem(c.get("/x"), 401, "key_missing")
            for _ in range(2):
                problem(c.get("/x", "no key of ours"), 401, "key_invalid")
            problem(c.get("/reset", key, body=b"x"), 502, "upstream_reset")
            problem(c.get("/../x", key), 400, "invalid_target")
        assert {k: v for k, v in codes().items() if v != "0"} == {"key_missing": "1", "key_invalid": "2", "upstream_reset": "1", "invalid_target": "1"}


def test_the_data_directory_is_private(gateway):
    for name in ("keys.db", "usage.db"):
        assert stat.S_IMODE(os.stat(gateway.data / name).st_mode) & 0o077 == 0, name


def test_the_admin_socket_is_private(gateway):
    mode = os.stat(gateway.told["admin_socket"]).st_mode
    assert stat.S_ISSOCK(mode) and stat.S_IMODE(mode) & 0o077 == 0


def test_the_admin_listener_does_not_proxy(gateway, upstream, key):
    path = "/" + unique()
    assert gateway.admin(path).status in (404, 401)
    assert not upstream.seen(path)


def refusal_to_start(settings, expected):
    assert expected in Gateway(settings=settings).refuse_to_start()


def test_an_unknown_setting_stops_the_start_with_file_line_and_a_suggestion():
    refusal_to_start({"api": [{"name": "x", "upstreams": ["http://127.0.0.1:1"]}], "lisen": "x"}, "latchkey.toml:")


def test_no_api_stops_the_start():
    refusal_to_start({}, "api")


def test_a_port_in_use_stops_the_start_with_its_address(gateway):
    taken = f"127.0.0.1:{gateway.admin_address[1]}"
    refusal_to_start({"listen": [taken], "api": [{"name": "x", "upstreams": ["http://127.0.0.1:1"]}]}, taken)


def test_a_wrong_word_on_the_command_line_is_exit_code_2():
    for words in (["nonsense"], ["serve", "--nonsense"], ["keys"], ["keys", "create"]):
        done = subprocess.run([PROGRAM, *words], capture_output=True, timeout=bound(10), cwd="/tmp")
        assert done.returncode == 2, (words, done)
        assert done.stderr, "the message goes to stderr"


def test_help_and_version_go_to_stdout():
    for word in ("--help", "--version"):
        done = subprocess.run([PROGRAM, word], capture_output=True, timeout=bound(10))
        assert done.returncode == 0 and done.stdout and not done.stderr


def test_the_ready_file_says_where_it_listens(gateway):
    told = json.loads((gateway.folder / "ready").read_text())
    assert told["pid"] == gateway.pid and told["listen"] == ["%s:%d" % gateway.address]
    assert json.loads(gateway.cli("status", "--output", "json").stdout)["pid"] == gateway.pid


def test_an_export_of_an_empty_span_of_time_is_a_usage_error(gateway):
    """A slip of the hand must not look like an account without traffic."""
    done = gateway.cli("usage", "export", "--from", "2026-11-26", "--to", "2026-11-25", check=False)
    assert done.returncode == 2 and "--from is not before --to" in done.stderr and not done.stdout


def test_an_export_of_a_key_that_never_was_is_not_found(gateway):
    done = gateway.cli("usage", "export", "--key", "none", check=False)
    assert done.returncode == 3 and "`latchkey keys list` shows them" in done.stderr and not done.stdout
    done = gateway.cli("usage", "export", "--key", gateway.create_key("exported")["id"])
    assert done.stderr == "no record fits\n" and done.stdout.startswith("time,request_id,") and done.stdout.count("\n") == 1


def test_a_deleted_key_is_exported_as_long_as_it_has_records(gateway):
    made = gateway.create_key("deleted")
    with gateway.client() as c:
        assert c.get("/deleted", made["key"]).status == 200
    gateway.cli("keys", "delete", "--yes", made["id"])
    done = gateway.cli("usage", "export", "--key", made["id"])
    assert done.stdout.count("\n") == 2 and not done.stderr
    done = gateway.cli("usage", "export", "--key", made["id"], "--to", "2026-01-01")  # a month without traffic is no mistake
    assert done.stdout.count("\n") == 1 and done.stderr == "no record fits\n"


def test_an_export_where_no_account_was_kept_is_a_header_and_makes_nothing(tmp_path):
    data = tmp_path / "data"
    data.mkdir(mode=0o700)
    gateway = Gateway(data=data)
    head = gateway.cli("usage", "export").stdout
    assert head.startswith("time,request_id,") and head.count("\n") == 1
    gateway.cli("usage", "export", "--output", str(tmp_path / "out"))
    assert (tmp_path / "out").read_bytes().count(b"\r\n") == 1
    assert os.listdir(data) == []
    missing = Gateway(data=tmp_path / "nowhere").cli("usage", "export", check=False)
    assert missing.returncode == 3 and "no data directory" in missing.stderr


ASK = """
import socket, sys
s = socket.socket(socket.AF_UNIX)
s.settimeout(10)
s.connect(sys.argv[1])
try:
    s.sendall(b"GET /v1/keys HTTP/1.1\\r\\nHost: x\\r\\nConnection: close\\r\\n\\r\\n")
    print(len(s.recv(1000)))
except ConnectionError:
    print(0)
"""


def test_another_user_who_can_reach_the_admin_socket_gets_no_answer(upstream):
    """Its mode keeps others out; where somebody has changed that, the peer's credentials (SO_PEERCRED) do."""
    if os.geteuid() != 0:
        pytest.skip("becoming another user needs root")
    g = Gateway(upstream).start()
    try:
        path = g.data / "admin.sock"
        for folder in (g.folder, g.data):
            os.chmod(folder, 0o755)
        os.chmod(path, 0o666)
        ask = ["/usr/bin/python3", "-c", ASK, str(path)]
        ours = subprocess.run(ask, capture_output=True, text=True, timeout=bound(20))
        theirs = subprocess.run([*USER, *ask], capture_output=True, text=True, timeout=bound(20))
        assert ours.returncode == 0 and int(ours.stdout) > 0, ours
        assert theirs.returncode == 0 and int(theirs.stdout) == 0, theirs
    finally:
        assert g.stop() == 0


USER = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]


@pytest.fixture
def others(upstream):
    """A gateway of another user's, which root's commands are used on."""
    if os.geteuid() != 0:
        pytest.skip("commands of root need root")
    if subprocess.run([*USER, PROGRAM, "--version"], capture_output=True, timeout=bound(10)).returncode != 0:
        pytest.skip("the program lies where another user cannot run it")
    g = Gateway(upstream, prefix=USER)
    g.settings["usage"] = {"ring_dir": str(g.data / "rings")}
    g.data.mkdir(mode=0o700)
    for folder in (g.folder, g.data):
        os.chown(folder, 65534, 65534)
    yield g
    if g.alive:
        g.stop()


def test_a_gateway_of_another_user_starts_on_what_roots_commands_made(others, upstream):
    others.cli("usage", "export")
    made = others.create_key()
    others.cli("usage", "export")
    assert {os.stat(others.data / name).st_uid for name in os.listdir(others.data)} == {65534}
    others.start()
    with others.client() as c:
        served(c.get("/" + unique(), made["key"]))
    others.stop()
    assert len(others.export()) == 1
    assert {os.stat(others.data / name).st_uid for name in os.listdir(others.data)} == {65534}
    others.start()


def test_settings_that_may_not_be_looked_at_are_no_reason_to_name_another_directory(others, tmp_path):
    """`keys create` would begin a store there that no gateway reads."""
    tmp_path.chmod(0o700)
    (tmp_path / "latchkey.toml").write_text("")
    done = subprocess.run([*USER, PROGRAM, "keys", "list", "--config", tmp_path / "latchkey.toml"], capture_output=True, text=True,
                          timeout=bound(10), cwd="/")
    assert done.returncode == 1 and "Permission denied" in done.stderr and "nothing was done" in done.stderr
    assert "--data" not in done.stderr


@pytest.mark.parametrize("name", ["usage.db", "keys.db"])
def test_root_follows_no_link_that_stands_for_a_file_of_the_data_directory(others, tmp_path, name):
    foreign = tmp_path / "foreign"
    foreign.write_text("")
    foreign.chmod(0o644)
    (others.data / name).symlink_to(foreign)
    words = ["usage", "export"] if name == "usage.db" else ["keys", "create", "--name", "x"]
    done = others.cli(*words, check=False)
    assert done.returncode == 1 and f"{name} is a link" in done.stderr
    assert stat.S_IMODE(foreign.stat().st_mode) == 0o644 and foreign.read_text() == ""


def test_memory_for_too_few_workers_is_found_by_the_check_and_stops_the_start_with_its_line(tmp_path):
    api = [{"name": "x", "upstreams": ["http://127.0.0.1:1"]}]
    settings = {"workers": 161, "limits": {"memory": "640MiB"}, "api": api}
    refusal_to_start(settings, "latchkey.toml:9:10: limits.memory: 640 MiB are too few for 161 workers")
    file = tmp_path / "latchkey.toml"
    for limits, code in (({"memory": "640MiB"}, 7), ({"memory": "644MiB"}, 0), ({}, 0)):
        file.write_text(toml({**settings, "limits": limits}))
        done = subprocess.run([PROGRAM, "check", str(file)], capture_output=True, text=True, timeout=bound(10))
        assert done.returncode == code, (limits, done)


def test_more_workers_than_the_default_memory_is_for_start(upstream):
    g = Gateway(upstream, settings={"usage": {"ring_bytes": "64KiB"}}, workers=241).start()
    try:
        wait_until(lambda: "buffers 964 MiB" in g.log(), 5, "the log's line on memory")  # logs have a thread of their own
    finally:
        g.stop()


NOT_WRITTEN = "standard output could not be written"


@pytest.mark.parametrize("words", [["usage", "export"], ["keys", "list"], ["keys", "list", "--output", "json"]], ids=" ".join)
def test_what_cannot_be_written_to_standard_output_is_an_error(gateway, words):
    with open("/dev/full", "wb") as full:
        done = gateway.cli(*words, check=False, stdout=full)
    assert done.returncode == 1 and NOT_WRITTEN in done.stderr, done
    closed = gateway.cli(*words, check=False, through=["sh", "-c", 'exec "$@" >&-', "sh"])
    assert closed.returncode == 1 and NOT_WRITTEN in closed.stderr, closed


@pytest.mark.parametrize("word", ["version", "--version", "--help"])
def test_a_version_or_help_that_cannot_be_written_is_an_error(word):
    with open("/dev/full", "wb") as full:
        done = subprocess.run([PROGRAM, word], stdout=full, stderr=subprocess.PIPE, text=True, timeout=bound(30))
    assert done.returncode == 1 and NOT_WRITTEN in done.stderr, done


def test_a_closed_standard_output_is_not_taken_for_the_next_file(tmp_path):
    """With descriptor 1 closed the lock file would be number 1, and a new key's secret would be written into it."""
    alone = Gateway(data=tmp_path / "data")
    alone.create_key()
    done = alone.cli("keys", "create", "--name", "x", check=False, through=["sh", "-c", 'exec "$@" >&-', "sh"])
    assert done.returncode == 1 and "nobody has it" in done.stderr, done
    assert [f.name for f in alone.data.iterdir() if b"lk_" in f.read_bytes()] == []


def test_a_reader_that_has_enough_is_no_error(gateway, client, key):
    for _ in range(1500):  # more than a pipe holds
        client.get("/bytes/10", key=key)
    done = gateway.cli("usage", "export", through=["bash", "-c", 'set -o pipefail; "$@" | head -c 10', "bash"])
    assert done.stderr == "" and len(done.stdout) == 10, done


def test_a_reader_that_left_a_socket_is_no_error_either(gateway):
    ours, theirs = socket.socketpair()
    ours.close()
    with theirs:
        assert gateway.cli("keys", "list", stdout=theirs).stderr == ""


@pytest.mark.parametrize("form", [[], ["--json"]], ids=["text", "json"])
def test_a_new_key_that_nobody_could_read_is_named(gateway, form):
    with open("/dev/full", "wb") as full:
        done = gateway.cli("keys", "create", "--name", "lost", *form, check=False, stdout=full)
    assert done.returncode == 1 and "nobody has it" in done.stderr, done
    told = re.search(r"latchkey keys delete (\S+)`", done.stderr).group(1)
    gateway.cli("keys", "delete", told, "--yes")
    assert told not in gateway.cli("keys", "list").stdout


@pytest.mark.parametrize("flag", ["--data", "--config"])
def test_an_empty_path_is_not_none(tmp_path, flag):
    for words in ([flag, ""], [flag + "=", "--json"]):
        done = subprocess.run([PROGRAM, "keys", "create", "--name", "x", *words], cwd=tmp_path, capture_output=True, text=True, timeout=bound(30))
        assert done.returncode == 2 and flag in done.stderr and "is empty" in done.stderr, done
    assert not list(tmp_path.iterdir())


@pytest.fixture
def runtime():
    """A folder in memory that is the only place for rings."""
    folder = pathlib.Path("/dev/shm/" + unique("run"))
    folder.mkdir(mode=0o700)
    yield folder
    shutil.rmtree(folder)


def kept_in(folder):
    return {"RUNTIME_DIRECTORY": str(folder), "XDG_RUNTIME_DIR": str(folder)}


def test_a_start_that_fails_leaves_no_rings_in_memory(upstream, runtime):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        settings = {"listen": ["127.0.0.1:%d" % taken.getsockname()[1]]}
        assert "cannot listen" in Gateway(upstream, settings=settings, environment=kept_in(runtime)).refuse_to_start()
    assert os.listdir(runtime) == []


def test_a_start_that_finds_its_account_damaged_leaves_no_folder_in_memory(upstream, runtime, tmp_path):
    data = tmp_path / "data"
    data.mkdir(mode=0o700)
    (data / "usage.db").write_bytes(b"no database" * 1000)
    assert "usage.db" in Gateway(upstream, data=data, environment=kept_in(runtime)).refuse_to_start()
    assert os.listdir(runtime) == []


def test_a_start_that_finds_too_little_memory_for_its_rings_leaves_none(upstream):
    """6 MiB of tmpfs are too little for the second of two rings of 4."""
    folder = pathlib.Path("/dev/shm/" + unique("small"))
    folder.mkdir(mode=0o700)
    try:
        if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=6m,mode=700", "tmpfs", folder], capture_output=True).returncode != 0:
            pytest.skip("a file system cannot be mounted here")
        try:
            gateway = Gateway(upstream, settings={"usage": {"ring_bytes": 4 << 20}}, environment=kept_in(folder))
            said = gateway.refuse_to_start()
            assert "cannot get its space" in said
            assert os.listdir(folder) == []
        finally:
            subprocess.run(["umount", folder], check=True)
    finally:
        folder.rmdir()
