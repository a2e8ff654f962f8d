"""R4, T1, U12 and P4: a disk that gives EIO or turns read-only, a wall clock that jumps, a name that moves or cannot be resolved, a
system that gives no thread, has no splice() or holds little for the network, all played by a preloaded library (shim.c)."""
import contextlib
import datetime
import email.utils
import pathlib
import random
import shutil
import signal
import socket
import sqlite3
import struct
import subprocess
import threading
import time

import pytest

from harness import SLOW, Broken, Gateway, Upstream, bound, chunked, pipes_of, problem, served, unique, wait_until

EPERM, EIO, EAGAIN, EINVAL, EROFS, ENOSYS = 1, 5, 11, 22, 30, 38
HOUR = 3600

pytestmark = [pytest.mark.skipif(SLOW > 1, reason="a sanitizer's runtime wants to be the first library"),
              pytest.mark.skipif(not shutil.which("cc"), reason="needs a C compiler")]


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    out = tmp_path_factory.mktemp("shim") / "shim.so"
    subprocess.run(["cc", "-O1", "-shared", "-fPIC", "-o", out, pathlib.Path(__file__).with_name("shim.c"), "-ldl"], check=True)
    return out


class Played(Gateway):
    """A gateway whose clock and disk the test plays."""

    def __init__(self, upstream, library, settings):
        super().__init__(upstream, {"usage": {"flush_interval": "50ms", "ring_bytes": "1MiB"}, **settings}, workers=1)
        self.words = self.folder / "words"
        self.play()
        freed = ["GLIBC_TUNABLES=glibc.malloc.tcache_count=0", "MALLOC_PERTURB_=165"]  # memory that is used once freed is seen to be
        self.prefix = ["env", f"LD_PRELOAD={library}", f"LATCHKEY_SHIM={self.words}", *freed]

    def play(self, seconds=0, error=0, name=0, threads=0, splice=0, send_buffer=0):
        with open(self.words, "r+b" if self.words.exists() else "wb") as f:
            f.write(struct.pack("qqqqqq", seconds, error, name, threads, splice, send_buffer))


@pytest.fixture
def played(up, library):
    waits = {"response_head": "1s", "body_stall": "1s", "idle": "60s"}
    g = Played(None, library, {"api": [{"name": "default", "upstreams": [up.url], "deadlines": waits}], "client": {"head": "1s"}})
    g.start()
    yield g
    if g.alive:
        g.kill()


@pytest.mark.parametrize("error", [EIO, EROFS], ids=["EIO", "EROFS"])
def test_R4_a_disk_that_takes_no_writes_stops_no_request_and_loses_no_record(played, error):
    made, ids = played.create_key(), []
    played.play(error=error)
    with played.client() as c:
        for _ in range(1000):
            ids.append(unique("played"))
            served(c.get("/x", made["key"], [("X-Request-Id", ids[-1])]))
    wait_until(lambda: "not_journalled" in played.log(), 10, "a word about it")
    done = played.cli("usage", "export", check=False)
    assert done.returncode == 1 and "usage.db" in done.stderr, "an export that would not be whole says so"
    done = played.cli("keys", "create", "--name", "late", "--json", check=False)
    assert done.returncode != 0 and done.stderr.strip(), done
    done = played.cli("keys", "revoke", made["id"], "--yes", check=False)
    assert done.returncode != 0, "a revocation that is not stored is not confirmed"
    cpu, began = played.cpu_seconds, time.monotonic()
    time.sleep(0.5)  # the span over which processor time is taken
    assert (played.cpu_seconds - cpu) / (time.monotonic() - began) < 0.3, "the flusher spins"
    assert played.log().count("not_journalled") == 1, "the log is flooded"
    played.play()
    wait_until(lambda: {r["request_id"] for r in played.export()} >= set(ids), 15, "the records", 0.2)
    later = played.create_key("later")
    with played.client() as c:
        served(c.get("/x", later["key"]))
    assert played.stop() == 0
    recorded = [r["request_id"] for r in played.export()]
    assert sorted(r for r in recorded if r.startswith("played")) == sorted(ids), "each once"


