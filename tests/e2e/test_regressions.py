"""Faults that were found and mended, each by what broke. Every gateway here has one worker, so that no test passes by luck of
which worker took a connection, and an upstream of its own."""
import concurrent.futures
import contextlib
import os
import signal
import socket
import threading
import time

import pytest

from conftest import run
from harness import (SLOW, Blackhole, Broken, Gateway, Upstream, bound, chunked, problem, refused_port, request_bytes, served,
                     told_fields, unique, wait_until)

MIB = 1 << 20


def ms(n):
    return f"{int(n * SLOW)}ms"


@contextlib.contextmanager
def serving(*urls, settings=None, **api):
    """A gateway with one open api; what `api` names replaces that api's settings."""
    apis = [{"name": "only", "require_key": False, "upstreams": list(urls), **api}]
    yield from run(one_worker({"api": apis, **(settings or {})}))


def one_worker(settings):
    """Its usage rings lie small in its own folder, and go with it: those in /dev/shm outlive a gateway and are memory."""
    g = Gateway(settings={"usage": {"flush_interval": "50ms", "ring_bytes": "1MiB"}, **settings}, workers=1)
    g.settings["usage"]["ring_dir"] = str(g.folder / "rings")
    return g


def in_flight(gateway, n):
    return wait_until(lambda: gateway.metric("latchkey_requests_in_flight") == n, 10, f"{n} requests in flight")


def executed(upstream):
    """The paths of all requests that arrived."""
    with upstream.changed:
        return [r.path for r in upstream.requests]


# --- Where one request ends and the next begins

HIDDEN = b"GET /hidden HTTP/1.1\r\nHost: known.test\r\n\r\n"
LOST = {"GET": (None, ()), "POST with a length": (HIDDEN, ()),
        "POST in chunks": (chunked(HIDDEN[:7], HIDDEN[7:]), [("Transfer-Encoding", "chunked")])}


@pytest.mark.parametrize("kind", LOST)
@pytest.mark.parametrize("pipelined", [True, False], ids=["pipelined", "in turn"])
def test_a_request_without_a_route_is_answered_and_recorded_once_and_the_next_one_is_right(up, kind, pipelined):
    body, fields = LOST[kind]
    lost, found = unique("lost"), unique("found")
    first = request_bytes(kind.split()[0], "/nowhere", None, [*fields, ("X-Request-Id", lost)], body, host="unknown.test")
    second = request_bytes("GET", "/good", None, [("X-Request-Id", found), ("Connection", "close")], host="known.test")
    with serving(up.url, hosts=["known.test"]) as g:
        with g.client() as c:
            c.send(first + second if pipelined else first)
            problem(c.response(), 404, "no_route")
            if not pipelined:
                c.send(second)
            assert served(c.response())["target"] == "/good"
            assert c.end() == "fin" and c.leftover == b""
        assert executed(up) == ["/good"]
        assert g.metric("latchkey_requests_total") == 2
        g.record(found)
        assert sorted((r["request_id"], r["status"], r["path"]) for r in g.export()) == [
            (found, "200", "/good"), (lost, "404", "/nowhere")]


@pytest.mark.parametrize("framing, rest", [(("Content-Length", str(len(HIDDEN))), HIDDEN),
                                           (("Transfer-Encoding", "chunked"), chunked(HIDDEN))], ids=["length", "chunked"])
def test_the_body_of_a_request_without_a_route_is_not_executed_when_it_comes_late(up, framing, rest):
    with serving(up.url, hosts=["known.test"]) as g, g.client() as c:
        c.request("POST", "/nowhere", None, [framing], host="unknown.test")
        problem(c.response(), 404, "no_route")
        with contextlib.suppress(OSError):
            c.send(rest)
        c.end()
        assert c.leftover == b"" and executed(up) == []
        assert g.metric("latchkey_requests_total") == 1


def test_an_unknown_host_is_answered_once_and_costs_no_processor_time(up):
    with serving(up.url, hosts=["known.test"]) as g, g.client() as c:
        c.request("GET", "/", host="unknown.test")
        problem(c.response(), 404, "no_route")
        began, cpu = time.monotonic(), g.cpu_seconds
        time.sleep(1)  # the span over which processor time is taken
        assert (g.cpu_seconds - cpu) / (time.monotonic() - began) < 0.2, "the worker spins"
        assert c.leftover == b"" and g.metric("latchkey_requests_total") == 1
        assert served(c.get("/still-in-step", host="known.test"))["target"] == "/still-in-step"


