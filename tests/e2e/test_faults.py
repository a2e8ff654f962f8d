"""What breaks and what then happens: U the upstream, C the client. Deadlines are short here. (R: test_resources.py)"""
import contextlib
import socket
import threading
import time

import pytest

from conftest import run
from harness import (SLOW, Blackhole, Broken, Gateway, TimedOut, Upstream, bound, problem, refused_port, request_bytes, reset, served,
                     unique, wait_until)
from upstream import pour

MIB = 1 << 20
IDEMPOTENT = ["GET", "HEAD", "PUT", "DELETE", "OPTIONS"]


def ms(n):
    return f"{int(n * SLOW)}ms"


class Sides:
    """The upstreams of the fault gateway, each behind a path prefix of its name."""

    def __init__(self, normal):
        self.normal = normal
        self.keeper, self.refused = refused_port()
        self.blackhole = Blackhole()
        self.stale = Upstream(idle_close=0.02)
        self.spring = Upstream(spring=2)
        self.counted = Upstream(max_requests=3)
        self.greeting = Upstream(greeting=b"\x15\x03\x01\x00\x02\x02\x46")
        self.slams = Upstream(on_accept=lambda c: (_ for _ in ()).throw(OSError()))

    def stop(self):
        for u in (self.stale, self.spring, self.counted, self.greeting, self.slams, self.blackhole):
            u.stop()
        self.keeper.close()


@pytest.fixture(scope="module")
def sides(upstream):
    s = Sides(upstream)
    yield s
    s.stop()


@pytest.fixture(scope="module")
def faulty(sides):
    waits = {"connect": ms(400), "response_head": ms(600), "body_stall": ms(600), "idle": ms(1000)}

    def api(name, *urls, prefix=None):
        return {"name": name, "path_prefixes": [prefix or "/" + name], "upstreams": list(urls), "deadlines": dict(waits)}

    def local(port):
        return f"http://127.0.0.1:{port}"
    apis = [api("refused", local(sides.refused)), api("blackhole", local(sides.blackhole.port)),
            api("stale", sides.stale.url), api("spring", sides.spring.url), api("counted", sides.counted.url),
            api("greeting", sides.greeting.url), api("slams", sides.slams.url), api("normal", sides.normal.url, prefix="/"),
            api("two", local(sides.refused), sides.normal.url), api("unknown", "http://no-such-host.invalid:80")]
    settings = {"client": {"head": ms(700), "idle": ms(1500), "body_stall": ms(600), "write_stall": ms(800), "request": ms(2500)},
                "usage": {"flush_interval": "50ms"}, "api": apis}
    yield from run(Gateway(settings=settings))


@pytest.fixture(scope="module")
def its_key(faulty):
    return faulty.create_key("faults")["key"]


@pytest.fixture
def at(faulty):
    with faulty.client() as c:
        yield c


def alive_after(client, key):
    """The connection is in step: a further request gets its own answer."""
    path = "/" + unique()
    assert served(client.get(path, key))["target"] == path


# --- U: the upstream

def test_U1_nothing_listens_is_502_and_the_client_connection_stays(at, its_key):
    for method in ("GET", "POST"):
        at.request(method, "/refused/x", its_key, body=b"abc" if method == "POST" else None)
        problem(at.response(), 502, "upstream_unreachable")
    alive_after(at, its_key)


def test_U1_a_request_goes_to_the_next_target_when_one_refuses(at, its_key):
    for method in ["GET", "POST"] * 5:
        at.request(method, "/two/" + unique(), its_key, body=b"abc")
        served(at.response())


def test_U2_a_connect_that_is_never_answered_is_504(at, its_key):
    at.request("GET", "/blackhole/x", its_key)
    problem(at.response(), 504, "upstream_connect_timeout")
    alive_after(at, its_key)


@pytest.mark.parametrize("method, most", [("POST", 1), ("PATCH", 1), ("GET", 2), ("PUT", 2)])
def test_U3_reset_before_the_first_byte_is_502_and_post_is_sent_once(faulty, at, upstream, its_key, method, most):
    """RFC 9110 9.2.2"""
    path = upstream.on("/" + unique(), lambda x: (x.body(), x.reset()))
    upstream.close_connections()
    at.request(method, path, its_key, body=b"abc")
    problem(at.response(), 502)
    assert 1 <= len(upstream.seen(path)) <= most
    alive_after(at, its_key)