def test_R4_killed_while_the_disk_takes_nothing_the_records_are_there_after_the_next_start(played):
    key, ids = played.create_key()["key"], []
    played.play(error=EIO)
    with played.client() as c:
        for _ in range(300):
            ids.append(unique("killed"))
            served(c.get("/x", key, [("X-Request-Id", ids[-1])]))
    played.kill()
    played.play()
    played.start()
    assert played.stop() == 0
    recorded = [r["request_id"] for r in played.export()]
    assert sorted(r for r in recorded if r.startswith("killed")) == sorted(ids)


def record_time(row):
    return datetime.datetime.fromisoformat(row["time"].replace("Z", "+00:00")).timestamp()


@pytest.mark.parametrize("jump", [HOUR, -HOUR], ids=["forward", "back"])
def test_T1_a_clock_that_jumps_ends_no_connection_and_keeps_every_deadline(played, up, jump):
    key, go, path = played.create_key()["key"], threading.Event(), "/" + unique()
    up.on(path, lambda x: (go.wait(bound(10)), x.answer(200, [], b"late")))
    silent, rid = up.on("/" + unique(), lambda x: x.until_closed()), unique()
    with contextlib.ExitStack() as stack:
        kept = [stack.enter_context(played.client()) for _ in range(50)]
        for c in kept:
            served(c.get("/x", key))
        flying = stack.enter_context(played.client())
        flying.request("GET", path, key, [("X-Request-Id", rid)])
        up.wait(lambda: up.seen(path))
        played.play(seconds=jump)
        wait_until(lambda: abs(gateway_time(played) - time.time() - jump) < 60, 5, "the new time in its answers")
        go.set()
        assert flying.response().body == b"late"
        for c in kept:
            served(c.get("/x", key))
        problem(kept[0].get(silent, key), 504, "upstream_timeout")
        with played.client() as c:
            c.send(b"GET / HTTP/1.1\r\n")
            problem(c.response(), 408, "head_timeout")
        wait_until(lambda: played.metric("latchkey_connections_open") == 51, 5, "the end of the refused connection, and of no other")
    row = played.record(rid)
    assert float(row["duration_ms"]) < 10_000 and float(row["upstream_ms"]) < 10_000
    assert min(abs(record_time(row) - time.time() - by) for by in (0, jump)) < 60, "dated by one of the two clocks"
    last = unique()
    with played.client() as c:
        served(c.get("/x", key, [("X-Request-Id", last)]))
    assert abs(record_time(played.record(last)) - time.time() - jump) < 60
    assert played.stop() == 0


def gateway_time(gateway):
    with gateway.client() as c:
        return email.utils.parsedate_to_datetime(c.get("/x").fields.get("date")).timestamp()


def test_T1_a_key_expires_by_the_wall_clock_and_only_then(played):
    made = played.create_key()
    with contextlib.closing(sqlite3.connect(played.data / "keys.db", timeout=10)) as db, db:
        changed = sum(db.execute(f"update {t} set expires_ms = ? where id = ?", (int((time.time() + HOUR / 2) * 1000), made["id"])).rowcount
                      for (t,) in db.execute("select name from sqlite_master where sql like '%expires_ms%' and type = 'table'").fetchall())
    assert changed == 1
    wait_until(lambda: "T" in played.cli("keys", "show", made["id"], "--output", "json").stdout, 5, "the row")

    def status():
        with played.client() as c:
            return c.get("/x", made["key"]).status
    assert status() == 200
    played.play(seconds=HOUR)
    wait_until(lambda: status() == 401, 5, "its end")
    played.play()
    wait_until(lambda: status() == 200, 5, "the time before")


