"""Long bodies. Responses go from socket to socket by pipe, uncopied: each byte arrives, whatever breaks is seen, and no pipe stays
behind. Requests are read into a large buffer where the one before was long: that changes nothing but the cost."""
import concurrent.futures
import contextlib
import hashlib
import itertools
import random
import socket
import threading
import time

import pytest

from conftest import run
from harness import (SLOW, Broken, Gateway, bound, certificate, chunked, pipes_of, problem, request_bytes, served, tls_settings,
                     unique, wait_until)
from upstream import pour

KIB, MIB = 1 << 10, 1 << 20
FROM = 256 * KIB  # of a body that is to come, goes by pipe


def ms(n):
    return f"{int(n * SLOW)}ms"


@pytest.fixture(scope="module")
def long(upstream, tmp_path_factory):
    settings = {"client": {"write_stall": ms(800)}, "usage": {"flush_interval": "50ms"},
                **tls_settings(certificate(tmp_path_factory.mktemp("tls"), "localhost")),
                "api": [{"name": "default", "upstreams": [upstream.url], "deadlines": {"idle": ms(1000), "body_stall": ms(600)}}]}
    yield from run(Gateway(settings=settings, workers=1))


@pytest.fixture(scope="module")
def its_key(long):
    return long.create_key("long")["key"]


@pytest.fixture(autouse=True)
def no_pipe_stays(long):
    yield
    wait_until(lambda: not pipes_of(long), 10, "the end of the pipes")


def bytes_of(seed, size):
    return random.Random(seed).randbytes(size)


@pytest.mark.parametrize("size", [FROM - 1, FROM, FROM + 1, FROM + 64 * KIB - 1, FROM + 64 * KIB, FROM + 64 * KIB + 1, MIB, MIB + 1, 5 * MIB + 3, 20 * MIB])
def test_every_byte_arrives_and_the_connections_go_on(long, upstream, its_key, size):
    path, rid, body = "/" + unique(), unique(), bytes_of(size, size)
    upstream.on(path, lambda x: x.answer(200, [], body))
    with long.client() as c:
        for method in ("GET", "POST"):
            c.request(method, path, its_key, [("X-Request-Id", rid)], body=b"b" if method == "POST" else None)
            answer = c.response(method, 60)
            assert answer.complete and answer.body == body
        served(c.get("/after", its_key))
    for row in long.records(rid, 2):
        assert (row["outcome"], row["status"]) == ("served", "200") and size < int(row["response_bytes"]) < size + 1000


SIZES = [0, 1, 500, 64 * KIB - 300, 64 * KIB, 64 * KIB + 1, 100 * KIB, 512 * KIB - 300, 512 * KIB, 512 * KIB + 1, 700 * KIB]


