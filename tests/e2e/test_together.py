"""Many messages that the gateway finds at one look are read, decided and sent together: each gets its own answer nevertheless, and
what one client or upstream does is nobody else's matter. A gateway that is stopped while they come finds them all at once."""
import collections
import contextlib
import os
import signal
import socket
import threading
import time

import pytest

from conftest import fixture_of
from harness import SLOW, Broken, problem, request_bytes, served, told_fields, unique, wait_until
from upstream import describe

IDLE_S = 2 * SLOW
alone = fixture_of(workers=1)
impatient = fixture_of({"client": {"idle": f"{int(1000 * IDLE_S)}ms"}}, workers=1)
EACH = 6  # clients of each kind


@contextlib.contextmanager
def stopped(gateway):
    os.kill(gateway.pid, signal.SIGSTOP)
    wait_until(lambda: " T " in open(f"/proc/{gateway.pid}/stat").read().rpartition(")")[2][:4], 5, "the gateway's stop")
    try:
        yield
    finally:
        os.kill(gateway.pid, signal.SIGCONT)


class Gate:
    """A script for the upstream: who has come waits until it is opened, then all answer."""

    def __init__(self, upstream, script):
        self.path, self.script = "/" + unique("gate"), script
        self.came, self.answered, self.opened, self.lock = 0, 0, threading.Event(), threading.Lock()
        upstream.on(self.path, self)

    def __call__(self, x):
        x.body()
        with self.lock:
            self.came += 1
        assert self.opened.wait(60)
        try:
            self.script(x)
        finally:
            with self.lock:
                self.answered += 1

    def open(self, gateway, count):
        """Once `count` are there: all their answers come while the gateway is stopped."""
        wait_until(lambda: self.came >= count, 20, f"{count} requests at the upstream")
        with stopped(gateway):
            self.opened.set()
            wait_until(lambda: self.answered >= count, 20, f"{count} answers")


@pytest.fixture(scope="module")
def keys(alone):
    return [alone.create_key(f"together {n}") for n in range(3)]


@pytest.fixture
def clients(alone, keys):
    """Connections that have been used and wait."""
    with contextlib.ExitStack() as all_of_them:
        def make(count):
            made = [all_of_them.enter_context(alone.client()) for _ in range(count)]
            for c in made:
                served(c.get("/warm", keys[0]["key"]))
            return made
        yield make


class Sender:
    """One client with one message of a kind, and what it must get."""

    def __init__(self, kind, client, key, path):
        self.kind, self.client, self.key, self.path = kind, client, key, path
        self.id, self.second = unique(kind), unique("second")

    def say(self, method="GET", path=None, key=None, request_id=None, **more):
        return request_bytes(method, path or self.path, key or self.key["key"], [("X-Request-Id", request_id or self.id)], **more)

    def send(self):
        say = {"get": lambda: self.say(), "post": lambda: self.say("POST", body=self.id.encode()), "head": lambda: self.say("HEAD"),
               "wrong": lambda: self.say(key="wrong"), "malformed": lambda: b"GET / HTTP/1.1\r\nHost: a\r\nno field\r\n\r\n",
               "pipelined": lambda: self.say() + self.say(path="/" + self.second, request_id=self.second),
               "half": lambda: self.say()[:-10], "reset": lambda: self.say(path="/reset"), "long": lambda: self.say("POST", body=b"b" * 20000)}[self.kind]()
        self.client.send(say)
        if self.kind == "reset":
            self.client.reset()

    reaches = property(lambda self: self.kind in ("get", "post", "head", "pipelined", "long"))

    def finish(self):
        if self.kind == "half":
            self.client.send(self.say()[-10:])

    def told(self, path, response, request_id):
        assert response.fields.get("x-request-id") == request_id
        told = served(response)
        assert told["target"] == path and told_fields(told).get("x-request-id") == request_id
        assert told_fields(told).get("x-consumer-id") == self.key["application_id"]
        return told

    def check(self):
        if self.kind == "reset":
            return
        if self.kind == "wrong":
            assert problem(self.client.response(), 401)["request_id"] == self.id
        elif self.kind == "malformed":
            problem(self.client.response(), 400)
            self.client.end()
        elif self.kind == "head":
            response = self.client.response("HEAD")
            assert response.status == 200 and response.fields.get("x-request-id") == self.id
        else:
            told = self.told(self.path, self.client.response(), self.id)
            wanted = {"post": (len(self.id), self.id), "long": (20000, "b" * 20000)}.get(self.kind, (0, ""))
            assert (told["size"], told["body"]) == wanted
        if self.kind == "pipelined":
            self.told("/" + self.second, self.client.response(), self.second)
        if self.kind != "malformed":  # the connection is in step
            last = "/" + unique()
            assert served(self.client.get(last, self.key["key"]))["target"] == last