def test_U12_a_name_that_moves_is_followed_and_one_that_fails_keeps_its_last_address(up, library):
    """The upstream listens on 127.0.0.1 and, as another server on the same port, on 127.0.0.2."""
    other = Upstream(default=lambda x: x.answer(200, [("X-From", "other")], b"ok"), host="127.0.0.2", port=up.port)
    g = Played(None, library, {"resolve": "1s", "api": [{"name": "named", "require_key": False, "upstreams": [f"http://played.test:{up.port}"]}]})
    g.start()
    try:
        with g.client() as c:
            def whence():
                r = c.get("/x")
                up.close_connections()
                other.close_connections()
                return r.fields.get("x-from", "first") if r.status == 200 else r.status
            assert whence() == 502, "not resolved yet"
            assert "played.test" in g.log()
            g.play(name=1)
            wait_until(lambda: whence() == "first", 10, "its address", 0.1)
            g.play(name=2)
            wait_until(lambda: whence() == "other", 10, "its new address", 0.1)
            g.play(name=0)
            until = time.monotonic() + bound(3)  # three look-ups that fail: the pause is the fault
            while time.monotonic() < until:
                assert whence() == "other"
                time.sleep(0.1)
            g.play(name=1)
            wait_until(lambda: whence() == "first", 10, "the first address again", 0.1)
        assert g.stop() == 0
    finally:
        if g.alive:
            g.kill()
        other.stop()


def test_U12_a_name_of_many_apis_is_looked_up_once_for_all_their_ports(up, library):
    other = Upstream(default=lambda x: x.answer(200, [("X-From", "other")], b"ok"))
    apis = [{"name": f"api{n}", "path_prefixes": [f"/api{n}"], "require_key": False,
             "upstreams": [f"http://played.test:{up.port if n % 2 else other.port}"]} for n in range(20)]
    g = Played(None, library, {"resolve": "1s", "api": apis})
    g.start()
    try:
        assert g.log().count("cannot be resolved") == 1
        g.play(name=1)
        with g.client() as c:
            wait_until(lambda: c.get("/api0/x").status == 200, 10, "its address", 0.1)
            said = [r.fields.get("x-from", "first") for r in (c.get(f"/api{n}/x") for n in range(20))]
        assert said == ["other", "first"] * 10
        assert g.stop() == 0
    finally:
        if g.alive:
            g.kill()
        other.stop()


def test_P4_a_reload_for_which_there_is_no_thread_changes_nothing(played):
    key = played.create_key()["key"]
    with played.client() as c:
        served(c.get("/x", key))
        played.play(threads=EAGAIN)
        done = played.cli("reload", check=False)
        assert done.returncode == 1 and "gives no thread" in done.stderr, done
        played.process.send_signal(signal.SIGHUP)
        wait_until(lambda: played.log().count("gives no thread") == 2, 10, "a word about it")
        served(c.get("/x", key))
    played.play()
    old = played.reload()
    with played.client() as c:
        served(c.get("/x", key))
    assert played.end_of(old) == 0


@pytest.mark.parametrize("way", [0, 256], ids=["both ways", "out of pipes"])
@pytest.mark.parametrize("error", [EPERM, EINVAL, ENOSYS], ids=["EPERM", "EINVAL", "ENOSYS"])
def test_where_splice_is_not_allowed_long_bodies_are_copied(played, up, error, way):
    """A sandbox forbids it, or a kernel does not know it."""
    key, body = played.create_key()["key"], random.Random(error).randbytes(3 << 20)
    up.on("/long", lambda x: x.answer(200, [], body))
    played.play(splice=error + way)
    with played.client() as c:
        for _ in range(3):
            assert c.get("/long", key).body == body
            wait_until(lambda: not pipes_of(played), 5, "the end of the pipe")  # the client may have all before it is closed
    assert played.log().count("splice() does not work here") == 1