def test_U3_close_right_after_accept_is_502(at, its_key):
    at.request("POST", "/slams/x", its_key, body=b"abc")
    problem(at.response(), 502)
    alive_after(at, its_key)


def test_U4_a_pooled_connection_that_the_upstream_closes_is_never_seen_by_the_client(faulty, its_key):
    """RFC 9112 9.3.1: pauses sweep around the moment of the close. The pause is the fault, not a wait."""
    with faulty.client() as c:
        for n in range(120):
            served(c.get("/stale/" + unique(), its_key))
            time.sleep(0.017 + (n % 12) * 0.0005)


@pytest.mark.parametrize("method", IDEMPOTENT)
def test_U4_reset_as_the_next_request_arrives_is_retried_for_an_idempotent_method(faulty, sides, its_key, method):
    """RFC 9110 9.2.2, RFC 9112 9.3.1"""
    with faulty.client() as c:
        for n in range(6):
            path = f"/spring/{unique()}"
            c.request(method, path, its_key)
            assert c.response(method).status == 200
            assert len(sides.spring.seen(path)) == 1


def test_U4_reset_as_a_post_arrives_is_not_retried_once_bytes_were_taken(faulty, sides, its_key):
    """RFC 9110 9.2.2: whoever got bytes may have acted. Never twice; at best once, else 502."""
    with faulty.client() as c:
        for _ in range(6):
            path = f"/spring/{unique()}"
            c.request("POST", path, its_key, body=b"pay")
            r = c.response()
            assert r.status in (200, 502)
            assert len(sides.spring.seen(path)) == (1 if r.status == 200 else 0)


def test_U4_a_connection_that_ends_after_n_requests_costs_no_error(faulty, sides, its_key):
    with faulty.client() as c:
        for _ in range(30):
            served(c.get("/counted/" + unique(), its_key))


def test_U4_an_end_that_comes_with_the_answer_and_a_server_that_reads_on_cost_no_error(faulty, upstream, its_key):
    """What Apache does at its end (a lingering close): its FIN in one segment with the answer, and then no reset for what follows."""
    def linger(x):
        x.connection.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_CORK, 1)
        x.answer(200, [], b"last")
        x.close()
        x.until_closed()

    path = upstream.on("/" + unique(), linger)
    with faulty.client() as c:
        for _ in range(3):
            assert c.get(path, its_key).body == b"last"
            served(c.get("/" + unique(), its_key))


def test_U4_an_upstream_that_restarts_costs_no_error(faulty, upstream, at, its_key):
    for _ in range(20):
        alive_after(at, its_key)
        upstream.close_connections()
        wait_until(lambda: not upstream.open_connections(), 10, "the end of the connections", 0.001)


