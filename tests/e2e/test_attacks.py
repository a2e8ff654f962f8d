"""Clients that mean harm: the gateway spends little on them and goes on serving the others."""
import contextlib
import random
import re
import resource
import select
import socket
import time

import pytest

from conftest import fixture_of
from harness import SLOW, Broken, Gateway, bound, problem, request_bytes, served, unique, wait_until

KIB, MIB = 1 << 10, 1 << 20
IDLE_BYTES = 10 * KIB if SLOW == 1 else 128 * KIB  # what an idle connection may cost; sanitizers pad and keep every allocation

few = fixture_of({"limits": {"connections": 30, "connections_per_address": 20}})
hasty = fixture_of({"client": {"head": f"{int(1500 * SLOW)}ms", "body_stall": f"{int(1500 * SLOW)}ms", "write_stall": f"{int(1500 * SLOW)}ms",
                               "idle": f"{int(3000 * SLOW)}ms"}})


def connect_many(address, count, first=b"", source="127.0.0.1"):
    """Connections that have sent `first`."""
    socks = []
    for _ in range(count):
        s = socket.create_connection(address, timeout=bound(10), source_address=(source, 0))
        if first:
            s.sendall(first)
        socks.append(s)
    return socks


def close_all(socks):
    for s in socks:
        s.close()


def ended(sock):
    """Whether the peer has ended it."""
    sock.settimeout(0)
    try:
        while sock.recv(65536):
            pass
        return True
    except BlockingIOError:
        return False
    except OSError:
        return True


def all_end(socks, timeout):
    left, poll = {s.fileno(): s for s in socks}, select.poll()
    for s in socks:
        poll.register(s, select.POLLIN)
    deadline = time.monotonic() + bound(timeout)
    while left:
        assert time.monotonic() < deadline, f"{len(left)} of {len(socks)} connections are still open"
        for fd, _ in poll.poll(100):
            if ended(left[fd]):
                poll.unregister(fd)
                del left[fd]


def others_are_served(gateway, key):
    with gateway.client() as c:
        for _ in range(5):
            served(c.get("/" + unique(), key))


def test_C3_500_slow_heads_cost_little_and_end_at_the_deadline(hasty):
    key = hasty.create_key()["key"]
    others_are_served(hasty, key)
    before = hasty.rss
    socks = connect_many(hasty.address, 500, b"GET / HTTP/1.1\r\nHost: a\r\n")
    for n in range(5):
        for s in socks:
            with contextlib.suppress(OSError):
                s.sendall(b"X-%d: y\r\n" % n)
        others_are_served(hasty, key)
    assert hasty.rss - before < 500 * 32 * KIB * (4 if SLOW > 1 else 1)
    all_end(socks, 10)
    close_all(socks)


def test_C4_200_slow_bodies_do_not_keep_others_out_and_end(hasty, upstream):
    key = hasty.create_key()["key"]
    path = "/" + unique()
    socks = connect_many(hasty.address, 200, request_bytes("POST", path, key, [("Content-Length", "1000")]) + b"x")
    others_are_served(hasty, key)
    all_end(socks, 10)
    close_all(socks)
    wait_until(lambda: not any(r.connection.open for r in upstream.seen(path)), 10, "the end of the upstream requests")
    assert not any(r.complete for r in upstream.seen(path))


def test_C5_100_slow_readers_cost_bounded_memory_and_end(hasty, upstream):
    key = hasty.create_key()["key"]
    path, size = "/" + unique(), 4 * MIB

    def source(x):
        with contextlib.suppress(OSError):
            x.answer(200, [], b"x" * size)
            return
        x.keep = False
    upstream.on(path, source)
    before, socks = hasty.rss, []
    for _ in range(100):
        s = socket.socket()
        s.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        s.settimeout(bound(10))
        s.connect(hasty.address)
        s.sendall(request_bytes("GET", path, key))
        socks.append(s)
    upstream.wait(lambda: len(upstream.seen(path)) == 100, 20)
    others_are_served(hasty, key)
    assert hasty.rss - before < 100 * 640 * KIB * (3 if SLOW > 1 else 1), f"{(hasty.rss - before) / 100 / KIB:.0f} KiB each"
    wait_until(lambda: not any(r.connection.open for r in upstream.seen(path)), 15, "the end of the upstream exchanges")
    close_all(socks)


def test_connection_churn_leaves_nothing_behind(gateway, key):
    before = gateway.descriptors
    for n in range(2000):
        s = socket.create_connection(gateway.address, timeout=bound(10))
        if n % 4 == 1:
            s.sendall(b"GET /")
        elif n % 4 == 2:
            s.sendall(request_bytes("GET", "/churn", key))
        elif n % 4 == 3:
            s.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        s.close()
    others_are_served(gateway, key)
    wait_until(lambda: gateway.descriptors <= before + 8, 15, "the end of the churned connections", 0.1)


def test_C7_one_address_cannot_take_all_connections(few):
    key = few.create_key()["key"]
    socks = connect_many(few.address, 25, source="127.0.0.2")
    wait_until(lambda: sum(ended(s) for s in socks) >= 5, 5, "the end of the connections over the limit of 20")
    with few.client(source="127.0.0.3") as c:
        served(c.get("/x", key))
    close_all(socks)
    wait_until(lambda: gets_in(few, key, "127.0.0.2"), 10, "room again")