def test_a_refused_splice_where_it_has_worked_ends_one_response_only(played, up):
    key, body = played.create_key()["key"], random.Random(1).randbytes(3 << 20)
    up.on("/long", lambda x: x.answer(200, [], body))
    with played.client() as c:
        assert c.get("/long", key).body == body
        played.play(splice=EINVAL)
        c.request("GET", "/long", key)
        with pytest.raises(Broken):
            c.response()
    played.play()
    with played.client() as c:
        for _ in range(2):
            assert c.get("/long", key).body == body
        assert pipes_of(played)


# --- The kernel takes only part of what is in hand when a request is sent, for the upstream does not read yet.

IN_HAND = {"length": lambda body: ([("Content-Length", str(len(body)))], body), "chunked": lambda body: ([("Transfer-Encoding", "chunked")], chunked(body))}


@pytest.fixture
def cramped(played, up):
    """Of 60,000 bytes it takes a part, on either side of the network."""
    up.listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    played.play(send_buffer=4096)
    return played


def with_deadlines(gateway, **deadlines):
    gateway.settings["api"][0]["deadlines"].update(deadlines)
    gateway.configure()
    gateway.reload()


def post(client, framing, path, key, body, method="POST", fields=()):
    framed_by, wire = IN_HAND[framing](body)
    client.request(method, path, key, [*framed_by, *fields], wire)


@pytest.mark.parametrize("framing", IN_HAND)
def test_an_answer_is_not_kept_back_until_the_request_is_taken(cramped, up, framing):
    """RFC 9112 9.3; without that it would come when body_stall, one second here, is over: as 504"""
    key, path, rid, answered = cramped.create_key()["key"], "/" + unique(), unique(), threading.Event()
    up.on(path, lambda x: (x.answer(413, [("Connection", "close")], b"enough"), answered.wait(bound(10))))
    for _ in range(3):
        with cramped.client() as c:
            post(c, framing, path, key, bytes(60_000), fields=[("X-Request-Id", rid)])
            answer = c.response()
            assert (answer.status, answer.body) == (413, b"enough")
    answered.set()
    assert {r["outcome"] for r in cramped.records(rid, 3)} == {"served"}
    wait_until(lambda: cramped.metric("latchkey_requests_in_flight") == 0, 10, "the end of the requests")


@pytest.mark.parametrize("framing", IN_HAND)
def test_a_request_that_is_taken_late_arrives_whole_and_the_connections_go_on(cramped, up, framing):
    key, path, body = cramped.create_key()["key"], "/" + unique(), random.Random(2).randbytes(60_000)

    def late(x):
        time.sleep(0.2)  # the pause is the fault
        x.answer(200, [], x.body())
    up.on(path, late)
    with cramped.client() as c:
        for n in range(3):
            post(c, framing, path, key, body)
            answer = c.response()
            assert answer.body == body and answer.fields.get("connection") != "close"
            served(c.get("/after", key))
    assert len(up.connections) == 1


@pytest.mark.parametrize("what", ["body", "head"])
def test_a_request_that_is_not_taken_is_504_when_body_stall_is_over(cramped, up, what):
    with_deadlines(cramped, response_head="60s")
    key, path, rid, over = cramped.create_key()["key"], "/" + unique(), unique(), threading.Event()
    up.on(path, lambda x: over.wait(bound(10)))
    if what == "head":
        up.on_accept = lambda connection: over.wait(bound(10))
    with cramped.client() as c:
        if what == "head":
            c.request("GET", path, key, [("X-Request-Id", rid), *((f"X-{n}", "a" * 2000) for n in range(7))])
        else:
            post(c, "length", path, key, bytes(20_000), fields=[("X-Request-Id", rid)])
        problem(c.response(), 504, "upstream_timeout")
        up.on_accept = None
        served(c.get("/after", key))
    over.set()
    assert cramped.record(rid)["outcome"] == "upstream_failed"