@pytest.fixture
def deaf():
    """Takes a few KiB that it does not read before it was told to."""
    u = Upstream()
    u.listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    yield u
    u.stop()
    assert not u.faults, u.faults


class EarlyAnswer:
    """A chunked PUT of `size` that is answered before it is read, and behind it PUT /next, whose body looks like a request."""

    def __init__(self, upstream, size):
        self.put, self.next, self.smuggled = ("/" + unique(n) for n in ("early", "next", "smuggled"))
        self.upstream, self.size, self.answered = upstream, size, threading.Event()
        upstream.on(self.put, self.script)

    def script(self, x):
        time.sleep(0.3 * SLOW)  # by now the gateway has sent what it can; the pause is the fault
        x.answer(200)
        self.answered.wait(bound(10))
        x.body(sink=lambda piece: None)

    def send(self, client):
        hidden = request_bytes("GET", self.smuggled, None, [("A", "b")])
        with contextlib.suppress(OSError):
            client.send(request_bytes("PUT", self.put, None, [("Transfer-Encoding", "chunked")]) + b"%x\r\n" % self.size)
            client.send(bytes(self.size) + b"\r\n0\r\n\r\n")
            client.send(request_bytes("PUT", self.next, None, [("Content-Length", str(len(hidden)))]))
            self.answered.wait(bound(10))
            client.send(hidden)

    def run(self, gateway):
        """Whether the connection was closed after the early answer; else /next must have been answered."""
        with gateway.client() as c:
            sender = threading.Thread(target=self.send, args=(c,), daemon=True)
            sender.start()
            answer = c.response()
            self.answered.set()
            assert answer.status == 200, answer
            closed = answer.fields.get("connection") == "close"
            if closed:
                c.end()
            else:
                assert self.smuggled in served(c.response())["body"]
            assert c.leftover == b"", "more answers than requests"
            c.reset()
            sender.join(bound(10))
        return closed

    def check(self, closed):
        assert not self.upstream.seen(self.smuggled), f"a body was executed, behind {self.size} bytes"
        assert len(self.upstream.seen(self.next)) == (0 if closed else 1), f"behind {self.size} bytes"


def test_an_early_answer_never_turns_the_rest_of_a_body_into_requests(deaf):
    """Sizes around that at which the kernel's buffers hold all of the body, so that its end is read at times only."""
    cases = [EarlyAnswer(deaf, n) for n in [*range(400_000, 7_000_000, 300_000), *range(3_000_000, 3_200_000, 8_000)]]
    with serving(deaf.url) as g:
        with concurrent.futures.ThreadPoolExecutor(8) as pool:
            closed = list(pool.map(lambda case: case.run(g), cases))
        in_flight(g, 0)
        for case, how in zip(cases, closed):
            case.check(how)


def test_an_early_answer_to_a_body_that_was_not_read_closes_the_connection(deaf):
    with serving(deaf.url) as g:
        for _ in range(4):
            case = EarlyAnswer(deaf, 24 * MIB)
            assert case.run(g)
            in_flight(g, 0)
            case.check(closed=True)


@pytest.mark.parametrize("method, status", [("PUT", 200), ("POST", 502)])
def test_a_last_chunk_and_the_upstreams_reset_seen_together_lose_nothing_and_send_no_POST_twice(up, method, status):
    """What is sent again has the last chunk, and the request behind it is read. The gateway stands still, so that it finds both."""
    path, after, stopped, sent = "/" + unique(), "/" + unique(), threading.Event(), threading.Event()
    with serving(up.url) as g, g.client() as c:
        def first_breaks(x):
            if len(up.seen(path)) > 1:
                return x.answer(200, [], x.body())
            x.reader.until(b"abc\r\n", time.monotonic() + bound(10))
            os.kill(g.pid, signal.SIGSTOP)
            stopped.set()
            sent.wait(bound(10))
            x.reset()
            time.sleep(0.003)  # the reset's way
            return os.kill(g.pid, signal.SIGCONT)
        up.on(path, first_breaks)
        for _ in range(8):  # by now the kernel acknowledges nothing before it has something to send
            served(c.get("/before"))
        c.request(method, path, None, [("Transfer-Encoding", "chunked")], b"3\r\nabc\r\n")
        assert stopped.wait(bound(10))
        c.send(b"0\r\n\r\n" + request_bytes("GET", after))
        sent.set()
        answer = c.response()
        assert answer.status == status and (status != 200 or answer.body == b"abc")
        assert served(c.response())["target"] == after
    assert len(up.seen(path)) == (2 if method == "PUT" else 1)


