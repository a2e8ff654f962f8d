"""P4, P3, T3: restart in place with live traffic, by `latchkey reload` and SIGHUP."""
import collections
import concurrent.futures
import contextlib
import hashlib
import json
import os
import pathlib
import shutil
import signal
import socket
import sqlite3
import subprocess
import threading
import time

import pytest

from conftest import run
from harness import (PROGRAM, SLOW, Broken, Gateway, RawClient, TimedOut, Upstream, bound, certificate, lasting_port, problem,
                     request_bytes, running, served, temporary_folder, tls_settings, unique, wait_until)

TAKEOVER_S = min(5, max(1, int(SLOW)))  # of programs that hang; others have to be done in that time
QUICK = {"client": {"idle": f"{max(1, int(SLOW))}s"}, "usage": {"flush_interval": "50ms", "ring_bytes": "1MiB"}, "drain": f"{int(20 * SLOW)}s"}


@pytest.fixture
def live(up):
    """A gateway to be reloaded; at its end no process of it and no ring is left."""
    gateway = Gateway(up, dict(QUICK))
    yield from run(gateway)
    for old in list(gateway.before):
        assert gateway.end_of(old) == 0
    assert not rings(gateway)


@pytest.fixture
def copied(up):
    """The same with a program file of its own, that a test may replace."""
    gateway = Gateway(up, {**QUICK, "takeover": f"{TAKEOVER_S}s", "client": {"idle": "1h"}},
                      program=str(temporary_folder("program") / "latchkey"))
    shutil.copy(PROGRAM, gateway.program)
    yield from run(gateway)


def rings(gateway):
    return sorted(pathlib.Path(os.environ["RUNTIME_DIRECTORY"]).glob(f"latchkey-*/{tag_of(gateway)}-*.ring"))


def tag_of(gateway):
    return hashlib.sha256(os.path.realpath(gateway.data).encode()).hexdigest()[:16]


def children(pid):
    out = []
    for task in pathlib.Path(f"/proc/{pid}/task").iterdir():
        with contextlib.suppress(OSError):
            out += [int(p) for p in (task / "children").read_text().split()]
    return out


