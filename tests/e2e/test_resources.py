"""R: what the machine runs out of, or takes away. Each test has a gateway of its own to ruin."""
import contextlib
import os
import pathlib
import re
import resource
import sqlite3
import subprocess
import tempfile
import threading
import time

import pytest

from harness import Broken, Gateway, Upstream, bound, pipes_of, problem, served, unique, wait_until


@pytest.fixture
def alone(upstream):
    """Makes gateways that a test may ruin."""
    made = []

    def make(settings=None, **how):
        g = Gateway(upstream, {"usage": {"flush_interval": "50ms"}, **(settings or {})}, **how)
        made.append(g)
        return g
    yield make
    for g in made:
        if g.alive:
            g.kill()
        assert not g.sanitizer_findings(), g.log()[-5000:]


def test_R1_out_of_descriptors_the_gateway_does_not_spin_and_recovers(alone):
    g = alone(prefix=["prlimit", "--nofile=256:256"]).start()
    key = g.create_key()["key"]
    clients = []
    for _ in range(400):
        with contextlib.suppress(OSError):
            clients.append(g.client())
    began, cpu = time.monotonic(), g.cpu_seconds
    time.sleep(1)  # the span over which processor time is taken
    assert (g.cpu_seconds - cpu) / (time.monotonic() - began) < 0.3, "the acceptor spins"
    assert g.log().count("\n") < 500, "the log is flooded"
    for c in clients:
        c.close()

    def answers():
        with contextlib.suppress(Broken, OSError), g.client() as c:
            return c.get("/x", key).status == 200
    wait_until(answers, 10, "service after the shortage")
    assert g.stop() == 0


@contextlib.contextmanager
def small_disk(size):
    if os.getuid() != 0:
        pytest.skip("mounting a small file system needs root")
    folder = tempfile.mkdtemp(prefix="latchkey-disk-")
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", folder], capture_output=True)
    if done.returncode != 0:
        pytest.skip(f"cannot mount a tmpfs here: {done.stderr.decode().strip()}")
    try:
        yield pathlib.Path(folder)
    finally:
        subprocess.run(["umount", "-l", folder], check=True)


def test_R3_a_full_disk_stops_no_request_and_loses_no_record(alone):
    with small_disk("4m") as disk:
        g = alone(data=disk / "data").start()
        key, ids = g.create_key()["key"], []
        filler = disk / "filler"
        with open(filler, "wb", buffering=0) as f, contextlib.suppress(OSError):
            while True:
                f.write(b"x" * 65536)
        with open(filler, "ab", buffering=0) as f, contextlib.suppress(OSError):
            while True:
                f.write(b"x")
        with g.client() as c:
            for _ in range(2000):
                ids.append(unique("full"))
                served(c.get("/x", key, [("X-Request-Id", ids[-1])]))
        cpu, began = g.cpu_seconds, time.monotonic()
        time.sleep(0.5)  # the span over which processor time is taken
        assert (g.cpu_seconds - cpu) / (time.monotonic() - began) < 0.5, "the flusher spins"
        filler.unlink()
        wait_until(lambda: {r["request_id"] for r in g.export()} >= set(ids), 15, "the records after the disk had room", 0.2)
        assert g.stop() == 0
        recorded = [r["request_id"] for r in g.export()]
        assert sorted(r for r in recorded if r.startswith("full")) == sorted(ids)


@contextlib.contextmanager
def locked(file):
    c = sqlite3.connect(file, isolation_level=None, timeout=10)
    c.execute("begin exclusive")
    try:
        yield
    finally:
        c.execute("rollback")
        c.close()


def test_R5_a_locked_key_store_stops_no_request_and_a_write_says_so(alone):
    g = alone().start()
    key = g.create_key()["key"]
    with locked(g.data / "keys.db"):
        with g.client() as c:
            for _ in range(50):
                served(c.get("/x", key))
        done = g.cli("keys", "create", "--name", "late", "--json", check=False, timeout=30)
        assert done.returncode not in (0, 2) and done.stderr.strip(), done
        with g.client() as c:
            served(c.get("/x", key))
    made = g.create_key("later")
    with g.client() as c:
        served(c.get("/x", made["key"]))