@pytest.mark.parametrize("first, second", [(b"\r", b"\n"), (b"\r\n", b""), (b"\r\n\r", b"\n"), (b"\r\n\r\n\r", b"\n\r\n")])
def test_an_empty_line_that_is_cut_in_two_is_skipped_like_a_whole_one(up, first, second):
    """RFC 9112 2.2. The pause is the fault: it makes two segments."""
    with serving(up.url) as g, g.client() as c:
        for n in range(3):
            path = f"/{n}"
            c.send(first)
            time.sleep(0.1)
            c.send(second + request_bytes("GET", path))
            assert served(c.response())["target"] == path
        in_flight(g, 0)
        assert g.metric("latchkey_requests_total") == 3


def test_a_cr_without_its_lf_before_a_request_is_refused_in_one_segment_or_two(up):
    with serving(up.url) as g:
        for pause in (0, 0.1):
            with g.client() as c:
                if pause:
                    c.send(b"\r")
                    time.sleep(pause)
                    c.send(request_bytes("GET", "/x"))
                else:
                    c.send(b"\r" + request_bytes("GET", "/x"))
                problem(c.response(), 400)
                c.end()
        assert executed(up) == []


# --- Requests that are sent twice, or not at all

def warm(client, upstream):
    """Leaves one pooled connection."""
    served(client.get("/warm"))
    upstream.wait(lambda: upstream.seen("/warm")[-1].complete)
    assert len(upstream.open_connections()) == 1


@pytest.mark.parametrize("taken", ["head and body", "head"])
@pytest.mark.parametrize("method", ["POST", "PATCH"])
def test_a_post_that_the_upstream_read_and_then_reset_is_not_sent_twice(up, method, taken):
    """RFC 9110 9.2.2: on a reused connection, where a stale one would be replaced"""
    with serving(up.url) as g, g.client() as c:
        for _ in range(10):
            warm(c, up)
            path = up.on("/" + unique(), lambda x: (x.body() if taken == "head and body" else None, x.reset()))
            c.request(method, path, body=b"pay")
            problem(c.response(), 502, "upstream_reset")
            assert [r.number > 1 for r in up.seen(path)] == [True], "sent once, on the reused connection"
            up.wait(lambda: not up.open_connections())


@pytest.mark.parametrize("method", ["POST", "PATCH", "GET"])
def test_a_post_on_a_connection_that_was_closed_while_idle_goes_out_on_a_new_one(up, method):
    with serving(up.url, deadlines={"idle": "60s"}) as g, g.client() as c:
        for _ in range(30):
            warm(c, up)
            up.close_connections()
            up.wait(lambda: not up.open_connections())
            path = "/" + unique()
            c.request(method, path, body=b"pay")
            assert served(c.response())["body"] == "pay"
            assert [r.number for r in up.seen(path)] == [1]
            up.close_connections()
            up.wait(lambda: not up.open_connections())


# --- Credentials and targets

def test_a_bearer_key_does_not_reach_the_upstream_of_an_open_api(up):
    with serving(up.url, settings={"keys": {"bearer": True}}) as g, g.client() as c:
        key = g.create_key()["key"]
        for scheme in ("Bearer", "bearer", "BEARER"):
            told = served(c.get("/x", fields=[("Authorization", f"{scheme} {key}")]))
            assert told_fields(told).all("authorization") == [], scheme
        with up.changed:
            assert not any(key.encode() in r.raw_head for r in up.requests)


def test_an_imported_bearer_key_does_not_reach_the_upstream_of_an_open_api_either(up):
    with serving(up.url, settings={"keys": {"bearer": True}}) as g, g.client() as c:
        key = "made-by-another-gateway-0001"
        g.cli("keys", "import", "-", input=f"name,key\nold,{key}\n")
        told = served(c.get("/x", fields=[("Authorization", f"Bearer {key}")]))
        assert told_fields(told).all("authorization") == []
        with up.changed:
            assert not any(key.encode() in r.raw_head for r in up.requests)