@pytest.mark.parametrize("tls", [False, True], ids=["clear", "tls"])
@pytest.mark.parametrize("framing", ["length", "chunked"])
def test_requests_long_and_short_in_turn_arrive_whole(long, upstream, its_key, framing, tls):
    """Each size behind each other one."""
    path, rid = "/" + unique(), unique()
    upstream.on(path, lambda x: x.answer(200, [], hashlib.sha256(x.body()).hexdigest().encode()))
    pairs = list(itertools.permutations(SIZES, 2))
    turns = [n for pair in random.Random(framing).sample(pairs, len(pairs)) for n in pair]
    with (long.tls_client if tls else long.client)() as c:
        for n in turns:
            body = bytes_of(n, n)
            if framing == "length":
                c.request("POST", path, its_key, [("X-Request-Id", rid), ("Content-Length", str(n))], body)
            else:
                c.request("POST", path, its_key, [("X-Request-Id", rid), ("Transfer-Encoding", "chunked")], chunked(body[:n // 3], body[n // 3:]))
            answer = c.response()
            assert (answer.status, answer.body) == (200, hashlib.sha256(body).hexdigest().encode()), n
    sizes = [int(row["request_bytes"]) for row in long.records(rid, len(turns))]
    assert all(n < size < n + 1000 for n, size in zip(sorted(turns), sorted(sizes)))


def test_behind_a_long_request_many_short_ones_in_one_part_are_answered_in_turn(long, upstream, its_key):
    first, then = "/" + unique(), ["/" + unique() for _ in range(1500)]
    upstream.on(first, lambda x: x.answer(200, [], b"%d" % len(x.body())))
    with long.client() as c:
        for _ in range(3):
            c.request("POST", first, its_key, body=bytes(100 * KIB))
            assert c.response().body == b"%d" % (100 * KIB)
            sender = threading.Thread(target=c.send, args=(b"".join(request_bytes("GET", path, its_key) for path in then),), daemon=True)
            sender.start()
            assert [served(c.response())["target"] for _ in then] == then
            sender.join(10)


def test_behind_a_long_request_a_head_has_the_same_bound(long, upstream, its_key):
    with long.client() as c:
        c.request("POST", "/x", its_key, body=bytes(100 * KIB))
        assert served(c.response())["size"] == 100 * KIB
        c.send(request_bytes("GET", "/x", its_key, [("X-Big", "a" * 100_000)]))
        problem(c.response(), 431, "head_too_large")


def test_more_long_requests_than_there_are_large_buffers_wait_for_nothing(long, upstream, its_key):
    path, go = "/" + unique(), threading.Event()
    upstream.on(path, lambda x: (x.body(), go.wait(bound(20)), x.answer(200)))
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(long.client()) for _ in range(80)]
        for c in clients:
            c.request("POST", "/x", its_key, body=bytes(100 * KIB))
            assert served(c.response())["size"] == 100 * KIB
        for c in clients:
            c.request("POST", path, its_key, body=bytes(100 * KIB))
        upstream.wait(lambda: len([r for r in upstream.seen(path) if r.complete]) == len(clients), 20)
        go.set()
        assert {c.response().status for c in clients} == {200}


def test_by_tls_too(long, upstream, its_key):
    path, body = "/" + unique(), bytes_of("tls", 3 * MIB)
    upstream.on(path, lambda x: x.answer(200, [], body))
    with long.tls_client() as c:
        c.request("GET", path, its_key)
        assert c.response(timeout=60).body == body
    assert not pipes_of(long)


@pytest.mark.parametrize("to_come, by_pipe", [(FROM - 1, 0), (FROM, 2)])
def test_from_so_much_to_come_on_it_goes_by_pipe(long, upstream, its_key, to_come, by_pipe):
    path, body, go = "/" + unique(), bytes_of("from", to_come), threading.Event()

    def parts(x):
        x.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body))
        go.wait(30)
        x.send(body)
    upstream.on(path, parts)
    with long.client() as c:
        c.request("GET", path, its_key)
        wait_until(lambda: c.sock.recv(1, socket.MSG_PEEK), 10, "the head")
        wait_until(lambda: pipes_of(long) == by_pipe, 10, f"{by_pipe} ends of pipes")
        go.set()
        assert c.response(timeout=30).body == body


