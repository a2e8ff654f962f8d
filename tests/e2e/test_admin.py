"""The admin listener and the command line's manners."""
import json
import os
import re
import stat
import subprocess

from harness import PROGRAM, Gateway, bound, served, unique


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