def test_a_key_that_looks_like_a_broken_one_of_ours_is_a_key_all_the_same(up):
    """Imported while the prefix was another: its last six characters are no checksum. It lets in, so it must not get out."""
    key = "api_qkJaB6MffYVzZXWqmcoF49yrUxP3wfAAAAAA"
    apis = [{"name": "open", "path_prefixes": ["/open"], "upstreams": [up.url], "require_key": False}, {"name": "closed", "upstreams": [up.url]}]
    gateway = Gateway(settings={"keys": {"bearer": True, "prefix": "api"}, "api": apis})
    gateway.cli("keys", "import", "-", input=f"name,key\nold,{key}\n")
    with contextlib.contextmanager(run)(gateway), gateway.client() as c:
        served(c.get("/closed", key))
        served(c.get("/closed", fields=[("Authorization", f"Bearer {key}")]))
        told = served(c.get("/open", fields=[("Authorization", f"Bearer {key}")]))
        assert told_fields(told).all("authorization") == []
        problem(c.get("/closed", key[:-1] + "B"), 401, "key_invalid")
        with up.changed:
            assert not any(key.encode() in r.raw_head for r in up.requests)


@pytest.mark.parametrize("value", ["Bearer eyJhbGciOiJIUzI1NiJ9.e30.c2ln", "Bearer another-token-that-is-no-key",
                                   "Basic dXNlcjpwYXNz"])
def test_another_credential_than_a_key_reaches_the_upstream_of_an_open_api(up, value):
    with serving(up.url, settings={"keys": {"bearer": True}}) as g, g.client() as c:
        told = served(c.get("/x", fields=[("Authorization", value)]))
        assert told_fields(told).all("authorization") == [value]


def test_a_bearer_key_stays_where_bearer_is_not_a_place_for_keys(up):
    with serving(up.url) as g, g.client() as c:
        value = "Bearer " + g.create_key()["key"]
        assert told_fields(served(c.get("/x", fields=[("Authorization", value)]))).all("authorization") == [value]


@pytest.mark.parametrize("base, target", [("/base", "/base"), ("/base/deep", "/base/deep"), ("", "*")])
def test_options_asterisk_names_the_base_path_of_the_upstream(up, base, target):
    """RFC 9112 3.2.4"""
    with serving(up.url + base) as g, g.client() as c:
        c.request("OPTIONS", "*")
        assert served(c.response("OPTIONS"))["target"] == target


ESCAPES = ["/a/..%2Fopen", "/a/..%2fopen", "/a/%2e%2e%2Fopen", "/a/%2E%2E%2fopen", "/a/.%2e%2Fopen", "/a/x%2F..%2Fy", "/a/x%2F..",
           "/a/x%2F%2e%2e", "/a%2F..%2Fopen", "/a/x%2F../y", "/a/x%2F.%2Fy", "/a/.%2Fx"]


@pytest.mark.parametrize("path", ESCAPES)
def test_an_encoded_slash_that_is_kept_does_not_hide_dot_segments(up, path):
    with serving(up.url, slashes="keep") as g, g.client() as c:
        problem(c.get(path), 400, "invalid_target")
        assert executed(up) == []


@pytest.mark.parametrize("path", ["/a/b%2Fc", "/a/b%2fc", "/a/%2F", "/a/..b%2Fc", "/a/b..%2Fc", "/a/...%2Fc",
                                  "/a/b%2F.c?q=..%2F"])
def test_an_encoded_slash_that_is_kept_is_forwarded_as_it_stands(up, path):
    with serving(up.url, slashes="keep") as g, g.client() as c:
        assert served(c.get(path))["target"] == path


# --- Ends of connections

