"""Overload: what is beyond limits.requests_in_flight is turned away while the upstream still thinks, and what was admitted is served."""
import collections
import concurrent.futures
import contextlib
import threading

import pytest

from conftest import run
from harness import Gateway, Upstream, bound, problem, served, unique, wait_until

ADMITTED = 20
CLIENTS = 200


class Slow:
    """An upstream that answers when it is told to, and counts how many it holds at once."""

    def __init__(self):
        self.go, self.guard, self.now, self.most, self.pause = threading.Event(), threading.Lock(), 0, 0, 0.0
        self.upstream = Upstream(default=self.script)

    def script(self, x):
        with self.guard:
            self.now += 1
            self.most = max(self.most, self.now)
        x.body()
        self.go.wait(bound(20))
        threading.Event().wait(self.pause)  # the slowness is the fault
        with self.guard:
            self.now -= 1
        x.answer(200, [], b"ok")


@pytest.fixture
def slow():
    s = Slow()
    yield s
    s.go.set()
    s.upstream.stop()
    assert not s.upstream.faults, s.upstream.faults


@pytest.fixture
def loaded(slow):
    yield from run(Gateway(slow.upstream, {"limits": {"requests_in_flight": ADMITTED}, "usage": {"flush_interval": "50ms", "ring_bytes": "1MiB"}},
                           workers=1))


def shed(r):
    problem(r, 503, "overloaded")
    assert int(r.fields.get("retry-after")) >= 1
    return r


def records(gateway, count):
    def all_of_them():
        rows = gateway.export()
        return rows if len(rows) >= count else None
    return wait_until(all_of_them, 10, f"{count} records", 0.1)


def test_what_is_beyond_the_limit_is_503_before_the_first_admitted_one_is_answered(slow, loaded):
    key = loaded.create_key()["key"]
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(loaded.client()) for _ in range(CLIENTS)]
        for c in clients[:ADMITTED]:
            c.request("GET", "/" + unique(), key)
        slow.upstream.wait(lambda: slow.now == ADMITTED)
        for c in clients[ADMITTED:]:  # no admitted one has been answered when these are
            c.request("GET", "/" + unique(), key)
            assert shed(c.response()).fields.get("connection") != "close"
        assert slow.now == slow.most == ADMITTED
        assert loaded.metric("latchkey_requests_in_flight") == ADMITTED
        slow.go.set()
        for c in clients[:ADMITTED]:
            assert c.response().status == 200
        for c in clients[ADMITTED : 2 * ADMITTED]:  # on the same connections, as soon as there is room
            assert c.get("/" + unique(), key).status == 200
    said = collections.Counter((r["status"], r["outcome"]) for r in records(loaded, CLIENTS + ADMITTED))
    assert said == {("200", "served"): 2 * ADMITTED, ("503", "refused"): CLIENTS - ADMITTED}


def test_under_five_times_the_load_it_can_take_the_admitted_are_served_and_the_rest_told_so(slow, loaded):
    """100 clients, each at once again, 20 places, 20 ms each."""
    key, said = loaded.create_key()["key"], collections.Counter()
    slow.pause = 0.02
    slow.go.set()

    def client():
        statuses = collections.Counter()
        with loaded.client() as c:
            for _ in range(20):
                r = c.get("/" + unique(), key)
                statuses[(shed(r) if r.status != 200 else r).status] += 1
        return statuses
    with concurrent.futures.ThreadPoolExecutor(100) as pool:
        for done in [pool.submit(client) for _ in range(100)]:
            said += done.result()
    assert sum(said.values()) == 2000 and set(said) == {200, 503}, said
    assert said[200] >= ADMITTED, "nobody was served"
    assert slow.most <= ADMITTED
    with loaded.client() as c:
        served(c.get("/after", key))
    recorded = collections.Counter(r["status"] for r in records(loaded, 2001))
    assert recorded == {"200": said[200] + 1, "503": said[503]}


def test_slow_heads_are_not_requests_and_take_no_place(slow, loaded):
    key = loaded.create_key()["key"]
    slow.go.set()
    with contextlib.ExitStack() as stack:
        for _ in range(5 * ADMITTED):
            stack.enter_context(loaded.client()).send(b"GET / HTTP/1.1\r\nHost: a\r\n")
        with loaded.client() as c:
            assert c.get("/" + unique(), key).status == 200