@pytest.mark.parametrize("method, status", [("PUT", 200), ("POST", 502)])
def test_of_a_connection_that_is_reset_before_it_took_all_a_PUT_is_sent_again(cramped, up, method, status):
    key, path, body = cramped.create_key()["key"], "/" + unique(), random.Random(3).randbytes(60_000)

    def first_breaks(x):
        if len(up.seen(path)) == 1:
            time.sleep(0.2)  # the pause is the fault: the gateway waits for room
            return x.reset()
        return x.answer(200, [], x.body())
    up.on(path, first_breaks)
    with cramped.client() as c:
        served(c.get("/before", key))
        post(c, "length", path, key, body, method)
        answer = c.response()
        assert answer.status == status and (status != 200 or answer.body == body)


def test_of_a_request_sent_again_the_answer_may_come_early_too(cramped, up):
    """The first try's upload has ended by itself, the second's has not."""
    key, path, body, over = cramped.create_key()["key"], "/" + unique(), random.Random(4).randbytes(60_000), threading.Event()

    def breaks_then_answers(x):
        if len(up.seen(path)) % 2:
            time.sleep(0.2)  # the pause is the fault: the gateway waits for room
            return x.reset()
        x.answer(413, [("Connection", "close")], b"enough")
        return over.wait(bound(10))
    up.on(path, breaks_then_answers)
    for _ in range(5):
        with cramped.client() as c:
            served(c.get("/before", key))
            post(c, "length", path, key, body, "PUT")
            answer = c.response()
            assert (answer.status, answer.body) == (413, b"enough")
    over.set()
    wait_until(lambda: cramped.metric("latchkey_requests_in_flight") == 0, 10, "the end of the requests")
    with cramped.client() as c:
        served(c.get("/after", key))
    assert cramped.metric("latchkey_upstream_retries_total") == 5


@pytest.mark.parametrize("declared, sent", [(0, 0), (20_000, 20_000), (30_000, 20_000)])
def test_a_client_that_resets_while_its_body_waits_for_the_upstream_is_noticed(cramped, up, declared, sent):
    """Long before any deadline"""
    with_deadlines(cramped, response_head="60s", body_stall="60s")
    key, path, rid, over = cramped.create_key()["key"], "/" + unique(), unique(), threading.Event()
    up.on(path, lambda x: over.wait(bound(20)))
    with cramped.client() as c:
        c.request("POST", path, key, [("Content-Length", str(declared)), ("X-Request-Id", rid)], bytes(sent))
        up.wait(lambda: up.seen(path))
        c.reset()
        assert cramped.record(rid)["outcome"] == "client_aborted"
    over.set()


def test_an_answer_before_the_head_is_taken_puts_no_other_bytes_behind_what_was(cramped, up):
    """The request's head stands where the answer's will, in memory that then is another request's."""
    key, seen, taken = cramped.create_key()["key"], threading.Event(), bytearray()

    def first_answers(connection):
        up.on_accept = None
        connection.sock.sendall(b"HTTP/1.1 200 OK\r\nX-Early: yes\r\nContent-Length: 9\r\n\r\nhalf")
        seen.wait(bound(10))
        connection.sock.settimeout(0.3)
        with contextlib.suppress(OSError):
            while piece := connection.sock.recv(65536):
                taken.extend(piece)
        connection.sock.sendall(b"whole")
    up.on_accept = first_answers
    with cramped.client() as c:
        c.request("GET", "/x", key, [(f"X-{n}", "a" * 2000) for n in range(7)])
        assert b"X-Early" in c.reader.until(b"half", time.monotonic() + bound(10))
        with cramped.client() as other:
            served(other.get("/y", key, [(f"X-{n}", "b" * 2000) for n in range(7)]))
        seen.set()
        c.reader.until(b"whole", time.monotonic() + bound(10))
    assert taken.startswith(b"GET /x HTTP/1.1\r\n") and b"HTTP/1.1 200" not in taken and b"b" * 100 not in taken