THREE_MIB = b"".join(b"%07d\n" % n for n in range(3 * MIB // 8))


@pytest.mark.parametrize("slow", [False, True], ids=["reader", "slow reader"])
@pytest.mark.parametrize("together", [True, False], ids=["one segment", "later"])
def test_a_request_too_many_does_not_cost_the_response_before_it(up, slow, together):
    """RFC 9112 9.6: a close with unread bytes is a reset, which takes away what the client has not read yet."""
    up.default, first, second = lambda x: x.answer(200, body=THREE_MIB), unique(), "/second"
    one = request_bytes("GET", "/first", None, [("X-Request-Id", first)])
    two = request_bytes("GET", second)
    pieces = []

    def sink(piece):
        pieces.append(piece)
        if slow:
            time.sleep(0.007)  # longer in all than the gateway waits for the client's end
    with serving(up.url, settings={"limits": {"requests_per_connection": 1}}) as g:
        with g.client(receive_buffer=8192 if slow else None) as c:
            c.send(one + two if together else one)
            if not together:
                up.wait(lambda: up.seen("/first"))
                c.reader.fill(time.monotonic() + bound(5))
                c.send(two)
            time.sleep(0.2)  # a reader that does not read yet is the fault
            r = c.response(timeout=60, sink=sink)
            assert r.status == 200 and r.fields.get("connection") == "close" and r.complete
            assert b"".join(pieces) == THREE_MIB
            assert c.end(20) == "fin" and c.leftover == b""
        row = g.record(first)
        assert (row["status"], row["outcome"]) == ("200", "served") and int(row["response_bytes"]) >= len(THREE_MIB)
        assert up.seen(second) == []


def test_a_drain_ends_while_a_connect_is_pending():
    hole = Blackhole()
    api = {"name": "only", "require_key": False, "upstreams": [f"http://127.0.0.1:{hole.port}"], "deadlines": {"connect": "300s"}}
    g = one_worker({"drain": "1s", "api": [api]})
    try:
        g.start()
        with g.client() as c:
            c.request("GET", "/")
            in_flight(g, 1)
            g.terminate()
            assert g.wait(8) == 0
            with contextlib.suppress(Broken):
                problem(c.response(), 503)
    finally:
        if g.alive:
            g.kill()
        hole.stop()


def corked(sock, data):
    """`data` and the end of the stream in one segment."""
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 0)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_CORK, 1)
    sock.sendall(data)
    sock.shutdown(socket.SHUT_WR)


HINT = b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n"


@pytest.mark.parametrize("data", [HINT, b"HTTP/1.1 100 Continue\r\n\r\n", HINT * 3, HINT + b"HTTP/1.1 2", b"HTTP/1.1 2"],
                         ids=["103", "100", "three", "103 and a part", "a part"])
def test_an_end_that_comes_with_an_interim_response_is_seen_at_once(up, data):
    def script(x):
        x.keep = False
        corked(x.connection.sock, data)
        x.until_closed()
    up.default = script
    with serving(up.url, deadlines={"response_head": "600s"}) as g, g.client() as c:
        for _ in range(5):
            c.request("GET", "/")
            r = c.response(timeout=10)
            problem(r, 502)
            assert len(r.informational) == data.count(b"\r\n\r\n")


@pytest.mark.parametrize("status, extra, late", [(204, b"Content-Length: 5\r\n", False), (204, b"Content-Length: 5\r\n", True),
                                                 (204, b"", False)], ids=["declared", "declared and late", "not declared"])
def test_a_204_with_a_body_ends_the_upstream_connection(up, status, extra, late):
    """RFC 9112 6.3 rule 1: the body would be read as the start of the next response."""
    bad, go, ended = "/" + unique(), threading.Event(), []

    def script(x):
        x.keep = False
        x.send(b"HTTP/1.1 %d No Content\r\n%b\r\n" % (status, extra) + (b"" if late else b"hello"))
        if late:
            go.wait(bound(10))
            with contextlib.suppress(OSError):
                x.send(b"hello")
        ended.append(x.until_closed())
    up.on(bad, script)
    with serving(up.url, deadlines={"idle": "60s"}) as g:
        for n in range(5):
            go.clear()
            with g.client() as c:
                c.request("GET", bad)
                r = c.response()
                assert r.status == 204 and not r.fields.all("content-length") and not r.fields.all("transfer-encoding")
                go.set()
                path = "/" + unique()
                assert served(c.get(path))["target"] == path
                assert up.only(path).connection is not up.seen(bad)[-1].connection
                assert c.leftover == b""
            up.wait(lambda: len(ended) == n + 1)


# --- Waits

def test_the_wait_for_an_answer_begins_when_the_request_was_sent(up):
    """On a pooled connection, with a head that takes longer to come than the upstream may take. The pauses are the fault."""
    up.on("/slow", lambda x: (time.sleep(0.15 * SLOW), x.answer(200, body=b"late")))
    with serving(up.url, settings={"client": {"head": ms(20_000)}},
                 deadlines={"response_head": ms(500), "idle": ms(20_000)}) as g, g.client() as c:
        warm(c, up)
        for _ in range(2):
            raw = request_bytes("GET", "/slow")
            c.send(raw[:20])
            time.sleep(0.8 * SLOW)
            c.send(raw[20:])
            assert c.response().body == b"late"
        assert [r.number > 1 for r in up.seen("/slow")] == [True, True]


