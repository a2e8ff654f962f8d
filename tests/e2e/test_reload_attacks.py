"""P4: a restart in place on a bad day: a program file that is none, a full disk, few descriptors, many workers, many reloads."""
import concurrent.futures
import contextlib
import os
import pathlib
import shutil
import signal
import struct
import subprocess
import threading

import pytest

from conftest import run
from harness import (PROGRAM, SLOW, Broken, Gateway, bound, certificate, refused_port, running, served, temporary_folder, tls_settings,
                     unique, wait_until)
from test_reload import QUICK, Traffic, children, on_record, refused, rings


@pytest.fixture(scope="module")
def demo():
    """A fast upstream: the program's own."""
    process = subprocess.Popen([PROGRAM, "demo-upstream"], stdout=subprocess.PIPE, text=True)
    yield process.stdout.readline().strip()
    process.terminate()
    process.wait()


@pytest.fixture
def copied(up):
    gateway = Gateway(up, dict(QUICK), program=str(temporary_folder("program") / "latchkey"))
    shutil.copy(PROGRAM, gateway.program)
    yield from run(gateway)


def put(gateway, make):
    """Another thing in the place of the program file."""
    new = gateway.program + ".new"
    make(new)
    old = gateway.program + ".old"
    with contextlib.suppress(FileNotFoundError):
        os.rename(gateway.program, old)
    os.rename(new, gateway.program)


def truncated(at):
    pathlib.Path(at).write_bytes(pathlib.Path(PROGRAM).read_bytes()[:100_000])
    os.chmod(at, 0o755)