def parent(pid):
    return int(pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def replace(gateway, text):
    """Puts a script in the place of the program file, in one step."""
    new = pathlib.Path(gateway.program + ".new")
    new.write_text(text)
    new.chmod(0o755)
    new.rename(gateway.program)


def refused(gateway, *words):
    """A reload that must fail and change nothing; what the command said."""
    pid = gateway.pid
    done = gateway.cli("reload", check=False)
    assert done.returncode == 1 and not done.stdout, done
    for word in words:
        assert word in done.stderr, done.stderr
    assert gateway.follow().pid == pid and gateway.alive
    assert wait_until(lambda: not children(pid), 5, "the end of the failed successor") is True
    assert (gateway.data / "lock").read_text() == f"gateway {pid}\n"
    return done.stderr


class Traffic:
    """Clients of four kinds until told to stop. Every request has an id of its own; `sent` holds those of requests that were
    answered as they must be, `failures` everything else."""

    def __init__(self, gateway, key, each=2):
        self.gateway, self.key, self.over = gateway, key, threading.Event()
        self.sent, self.failures, self.connections = [], [], 0
        kinds = [self.new_connections, self.kept, self.pipelined, self.posts] * each
        self.pool = concurrent.futures.ThreadPoolExecutor(len(kinds))
        self.done = [self.pool.submit(self.guarded, kind) for kind in kinds]

    def guarded(self, kind):
        while not self.over.is_set():
            try:
                kind()
            except (OSError, Broken, TimedOut, AssertionError) as e:
                self.failures.append(f"{kind.__name__}: {e!r}")

    def connect(self):
        self.connections += 1
        return self.gateway.client()

    def named(self):
        return unique("r")

    def take(self, c, name, method="GET"):
        """True: the connection goes on."""
        r = c.response(method)
        assert r.status == 200 and r.complete and r.fields.get("x-request-id") == name, r
        self.sent.append(name)
        return (r.fields.get("connection") or "").lower() != "close"

    def new_connections(self):
        with self.connect() as c:
            name = self.named()
            c.request("GET", "/hello", self.key, [("X-Request-Id", name)])
            self.take(c, name)

    def kept(self):
        with self.connect() as c:
            go_on = True
            while go_on and not self.over.is_set():
                name = self.named()
                c.request("GET", "/hello", self.key, [("X-Request-Id", name)])
                go_on = self.take(c, name)

    def posts(self):
        with self.connect() as c:
            go_on = True
            while go_on and not self.over.is_set():
                name = self.named()
                c.request("POST", "/echo", self.key, [("X-Request-Id", name)], b"b" * 3000)
                go_on = self.take(c, name)

    def pipelined(self):
        with self.connect() as c:
            go_on = True
            while go_on and not self.over.is_set():
                names = [self.named() for _ in range(5)]
                c.send(b"".join(request_bytes("GET", "/hello", self.key, [("X-Request-Id", n)]) for n in names))
                for name in names:
                    assert go_on, "closed before its last request was answered"
                    go_on = self.take(c, name)

    def running(self, more=100):
        goal = len(self.sent) + more
        wait_until(lambda: len(self.sent) >= goal or self.failures, 30, "more answers")

    def stop(self):
        self.over.set()
        for d in self.done:
            d.result()
        self.pool.shutdown()
        assert not self.failures, self.failures[:10]
        return self.sent


def on_record(gateway, sent):
    """Every request of `sent` is on record, once, and no other."""
    for old in list(gateway.before):
        gateway.end_of(old)
    found = collections.Counter(r["request_id"] for r in gateway.export())
    assert max(found.values()) == 1, "counted twice"
    assert set(found) == set(sent), (len(found), len(sent))


@pytest.fixture(scope="module")
def demo():
    """A fast upstream: the program's own."""
    process = subprocess.Popen([PROGRAM, "demo-upstream"], stdout=subprocess.PIPE, text=True)
    yield process.stdout.readline().strip()
    process.terminate()
    process.wait()


@pytest.mark.parametrize("workers", [1, 3])
def test_P4_no_connection_and_no_request_is_lost_and_each_is_on_record_once(demo, workers, record_property):
    gateway = Gateway(demo, dict(QUICK), workers=workers)
    for _ in run(gateway):
        traffic = Traffic(gateway, gateway.create_key()["key"])
        reloads = 12
        for _ in range(reloads):
            traffic.running()
            gateway.reload()
        traffic.running()
        sent = traffic.stop()
        told = f"{reloads} reloads: {traffic.connections} connections, {len(sent)} requests, 0 failed"
        record_property("P4", told)
        print(told)
        on_record(gateway, sent)


def test_P4_a_download_and_an_upload_in_flight_come_to_their_end(live, up):
    key, go = live.create_key()["key"], threading.Event()
    part = os.urandom(1 << 16)

    def slow(x):
        x.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % (2 * len(part)))
        x.send(part)
        go.wait(bound(20))
        x.send(part)
    down, upload = up.on("/" + unique(), slow), "/" + unique()
    with live.client() as reading, live.client() as writing:
        reading.request("GET", down, key)
        up.wait(lambda: up.seen(down))
        writing.send(request_bytes("POST", upload, key, [("Content-Length", str(2 * len(part)))]) + part)
        up.wait(lambda: up.seen(upload))
        old = live.reload()
        assert old.poll() is None
        writing.send(part)
        told = served(writing.response())
        assert told["size"] == 2 * len(part)
        go.set()
        r = reading.response()
        assert r.complete and r.body == part + part
    assert live.end_of(old) == 0
    assert {r["path"]: r["outcome"] for r in live.export()} == {down: "served", upload: "served"}


def waits(pid):
    """How often the workers of a process went to sleep."""
    tasks = [t for t in pathlib.Path(f"/proc/{pid}/task").iterdir() if (t / "comm").read_text().startswith("worker-")]
    assert tasks
    return sum(int((t / "status").read_text().split("\nvoluntary_ctxt_switches:")[1].split()[0]) for t in tasks)


def test_P4_clients_of_the_successor_do_not_wake_the_process_that_drains(live, up):
    path, go = "/" + unique(), threading.Event()
    up.on(path, lambda x: (go.wait(bound(30)), x.answer(200, [], b"late")))
    key = live.create_key()["key"]
    with live.client() as flying:
        flying.request("GET", path, key)
        up.wait(lambda: up.seen(path))
        old = live.reload()
        before = waits(old.pid)
        for _ in range(2000):
            live.client().close()
        assert waits(old.pid) - before < 300  # its sweeps, and nothing else: the sockets are in its epoll sets no more
        go.set()
        assert flying.response().body == b"late"


def test_P4_an_idle_connection_gets_one_more_answer_and_a_silent_one_is_closed(live):
    key = live.create_key()["key"]
    with live.client() as asks, live.client() as fresh, live.client() as silent:
        for c in (asks, silent):
            served(c.get("/x", key))
        wait_until(lambda: live.metric("latchkey_connections_accepted_total") >= 3, 5, "the third connection")
        old = live.reload()
        for c in (asks, fresh):
            r = c.get("/y", key)
            assert r.status == 200 and r.fields.get("connection") == "close"
            assert c.end() == "fin"
        assert silent.end() == "fin"
    assert live.end_of(old) == 0


