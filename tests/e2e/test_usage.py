"""The account: every request leaves exactly one record, whatever happened to it or to the gateway (P: the process)."""
import collections
import datetime
import os
import pathlib
import random
import signal
import threading
import time

import pytest

from conftest import fixture_of
from harness import (Broken, Gateway, Malformed, RawClient, TimedOut, bound, parse_usage, request_bytes, served, unique,
                     wait_until)

quick = fixture_of({"client": {"head": "400ms", "body_stall": "400ms", "write_stall": "500ms"}, "usage": {"flush_interval": "50ms"}})


def tagged(stem="u"):
    """(path, request id, fields that carry it)"""
    name = unique(stem)
    return "/" + name, name, [("X-Request-Id", name)]


# --- one record, and what is in it

def test_a_served_request_has_one_record_with_the_right_fields(gateway, client, upstream):
    made = gateway.create_key("Account, \"quoted\"")
    path, rid, fields = tagged()
    before = datetime.datetime.now(datetime.timezone.utc)
    raw = request_bytes("POST", path + "/a%20b?secret=1", made["key"], fields, b"hello", host="api.example:81")
    client.send(raw)
    answer = client.response()
    served(answer)
    row = gateway.record(rid)
    assert (row["application"], row["application_id"], row["key_id"]) == ('Account, "quoted"', made["application_id"], made["id"])
    assert (row["api"], row["method"], row["status"], row["outcome"]) == ("default", "POST", "200", "served")
    assert row["host"] in ("api.example", "api.example:81") and row["path"] == path + "/a%20b"
    assert int(row["request_bytes"]) == len(raw)
    assert int(row["response_bytes"]) == len(answer.raw_head) + len(answer.body)
    assert row["client_ip"] == "127.0.0.1"
    assert float(row["duration_ms"]) >= float(row["upstream_ms"]) >= 0
    when = datetime.datetime.fromisoformat(row["time"].replace("Z", "+00:00"))
    assert row["time"].endswith("Z") and abs((when - before).total_seconds()) < bound(5)


@pytest.mark.parametrize("name, send, status", [
    ("missing key", lambda p, f, k: request_bytes("GET", p, None, f), "401"),
    ("unknown key", lambda p, f, k: request_bytes("GET", p, "unknown-unknown-unknown", f), "401"),
    ("bad framing", lambda p, f, k: request_bytes("POST", p, k, f + [("Content-Length", "1"), ("Transfer-Encoding", "chunked")]), "400"),
    ("unknown coding", lambda p, f, k: request_bytes("POST", p, k, f + [("Transfer-Encoding", "gzip")]), "501"),
    ("trace", lambda p, f, k: request_bytes("TRACE", p, k, f), "405"),
    ("expectation", lambda p, f, k: request_bytes("GET", p, k, f + [("Expect", "magic")]), "417"),
    ("no host", lambda p, f, k: request_bytes("GET", p, k, f, host=None), "400"),
], ids=lambda v: v if isinstance(v, str) else "")
def test_a_refused_request_has_one_record(gateway, upstream, key, name, send, status):
    path, rid, fields = tagged()
    with gateway.client() as c:
        c.send(send(path, fields, key))
        r = c.response()
        assert str(r.status) == status
        assert name == "bad framing" or r.fields.get("x-request-id") == rid, "only of a head that cannot be read is the id not known"
    row = gateway.record(r.fields.get("x-request-id"))
    assert (row["status"], row["outcome"], row["upstream_ms"] in ("0", "0.000", "")) == (status, "refused", True), row
    assert not upstream.seen(path)


@pytest.mark.parametrize("target, host", [(b"/\xff\xfe", b"api.example"), (b"/", b"\xff\xfe"), (b"/\xc2\x9b31m", b"\xc2\x9b2J"),
                                          (b"/", "\uff1dcmd".encode())], ids=["path", "host", "terminal", "full-width"])
def test_no_client_makes_the_export_unreadable(gateway, target, host):
    """The export of everybody's requests is decoded as a whole: a byte that is no UTF-8 in one of them would be the end of it."""
    before = len(gateway.export())
    with gateway.client() as c:
        c.send(b"GET %b HTTP/1.1\r\nHost: %b\r\n\r\n" % (target, host))
        assert c.response().status == 400
    row = new_records(gateway, before, 1)[0]
    assert not any(0x7f <= ord(c) < 0xa0 for c in row["host"] + row["path"]) and not row["host"].startswith("\uff1d"), row


def new_records(gateway, before, count):
    def found():
        rows = gateway.export()[before:]
        return rows if len(rows) >= count else None
    rows = wait_until(found, 5, f"{count} new record(s)", 0.05)
    assert len(rows) == count, rows
    return rows