def half(at):
    """Of what is loaded: behind it may stand as much again for a debugger, and a program runs without that."""
    whole = pathlib.Path(PROGRAM).read_bytes()
    table, size, count = *struct.unpack_from("<Q", whole, 32), *struct.unpack_from("<HH", whole, 54)
    headers = [struct.unpack_from("<IIQQQQ", whole, table + size * n) for n in range(count)]
    loaded = max(offset + length for kind, _, offset, _, _, length in headers if kind == 1)
    pathlib.Path(at).write_bytes(whole[:loaded // 2])
    os.chmod(at, 0o755)


def not_executable(at):
    shutil.copy(PROGRAM, at)
    os.chmod(at, 0o644)


def empty(at):
    pathlib.Path(at).touch(0o755)


def other_machine(at):
    pathlib.Path(at).write_bytes(b"\x7fELF" + b"\xff" * 100)
    os.chmod(at, 0o755)


@pytest.mark.parametrize("make", [truncated, half, not_executable, os.mkdir, empty, other_machine],
                         ids=lambda f: f.__name__)
def test_P4_a_program_file_that_is_none_changes_nothing(copied, make):
    key = copied.create_key()["key"]
    with copied.client() as c:
        served(c.get("/x", key))
        put(copied, make)
        refused(copied)
        served(c.get("/x", key))
    if os.path.isdir(copied.program):
        os.rmdir(copied.program)
    put(copied, lambda at: shutil.copy(PROGRAM, at))
    copied.reload()


def test_P4_161_workers_become_one_and_161_again_and_every_socket_is_served(up):
    gateway = Gateway(up, {**QUICK, "usage": {"flush_interval": "50ms", "ring_bytes": "64KiB"}, "limits": {"memory": "1GiB"}},
                      workers=161)
    for _ in run(gateway):
        key = gateway.create_key()["key"]
        for workers in (1, 161, 1):
            gateway.settings["workers"] = workers
            gateway.configure()
            gateway.end_of(gateway.reload(timeout=120), 60)
            for _ in range(400):  # the kernel deals connections out by their ports: each of 161 sockets gets some
                with gateway.client() as c:
                    served(c.get("/x", key))
            assert len(rings(gateway)) == workers


def test_P4_two_reloads_at_once_both_come_about(copied):
    first = copied.pid
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        said = [r.result().stdout for r in [pool.submit(copied.cli, "reload", timeout=120) for _ in range(4)]]
    pids = {int(s.split()[1]) for s in said}
    assert len(pids) == 4 and first not in pids
    assert copied.follow().pid in pids
    for pid in pids - {copied.pid}:
        wait_until(lambda pid=pid: not running(pid), 20, "the end of those before")
    copied.before = []


def test_P4_a_reload_while_the_gateway_stops_is_told_so(copied, up):
    path, go = "/" + unique(), threading.Event()
    up.on(path, lambda x: (go.wait(bound(20)), x.answer(200, [], b"late")))
    key = copied.create_key()["key"]
    with copied.client() as c:
        c.request("GET", path, key)
        up.wait(lambda: up.seen(path))
        copied.terminate()
        wait_until(lambda: copied.admin("/readyz").status == 503, 5, "the drain")
        done = copied.cli("reload", check=False)
        assert done.returncode == 1 and "stopping" in done.stderr
        os.kill(copied.pid, signal.SIGHUP)
        assert not children(copied.pid)
        go.set()
        assert c.response().body == b"late"
    assert copied.wait() == 0
    copied.start()


def test_P4_a_reload_with_the_upstream_down_serves_502_and_then_200_when_it_is_back(up):
    held, port = refused_port()
    gateway = Gateway(f"http://127.0.0.1:{port}", dict(QUICK))
    for _ in run(gateway):
        key = gateway.create_key()["key"]
        gateway.end_of(gateway.reload())
        with gateway.client() as c:
            assert c.get("/x", key).status == 502
        held.close()
        gateway.settings["api"][0]["upstreams"] = [up.url]
        gateway.configure()
        gateway.reload()
        with gateway.client() as c:
            served(c.get("/x", key))


def test_P4_settings_from_flags_hold_after_a_reload(tmp_path, up):
    files = certificate(tmp_path)
    ready = tmp_path / "ready"
    words = ["--listen", "127.0.0.1:0", "--listen", "127.0.0.1:0", "--tls-listen", "127.0.0.1:0", "--tls-cert", "server.pem", "--tls-key",
             "server.key", "--admin-listen", "127.0.0.1:0", "--upstream", up.url, "--workers", "2", "--data", "data", "--ready-file",
             "ready"]
    assert files["chain"].endswith("server.pem")
    gateway = Gateway(up)
    gateway.data = tmp_path / "data"
    with open(gateway.log_file, "ab") as log, subprocess.Popen([PROGRAM, "serve", *words], cwd=tmp_path, stderr=log) as first:
        try:
            wait_until(ready.exists, 15, "the ready file")
            gateway.process, gateway.folder = first, tmp_path
            told = gateway._ready(ready)
            old = gateway.reload()
            assert old is first and {**gateway.told, "pid": 0} == {**told, "pid": 0}
            assert gateway.end_of(first) == 0
        finally:
            if gateway.process is not first:
                assert gateway.stop() == 0
            elif first.poll() is None:
                first.kill()


def fill(folder):
    """Fills the disk of `folder` to the last byte."""
    for size in (65536, 1):
        with contextlib.suppress(OSError), open(folder / "filler", "ab", buffering=0) as f:
            while f.write(b"x" * size):
                pass


@pytest.fixture
def disk():
    """A small file system of its own."""
    folder = temporary_folder("disk")
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(folder)], capture_output=True).returncode:
        pytest.skip("needs root to mount")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def test_P4_R3_a_reload_on_a_full_disk_loses_no_request_and_no_record(demo, disk):
    gateway = Gateway(demo, dict(QUICK), data=disk / "data")
    for _ in run(gateway):
        traffic = Traffic(gateway, gateway.create_key()["key"], each=1)
        traffic.running()
        fill(disk)
        pid = gateway.pid
        done = gateway.cli("reload", check=False)
        traffic.running()
        assert (gateway.follow().pid == pid) == (done.returncode != 0), done
        (disk / "filler").unlink()
        gateway.reload()
        traffic.running()
        on_record(gateway, traffic.stop())


def test_P4_a_data_directory_that_nobody_may_read_changes_nothing_or_costs_nothing(demo):
    gateway = Gateway(demo, dict(QUICK))
    for _ in run(gateway):
        traffic = Traffic(gateway, gateway.create_key()["key"], each=1)
        traffic.running()
        hidden = gateway.data.with_name("hidden")
        os.rename(gateway.data, hidden)
        os.kill(gateway.pid, signal.SIGHUP)
        wait_until(lambda: "all goes on as before" in gateway.log(), 20, "the failure")
        traffic.running()
        os.rename(hidden, gateway.data)
        wait_until(lambda: not children(gateway.pid), 10, "the end of the failed one")
        gateway.reload()
        on_record(gateway, traffic.stop())