def test_P4_new_settings_are_in_force_when_the_command_returns(live, up):
    key = live.create_key()["key"]
    other = Upstream(lambda x: x.answer(200, [], b"other"))
    port = lasting_port()
    with contextlib.ExitStack() as stack:
        stack.callback(other.stop)
        live.settings["api"].append({"name": "added", "path_prefixes": ["/added"], "upstreams": [other.url]})
        live.settings["listen"] = ["127.0.0.1:0", f"127.0.0.1:{port}"]
        live.settings["workers"] = 3
        live.configure()
        first = live.address
        live.reload()
        assert live.told["listen"] == [f"127.0.0.1:{first[1]}", f"127.0.0.1:{port}"]
        for address in (first, ("127.0.0.1", port)):
            with RawClient(address) as c:
                assert c.get("/added/x", key).body == b"other"
        for workers in (1, 2):
            live.settings["workers"] = workers
            live.configure()
            live.reload()
            assert f'"workers":{workers}' in live.cli("status", "--output", "json").stdout
            for _ in range(20):  # every socket of before is served by somebody
                with live.client() as c:
                    served(c.get("/x", key))
        live.settings["listen"], live.settings["api"] = ["127.0.0.1:0"], live.settings["api"][:1]
        live.configure()
        live.reload()
        assert live.told["listen"] == [f"127.0.0.1:{first[1]}"]
        with pytest.raises(ConnectionRefusedError):
            RawClient(("127.0.0.1", port))
        with live.client() as c:
            assert served(c.get("/added/x", key))["target"] == "/added/x"
        # A port that the kernel chose, by its number; then another, and that one known by another name.
        for host, ask, port in (("127.0.0.1", "127.0.0.1", first[1]), ("127.0.0.1", "127.0.0.1", port), ("0.0.0.0", "127.0.0.2", port)):
            live.settings["listen"] = [f"{host}:{port}"]
            live.configure()
            if host == "0.0.0.0":
                with socket.create_server(("127.0.0.3", port)):  # another's already, in part
                    refused(live, f"cannot listen on 0.0.0.0:{port}: Address already in use")
            live.reload()
            with RawClient((ask, port)) as c:
                served(c.get("/x", key))
        live.settings["listen"] = ["127.0.0.1:0"]


def test_P4_who_waits_at_an_address_that_goes_is_served_yet(live):
    key = live.create_key()["key"]
    live.settings["listen"] = ["127.0.0.1:0", "127.0.0.1:0"]
    live.configure()
    live.reload()
    gone = ("127.0.0.1", int(live.told["listen"][1].rsplit(":")[1]))
    os.kill(live.pid, signal.SIGSTOP)  # nobody accepts
    waiting = [RawClient(gone) for _ in range(8)]
    live.settings["listen"] = ["127.0.0.1:0"]
    live.configure()
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        reload = pool.submit(live.reload)
        os.kill(live.pid, signal.SIGCONT)
        reload.result()
    for c in waiting:
        with c:
            served(c.get("/x", key))


def test_P4_the_health_address_may_move_and_probes_find_somebody_all_the_time(live):
    over, states = threading.Event(), collections.Counter()

    def probe():
        while not over.is_set():
            states[live.admin("/livez").status] += 1
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        probing = pool.submit(probe)
        for _ in range(5):
            live.reload()
        wait_until(lambda: states[200] > 20, 10, "probes")
        over.set()
        probing.result()
    assert set(states) == {200}
    taken = socket.create_server(("127.0.0.1", 0))
    live.settings["admin_listen"] = f"127.0.0.1:{taken.getsockname()[1]}"
    live.configure()
    refused(live, "for health", "Address already in use")
    taken.close()
    live.reload()
    live.admin_address = ("127.0.0.1", int(live.told["admin_listen"].rsplit(":")[1]))
    assert live.admin("/readyz").status == 200


# --- successors that fail

def change(gateway, **settings):
    gateway.settings = {**gateway.settings, **settings}
    gateway.configure()


def wrong_setting(gateway):
    file = gateway.folder / "latchkey.toml"
    file.write_text("nonsense = 1\n" + file.read_text())
    return [f"{file}:1:1: ", "nonsense"]


def missing_file(gateway):
    (gateway.folder / "latchkey.toml").unlink()
    return ["latchkey.toml"]


def port_in_use(gateway):
    gateway.blocker = socket.create_server(("127.0.0.1", 0))
    change(gateway, listen=["127.0.0.1:0", f"127.0.0.1:{gateway.blocker.getsockname()[1]}"])
    return ["cannot listen on", "Address already in use"]


def other_data(gateway):
    change(gateway, data_dir=str(gateway.folder / "elsewhere"))
    return ["data directory cannot change", "elsewhere"]


def no_rings(gateway):
    change(gateway, usage={**gateway.settings["usage"], "ring_dir": "/proc/nowhere"})
    return ["/proc/nowhere"]


FAILURES = [wrong_setting, missing_file, port_in_use, other_data, no_rings]