def test_R5_a_full_ring_ends_no_connection_behind_a_long_response(alone, upstream):
    g = alone({"usage": {"ring_bytes": "64KiB"}}, workers=1).start()
    key, path = g.create_key()["key"], "/" + unique()
    upstream.on(path, lambda x: x.answer(200, body=b"x" * (4 << 20)))
    with locked(g.data / "usage.db"), g.client() as c:
        while not g.metric("latchkey_usage_dropped_total"):
            for _ in range(100):
                served(c.get("/x", key))
        for _ in range(3):
            assert c.get(path, key).body_size == 4 << 20
        served(c.get("/x", key))


def test_R5_a_locked_usage_journal_stops_no_request_and_loses_no_record(alone):
    g = alone().start()
    key, ids = g.create_key()["key"], []
    with locked(g.data / "usage.db"), g.client() as c:
        for _ in range(500):
            ids.append(unique("locked"))
            served(c.get("/x", key, [("X-Request-Id", ids[-1])]))
    wait_until(lambda: {r["request_id"] for r in g.export()} >= set(ids), 15, "the records after the lock", 0.1)
    assert g.stop() == 0


def ruin(file):
    """Overwrites the first page, where SQLite's header and schema stand."""
    with open(file, "r+b") as f:
        f.write(b"\xff" * 4096)


@pytest.mark.parametrize("name", ["keys.db", "usage.db"])
def test_R6_a_corrupt_file_stops_the_start_and_is_named(alone, name):
    g = alone().start()
    g.create_key()
    assert g.stop() == 0
    for rest in ("-wal", "-shm"):
        (g.data / (name + rest)).unlink(missing_ok=True)
    ruin(g.data / name)
    assert name in g.refuse_to_start()


def test_R6_damage_that_reading_the_keys_does_not_meet_stops_the_start_too(alone):
    g = alone()
    g.cli("keys", "import", "-", input="name,key\n" + "".join(f"name {i},{i:05}{'x' * 16}\n" for i in range(2000)))
    with contextlib.closing(sqlite3.connect(g.data / "keys.db")) as c:
        (page,) = c.execute("select rootpage from sqlite_schema where name = 'keys_by_creation'").fetchone()
    with open(g.data / "keys.db", "r+b") as f:
        f.seek((page - 1) * 4096)
        f.write(b"\xa5" * 4096)
    said = g.refuse_to_start()
    assert "keys.db is damaged" in said and "restore a backup" in said, said


def test_R6_a_running_gateway_keeps_the_keys_that_it_knows(alone):
    g = alone().start()
    key = g.create_key()["key"]
    ruin(g.data / "keys.db")
    with g.client() as c:
        for _ in range(20):
            served(c.get("/x", key))
            assert c.get("/x", "unknown-unknown-unknown").status == 401


def test_R7_a_key_store_deleted_at_run_time_does_not_open_the_door(alone):
    g = alone().start()
    key = g.create_key()["key"]
    for rest in ("", "-wal", "-shm"):
        (g.data / ("keys.db" + rest)).unlink(missing_ok=True)
    with g.client() as c:
        for _ in range(20):
            served(c.get("/x", key))
            assert c.get("/x", "unknown-unknown-unknown").status == 401
            assert c.get("/x").status == 401


def test_R7_without_a_key_store_nobody_gets_in(alone):
    g = alone().start()
    key = g.create_key()["key"]
    assert g.stop() == 0
    for rest in ("", "-wal", "-shm"):
        (g.data / ("keys.db" + rest)).unlink(missing_ok=True)
    g.launch()
    ready = g.folder / "ready"
    wait_until(lambda: ready.exists() or not g.alive, 15, "a start or an end")
    if g.alive:
        g.kill()
        g.start()
        with g.client() as c:
            assert c.get("/x", key).status == 401 and c.get("/x").status == 401


def wait_for_log(gateway, *texts):
    """(The log's own thread writes it.)"""
    wait_until(lambda: all(t in gateway.log() for t in texts), 5, f"{texts} in the log")


@pytest.fixture
def other():
    u = Upstream()
    yield u
    u.stop()