def test_without_a_setting_one_address_gets_a_tenth_of_the_places(gateway, key):
    """1000 of 10,000, or a tenth of what the descriptors allow."""
    allowed = -(-int(wait_until(lambda: re.search(r"connections (\d+) x", gateway.log()), 5, "the line about memory")[1]) // 10)
    socks = connect_many(gateway.address, allowed + 10, source="127.0.0.9")
    wait_until(lambda: sum(ended(s) for s in socks) == 10, 10, "the end of what is over the limit")
    with gateway.client(source="127.0.0.8") as c:
        served(c.get("/x", key))
    close_all(socks)
    wait_until(lambda: gets_in(gateway, key, "127.0.0.9"), 10, "room again")


def test_this_machine_may_hold_more_than_one_address_may(few):
    """127.0.0.1 is where a proxy that ends the TLS runs."""
    key = few.create_key()["key"]
    socks = connect_many(few.address, 25)
    for s in socks:
        s.sendall(request_bytes("GET", "/x", key))
        assert s.recv(65536).startswith(b"HTTP/1.1 200")
    close_all(socks)


def gets_in(gateway, key, source=None):
    with contextlib.suppress(Broken, OSError), gateway.client(source=source) as c:
        return c.get("/x", key).status == 200
    return False


def test_C7_over_the_connection_limit_newcomers_are_shed_and_it_recovers(few):
    key = few.create_key()["key"]
    wait_until(lambda: gets_in(few, key), 10, "room")
    socks = []
    for n in range(60):
        s = socket.socket()
        s.bind((f"127.0.0.{2 + n % 4}", 0))
        s.settimeout(bound(5))
        with contextlib.suppress(OSError):
            s.connect(few.address)
        socks.append(s)

    def split():
        return sum(ended(s) for s in socks) == 30
    wait_until(split, 10, "30 connections kept and 30 shed")
    close_all(socks)
    wait_until(lambda: gets_in(few, key), 10, "room again")


@pytest.fixture
def roomy(upstream):
    g = Gateway(upstream, {"limits": {"connections": 10_000}}).start()
    yield g
    assert g.stop() == 0 and not g.sanitizer_findings()


def test_C6_10000_idle_connections_cost_little_and_new_ones_are_served(roomy):
    """As many as the descriptor limit lets both sides have."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    count = min(9_990, hard // 2 - 128) // (1 if SLOW == 1 else 5)
    key = roomy.create_key()["key"]
    others_are_served(roomy, key)
    before = roomy.rss
    socks = []
    try:
        for _ in range(count // 100):
            batch = connect_many(roomy.address, 100, request_bytes("GET", "/x", None))
            for s in batch:
                assert s.recv(65536).startswith(b"HTTP/1.1 401")
            socks += batch
        cost = (roomy.rss - before) / len(socks)
        assert cost < IDLE_BYTES, f"{cost:.0f} bytes a connection"
        others_are_served(roomy, key)
        chance = random.Random(1)
        for s in chance.sample(socks, 20):
            s.sendall(request_bytes("GET", "/x", key))
            assert s.recv(65536).startswith(b"HTTP/1.1 200")
    finally:
        close_all(socks)
    wait_until(lambda: roomy.descriptors < 200, 15, "the end of the idle connections", 0.1)


@pytest.mark.parametrize("raw", [
    b"G", b"GET / HTTP/1.1\r\n", b"GET / HTTP/1.1\r\nHost: a\r\nContent-Length: 99999999999999999\r\n\r\n",
    b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nfffffffffffffff\r\n",
], ids=["a byte", "a line", "a huge length", "a huge chunk"])
def test_a_few_bytes_do_not_cost_hundredfold(gateway, raw):
    """Amplification: what a client can make us keep stays below 32 KiB a connection."""
    before = gateway.rss
    socks = connect_many(gateway.address, 400, raw)
    with gateway.client() as c:
        assert c.get("/x").status == 401
    assert gateway.rss - before < 400 * 32 * KIB * (4 if SLOW > 1 else 1)
    close_all(socks)


def test_refusals_do_not_amplify(client):
    """A refusal is not much larger than the least request that asks for it."""
    client.send(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
    r = client.response()
    assert len(r.raw_head) + len(r.body) < 1536


def test_a_flood_of_bad_requests_leaves_the_gateway_in_service(gateway, key):
    chance = random.Random(7)
    for _ in range(300):
        with gateway.client() as c, contextlib.suppress(OSError, Broken):
            c.send(bytes(chance.randrange(256) for _ in range(chance.randrange(1, 600))) + b"\r\n\r\n")
    others_are_served(gateway, key)


def test_many_clients_that_end_at_random_moments_leave_nothing_behind(gateway, upstream, key):
    chance, before = random.Random(11), gateway.descriptors
    whole = request_bytes("POST", "/random", key, [("Transfer-Encoding", "chunked")]) + b"5\r\nhello\r\n0\r\n\r\n"
    for _ in range(500):
        with gateway.client() as c:
            c.send(whole[: chance.randrange(len(whole) + 1)])
            if chance.random() < 0.5:
                c.reset()
    upstream.close_connections()
    others_are_served(gateway, key)
    wait_until(lambda: gateway.descriptors <= before + 8, 15, "the end of the abandoned connections", 0.1)


def test_a_peer_that_never_reads_the_refusals_is_bounded(gateway):
    """Refusals are answers too: unread ones must not pile up."""
    before = gateway.rss
    with gateway.client(receive_buffer=4096) as c:
        c.sock.settimeout(0.5)
        with contextlib.suppress(socket.timeout):
            for _ in range(200):
                c.sock.sendall(request_bytes("GET", "/x", None) * 1000)
        assert gateway.rss - before < 8 * MIB * (4 if SLOW > 1 else 1)


def test_the_problem_document_echoes_nothing_of_the_request(client):
    r = client.get("/<script>x</script>", "secret-secret-secret", [("X-Evil", "<script>")])
    problem(r, [400, 401])
    assert b"script" not in r.body and b"secret" not in r.body