@pytest.mark.parametrize("spoil", FAILURES, ids=[f.__name__ for f in FAILURES])
def test_P4_settings_that_are_wrong_change_nothing_and_the_command_says_why(live, spoil):
    key, settings = live.create_key()["key"], dict(live.settings)
    live.end_of(live.reload())
    before, descriptors = rings(live), live.descriptors
    with live.client() as c:
        served(c.get("/x", key))
        words = spoil(live)
        refused(live, *words)
        os.kill(live.pid, signal.SIGHUP)
        wait_until(lambda: live.log().count("all goes on as before") == 2, 10, "the second failure")
        assert words[-1] in live.log()
        served(c.get("/x", key))  # not even a connection was closed
    live.create_key("the commands work")
    wait_until(lambda: rings(live) == before, 10, "the end of the failed ones' rings")
    wait_until(lambda: live.descriptors <= descriptors + 1, 5, "its descriptors")  # an upstream connection
    live.settings = settings
    live.configure()
    live.reload()


SCRIPT = """#!/usr/bin/python3
import array, json, os, socket, sys, time
s = socket.socket(fileno=int(os.environ["LATCHKEY_HANDOVER"]))
def take(word=None):
    data, rest, _, _ = s.recvmsg(65536, socket.CMSG_SPACE(800))
    for _, _, d in rest:
        for fd in array.array("i", d):
            os.close(fd)
    return data.decode()
def until(word):
    while not take().startswith(word):
        pass
"""
BROKEN = {
    "is not there": (None, "No such file"),
    "is no program": ("\x7fnonsense", "cannot start"),
    "exits at once": ("#!/bin/sh\nexit 3\n", "exit code 3"),
    "is killed": ("#!/bin/sh\nkill -9 $$\n", "signal 9"),
    "hangs": ("#!/bin/sh\nexec sleep 100\n", f"did not serve within {TAKEOVER_S}000 ms (takeover)"),
    "cannot take over": (SCRIPT + "until('sockets'); s.send(b'failed not my kind of gateway'); sys.exit(1)",
                         "not my kind of gateway"),
    "dies when prepared": (SCRIPT + "until('sockets'); s.send(b'prepared'); os._exit(9)", "exit code 9"),
    "hangs when prepared": (SCRIPT + "until('sockets'); s.send(b'prepared'); time.sleep(100)", "takeover"),
    "dies when all is quiet": (SCRIPT + "until('sockets'); s.send(b'prepared'); until('quiet'); os._exit(9)", "exit code 9"),
    "hangs when all is quiet": (SCRIPT + "until('sockets'); s.send(b'prepared'); until('quiet'); time.sleep(100)", "takeover"),
    "talks nonsense": (SCRIPT + "until('sockets'); s.send(b'hello there'); time.sleep(100)", "another protocol"),
    "serves nonsense": (SCRIPT + "until('sockets'); s.send(b'prepared'); until('quiet'); s.send(b'serving {'); time.sleep(100)",
                        "another protocol"),
}


@pytest.mark.parametrize("how", BROKEN, ids=[n.replace(" ", "-") for n in BROKEN])
def test_P4_a_new_program_that_fails_at_any_step_changes_nothing(copied, how):
    key = copied.create_key()["key"]
    text, words = BROKEN[how]
    with copied.client() as c:
        served(c.get("/x", key))
        if text is None:
            os.unlink(copied.program)
        else:
            replace(copied, text)
        refused(copied, words)
        served(c.get("/x", key))
    assert copied.cli("keys", "list").returncode == 0
    copied.create_key("the commands work")
    with copied.client() as c:
        served(c.get("/x", key))
    shutil.copy(PROGRAM, copied.program + ".new")
    os.rename(copied.program + ".new", copied.program)
    copied.reload()
    assert os.path.samefile(f"/proc/{copied.pid}/exe", copied.program)


def test_P4_a_ready_file_that_cannot_be_written_costs_no_connection(demo):
    live = Gateway(demo, dict(QUICK))
    for _ in run(live):
        traffic, ready = Traffic(live, live.create_key()["key"], each=3), live.folder / "ready"
        traffic.running()
        ready.unlink()
        (ready / "in the way").mkdir(parents=True)
        for _ in range(5):
            said = live.cli("reload").stdout
        traffic.running()
        assert live.log().count("ready file cannot be written") == 5
        shutil.rmtree(ready)
        live.cli("reload")
        live.follow()
        sent = traffic.stop()
        wait_until(lambda: not running(int(said.split()[1])), 20, "the end of the one before")
        on_record(live, sent)
        assert not list(live.folder.glob("ready.tmp-*"))