@pytest.mark.parametrize("part", [b"H", b"HTTP/1.1 200", b"HTTP/1.1 200 OK\r\n", b"HTTP/1.1 200 OK\r\nContent-Le", b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n"])
@pytest.mark.parametrize("how", ["close", "reset"])
def test_U5_an_end_inside_the_head_is_502(at, upstream, its_key, part, how):
    path = upstream.on("/" + unique(), lambda x: (x.send(part), getattr(x, how)()))
    problem(at.get(path, its_key), 502)
    alive_after(at, its_key)


@pytest.mark.parametrize("part", [b"Content-Length: 10\r\n\r\nhello", b"Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n",
                                  b"Transfer-Encoding: chunked\r\n\r\n5\r\nhel", b"Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n"],
                         ids=["length", "chunk", "inside a chunk", "before the last line"])
@pytest.mark.parametrize("how", ["close", "reset"])
@pytest.mark.parametrize("version", ["HTTP/1.1", "HTTP/1.0"])
def test_U6_an_end_inside_the_body_is_visible_to_the_client(faulty, upstream, its_key, part, how, version):
    """RFC 9112 8: never padded, never a clean end, never kept"""
    path, rid, go = "/" + unique(), unique(), threading.Event()

    def script(x):
        x.send(b"HTTP/1.1 200 OK\r\n" + part)
        go.wait(bound(5))
        getattr(x, how)()
    upstream.on(path, script)
    with faulty.client() as c:
        c.request("GET", path, its_key, [("X-Request-Id", rid)], version=version)
        c.reader.fill(time.monotonic() + bound(5))
        go.set()
        with pytest.raises(Broken) as broken:
            c.response()
        assert not broken.value.partial.complete
        if broken.value.partial.framing == "close":
            assert broken.value.kind == "reset", "a FIN would say that the body is whole"
    assert faulty.record(rid)["outcome"] == "upstream_aborted"


@pytest.mark.parametrize("how", ["close", "reset"])
def test_U6_an_end_before_the_first_body_byte_is_502_or_visible(faulty, upstream, its_key, how):
    """RFC 9112 8: a gateway that still holds the head may answer 502; one that has sent it can only break off"""
    path = upstream.on("/" + unique(), lambda x: (x.send(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n"), getattr(x, how)()))
    with faulty.client() as c:
        c.request("GET", path, its_key)
        try:
            problem(c.response(), 502)
        except Broken as broken:
            assert broken.partial.status == 200 and not broken.partial.complete


def test_U6_a_close_delimited_body_that_is_reset_is_visible(faulty, upstream, its_key):
    """RFC 9112 6.3 rule 8, 8"""
    path, go = "/" + unique(), threading.Event()
    upstream.on(path, lambda x: (x.send(b"HTTP/1.1 200 OK\r\n\r\nhello"), go.wait(bound(5)), x.reset()))
    with faulty.client() as c:
        c.request("GET", path, its_key)
        c.reader.fill(time.monotonic() + bound(5))
        go.set()
        with pytest.raises(Broken):
            c.response()


def test_U7_silence_before_the_head_is_504_and_the_connection_is_not_pooled(at, upstream, its_key):
    path, ended = "/" + unique(), []
    upstream.on(path, lambda x: ended.append(x.until_closed()))
    problem(at.get(path, its_key), 504, "upstream_timeout")
    upstream.wait(lambda: ended)
    assert len(upstream.seen(path)) == 1, "a timeout is not retried"
    alive_after(at, its_key)


@pytest.mark.parametrize("part", [b"HTTP/1.1 2", b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n"])
def test_U7_silence_inside_the_head_is_504(at, upstream, its_key, part):
    path = upstream.on("/" + unique(), lambda x: (x.send(part), x.until_closed()))
    problem(at.get(path, its_key), [504, 502])
    alive_after(at, its_key)


@pytest.mark.parametrize("part", [b"Content-Length: 10\r\n\r\nhello", b"Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n"])
def test_U8_silence_inside_the_body_ends_the_client_connection(faulty, upstream, its_key, part):
    path, rid, ended = "/" + unique(), unique(), []
    upstream.on(path, lambda x: (x.send(b"HTTP/1.1 200 OK\r\n" + part), ended.append(x.until_closed())))
    with faulty.client() as c:
        c.request("GET", path, its_key, [("X-Request-Id", rid)])
        with pytest.raises(Broken):
            c.response()
    upstream.wait(lambda: ended)
    assert faulty.record(rid)["outcome"] == "upstream_aborted"


def test_U9_a_slow_drip_is_not_a_stall(faulty, at, upstream, its_key):
    """Far longer than every deadline of this gateway, and never silent for as long as one. The pause is the fault."""
    path = upstream.on("/" + unique(), lambda x: (x.send(b"HTTP/1.1 200 OK\r\nContent-Length: 20\r\n\r\n"), x.drip(b"x" * 20, 0.16 * SLOW)))
    before = faulty.rss
    assert at.get(path, its_key).body == b"x" * 20
    assert faulty.rss - before < 4 * MIB


def test_U10_garbage_is_502_and_never_relayed(faulty, at, its_key):
    r = at.get("/greeting/x", its_key)
    problem(r, 502)
    alive_after(at, its_key)


def test_U11_a_flood_of_interim_heads_ends_in_502_and_flat_memory(faulty, upstream, its_key):
    path = "/" + unique()

    def flood(x):
        x.keep = False
        with contextlib.suppress(OSError):
            for _ in range(3000):
                x.send(b"HTTP/1.1 103 Early Hints\r\nLink: </style.css>; rel=preload\r\n\r\n" * 100)
    upstream.on(path, flood)
    before = faulty.rss
    with faulty.client() as c:
        c.request("GET", path, its_key)
        with contextlib.suppress(Broken):
            r = c.response()
            assert len(r.informational) <= 64
            problem(r, 502)
    assert faulty.rss - before < 8 * MIB


def test_U12_an_unknown_upstream_name_is_an_error_and_no_hang(at, its_key):
    problem(at.get("/unknown/x", its_key), [502, 503, 504])
    alive_after(at, its_key)


def test_U_an_answer_that_nobody_asked_for_is_not_given_to_the_next_request(faulty, upstream, its_key):
    """Response-queue poisoning: bytes behind a response end the upstream connection."""
    path = upstream.on("/" + unique(), lambda x: x.send(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok" + b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil"))
    for _ in range(10):
        with faulty.client() as c:
            assert c.get(path, its_key).body == b"ok"
            alive_after(c, its_key)


# --- C: the client

@pytest.mark.parametrize("how", ["close", "reset"])
def test_C1_a_client_that_leaves_in_its_upload_ends_the_upstream_request(faulty, upstream, its_key, how):
    path, rid = "/" + unique(), unique()
    with faulty.client() as c:
        c.request("PUT", path, its_key, [("Content-Length", "1000"), ("X-Request-Id", rid)], b"x" * 500)
        arrived = upstream.wait(lambda: upstream.seen(path))[0]
        getattr(c, how)()
    upstream.wait(lambda: not arrived.connection.open)
    assert not arrived.complete and len(upstream.seen(path)) == 1
    assert faulty.record(rid)["outcome"] == "client_aborted"


def test_C1_a_client_that_leaves_in_its_chunked_upload_is_not_taken_for_the_end(faulty, upstream, its_key):
    path = "/" + unique()
    with faulty.client() as c:
        c.request("PUT", path, its_key, [("Transfer-Encoding", "chunked")], b"5\r\nhello\r\n")
        arrived = upstream.wait(lambda: upstream.seen(path))[0]
    upstream.wait(lambda: not arrived.connection.open)
    assert not arrived.complete


@pytest.mark.parametrize("framing, part", [("Content-Length: 100", b"x" * 10), ("Transfer-Encoding: chunked", b"5\r\n"), ("Content-Length: 5", b"")],
                         ids=["length", "chunk", "head only"])
def test_C1_data_and_end_that_arrive_together_are_both_seen(upstream, gateway, key, framing, part):
    """The end follows the data at once, so that one wake-up brings both: it must not be found only by a deadline."""
    name, value = framing.split(": ")
    paths = ["/" + unique() for _ in range(100)]
    for path in paths:
        with gateway.client() as c:
            c.send(request_bytes("POST", path, key, [(name, value)]) + part)
    rest = [r for path in paths for r in upstream.seen(path)]
    upstream.wait(lambda: not any(r.connection.open for r in rest), 5)
    assert not any(r.complete for r in rest)
    wait_until(lambda: gateway.metric("latchkey_requests_in_flight") == 0, 5, "the end of every request")


def test_C1_a_client_that_leaves_while_the_upstream_thinks_frees_the_upstream(faulty, upstream, its_key):
    path, ended = "/" + unique(), []
    upstream.on(path, lambda x: ended.append(x.until_closed()))
    with faulty.client() as c:
        c.request("GET", path, its_key)
        upstream.wait(lambda: upstream.seen(path))
        c.reset()
    upstream.wait(lambda: ended)


def test_C1_a_client_that_leaves_in_the_download_frees_the_upstream(faulty, upstream, its_key):
    path, ended = "/" + unique(), []

    def source(x):
        x.keep = False
        x.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % (1 << 33))
        with contextlib.suppress(OSError):
            while True:
                x.send(b"x" * MIB)
        ended.append(True)
    upstream.on(path, source)
    with faulty.client() as c:
        c.request("GET", path, its_key)
        c.reader.fill(time.monotonic() + bound(5))
        c.reset()
    upstream.wait(lambda: ended)


def test_C2_half_close_after_the_request_still_gets_the_answer(faulty, upstream, its_key):
    path, go = "/" + unique(), threading.Event()
    upstream.on(path, lambda x: (x.body(), go.wait(bound(5)), x.answer(200, [], b"late")))
    with faulty.client() as c:
        c.request("POST", path, its_key, body=b"abc")
        c.half_close()
        upstream.wait(lambda: upstream.seen(path))
        go.set()
        assert c.response().body == b"late"


@pytest.mark.parametrize("pause", [0.03, 0.002], ids=["each byte read", "gathered"])
def test_C3_a_slow_head_ends_at_an_absolute_deadline(faulty, pause):
    """408, however often a byte comes; past 17 reads there is always one. The pause is the fault."""
    with faulty.client() as c:
        began = time.monotonic()
        raw = b"GET / HTTP/1.1\r\nHost: a\r\nX-Slow: " + b"a" * 100_000
        with contextlib.suppress(OSError):
            for byte in raw:
                c.send(bytes([byte]))
                with contextlib.suppress(TimedOut):
                    c.reader.fill(time.monotonic() + pause)
                if c.leftover or c.reader.ended:
                    break
                assert time.monotonic() - began < bound(8), "a head without end is let go on"
        problem(c.response(), 408, "head_timeout")


def drip(client, raw, count=None):
    """Byte by byte, `count` of them or all. The pause is the fault."""
    for byte in raw[:count]:
        client.send(bytes([byte]))
        time.sleep(0.001)


@pytest.fixture(scope="module")
def patient(upstream):
    """However slowly a busy machine lets a test drip, it is no fault here."""
    yield from run(Gateway(upstream, {"client": {"head": "1m"}}, workers=1))


def test_C3_a_dripped_head_that_ends_is_served_and_what_follows_it_is_not_gathered(patient, upstream):
    """The body comes when the upstream has the head: it must wake the gateway."""
    key = patient.create_key()["key"]
    with patient.client() as c:
        for _ in range(2):
            path = "/" + unique()
            drip(c, request_bytes("POST", path, key, [("Content-Length", "4"), ("X-Pad", "a" * 60)]))
            upstream.wait(lambda: upstream.seen(path))
            c.send(b"body")
            assert served(c.response())["body"] == "body"
            served(c.get("/" + unique(), key))


def test_C3_a_dripped_head_with_pauses_longer_than_a_sweep_is_served(patient):
    """Once its pieces are gathered, nothing but the sweep reads them: a piece that came alone must not wait for company."""
    key = patient.create_key()["key"]
    head = request_bytes("GET", "/" + unique(), key, [("X-Pad", "a" * 60)])
    with patient.client() as c:
        drip(c, head, count=40)
        for at in (40, 60, 80):
            time.sleep(0.25)  # the fault: a slow client
            c.send(head[at:at + 20] if at < 80 else head[at:])
        served(c.response())


@pytest.mark.parametrize("how", ["fin", "reset"])
def test_C3_a_client_that_leaves_in_a_dripped_head_is_on_record_once_and_holds_nothing(patient, how):
    before, path = patient.descriptors, "/" + unique()
    aborts = patient.metric("latchkey_client_aborts_total")
    for _ in range(3):
        c = patient.client()
        drip(c, request_bytes("GET", path, "k", [("X-Pad", "a" * 200)]), count=100)
        c.close() if how == "fin" else reset(c.sock)
    wait_until(lambda: patient.metric("latchkey_client_aborts_total") == aborts + 3, 10, "the end of the three")
    wait_until(lambda: patient.descriptors <= before, 10, "their descriptors")


def test_C3_a_stop_does_not_wait_for_a_head_that_drips(upstream):
    for g in run(Gateway(upstream, {"drain": "1s", "client": {"head": "1h"}}, workers=1)):
        c = g.client()
        drip(c, request_bytes("GET", "/x", "k", [("X-Pad", "a" * 200)]), count=100)
    c.close()


def test_U9_a_response_head_that_drips_is_served_or_ends_at_its_deadline(faulty, at, upstream, its_key):
    head = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nX-Pad: " + b"a" * 60
    path = upstream.on("/" + unique(), lambda x: (x.drip(head + b"\r\n\r\n"), x.send(b"ok")))
    assert at.get(path, its_key).body == b"ok"

    def endless(x):
        with contextlib.suppress(OSError):
            x.drip(head + b"a" * 20_000, 0.002)
        x.keep = False
    path = upstream.on("/" + unique(), endless)
    problem(at.get(path, its_key), 504, "upstream_timeout")
    alive_after(at, its_key)


def test_C3_silence_before_the_first_byte_is_closed_without_an_answer(faulty):
    with faulty.client() as c:
        assert c.end() == "fin"
        assert c.leftover == b""


def test_C3_an_idle_kept_connection_is_closed_without_an_answer(faulty, its_key):
    """RFC 9112 9.5"""
    with faulty.client() as c:
        served(c.get("/" + unique(), its_key))
        assert c.end() == "fin"
        assert c.leftover == b""


def test_C4_a_body_that_stalls_is_408_and_the_upstream_request_ends(faulty, upstream, its_key):
    path = "/" + unique()
    with faulty.client() as c:
        c.request("POST", path, its_key, [("Content-Length", "1000")], b"x" * 10)
        with contextlib.suppress(Broken):
            problem(c.response(), 408, "body_timeout")
        c.end()
    arrived = upstream.only(path)
    upstream.wait(lambda: not arrived.connection.open)
    assert not arrived.complete


def test_C4_a_body_that_drips_for_ever_ends_at_the_request_deadline(faulty, upstream, its_key):
    """[client] request: absolute. The pause is the fault."""
    path = "/" + unique()
    with faulty.client() as c:
        began = time.monotonic()
        c.request("POST", path, its_key, [("Content-Length", "100000")])
        with contextlib.suppress(OSError):
            while not (c.leftover or c.reader.ended):
                c.send(b"x")
                with contextlib.suppress(TimedOut, Broken):
                    c.reader.fill(time.monotonic() + 0.05)
                assert time.monotonic() - began < bound(10), "a body without end is let go on"
    arrived = upstream.only(path)
    upstream.wait(lambda: not arrived.connection.open)
    assert not arrived.complete


def test_C5_a_reader_that_stops_is_cut_off_and_frees_the_upstream(faulty, upstream, its_key):
    path, rid, ended = "/" + unique(), unique(), []
    upstream.on(path, lambda x: (pour(x, 100), ended.append(True)))
    before = faulty.rss
    with faulty.client(receive_buffer=4096) as c:
        c.request("GET", path, its_key, [("X-Request-Id", rid)])
        upstream.wait(lambda: ended, 20)
        assert faulty.rss - before < 8 * MIB
    assert faulty.record(rid)["outcome"] == "timed_out"


def test_C8_1000_pipelined_requests_are_read_no_further_than_a_buffer(faulty, upstream, its_key):
    """RFC 9112 9.3.2: while the first is not answered, the gateway does not take in what the client sends."""
    path, go = "/" + unique(), threading.Event()
    upstream.on(path, lambda x: (go.wait(bound(10)), x.answer(200)))
    sent = [0]
    raw = request_bytes("GET", "/" + unique(), its_key, [("X-Pad", "a" * 1000)])
    with faulty.client() as c:
        c.sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 65536)
        c.request("GET", path, its_key)
        upstream.wait(lambda: upstream.seen(path))
        c.sock.settimeout(0.3)
        before = faulty.rss
        with contextlib.suppress(socket.timeout):
            while sent[0] < 64 * MIB:
                sent[0] += c.sock.send(raw * 100)
        assert sent[0] < 32 * MIB, "everything was taken in"
        assert faulty.rss - before < 4 * MIB
        go.set()
        for _ in range(100):
            assert c.response().status == 200


# --- R: the key

def test_R8_a_revoked_key_is_dead_on_live_connections(faulty):
    made = faulty.create_key("short-lived")
    clients = [faulty.client() for _ in range(8)]
    for c in clients:
        served(c.get("/x", made["key"]))
    faulty.cli("keys", "revoke", made["id"], "--yes")
    for c in clients:
        problem(c.get("/x", made["key"]), 401)
        c.close()
