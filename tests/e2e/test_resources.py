"""R: what the machine runs out of, or takes away. Each test has a gateway of its own to ruin."""
import contextlib
import os
import pathlib
import sqlite3
import subprocess
import tempfile
import threading
import time

import pytest

from harness import Broken, Gateway, bound, served, unique, wait_until


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


@pytest.mark.parametrize("workers, files, connections", [(1, 1024, 448), (16, 1024, 448), (16, 20000, 9848)])
def test_R1_pipes_for_long_bodies_take_few_places_of_connections(up, workers, files, connections):
    g = Gateway(up, {"limits": {"requests_in_flight": 0}}, workers=workers, prefix=["prlimit", f"--nofile={files}:{files}"]).start()
    try:
        assert f"{files} allow {connections} " in g.log()
    finally:
        g.kill()


@pytest.mark.parametrize("limits, workers, connections", [
    ({}, 1, 448),  # 4096 in flight would leave nothing: half are for clients
    ({"requests_in_flight": 100}, 1, 1024 - 128 - (100 + 1) - 128),
    ({"requests_in_flight": 100}, 2, 1024 - 128 - (100 + 2) - 2 * 128),
    ({"requests_in_flight": 0}, 1, 448),
])
def test_R1_clients_get_the_open_files_that_requests_in_flight_and_idle_upstreams_leave(up, limits, workers, connections):
    g = Gateway(up, {"limits": limits}, workers=workers, prefix=["prlimit", "--nofile=1024:1024"]).start()
    try:
        assert f"1024 allow {connections} " in g.log()
    finally:
        g.kill()


def test_R1_every_client_is_served_where_most_of_the_open_files_are_theirs(up):
    """700 clients at 1,024 open files: in turn, and all at once, when 100 are served at a time and the others told to come again."""
    api = {"name": "default", "upstreams": [up.url], "idle_per_target": 8}
    g = Gateway(up, {"limits": {"connections": 700, "requests_in_flight": 100}, "api": [api]}, prefix=["prlimit", "--nofile=1024:1024"]).start()
    try:
        key, path, go = g.create_key()["key"], "/" + unique(), threading.Event()
        up.on(path, lambda x: (go.wait(bound(30)), x.answer(200, [], b"done")))
        assert "is lowered" not in g.log()
        with contextlib.ExitStack() as open_clients:
            clients = [open_clients.enter_context(g.client()) for _ in range(700)]
            assert [c.get("/x", key).status for c in clients] == [200] * 700
            for c in clients:
                c.request("GET", path, key)
            wait_until(lambda: g.metric("latchkey_requests_in_flight") <= 100 and len(up.seen(path)) >= 50, 20, "the first of them in flight")
            go.set()
            seen = [c.response().status for c in clients]
            assert set(seen) == {200, 503} and seen.count(200) <= 100, {s: seen.count(s) for s in seen}
            assert [c.get("/x", key).status for c in clients] == [200] * 700
        assert "open files" not in g.log()
        assert g.stop() == 0 and not g.sanitizer_findings()
    finally:
        if g.alive:
            g.kill()