def test_P4_a_successor_killed_at_any_moment_leaves_somebody_who_serves_or_nothing_behind(live):
    """Swept over the time that a reload takes. A kill that comes too late ends the service, and the next start recovers all."""
    key, sent, outcomes = live.create_key()["key"], [], collections.Counter()
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        for step in range(30):
            with live.client() as c:
                name = unique("r")
                served(c.get("/x", key, [("X-Request-Id", name)]))
                sent.append(name)
            old = live.process
            reload = pool.submit(live.cli, "reload", check=False)
            child = wait_until(lambda: children(old.pid) or reload.done(), 10, "a successor", 0.0005)
            if child is not True:
                time.sleep(step * 0.001 * SLOW)  # the fault's moment
                with contextlib.suppress(ProcessLookupError):
                    os.kill(child[0], signal.SIGKILL)
            code = reload.result().returncode
            outcomes[code] += 1
            if code == 0:
                live.follow()
                old.wait(bound(20))
                live.before.remove(old)
                if not wait_until(lambda: live.process.poll() is not None or child is True, 5, "its end"):
                    break
                if live.process.poll() is not None:
                    live.start()
            assert live.alive
    assert outcomes[1] >= 5, outcomes
    on_record(live, sent)


# --- keys

def test_P4_a_key_revoked_during_the_drain_is_dead_in_both_processes(live):
    made, other = live.create_key(), live.create_key()
    heads = [request_bytes("GET", "/x", k["key"]) for k in (made, other, made)]
    slow = [live.client() for _ in heads]
    for c, head in zip(slow, heads):
        c.send(head[:-2])
    wait_until(lambda: live.metric("latchkey_connections_accepted_total") >= 3, 5, "the slow heads")
    old = live.reload()
    served_yet = live.create_key("made in the meantime")
    live.cli("keys", "revoke", made["id"], "--yes")
    for c, head, status in zip(slow, heads, (401, 200, 401)):
        c.send(head[-2:])
        assert c.response().status == status
        c.close()
    assert old.poll() is None or old.poll() == 0
    for key, status in ((served_yet, 200), (made, 401)):
        with live.client() as c:
            assert c.get("/x", key["key"]).status == status


def test_P4_a_key_made_while_it_drains_is_known_to_the_process_of_before(live):
    with live.client() as c:
        c.send(b"GET /x HTTP/1.1\r\nHost: test.example\r\n")
        wait_until(lambda: live.metric("latchkey_connections_accepted_total") >= 1, 5, "the slow head")
        live.reload()
        c.send(f"X-API-KEY: {live.create_key()['key']}\r\n\r\n".encode())
        r = c.response()
        assert r.status == 200 and r.fields.get("connection") == "close"


def test_P2_a_key_revoked_while_a_stopping_gateway_drains_is_dead(live, up):
    path, go = "/" + unique(), threading.Event()
    up.on(path, lambda x: (go.wait(bound(20)), x.answer(200, [], b"late")))
    made, other = live.create_key(), live.create_key()
    with live.client() as slow, live.client() as flying:
        slow.send(request_bytes("GET", "/x", made["key"])[:-2])
        flying.request("GET", path, other["key"])
        up.wait(lambda: up.seen(path))
        wait_until(lambda: live.metric("latchkey_connections_accepted_total") >= 2, 5, "the slow head")
        live.terminate()
        wait_until(lambda: live.admin("/readyz").status == 503, 5, "the drain")
        live.cli("keys", "revoke", made["id"], "--yes")
        slow.send(b"\r\n")
        problem(slow.response(), 401, "key_invalid")
        go.set()
        assert flying.response().body == b"late"
    assert live.wait() == 0
    live.start()


def test_P4_commands_on_keys_never_fail_while_it_is_reloaded(live):
    over, made = threading.Event(), []

    def create():
        while not over.is_set():
            made.append(live.create_key(unique("app")))
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        creating = [pool.submit(create) for _ in range(2)]
        for _ in range(6):
            goal = len(made) + 4
            wait_until(lambda: len(made) >= goal or any(c.done() for c in creating), 20, "more keys")
            live.reload()
        over.set()
        for c in creating:
            c.result()
    with live.client() as c:
        for m in made:
            served(c.get("/x", m["key"]))


# --- what a kill leaves

def test_P4_records_of_a_process_killed_as_it_drains_are_taken_over_once(up):
    gateway = Gateway(up, {**QUICK, "usage": {"flush_interval": "1m"}})
    path = "/" + unique()
    up.on(path, lambda x: x.until_closed())
    for _ in run(gateway):
        key, sent = gateway.create_key()["key"], []
        with gateway.client() as c, gateway.client() as hangs:
            for _ in range(50):
                sent.append(unique("r"))
                served(c.get("/x", key, [("X-Request-Id", sent[-1])]))
            hangs.request("GET", path, key)
            up.wait(lambda: up.seen(path))
            old = gateway.reload()
            sent.append(unique("r"))
            served(c.get("/x", key, [("X-Request-Id", sent[-1])]))
            old.kill()
            old.wait()
        gateway.before.remove(old)
        with gateway.client() as c:
            sent.append(unique("r"))
            served(c.get("/x", key, [("X-Request-Id", sent[-1])]))
        on_record(gateway, sent)
        assert gateway.metric("latchkey_usage_recovered_total") == 51
        assert len(rings(gateway)) == 2