def test_clients_that_sent_one_byte_are_not_requests_in_flight(up):
    with serving(up.url, settings={"limits": {"requests_in_flight": 10}}) as g, contextlib.ExitStack() as stack:
        idlers = [stack.enter_context(g.client()) for _ in range(30)]
        for c in idlers:
            c.send(b"G")
        wait_until(lambda: g.metric("latchkey_connections_open") >= 30, 10, "30 connections")
        for _ in range(3):
            with g.client() as c:
                for _ in range(10):
                    served(c.get("/" + unique()))
        for c in idlers:
            c.send(request_bytes("GET", "/late")[1:])
            served(c.response())


def take_heads(listener, peers, body):
    """An upstream that answers a first request when all of its body, of body[0] bytes, was written, of which it reads no byte, and
    nothing that comes after."""
    with contextlib.suppress(OSError):
        while True:
            peer, _ = listener.accept()
            peers.append(peer)
            peer.recv(16)
            wait_until(lambda p=peer: written_to(p) > body[0], what="an upload that the kernel takes whole", pause=0.05)
            peer.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")


def written_to(sock):
    """The bytes that lie unread between the peer's write and ours, those that are being acknowledged counted twice: so looked at
    once they are at rest."""
    theirs, ours, before = sock.getpeername()[1], sock.getsockname()[1], None
    while True:
        queues = {}
        with open("/proc/net/tcp", encoding="ascii") as table:
            for line in table.readlines()[1:]:
                _, local, remote, _, queue = line.split()[:5]
                queues[int(local[-4:], 16), int(remote[-4:], 16)] = [int(q, 16) for q in queue.split(":")]
        if len(queues.keys() & {(theirs, ours), (ours, theirs)}) < 2:  # a table that changes while it is read may miss a line
            continue
        (unacknowledged, _), (_, unread_bytes) = queues[theirs, ours], queues[ours, theirs]
        if (unacknowledged, unread_bytes) == before:
            return unacknowledged + unread_bytes
        before = unacknowledged, unread_bytes
        time.sleep(0.05)


def test_a_client_that_vanishes_while_its_head_is_written_is_recorded_as_such():
    """Small segments and an unread body on the pooled connection keep the kernel from taking a long head at once. How much it takes
    depends on what it remembers of earlier connections: where it took all, the body is made longer."""
    peers, body, tested = [], [40_000], 0
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, 88)
        listener.bind(("127.0.0.1", 0))
        listener.listen(16)
        threading.Thread(target=take_heads, args=(listener, peers, body), daemon=True).start()
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        with serving(url, settings={"limits": {"head_bytes": 65536}}, deadlines={"body_stall": ms(1000)}) as g:
            while tested < 3:
                rid = unique()
                head = request_bytes("GET", "/x", None, [("X-Request-Id", rid)] + [(f"X-Pad-{i}", "p" * 7800) for i in range(8)])
                with g.client() as c:
                    c.request("POST", "/first", body=b"b" * body[0])
                    assert c.response().body == b"ok"
                    known = len(peers)
                    c.send(head)
                    in_flight(g, 1)
                    c.reset()
                row = g.record(rid)
                assert row["outcome"] == "client_aborted" and row["status"] == "0", row
                in_flight(g, 0)
                assert len(peers) == known, "the head was to go where a body lies unread"
                if unread(peers[-1]) < body[0] + len(head):
                    tested += 1
                else:
                    body[0] += 50_000
                    assert body[0] < 4_000_000, "the kernel takes every head whole"
        listener.shutdown(socket.SHUT_RDWR)


def unread(sock):
    """The bytes that come until the peer's end."""
    sock.settimeout(bound(10))
    count = 0
    with sock, contextlib.suppress(ConnectionResetError):
        while piece := sock.recv(65536):
            count += len(piece)
    return count


def answers_too_much(listener, goes_on):
    """An upstream whose answer to /slow has another one behind it, in one packet with its last bytes."""
    def serve(peer):
        with peer, contextlib.suppress(OSError):
            while head := peer.recv(65536):
                path = head.split(b" ")[1]
                if path == b"/slow":
                    peer.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n" + b"a" * 500)
                    goes_on.wait(bound(10))
                    peer.sendall(b"b" * 500 + b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nsurplus!!")
                else:
                    peer.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(path), path))

    with contextlib.suppress(OSError):
        while True:
            threading.Thread(target=serve, args=(listener.accept()[0],), daemon=True).start()