@pytest.mark.parametrize("limit", [40, 64, 100])
def test_P4_R1_a_reload_with_few_descriptors_comes_about_or_changes_nothing(demo, limit):
    if SLOW > 1:
        pytest.skip("a sanitizer holds descriptors of its own")
    gateway = Gateway(demo, {**QUICK, "limits": {"connections": 10}}, prefix=["prlimit", f"--nofile={limit}:{limit}"])
    for _ in run(gateway):
        key, sent = gateway.create_key()["key"], []
        held = []
        for _ in range(limit):  # until it has none left
            c = gateway.client()
            held.append(c)
        pid = gateway.pid
        os.kill(pid, signal.SIGHUP)
        wait_until(lambda: "serves; this one drains" in gateway.log() or "all goes on as before" in gateway.log(), 30, "an outcome")
        for c in held:
            c.close()
        gateway.follow()

        def answered():  # as long as it has not seen that they are gone, they count as connections
            name = unique("r")
            with contextlib.suppress(Broken, ConnectionError), gateway.client() as c:
                served(c.get("/hello", key, [("X-Request-Id", name)]))
                sent.append(name)
            return sent

        wait_until(answered, 5, "room for a client")
        assert "may name another process" not in gateway.log()
        for old in list(gateway.before):
            assert gateway.end_of(old) == 0
        gateway.end_of(gateway.reload())
        assert set(sent) <= {r["request_id"] for r in gateway.export()}


def test_P4_no_proc(tmp_path, up):
    """Without /proc the program is found by its name."""
    inside = ["unshare", "--mount", "--propagation", "private", "sh", "-c", 'mount -t tmpfs tmpfs /proc && exec "$0" "$@"']
    if b"__asan_init" in pathlib.Path(PROGRAM).read_bytes():
        pytest.skip("LeakSanitizer needs /proc, even to be told that it is not wanted")
    if subprocess.run(["unshare", "--mount", "true"], capture_output=True).returncode:
        pytest.skip("needs a mount namespace of its own")
    gateway = Gateway(up, dict(QUICK), prefix=inside)
    for _ in run(gateway):
        pid = gateway.pid
        done = gateway.cli("reload", check=False)
        gateway.follow()
        assert done.returncode == 0 and gateway.pid != pid
        with gateway.client() as c:
            served(c.get("/x", gateway.create_key()["key"]))
        for old in list(gateway.before):
            assert gateway.end_of(old) == 0


def test_P4_P3_a_storm_of_reloads_with_TLS_and_plain_clients_and_commands_loses_nothing(demo):
    gateway = Gateway(demo, {**QUICK, **tls_settings(certificate(temporary_folder("storm")))})
    for _ in run(gateway):
        key, over, failures, sent = gateway.create_key()["key"], threading.Event(), [], []
        trusted = gateway.settings["tls"]["certificate"][0]["chain"]

        def by_tls():
            while not over.is_set():
                try:
                    with gateway.tls_client(trusted=trusted) as c:
                        go_on = True
                        while go_on and not over.is_set():
                            name = unique("r")
                            r = c.get("/hello", key, [("X-Request-Id", name)])
                            assert r.status == 200 and r.complete, r
                            sent.append(name)
                            go_on = r.fields.get("connection") != "close"
                except Exception as e:
                    failures.append(repr(e))

        def commands():
            while not over.is_set():
                made = gateway.create_key(unique("app"))
                gateway.cli("keys", "revoke", made["id"], "--yes")
                with gateway.client() as c:
                    name = unique("r")
                    if c.get("/hello", made["key"], [("X-Request-Id", name)]).status != 401:
                        failures.append("a revoked key was let in")
                    sent.append(name)
        traffic = Traffic(gateway, key, each=1)
        with concurrent.futures.ThreadPoolExecutor(4) as pool:
            jobs = [pool.submit(by_tls), pool.submit(by_tls), pool.submit(commands)]
            for i in range(10):
                traffic.running(50)
                if i % 3 == 0:
                    os.kill(gateway.pid, signal.SIGHUP)
                gateway.cli("reload", timeout=120)
                gateway.follow()
            over.set()
            for j in jobs:
                j.result()
        sent += traffic.stop()
        assert not failures, failures[:5]
        wait_until(lambda: not children(gateway.pid), 30, "a last reload")
        wait_until(lambda: gateway.follow() and sum(running(p.pid) for p in gateway.before) == 0, 30, "the ends of those before")
        gateway.before = []
        on_record(gateway, sent)