def test_P4_killed_right_after_a_reload_the_next_start_counts_everything_once(live, up):
    path, go = "/" + unique(), threading.Event()
    up.on(path, lambda x: (go.wait(bound(20)), x.answer(200, [], b"late")))
    key, sent = live.create_key()["key"], []
    with live.client() as c, live.client() as flying:
        sent.append(unique("r"))
        served(c.get("/x", key, [("X-Request-Id", sent[-1])]))
        sent.append(unique("r"))
        flying.request("GET", path, key, [("X-Request-Id", sent[-1])])
        up.wait(lambda: up.seen(path))
        old = live.reload()
        with live.client() as d:
            sent.append(unique("r"))
            served(d.get("/x", key, [("X-Request-Id", sent[-1])]))
        dead = live.process
        with concurrent.futures.ThreadPoolExecutor(1) as pool:
            start = pool.submit(live.start)  # waits for the lock: it must come before the old one's patience ends
            wait_until(lambda: live.process is not dead and len(os.listdir(f"/proc/{live.pid}/task")) > 2, 10, "its start")
            dead.kill()
            start.result()  # although the one before still drains
        assert old.poll() is None
        with live.client() as d:
            sent.append(unique("r"))
            served(d.get("/x", key, [("X-Request-Id", sent[-1])]))
        go.set()
        assert flying.response().body == b"late"
    assert live.end_of(old) == 0
    on_record(live, sent)


# --- T3: certificates

@pytest.fixture
def secure(up):
    gateway = Gateway(up, {**QUICK, **tls_settings(certificate(temporary_folder("rotated")))})
    yield from run(gateway)


def shown(client):
    return client.sock.getpeercert(binary_form=True)


def rotate(gateway):
    """A new certificate in the files of the old one."""
    files = gateway.settings["tls"]["certificate"][0]
    certificate(pathlib.Path(files["chain"]).parent, stem=pathlib.Path(files["chain"]).stem)
    return files


def test_T3_new_handshakes_get_the_new_certificate_and_running_connections_go_on(secure, up):
    key, path, go = secure.create_key()["key"], "/" + unique(), threading.Event()
    up.on(path, lambda x: (x.send(b"HTTP/1.1 200 OK\r\nContent-Length: 8\r\n\r\nhalf"), go.wait(bound(20)), x.send(b"half")))
    with secure.tls_client() as idle, secure.tls_client() as flying:
        served(idle.get("/x", key))
        flying.request("GET", path, key)
        up.wait(lambda: up.seen(path))
        before = shown(idle)
        rotate(secure)
        old = secure.reload()
        with secure.tls_client() as c:  # trusts the new certificate only
            assert shown(c) != before
            served(c.get("/x", key))
        r = idle.get("/x", key)
        assert r.status == 200 and r.fields.get("connection") == "close"
        go.set()
        assert flying.response().body == b"halfhalf"
    assert secure.end_of(old) == 0


def test_P4_what_is_pipelined_behind_a_body_in_one_tls_record_is_answered(secure, up):
    key, first, second = secure.create_key()["key"], "/" + unique(), "/" + unique()
    reading = threading.Event()
    up.on(first, lambda x: (reading.set(), x.body(), x.answer(200, body=b"first")))
    with secure.tls_client() as c:
        served(c.get("/x", key))
        old = secure.reload()
        c.send(request_bytes("POST", first, key, [("Content-Length", "4")]))
        assert reading.wait(bound(5))
        c.send(b"body" + request_bytes("GET", second, key))
        assert c.response().body == b"first"
        assert served(c.response())["target"] == second
    assert secure.end_of(old) == 0


def test_T3_a_key_that_does_not_fit_keeps_the_certificate_that_is_served(secure):
    key, files = secure.create_key()["key"], secure.settings["tls"]["certificate"][0]
    kept = {name: pathlib.Path(file).read_bytes() for name, file in files.items()}
    with secure.tls_client() as c:
        before = shown(c)
        rotate(secure)
        new = {name: pathlib.Path(file).read_bytes() for name, file in files.items()}
        for name, bad in (("key", kept["key"]), ("key", b"no key"), ("chain", b"no certificate")):
            pathlib.Path(files[name]).write_bytes(bad)
            refused(secure, files[name].rsplit("/", 1)[1])
            pathlib.Path(files[name]).write_bytes(new[name])
        served(c.get("/x", key))
    pathlib.Path(files["chain"]).write_bytes(kept["chain"])  # only so that the client below trusts it
    with secure.tls_client() as c:
        assert shown(c) == before
        served(c.get("/x", key))
    pathlib.Path(files["chain"]).write_bytes(new["chain"])
    secure.reload()
    with secure.tls_client() as c:
        assert shown(c) != before