def test_to_a_slow_reader_and_from_a_slow_writer(long, upstream, its_key):
    path, body = "/" + unique(), bytes_of("slow", MIB)

    def drip(x):
        x.connection.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        x.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body))
        for at in range(0, len(body) // 2, 1021):
            x.send(body[at: min(at + 1021, len(body) // 2)])
            if at % 50 == 0:
                time.sleep(0.001)
        x.send(body[len(body) // 2:])
    upstream.on(path, drip)
    with long.client(receive_buffer=4096) as c:
        c.request("GET", path, its_key)
        got = b""
        while len(got) < 100_000:  # slowly at first
            got += c.sock.recv(1000)
            time.sleep(0.0005)
        c.reader.buffer[:0] = got
        assert c.response(timeout=60).body == body
        served(c.get("/after", its_key))


def test_beside_an_upload(long, upstream, its_key):
    path, body = "/" + unique(), bytes_of("beside", 2 * MIB)

    def both(x):
        x.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
        assert x.body() == b"u" * 3 * MIB
    upstream.on(path, both)
    with long.client() as c:
        c.request("POST", path, its_key, [("Content-Length", str(3 * MIB))])
        with concurrent.futures.ThreadPoolExecutor(1) as pool:
            sent = pool.submit(c.send, b"u" * 3 * MIB, 30)
            assert c.response("POST", timeout=30).body == body
            sent.result()


def test_to_http_1_0(long, upstream, its_key):
    path, body = "/" + unique(), bytes_of("old", 2 * MIB)
    upstream.on(path, lambda x: x.answer(200, [], body))
    with long.client() as c:
        c.request("GET", path, its_key, version="HTTP/1.0")
        assert c.response(timeout=30).body == body
        c.end()


def test_more_than_there_are_pipes(long, upstream, its_key):
    path, body = "/" + unique(), bytes_of("many", 4 * MIB)
    upstream.on(path, lambda x: x.answer(200, [], body))
    with contextlib.ExitStack() as opened:
        made = [opened.enter_context(long.client(receive_buffer=8192)) for _ in range(24)]
        for c in made:
            c.request("GET", path, its_key)
        wait_until(lambda: pipes_of(long) == 32, 10, "all of its pipes")  # two ends each; the clients have not read yet
        with concurrent.futures.ThreadPoolExecutor(8) as pool:
            assert all(pool.map(lambda c: c.response(timeout=60).body == body, made))
        for c in made:
            served(c.get("/after", its_key))


@pytest.mark.parametrize("how", ["close", "reset"])
def test_an_upstream_that_breaks_off_is_seen(long, upstream, its_key, how):
    path, rid = "/" + unique(), unique()

    def breaks(x):
        x.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % (4 * MIB) + b"x" * MIB)
        getattr(x, how)()
    upstream.on(path, breaks)
    with long.client() as c:
        c.request("GET", path, its_key, [("X-Request-Id", rid)])
        with pytest.raises(Broken) as end:
            c.response(timeout=30)
        assert end.value.kind == "reset" and not end.value.partial.complete
    assert long.record(rid)["outcome"] == "upstream_aborted"


def test_an_upstream_that_stalls_is_left(long, upstream, its_key):
    path, rid = "/" + unique(), unique()
    upstream.on(path, lambda x: (x.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % (4 * MIB) + b"x" * MIB), x.until_closed()))
    with long.client() as c:
        c.request("GET", path, its_key, [("X-Request-Id", rid)])
        with pytest.raises(Broken):
            c.response(timeout=30)
    assert long.record(rid)["outcome"] == "upstream_aborted"


@pytest.mark.parametrize("leaves", ["reset", "close", "stall"])
def test_a_client_that_leaves_or_reads_no_more(long, upstream, its_key, leaves):
    path, rid = "/" + unique(), unique()
    upstream.on(path, lambda x: pour(x, 100))
    with long.client(receive_buffer=4096) as c:
        c.request("GET", path, its_key, [("X-Request-Id", rid)])
        wait_until(lambda: pipes_of(long) == 2, 10, "its pipe")
        if leaves != "stall":
            getattr(c, leaves)()
        assert long.record(rid)["outcome"] == ("timed_out" if leaves == "stall" else "client_aborted")


def test_bytes_behind_the_body_reach_nobody(long, upstream, its_key):
    path, body = "/" + unique(), bytes_of("more", MIB)

    def more(x):
        x.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body + b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\npoison")
    upstream.on(path, more)
    with long.client() as c:
        for _ in range(3):
            c.request("GET", path, its_key)
            assert c.response(timeout=30).body == body
            assert served(c.get("/after", its_key))["target"] == "/after"


def test_a_drain_lets_a_long_body_end(upstream, tmp_path):
    path, body, go = "/" + unique(), bytes_of("drain", 3 * MIB), threading.Event()

    def halves(x):
        x.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body[:MIB])
        go.wait(30)
        x.send(body[MIB:])
    upstream.on(path, halves)
    g = Gateway(upstream, workers=1).start()
    try:
        with g.client() as c:
            c.request("GET", path, g.create_key()["key"])
            wait_until(lambda: pipes_of(g) == 2, 10, "its pipe")
            g.terminate()
            go.set()
            assert c.response(timeout=30).body == body
        assert g.wait() == 0
    finally:
        if g.alive:
            g.kill()