@pytest.mark.parametrize("limits, workers, files, connections", [
    ({}, 1, 1024, (1024 - 160 - 41) // 2 + 1),  # 4096 in flight would leave nothing: half are for clients
    ({"requests_in_flight": 0}, 1, 1024, (1024 - 160 - 41) // 2 + 1),
    ({"requests_in_flight": 0}, 16, 1024, (1024 - 160 - 16 * 17) // 2),
    ({"requests_in_flight": 0}, 16, 20000, (20000 - 160 - 16 * 17) // 2),
    ({"requests_in_flight": 0}, 64, 1024, 1024 // 4 // 2),
    ({"requests_in_flight": 100}, 1, 1024, 1024 - 160 - 41 - 100 - 128),
    ({"requests_in_flight": 100}, 2, 1024, 1024 - 160 - 2 * 41 - 100 - 2 * 128),
    ({"requests_in_flight": 4294967295}, 2, 1024, (1024 - 160 - 2 * 41) // 2),
])
def test_R1_clients_get_the_open_files_that_the_gateway_requests_in_flight_and_idle_upstreams_leave(alone, limits, workers, files, connections):
    g = alone({"limits": limits}, workers=workers, prefix=["prlimit", f"--nofile={files}:{files}"]).start()
    wait_for_log(g, f"{files} allow {connections} ")


@pytest.mark.parametrize("workers", [1, 2, 8])
@pytest.mark.parametrize("slow", [False, True])
def test_R1_every_client_is_served_where_most_of_the_open_files_are_theirs(alone, upstream, workers, slow):
    """As many clients as 1,024 open files allow: all at once, when 96 are served at a time, by pipe where their answers are long and
    they read none of it, and the rest are told to come again; then in turn."""
    in_flight = 96
    api = {"name": "default", "upstreams": [upstream.url], "idle_per_target": 4}
    g = alone({"limits": {"requests_in_flight": in_flight}, "api": [api]}, workers=workers, prefix=["prlimit", "--nofile=1024:1024"]).start()
    key, path, go = g.create_key()["key"], "/" + unique(), threading.Event()
    body = b"x" * 6_000_000 if slow else b"done"
    upstream.on(path, lambda x: (slow or go.wait(bound(60)), x.answer(200, [], body)))
    wait_for_log(g, "1024 allow ")
    most = int(re.search(r"1024 allow (\d+) ", g.log())[1])
    assert most > 448  # what half of them were
    with contextlib.ExitStack() as open_clients:
        clients = []

        def ask(count):
            """More clients, who all want the same; those that are too many are refused."""
            more = [open_clients.enter_context(g.client(receive_buffer=4096 if slow else None)) for _ in range(count)]
            clients.extend(more)
            for c in more:
                c.request("GET", path, key)
            wait_until(lambda: g.metric("latchkey_refused_total") == len(clients) - in_flight, 30, "the answers of those who are too many")
            assert g.metric("latchkey_requests_in_flight") == in_flight

        ask(300)
        if slow:
            wait_until(lambda: pipes_of(g) >= (32 if workers == 1 else 2), 10, "pipes")  # which workers serve them is chance
        ask(most - 300)
        assert g.metric("latchkey_connections_open") == most and g.descriptors < 1024
        go.set()
        seen = [c.response(timeout=60).status for c in clients]
        assert (seen.count(200), seen.count(503)) == (in_flight, most - in_flight), {s: seen.count(s) for s in seen}
        assert [c.get("/x", key).status for c in clients] == [200] * most
    assert "oo many open files" not in g.log()
    assert g.stop() == 0


def test_R1_no_open_file_for_an_upstream_is_503_and_not_the_upstreams_fault(alone, up, other):
    g = alone({"api": [{"name": "two", "upstreams": [up.url, other.url]}]}, workers=1).start()
    key = g.create_key()["key"]
    with g.client() as c:
        served(c.get("/x", key))
        before = resource.prlimit(g.pid, resource.RLIMIT_NOFILE)
        for _ in range(3):
            up.close_connections()
            other.close_connections()
            wait_until(lambda: g.metric("latchkey_upstream_connections") == 0, 5, "the end of the pooled connections")
            resource.prlimit(g.pid, resource.RLIMIT_NOFILE, (3, before[1]))
            r = c.get("/x", key)
            problem(r, 503, "overloaded")
            assert int(r.fields.get("retry-after")) >= 1
            resource.prlimit(g.pid, resource.RLIMIT_NOFILE, before)
            path = "/" + unique()
            for _ in range(4):
                served(c.get(path, key))
            assert len(up.seen(path)) == len(other.seen(path)) == 2, "something was held against one of them"
    wait_for_log(g, "cannot be reached: Too many open files")
    assert g.stop() == 0
    assert g.log().count("cannot be reached") == 2 and "is reached again" not in g.log()  # once a minute and server