def test_T3_no_handshake_and_no_request_fails_while_certificates_rotate(secure):
    key, over, sent, failures = secure.create_key()["key"], threading.Event(), [], []
    known = [pathlib.Path(secure.settings["tls"]["certificate"][0]["chain"]).read_text()]
    trusted = temporary_folder("trusted") / "all.pem"
    trusted.write_text(known[0])

    def ask():
        while not over.is_set():
            try:
                with secure.tls_client(trusted=str(trusted)) as c:
                    go_on = True
                    while go_on and not over.is_set():
                        name = unique("r")
                        r = c.get("/x", key, [("X-Request-Id", name)])
                        assert r.status == 200
                        sent.append(name)
                        go_on = r.fields.get("connection") != "close" and len(sent) % 5
            except (OSError, Broken, TimedOut, AssertionError) as e:
                failures.append(repr(e))
    with concurrent.futures.ThreadPoolExecutor(3) as pool:
        asking = [pool.submit(ask) for _ in range(3)]
        for _ in range(5):
            goal = len(sent) + 20
            wait_until(lambda: len(sent) >= goal or failures, 30, "more answers")
            rotate(secure)
            known.append(pathlib.Path(secure.settings["tls"]["certificate"][0]["chain"]).read_text())
            new = trusted.with_suffix(".new")
            new.write_text("".join(known))
            new.rename(trusted)
            secure.reload()
        over.set()
        for a in asking:
            a.result()
    assert not failures, failures[:5]
    on_record(secure, sent)


# --- signals

def test_P3_a_storm_of_SIGHUP_costs_no_request_and_leaves_nothing_behind(demo):
    live = Gateway(demo, dict(QUICK))
    for _ in run(live):
        live.end_of(live.reload())
        threads, files = len(os.listdir(f"/proc/{live.pid}/task")), len(rings(live))
        traffic = Traffic(live, live.create_key()["key"], each=1)
        traffic.running()
        first, began = live.pid, time.monotonic()
        for i in range(1000):
            live.follow()
            with contextlib.suppress(ProcessLookupError):
                os.kill(live.pid, signal.SIGHUP)
            time.sleep(max(0, began + i * 0.01 - time.monotonic()))
        traffic.running()
        sent = traffic.stop()
        assert live.follow().pid != first
        live.reload()  # has its turn when no signal is left to be answered
        wait_until(lambda: parent(live.pid) == os.getpid(), 30, "the end of the one before")
        on_record(live, sent)
        assert len(os.listdir(f"/proc/{live.pid}/task")) <= threads + 1
        assert len(rings(live)) == files


def test_P3_SIGHUP_to_the_process_that_drains_reaches_the_one_that_serves(live, up):
    path, go = "/" + unique(), threading.Event()
    up.on(path, lambda x: (go.wait(bound(20)), x.answer(200, [], b"late")))
    key = live.create_key()["key"]
    with live.client() as flying:
        flying.request("GET", path, key)
        up.wait(lambda: up.seen(path))
        old = live.reload()
        second = live.pid
        old.send_signal(signal.SIGHUP)
        with concurrent.futures.ThreadPoolExecutor(1) as pool:
            waits = pool.submit(live.cli, "reload")
            served(RawClient(live.address).get("/x", key))
            assert live.follow().pid == second and not waits.done()
            go.set()
            assert flying.response().body == b"late"
            waits.result()
    wait_until(lambda: live.follow().pid != second, 10, "the reload")


def test_P4_SIGTERM_to_the_process_that_drains_ends_its_patience_and_then_itself(up):
    live = Gateway(up, {**QUICK, "client": {"idle": "1h"}})
    path = "/" + unique()
    up.on(path, lambda x: x.until_closed())
    for _ in run(live):
        key = live.create_key()["key"]
        with live.client() as idle, live.client() as flying:
            served(idle.get("/x", key))
            flying.request("GET", path, key)
            up.wait(lambda: up.seen(path))
            old = live.reload()
            old.send_signal(signal.SIGTERM)
            assert idle.end(4) == "fin"  # well before its 5 s
            assert old.poll() is None
            old.send_signal(signal.SIGTERM)
            assert old.wait(bound(10)) == 1
        with live.client() as c:
            served(c.get("/x", key))
        live.before.remove(old)


def test_P4_SIGTERM_during_a_handover_ends_both(copied):
    replace(copied, "#!/bin/sh\nexec sleep 100\n")
    os.kill(copied.pid, signal.SIGHUP)
    child = wait_until(lambda: children(copied.pid), 10, "the successor")[0]
    assert copied.stop() == 0
    assert not running(child)
    shutil.copy(PROGRAM, copied.program + ".new")
    os.rename(copied.program + ".new", copied.program)
    copied.start()


# --- what is left, and who is told