KINDS = ("get", "post", "head", "wrong", "malformed", "pipelined", "half", "reset", "long")


@pytest.mark.parametrize("round", range(3))
def test_each_gets_its_own_answer_and_one_record(alone, upstream, keys, clients, round):
    gate = Gate(upstream, describe)
    made = clients(EACH * len(KINDS))
    senders = [Sender(KINDS[n % len(KINDS)], c, keys[n // len(KINDS) % len(keys)], gate.path) for n, c in enumerate(made)]
    with stopped(alone):
        for s in senders:
            s.send()
    for s in senders:
        s.finish()
    gate.open(alone, sum(s.reaches or s.kind == "half" for s in senders))
    for s in senders:
        s.check()
    # (Of one who reset the connection the request may have gone with it.)
    ids = [s.id for s in senders if s.kind not in ("malformed", "reset")] + [s.second for s in senders if s.kind == "pipelined"]

    def recorded():
        count = collections.Counter(r["request_id"] for r in alone.export())
        return all(count[i] for i in ids) and count
    count = wait_until(recorded, 10, "the records", 0.05)
    assert {i: count[i] for i in ids if count[i] != 1} == {}
    assert all(count[s.id] <= 1 for s in senders)


def test_answers_that_break_off_together_spoil_no_others(alone, upstream, keys, clients):
    def broken(x):
        {"cut": lambda: (x.send(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nabc"), x.close()), "bad": lambda: (x.send(b"nonsense\r\n\r\n"), x.close()),
         "gone": x.reset}.get(dict(x.request.fields).get("X-Kind"), lambda: describe(x))()
    gate = Gate(upstream, broken)
    made = clients(32)
    kinds = [("cut", "bad", "gone", "good")[n % 4] for n in range(len(made))]
    with stopped(alone):
        for c, kind in zip(made, kinds):
            c.send(request_bytes("POST", gate.path, keys[0]["key"], [("X-Kind", kind), ("X-Request-Id", unique(kind))], body=b"x"))
    gate.open(alone, len(made))
    for c, kind in zip(made, kinds):
        if kind == "good":
            assert served(c.response())["body"] == "x"
            served(c.get("/after", keys[0]["key"]))
        elif kind == "cut":
            with pytest.raises(Broken):
                c.response()
        else:
            problem(c.response(), 502)


def test_refusals_that_are_sent_together_are_each_ones_own(alone, clients):
    made = clients(40)
    ids = [unique() for _ in made]
    with stopped(alone):
        for c, i in zip(made, ids):
            c.send(request_bytes("GET", "/" + i, "wrong", [("X-Request-Id", i)]))
    for c, i in zip(made, ids):
        assert problem(c.response(), 401)["request_id"] == i
    assert [r["path"] for i in ids for r in alone.records(i)] == ["/" + i for i in ids]


limited = fixture_of({"limits": {"requests_in_flight": 10}}, workers=1)


@pytest.mark.parametrize("wrong", [5, 12, 31])
def test_refusals_that_wait_to_be_sent_take_no_place_of_a_request(limited, wrong):
    key = limited.create_key()["key"]
    with contextlib.ExitStack() as opened:
        made = [opened.enter_context(limited.client()) for _ in range(wrong + 1)]
        for c in made:
            served(c.get("/warm", key))
        with stopped(limited):
            for n, c in enumerate(made):
                c.request("GET", "/x", key if n == wrong else "wrong")
        for c in made[:-1]:
            problem(c.response(), 401)
        served(made[-1].response())


@pytest.mark.parametrize("body", [1, 20000])
def test_a_request_takes_the_place_of_an_answer_that_came_before_it(limited, upstream, body):
    key = limited.create_key()["key"]
    gate = Gate(upstream, describe)
    with contextlib.ExitStack() as opened:
        made = [opened.enter_context(limited.client()) for _ in range(11)]
        for c in made:
            served(c.get("/warm", key))
        for c in made[:-1]:
            c.request("GET", gate.path, key)
        wait_until(lambda: gate.came >= 10, 20, "the requests")
        with stopped(limited):
            gate.opened.set()
            wait_until(lambda: gate.answered >= 10, 20, "the answers")
            made[-1].request("POST", "/x", key, body=b"b" * body)
        for c in made[:-1]:
            served(c.response())
        assert served(made[-1].response())["size"] == body


def test_a_drain_serves_those_who_came_together(alone, upstream, keys, clients):
    gate = Gate(upstream, describe)
    made = clients(24)
    with stopped(alone):
        for c in made:
            c.send(request_bytes("GET", gate.path, keys[0]["key"]))
    wait_until(lambda: gate.came >= len(made), 20, "the requests")
    with stopped(alone):
        gate.opened.set()
        wait_until(lambda: gate.answered >= len(made), 20, "the answers")
        alone.terminate()
    for c in made:
        assert served(c.response())["target"] == gate.path
        c.end()
    assert alone.wait() == 0
    alone.start()


def test_a_drain_serves_those_whose_requests_nobody_has_read(alone, keys, clients):
    """More than one look shows at once (128): what the rest have sent has come, and is no less a request."""
    made = clients(400)
    with stopped(alone):
        for c in made:
            c.send(request_bytes("GET", "/" + unique("unread"), keys[0]["key"]))
        alone.terminate()
    for c in made:
        assert served(c.response())["target"].startswith("/unread")
        c.end()
    assert alone.wait() == 0
    alone.start()


def test_a_request_that_came_in_time_is_served_though_nobody_has_read_it_by_then(impatient, upstream):
    """The gateway stands still until its clients' idle time is over, and then cannot read all of them before it looks at the clock."""
    key = impatient.create_key("impatient")["key"]
    with contextlib.ExitStack() as all_of_them:
        made = [all_of_them.enter_context(impatient.client()) for _ in range(400)]
        for c in made:
            served(c.get("/warm", key))
        with stopped(impatient):
            for c in made:
                c.send(request_bytes("GET", "/in-time", key))
            time.sleep(IDLE_S * 1.2)
        for c in made:
            assert served(c.response())["target"] == "/in-time"


def test_a_client_that_reset_before_it_was_accepted_is_not_served(alone, upstream):
    """What it had sent stays in the kernel, behind its reset."""
    path, key = "/" + unique("gone"), alone.create_key("before it was accepted")["key"]
    with stopped(alone):
        for number in range(20):
            c = alone.client()
            c.send(request_bytes("POST", f"{path}-{number}", key, body=b"body"))
            c.reset()
        last = alone.client()
        last.send(request_bytes("POST", path, key, body=b"body"))
    assert served(last.response())["target"] == path
    last.close()
    with upstream.changed:
        assert [r.path for r in upstream.requests if r.path.startswith(path)] == [path]


@pytest.mark.parametrize("first", ["the request", "the end"])
@pytest.mark.parametrize("size", [3, 200_000])
def test_a_post_found_together_with_its_connections_end_goes_out_once_on_a_new_one(alone, upstream, keys, size, first):
    """A connection that was used a moment ago is not looked at before a body that is in hand: who never took any of it gets it from a
    new one. What is not in hand could not be sent again, so there it is looked at."""
    for _ in range(5):
        with alone.client() as c:
            c.sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)  # all of it goes although the gateway is stopped
            served(c.get("/warm", keys[0]["key"]))
            path = upstream.on("/" + unique("post"), lambda x: x.answer(200, [], str(len(x.body())).encode()))
            steps = [lambda: c.send(request_bytes("POST", path, keys[0]["key"], body=b"p" * size)), upstream.close_connections]
            with stopped(alone):
                for step in steps if first == "the request" else reversed(steps):
                    step()
                upstream.wait(lambda: not upstream.open_connections())
            r = c.response()
            assert (r.status, r.body) == (200, str(size).encode())
            assert [len(r.body) for r in upstream.seen(path)] == [size]


def test_how_often_clients_waited_unread_is_a_metric(alone, keys, clients):
    put_off = lambda: alone.metric("latchkey_clients_put_off_total")  # noqa: E731
    many = clients(400)
    before = put_off()
    served(many[0].get("/warm", keys[0]["key"]))
    assert put_off() == before  # alone, nobody waits
    with stopped(alone):
        for c in many:
            c.send(request_bytes("GET", "/warm", keys[0]["key"]))
    for c in many:
        served(c.response())
    assert 0 < put_off() - before <= len(many) - 8