@pytest.mark.parametrize("raw, status", [(b"nonsense\r\n\r\n", "400"), (b"GET / HTTP/2.0\r\n\r\n", "505"), (b"GET /" + b"a" * 9000 + b" HTTP/1.1\r\n\r\n", "414"),
                                         (b"GET / HTTP/1.1\r\nHost: a\r\n" + b"a: b\r\n" * 200 + b"\r\n", "431")],
                         ids=["nonsense", "version", "target", "fields"])
def test_a_request_that_cannot_be_read_has_one_record(gateway, raw, status):
    before = len(gateway.export())
    with gateway.client() as c:
        c.send(raw)
        assert str(c.response().status) in (status, "400")
    row = new_records(gateway, before, 1)[0]
    assert row["outcome"] == "refused" and row["status"] in (status, "400")


def test_a_head_that_never_ends_has_one_timed_out_record(quick):
    before = len(quick.export())
    with quick.client() as c:
        c.send(b"GET / HTTP/1.1\r\nHost: a\r\n")
        assert c.response().status == 408
    row = new_records(quick, before, 1)[0]
    assert (row["status"], row["outcome"]) == ("408", "timed_out")


def test_connections_without_a_request_leave_no_record(quick):
    before = len(quick.export())
    for _ in range(20):
        quick.client().close()
    with quick.client() as c:
        c.send(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
        assert c.response().status == 401
    new_records(quick, before, 1)


def test_an_upstream_that_breaks_off_is_on_record(gateway, upstream, key):
    path, rid, fields = tagged()
    upstream.on(path, lambda x: (x.send(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhello"), x.close()))
    with gateway.client() as c:
        c.request("GET", path, key, fields)
        with pytest.raises(Broken):
            c.response()
    row = gateway.record(rid)
    assert (row["status"], row["outcome"]) == ("200", "upstream_aborted")


def test_an_upstream_that_does_not_answer_is_on_record(gateway, upstream, key):
    path, rid, fields = tagged()
    upstream.on(path, lambda x: x.reset())
    with gateway.client() as c:
        c.request("POST", path, key, fields, b"x")
        assert c.response().status == 502
    row = gateway.record(rid)
    assert (row["status"], row["outcome"]) == ("502", "upstream_failed")


def test_a_client_that_leaves_is_on_record(gateway, upstream, key):
    path, rid, fields = tagged()
    upstream.on(path, lambda x: x.until_closed())
    with gateway.client() as c:
        c.request("GET", path, key, fields)
        upstream.wait(lambda: upstream.seen(path))
        c.reset()
    row = gateway.record(rid)
    assert (row["outcome"], row["status"]) == ("client_aborted", "0"), row


def test_a_client_that_leaves_in_its_upload_is_on_record(gateway, upstream, key):
    path, rid, fields = tagged()
    with gateway.client() as c:
        c.request("POST", path, key, fields + [("Content-Length", "1000")], b"x" * 500)
        upstream.wait(lambda: upstream.seen(path))
    assert gateway.record(rid)["outcome"] == "client_aborted"


def test_a_slow_body_is_on_record_as_timed_out(quick, upstream):
    key = quick.create_key()["key"]
    path, rid, fields = tagged()
    with quick.client() as c:
        c.request("POST", path, key, fields + [("Content-Length", "1000")], b"x" * 500)
        try:
            assert c.response().status == 408
        except Broken:
            pass
    assert quick.record(rid)["outcome"] == "timed_out"


def test_pipelined_requests_have_a_record_each(gateway, key):
    stem = unique("pipe")
    with gateway.client() as c:
        c.send(b"".join(request_bytes("GET", "/p", key, [("X-Request-Id", f"{stem}-{n}")]) for n in range(100)))
        for _ in range(100):
            served(c.response())
    wait_until(lambda: sum(r["request_id"].startswith(stem) for r in gateway.export()) == 100, 5, "100 records", 0.05)
    ids = [r["request_id"] for r in gateway.export() if r["request_id"].startswith(stem)]
    assert len(ids) == len(set(ids)) == 100


def test_the_counters_agree_with_the_records(gateway, client, key):
    rid = tagged()[1]
    served(client.get("/x", key, [("X-Request-Id", rid)]))
    gateway.record(rid)
    wait_until(lambda: gateway.metric("latchkey_requests_total") == len(gateway.export()), 5, "requests_total to equal the records", 0.1)


# --- text from outside

def test_the_query_is_not_recorded(gateway, client, key):
    path, rid, fields = tagged()
    served(client.get(path + "?token=geheim", key, fields))
    gateway.record(rid)
    assert "geheim" not in gateway.cli("usage", "export").stdout


@pytest.mark.parametrize("name", ["=cmd()", "+1", "-1+1", "@sum", 'a"b,c', "ä=ö"])
def test_no_cell_begins_a_formula(gateway, client, name):
    """OWASP CSV injection: = + - @ get a quote before them"""
    made = gateway.create_key(name)
    path, rid, fields = tagged()
    client.request("GET", path, made["key"], fields)
    served(client.response())
    cell = gateway.record(rid)["application"]
    assert cell == ("'" + name if name[0] in "=+-@" else name)


@pytest.mark.parametrize("method", ["+SUM", "-X"])
def test_a_method_cannot_begin_a_formula_either(gateway, client, key, method):
    path, rid, fields = tagged()
    client.request(method, path, key, fields)
    served(client.response())
    assert gateway.record(rid)["method"] == "'" + method


def test_a_long_path_is_cut_and_says_so(gateway, client, key):
    path, rid, fields = tagged()
    served(client.get(path + "a" * 3000, key, fields))
    recorded = gateway.record(rid)["path"]
    assert recorded.startswith(path) and recorded.endswith("...") and len(recorded) <= 1027


def test_export_writes_crlf_a_header_and_to_a_file(gateway, tmp_path):
    file = tmp_path / "usage.csv"
    with gateway.client() as c:
        assert c.get("/x").status == 401
    gateway.cli("usage", "export", "--output", str(file))
    raw = file.read_bytes()
    assert raw.startswith(b"time,request_id,") and raw.endswith(b"\r\n") and raw.count(b"\n") == raw.count(b"\r\n")
    assert parse_usage(raw.decode())


# --- killed, stopped, started

class Load:
    """Clients that send numbered requests on kept connections and note which answers reached them whole."""

    def __init__(self, gateway, key, threads=4):
        self.address, self.key = gateway.address, key
        self.whole, self.started, self.lock = [], set(), threading.Lock()
        self.stopping = threading.Event()
        self.threads = [threading.Thread(target=self._run, daemon=True) for _ in range(threads)]
        for t in self.threads:
            t.start()

    def _run(self):
        while not self.stopping.is_set():
            try:
                with RawClient(self.address) as c:
                    while not self.stopping.is_set():
                        rid = unique("load")
                        self.started.add(rid)
                        c.request("POST" if random.random() < 0.3 else "GET", "/load", self.key, [("X-Request-Id", rid)], b"body")
                        response = c.response()
                        assert response.fields.get("x-request-id") == rid
                        if response.status == 200:
                            with self.lock:
                                self.whole.append(rid)
                        if "close" in response.fields.get("connection", "").lower():
                            break
            except (Broken, OSError, TimedOut, Malformed):
                if self.stopping.is_set():
                    return
                time.sleep(0.001)

    def reach(self, count):
        wait_until(lambda: len(self.whole) >= count, 20, f"{count} answers", 0.001)

    def stop(self):
        self.stopping.set()
        for t in self.threads:
            t.join(bound(15))
        assert not any(t.is_alive() for t in self.threads)


def account(gateway, loads):
    """Every answer that was whole is on record once; nothing is on record twice; nothing that was never sent."""
    counts = collections.Counter(r["request_id"] for r in gateway.export())
    whole = {rid for load in loads for rid in load.whole}
    lost = [rid for rid in whole if counts[rid] == 0]
    twice = [rid for rid, n in counts.items() if n > 1]
    assert not lost, f"{len(lost)} of {len(whole)} lost: {lost[:5]}"
    assert not twice, f"{len(twice)} on record more than once: {twice[:5]}"
    assert not [rid for rid in counts if rid.startswith("load") and not any(rid in load.started for load in loads)]
    return len(whole)


@pytest.fixture
def mortal(upstream):
    """A gateway that tests may kill."""
    g = Gateway(upstream, {"usage": {"flush_interval": "30ms"}})
    yield g
    if g.alive:
        g.kill()
    assert not g.sanitizer_findings(), g.log()[-5000:]


def test_P1_kill_9_under_load_loses_and_doubles_nothing_in_20_rounds(mortal):
    key, loads = mortal.create_key("load")["key"], []
    chance = random.Random(20260822)
    for _ in range(20):
        mortal.start()
        load = Load(mortal, key)
        loads.append(load)
        load.reach(chance.randrange(20, 250))
        mortal.kill()
        load.stop()
    mortal.start()
    assert account(mortal, loads) >= 20 * 20
    assert mortal.stop() == 0
    account(mortal, loads)


def test_P1_what_a_killed_gateway_left_is_exported_without_a_restart(mortal):
    mortal.start()
    load = Load(mortal, mortal.create_key("load")["key"])
    load.reach(100)
    mortal.kill()
    load.stop()
    account(mortal, [load])
    mortal.start()
    account(mortal, [load])


def test_an_export_of_a_stopped_gateway_leaves_nothing_where_the_rings_lie(mortal):
    mortal.start()
    key = mortal.create_key()["key"]
    with mortal.client() as c:
        served(c.get("/x", key))
    assert mortal.stop() == 0
    folder = pathlib.Path(os.environ["RUNTIME_DIRECTORY"])
    before = sorted(folder.iterdir())
    assert len(mortal.export()) == 1
    assert sorted(folder.iterdir()) == before


def test_P2_sigterm_under_load_loses_nothing(mortal):
    key, loads = mortal.create_key("load")["key"], []
    for _ in range(5):
        mortal.start()
        load = Load(mortal, key)
        loads.append(load)
        load.reach(100)
        assert mortal.stop() == 0
        load.stop()
        account(mortal, loads)


def test_P2_sigterm_lets_a_running_exchange_finish(mortal, upstream):
    mortal.start()
    key, go = mortal.create_key("drain")["key"], threading.Event()
    path, rid, fields = tagged("drain")

    def script(x):
        x.send(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhello")
        assert go.wait(bound(20))
        x.send(b"world")
    upstream.on(path, script)
    idle = mortal.client()
    assert idle.get("/x", key).status == 200
    with mortal.client() as c:
        c.request("GET", path, key, fields)
        c.reader.until(b"hello", time.monotonic() + bound(10))
        c.reader.buffer[:0] = b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhello"
        mortal.terminate()
        assert idle.end() == "fin", "an idle connection is closed"
        wait_until(lambda: refuses(mortal.address), 10, "the listener's end")
        go.set()
        assert c.response().body == b"helloworld"
        assert c.end() == "fin"
    assert mortal.wait() == 0
    assert mortal.record(rid)["outcome"] == "served"


def refuses(address):
    try:
        with RawClient(address):
            return False
    except OSError:
        return True


def test_P2_sigterm_gives_up_at_the_drain_deadline(upstream):
    g = Gateway(upstream, {"drain": "500ms"}).start()
    try:
        path, rid, fields = tagged("drain")
        upstream.on(path, lambda x: x.until_closed(30))
        with g.client() as c:
            c.request("GET", path, g.create_key()["key"], fields)
            upstream.wait(lambda: upstream.seen(path))
            assert g.stop(10) == 0
        assert g.record(rid)["outcome"] == "shut_down"
    finally:
        if g.alive:
            g.kill()


@pytest.mark.parametrize("begun", [False, True], ids=["before its answer", "within it"])
def test_P2_a_second_signal_ends_running_requests_and_puts_them_on_record(mortal, upstream, begun):
    path, rid, fields = tagged("twice")
    upstream.on(path, lambda x: (x.send(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhalf") if begun else None, x.until_closed(30)))
    mortal.start()
    with mortal.client() as c:
        c.request("GET", path, mortal.create_key()["key"], fields)
        upstream.wait(lambda: upstream.seen(path))
        if begun:
            c.reader.until(b"half", time.monotonic() + bound(10))
        mortal.terminate()
        wait_until(lambda: "draining" in mortal.log(), 5, "the drain")
        mortal.terminate()
        assert mortal.wait() == 1
    assert mortal.record(rid)["outcome"] == "shut_down"


def test_P2_sigterm_twice_is_no_crash(mortal):
    mortal.start()
    mortal.terminate()
    mortal.terminate()
    assert mortal.wait() in (0, 1)  # 1: the second came while the first was being obeyed, and ends it at once


def test_P5_a_crash_is_followed_by_a_start_that_counts_nothing_twice(mortal):
    mortal.start()
    load = Load(mortal, mortal.create_key("load")["key"])
    load.reach(100)
    mortal.process.send_signal(signal.SIGSEGV)
    mortal.process.wait()
    load.stop()
    mortal.log_file.write_text("")
    mortal.start()
    account(mortal, [load])


def test_nothing_is_counted_twice_by_ten_empty_restarts(mortal):
    mortal.start()
    load = Load(mortal, mortal.create_key("load")["key"])
    load.reach(50)
    load.stop()
    for n in range(10):
        mortal.kill() if n % 2 else mortal.stop()
        mortal.start()
    account(mortal, [load])