def test_P4_twenty_reloads_leave_no_descriptor_no_process_no_thread_and_no_ring(live):
    live.reload()

    def count():
        wait_until(lambda: not any(map(running, [p.pid for p in live.before])), 20, "the end of those before")
        # The listener of the process before, and what the start itself opened.
        held = [len(os.listdir(f"/proc/{live.pid}/{what}")) for what in ("fd", "task")]
        return held, len(rings(live)), children(live.pid)
    before = wait_until(lambda: count() == count() and count(), 10, "a settled state")
    for _ in range(20):
        live.reload()
    wait_until(lambda: count() == before, 10, f"{before} again, not {count()}")
    assert sorted(p.name for p in live.data.iterdir() if not p.name.startswith(("keys.db", "usage.db"))) == ["admin.sock", "lock"]
    assert sorted(p.name for p in live.folder.iterdir()) == ["data", "latchkey.toml", "log", "ready"]


def test_P4_the_service_manager_learns_of_the_new_process_before_it_speaks_itself(up):
    folder = temporary_folder("notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(folder / "notify"))
        manager.settimeout(bound(10))

        def said(count):
            return [manager.recv(4096).decode().split("\n")[0] for _ in range(count)]
        live = Gateway(up, dict(QUICK), environment={"NOTIFY_SOCKET": str(folder / "notify")})
        for _ in run(live):
            assert said(1) == ["READY=1"]
            live.reload()
            assert said(3) == ["RELOADING=1", f"MAINPID={live.pid}", "READY=1"]
            wrong_setting(live)
            refused(live, "nonsense")
            assert said(2) == ["RELOADING=1", "READY=1"]
        assert said(1) == ["STOPPING=1"]


def test_P4_a_gateway_with_demo_says_that_it_cannot(tmp_path):
    words = ["--listen", "127.0.0.1:0", "--admin-listen", "127.0.0.1:0", "--data", str(tmp_path / "data"), "--ready-file",
             str(tmp_path / "ready")]
    with subprocess.Popen([PROGRAM, "serve", "--demo", *words], stderr=subprocess.PIPE, text=True) as p:
        try:
            wait_until((tmp_path / "ready").exists, 10, "the ready file")
            done = subprocess.run([PROGRAM, "reload", "--data", str(tmp_path / "data")], capture_output=True, text=True,
                                  timeout=bound(20))
            assert done.returncode == 1 and "--demo cannot be reloaded" in done.stderr
            for _ in range(3):
                p.send_signal(signal.SIGHUP)
            assert json.loads((tmp_path / "ready").read_text())["pid"] == p.pid and p.poll() is None
        finally:
            p.terminate()
            said = p.communicate(timeout=bound(20))[1]
        assert p.returncode == 0 and said.count("cannot be reloaded") == 1


def test_P4_process_1_of_a_container_says_that_it_cannot(tmp_path, up):
    inside = ["unshare", "--pid", "--fork", "--kill-child"]
    if subprocess.run([*inside, "true"], capture_output=True).returncode:
        pytest.skip("needs a process namespace of its own")
    ready = tmp_path / "ready"
    words = ["--listen", "127.0.0.1:0", "--admin-listen", "127.0.0.1:0", "--data", str(tmp_path / "data"), "--ready-file",
             str(ready)]
    with subprocess.Popen([*inside, PROGRAM, "serve", "--upstream", up.url, *words], stderr=subprocess.DEVNULL) as p:
        try:
            wait_until(ready.exists, 10, "the ready file")
            assert json.loads(ready.read_text())["pid"] == 1
            done = subprocess.run([PROGRAM, "reload", "--data", str(tmp_path / "data")], capture_output=True, text=True,
                                  timeout=bound(20))
            assert done.returncode == 1 and "process 1 of a container" in done.stderr
            assert p.poll() is None
        finally:
            p.kill()


def test_P4_a_store_that_a_newer_program_migrated_serves_the_process_of_before(live):
    made = live.create_key()
    with contextlib.closing(sqlite3.connect(live.data / "keys.db", timeout=bound(5))) as db:
        db.execute("ALTER TABLE keys ADD COLUMN scopes TEXT NOT NULL DEFAULT ''")
        db.execute("PRAGMA user_version = 2")
    with live.client() as c:
        served(c.get("/x", made["key"]))
        served(c.get("/x", live.create_key()["key"]))
        live.cli("keys", "revoke", made["id"], "--yes")
        assert c.get("/x", made["key"]).status == 401
        refused(live, "schema version 2")  # this program is the older one, and does not start on it
        served(c.get("/x", live.create_key()["key"]))
    with contextlib.closing(sqlite3.connect(live.data / "keys.db", timeout=bound(5))) as db:
        db.execute("PRAGMA user_version = 1")


def test_reload_without_a_gateway_says_so(tmp_path):
    (tmp_path / "data").mkdir(mode=0o700)
    done = subprocess.run([PROGRAM, "reload", "--data", str(tmp_path / "data")], capture_output=True, text=True,
                          timeout=bound(20))
    assert done.returncode == 6 and "no gateway runs" in done.stderr