@pytest.mark.parametrize("round_", range(6))
@pytest.mark.parametrize("second_comes", ["before", "behind"])
def test_what_lies_behind_an_answer_is_no_answer_to_the_next(second_comes, round_):
    """A gateway that was stopped meanwhile finds the end of the first client's answer and the second client's request at once."""
    goes_on = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=answers_too_much, args=(listener, goes_on), daemon=True).start()
        with serving(f"http://127.0.0.1:{listener.getsockname()[1]}") as g, g.client() as first, g.client() as second, g.client() as third:
            for c in (second, third):
                assert c.get("/early").body == b"/early"
            for c in (first, third):  # so that the second finds none idle
                c.request("GET", "/slow")
                wait_until(lambda c=c: c.sock.recv(4096, socket.MSG_PEEK).endswith(b"a" * 500), what="half of the answer")
            g.process.send_signal(signal.SIGSTOP)
            try:
                if second_comes == "before":
                    second.request("GET", "/second")
                goes_on.set()
                time.sleep(0.05)  # for what has no sign: bytes that nobody reads
                if second_comes == "behind":
                    second.request("GET", "/second")
            finally:
                g.process.send_signal(signal.SIGCONT)
            assert second.response().body == b"/second"
            assert second.get("/again").body == b"/again"
        listener.shutdown(socket.SHUT_RDWR)


# --- Many at once

def test_an_endless_download_does_not_starve_others(up):
    moved, stop = [0], threading.Event()
    block = bytes(4 * MIB)

    def source(x):
        x.keep = False
        x.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % (1 << 50))
        with contextlib.suppress(OSError):
            while not stop.is_set():
                x.connection.sock.sendall(block)
    up.on("/endless", source)

    def drink(c):
        buffer = bytearray(4 * MIB)
        with contextlib.suppress(OSError):
            while not stop.is_set():
                taken = c.sock.recv_into(buffer, 0, socket.MSG_TRUNC)
                moved[0] += taken
                if not taken:
                    return
    with serving(up.url) as g, g.client() as bulk:
        bulk.request("GET", "/endless")
        beside(g, bulk, drink, moved, stop)


def test_an_endless_upload_does_not_starve_others(up):
    moved, stop = [0], threading.Event()
    block = bytes(4 * MIB)

    def sink(x):
        x.keep = False
        buffer = bytearray(4 * MIB)
        with contextlib.suppress(OSError):
            while taken := x.connection.sock.recv_into(buffer, 0, socket.MSG_TRUNC):
                moved[0] += taken
    up.on("/endless", sink)

    def pour(c):
        with contextlib.suppress(OSError):
            while not stop.is_set():
                c.sock.sendall(block)
    with serving(up.url) as g, g.client() as bulk:
        bulk.request("PUT", "/endless", fields=[("Content-Length", str(1 << 50))])
        beside(g, bulk, pour, moved, stop)


def beside(gateway, bulk, work, moved, stop):
    """50 small requests on fresh connections while `work(bulk)` runs, which must go on all the while."""
    worker = threading.Thread(target=work, args=(bulk,), daemon=True)
    worker.start()
    try:
        wait_until(lambda: moved[0] > 16 * MIB, 20, "the bulk transfer")
        before = moved[0]
        for _ in range(50):
            with gateway.client() as c:
                path = "/" + unique()
                assert served(c.get(path))["target"] == path
        wait_until(lambda: moved[0] > before + MIB, 20, "more of the bulk transfer")
        assert worker.is_alive()
    finally:
        stop.set()
        bulk.reset()
        worker.join(bound(10))


# --- a long upload that is refused (found by Go, Node, httpx, aiohttp and requests: they failed to write, and said only that)

def refuse_unread(x):
    x.answer(403, [("Content-Type", "text/plain")], b"not interested")
    x.close()
    x.until_closed()


@pytest.mark.parametrize("framing", ["length", "chunked"])
@pytest.mark.parametrize("why, status", [("key", 401), ("size", 413), ("upstream", 403)])
def test_a_client_that_sends_its_whole_upload_before_it_reads_gets_the_refusal(up, why, status, framing):
    path = up.on("/early", refuse_unread) if why == "upstream" else "/taken"
    small = {"body_bytes": "64KiB"} if why == "size" else {}
    with serving(up.url, require_key=why == "key", **small) as g, g.client() as c:
        size = 20 * MIB
        fields = [("Content-Length", str(size))] if framing == "length" else [("Transfer-Encoding", "chunked")]
        c.send(request_bytes("POST", path, fields=fields))
        c.send(b"x" * size if framing == "length" else chunked(*[b"x" * MIB] * 20))
        assert c.response().status == status


# --- half of a response (found by requests and HttpURLConnection: they took it for the whole)

