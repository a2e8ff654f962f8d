"""Nothing leaks: 10,000 rounds of faults in all (LATCHKEY_ROUNDS=10000: of each). For each fault what the client gets and what the usage record says; behind its
rounds as many descriptors, upstream connections and requests in flight as before, no memory, and one record a round."""
import collections
import concurrent.futures
import contextlib
import os
import threading

import pytest

from conftest import run, settled_descriptors
from harness import (SLOW, Broken, Gateway, RawClient, Upstream, bound, problem, refused_port, request_bytes, reset, served,
                     wait_until)

MIB = 1 << 20
ROUNDS = int(os.environ.get("LATCHKEY_ROUNDS", "840" if SLOW == 1 else "40"))  # of each of the 12 faults
BATCH = 840  # then all comes to rest: a client that is gone in a download is noticed after some seconds, and is in flight until then
HANDS = 8


class Sides:
    def __init__(self):
        self.upstream = Upstream()
        self.keeper, self.port = refused_port()
        on = self.upstream.on
        on("/mid-head", lambda x: (x.send(b"HTTP/1.1 200 OK\r\nContent-Le"), x.reset()))
        on("/mid-body", self.mid_body)
        on("/stall", lambda x: x.until_closed())
        on("/garbage", lambda x: (x.send(b"\x15\x03\x01\x00\x02\x02\x46\r\n\r\n"), x.close()))
        on("/upload", self.upload)
        on("/download", lambda x: (x.send(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\nfirst"), x.until_closed()))

    @staticmethod
    def mid_body(x):
        x.send(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\nfirst")
        x.close()
        x.until_closed()

    @staticmethod
    def upload(x):
        x.keep = False
        x.send(b"HTTP/1.1 100 Continue\r\n\r\n")  # tells the client that the request is under way
        with contextlib.suppress(Broken):
            x.body()

    def stop(self):
        self.upstream.stop()
        self.keeper.close()


@pytest.fixture(scope="module")
def sides():
    s = Sides()
    yield s
    s.stop()


def ms(n):
    return f"{int(n * SLOW)}ms"


@pytest.fixture(scope="module")
def worn(sides):
    waits = {"response_head": ms(10000), "idle": ms(500), "connect": ms(2000)}
    apis = [{"name": "down", "path_prefixes": ["/down"], "upstreams": [f"http://127.0.0.1:{sides.port}"], "deadlines": waits},
            {"name": "stall", "path_prefixes": ["/stall"], "upstreams": [sides.upstream.url], "deadlines": {**waits, "response_head": ms(300)}},
            {"name": "up", "upstreams": [sides.upstream.url], "deadlines": waits}]
    settings = {"api": apis, "usage": {"flush_interval": "50ms", "ring_bytes": "1MiB"}, "client": {"head": ms(400)}}
    yield from run(Gateway(settings=settings))


@pytest.fixture(scope="module")
def its_key(worn):
    return worn.create_key("rounds")["key"]


def first_bytes(c, raw):
    """Sends and waits for the first bytes of the answer."""
    c.send(raw)
    c.sock.settimeout(bound(10))
    assert c.sock.recv(65536).startswith((b"HTTP/1.1 200", b"HTTP/1.1 100"))


def broken(c, raw):
    c.send(raw)
    with pytest.raises(Broken) as end:
        c.response()
    assert not end.value.partial.complete


def answered(status, code):
    def play(c, raw):
        c.send(raw)
        problem(c.response(), status, code)
    return play


def reset_after_first_bytes(c, raw):
    first_bytes(c, raw)
    reset(c.sock)


def get(path, key, *fields):
    return request_bytes("GET", path, key, fields)


def faults(key):
    """name: (bytes, what the client does and gets, status and outcome on record)"""
    put = request_bytes("PUT", "/upload", key, [("Content-Length", "1000")]) + b"x" * 500
    return {
        "none": (get("/fine", key), lambda c, raw: (c.send(raw), served(c.response())), ("200", "served")),
        "upstream refuses": (get("/down", key), answered(502, "upstream_unreachable"), ("502", "upstream_failed")),
        "upstream resets mid-head": (get("/mid-head", key), answered(502, "upstream_reset"), ("502", "upstream_failed")),
        "upstream ends mid-body": (get("/mid-body", key), broken, ("200", "upstream_aborted")),
        "upstream stalls": (get("/stall", key), answered(504, "upstream_timeout"), ("504", "upstream_failed")),
        "upstream sends garbage": (get("/garbage", key), answered(502, "upstream_invalid"), ("502", "upstream_failed")),
        "client leaves mid-upload": (put, first_bytes, ("0", "client_aborted")),
        "client resets mid-upload": (put, reset_after_first_bytes, ("0", "client_aborted")),
        "client resets mid-download": (get("/download", key), reset_after_first_bytes, ("200", "client_aborted")),
        "refused key": (get("/fine", "wrong-wrong-wrong-wrong"), answered(401, "key_invalid"), ("401", "refused")),
        "bad framing": (get("/fine", key, ("Content-Length", "1"), ("Transfer-Encoding", "chunked")), answered(400, "ambiguous_framing"),
                        ("400", "refused")),
        "head without end": (get("/fine", key)[:-2], answered(408, "head_timeout"), ("408", "timed_out")),
    }


SLOW_ONES = {"upstream stalls", "head without end"}  # each waits for a deadline: more at a time


def play(gateway, fault, count):
    raw, action, _ = fault
    left, guard = [count], threading.Lock()

    def hand():
        while True:
            with guard:
                if left[0] == 0:
                    return
                left[0] -= 1
            with RawClient(gateway.address) as c:
                action(c, raw)
    return hand


def rounds(gateway, sides, name, fault, count):
    hands = HANDS if name not in SLOW_ONES else 100
    for begun in range(0, count, BATCH):
        batch = min(BATCH, count - begun)
        with concurrent.futures.ThreadPoolExecutor(hands) as pool:
            for done in [pool.submit(play(gateway, fault, batch // hands + (n < batch % hands))) for n in range(hands)]:
                done.result()
        at_rest(gateway, sides)


def at_rest(gateway, sides):
    """Waits until every request and connection has ended."""
    for metric in ("requests_in_flight", "connections_open", "upstream_connections"):
        wait_until(lambda: gateway.metric("latchkey_" + metric) == 0, 15, f"{metric} = 0", 0.05)
    wait_until(lambda: not sides.upstream.open_connections(), 10, "the end of the upstream connections")
    sides.upstream.forget()


@pytest.mark.parametrize("name", faults("k"))
def test_a_fault_costs_its_requests_and_nothing_that_stays(worn, sides, its_key, name):
    fault = faults(its_key)[name]
    rounds(worn, sides, name, fault, ROUNDS // 2)  # what is made once, or kept for the next, is there then
    descriptors, memory = settled_descriptors(worn), worn.rss
    requests, records = worn.metric("latchkey_requests_total"), len(worn.export())
    played, grown = 0, []
    while True:
        rounds(worn, sides, name, fault, ROUNDS)
        played += ROUNDS
        wait_until(lambda: worn.metric("latchkey_requests_total") >= requests + played, 15, "the account of every round", 0.05)
        wait_until(lambda: worn.descriptors <= descriptors, 10, f"{descriptors} descriptors", 0.05)
        grown.append(worn.rss - memory)
        memory = worn.rss
        # A worker keeps some buffers for the next requests, and it takes a while until it has them; what leaks grows every time.
        if grown[-1] < MIB * (8 if SLOW > 1 else 1):
            break
        assert len(grown) < 4, f"{ROUNDS} rounds each time, and it grew by {grown}"
    wait_until(lambda: len(worn.export()) >= records + played, 15, "the records", 0.2)
    said = collections.Counter((r["status"], r["outcome"]) for r in worn.export()[records:])
    assert said == {fault[2]: played}, said