@pytest.mark.parametrize("end", ["close", "reset"])
@pytest.mark.parametrize("framing", ["Content-Length: 32768", "Transfer-Encoding: chunked"])
def test_a_response_that_breaks_off_ends_by_a_reset(up, framing, end):
    def half(x):
        size = b"8000\r\n" if "chunked" in framing else b""
        x.send(f"HTTP/1.1 200 OK\r\n{framing}\r\n\r\n".encode() + size + b"x" * 16384)
        x.close() if end == "close" else x.reset()
    path = up.on("/half", half)
    with serving(up.url) as g, g.client() as c:
        c.request("GET", path)
        with pytest.raises(Broken) as broken:
            c.response()
        assert broken.value.kind == "reset"


# --- How responses and gateways end

def test_a_response_that_breaks_off_does_not_take_an_earlier_sound_one_along(up):
    first, second = "/" + unique(), "/" + unique()
    up.on(first, lambda x: x.answer(200, [], b"a" * 200_000))

    def breaks_off(x):
        x.send(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\nhalf")
        x.close()
    up.on(second, breaks_off)
    with serving(up.url) as g, g.client(receive_buffer=4096) as c:
        c.send(request_bytes("GET", first) + request_bytes("GET", second))
        wait_until(lambda: executed(up).count(second) == 1, 10, "the second request")
        wait_until(lambda: g.metric("latchkey_requests_in_flight") == 0, 10, "the end of both")
        r = c.response()
        served(r)
        assert r.body == b"a" * 200_000
        with pytest.raises(Broken):
            c.response()


@pytest.mark.skipif(SLOW > 1, reason="the bound on the wait is a time")
def test_a_refused_upload_that_drips_on_does_not_hold_up_the_stop(up):
    g = one_worker({"api": [{"name": "only", "upstreams": [up.url]}], "drain": "120s"}).start()
    with g.client() as c:
        c.send(b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 100000\r\n\r\nx")
        problem(c.response(), 401)
        stop = threading.Event()

        def drip():
            with contextlib.suppress(OSError, Broken):
                while not stop.wait(0.3):
                    c.send(b"x")
        dripping = threading.Thread(target=drip)
        dripping.start()
        try:
            assert g.stop(timeout=30) == 0  # not the 30 s of a linger, nor the 120 of the drain
        finally:
            stop.set()
            dripping.join()


REFUSED_UPLOAD = b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 100000\r\n\r\nx"


@pytest.mark.parametrize("linger", [0, ms(600)])
def test_a_client_that_drips_a_refused_upload_is_read_for_no_longer_than_linger(up, linger):
    settings = {"client": {"linger": linger, "linger_silence": "1h"}}
    with serving(up.url, settings=settings, require_key=True) as g, g.client() as c:
        c.send(REFUSED_UPLOAD)
        problem(c.response(), 401)

        def cut_off():
            try:
                c.send(b"x")
            except OSError:
                return True
            return False
        wait_until(cut_off, 15, "the end of its patience", 0.1)


def test_a_client_that_is_silent_in_a_refused_upload_is_waited_for_no_longer_than_linger_silence(up):
    settings = {"client": {"linger": "1h", "linger_silence": ms(500)}}
    with serving(up.url, settings=settings, require_key=True) as g, g.client() as c:
        c.send(REFUSED_UPLOAD)
        problem(c.response(), 401)
        wait_until(lambda: g.metric("latchkey_connections_open") == 0, 15, "its end")


def test_the_record_of_a_head_that_came_too_late_counts_its_bytes(up):
    with serving(up.url, settings={"client": {"head": ms(300)}}) as g, g.client() as c:
        start = b"GET / HTTP/1.1\r\nHost: h\r\nX-A: 1"
        c.send(start)
        problem(c.response(), 408, "head_timeout")
        rows = wait_until(lambda: [r for r in g.export() if r["status"] == "408"], 10, "its record")
        assert [int(r["request_bytes"]) for r in rows] == [len(start)]


# --- What the operator is told

def test_an_upstream_that_cannot_be_reached_is_named_in_the_log_and_not_for_every_request():
    keeper, port = refused_port()
    with contextlib.closing(keeper), serving(f"http://127.0.0.1:{port}") as g, g.client() as c:
        for _ in range(20):
            c.request("GET", "/")
            problem(c.response(), 502, "upstream_unreachable")
        words = wait_until(lambda: [w for w in g.log().splitlines() if "cannot be reached" in w], 5, "the word in the log")
        assert len(words) == 1 and f"127.0.0.1:{port} cannot be reached: Connection refused" in words[0], words
