"""R2, memory pressure: what clients can make the gateway keep has a bound that the start names; before it is reached others are
refused cleanly, never beyond it, and afterwards all goes on. One worker each, so that its share is all there is."""
import contextlib
import json
import re
import resource
import select
import socket
import threading

import pytest

from conftest import run
from harness import SLOW, Broken, Gateway, TimedOut, bound, problem, request_bytes, served, unique, wait_until

MIB = 1 << 20
MEMORY = 8 * MIB
SLACK = 8 * MIB  # what the allocator, SQLite and the log take meanwhile

plain = pytest.mark.skipif(SLOW > 1, reason="sanitizers need address space and memory of their own")


def gateway_on(up, **settings):
    return Gateway(up, {"limits": {"memory": f"{MEMORY // MIB}MiB"}, "usage": {"flush_interval": "50ms", "ring_bytes": "1MiB"}, **settings},
                   workers=1)


@pytest.fixture
def tight(up):
    yield from run(gateway_on(up))


def said_at_start(gateway):
    """The line about memory. (The log's own thread writes it.)"""
    def told():
        lines = [json.loads(line) for line in gateway.log().splitlines() if line.startswith("{") and line.endswith("}")]
        return [line["detail"] for line in lines if line["event"] == "memory"]
    assert len(wait_until(told, 5, "the line about memory")) == 1, gateway.log()
    return told()[0]


def stream_of(size):
    def script(x):
        x.keep = False
        with contextlib.suppress(OSError):
            x.answer(200, [], b"x" * size)
    return script


def slow_reader(gateway, path, key):
    s = socket.socket()
    s.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    s.settimeout(bound(10))
    s.connect(gateway.address)
    s.sendall(request_bytes("GET", path, key))
    return s


def slow_uploader(gateway, path, key):
    s = socket.create_connection(gateway.address, timeout=bound(10))
    s.sendall(request_bytes("POST", path, key, [("Content-Length", str(16 * MIB))]) + b"x" * 1000)
    return s


def readable(client):
    return bool(select.select([client.sock], [], [], 0)[0])


def ask(client, key):
    """200, or the clean refusal of a gateway that is short of memory."""
    client.request("GET", "/probe", key)
    r = client.response()
    if r.status != 200:
        problem(r, 503, "overloaded")
        assert int(r.fields.get("retry-after")) >= 1
    return r.status


def gets_in(gateway, key):
    with contextlib.suppress(Broken, OSError, TimedOut), gateway.client() as c:
        c.request("GET", "/probe", key)
        return c.response(timeout=1).status == 200
    return False


def test_R2_the_start_says_what_memory_the_settings_allow(tight):
    told = said_at_start(tight)
    parts = re.fullmatch(r"at most (\d+) MiB: connections (\d+) x (\d+) KiB, buffers (\d+) MiB \(limits.memory\), "
                         r"usage rings (\d+) x (\d+) KiB, keys (\d+) x (\d+) B, program (\d+) MiB", told)
    assert parts, told
    whole, connections, each, buffers, rings, ring, keys, key, program = map(int, parts.groups())
    assert buffers == MEMORY // MIB and (rings, ring) == (1, 1024)
    assert abs(whole - (connections * each / 1024 + buffers + rings * ring / 1024 + keys * key / MIB + program)) <= 4


@plain
@pytest.mark.parametrize("kind", ["readers", "uploaders"])
def test_R2_slow_clients_take_no_more_than_the_memory_others_get_503_and_it_recovers(tight, up, kind):
    key, path = tight.create_key()["key"], "/" + unique()
    up.on(path, stream_of(16 * MIB) if kind == "readers" else lambda x: x.connection.sock.recv(1) and x.until_closed(60))
    join = slow_reader if kind == "readers" else slow_uploader
    with contextlib.ExitStack() as stack:
        others = [stack.enter_context(tight.client()) for _ in range(40)]
        for c in others:
            served(c.get("/warm", key))
        before, slow, refused, most = tight.rss, [], 0, 0
        for c in others:  # each comes when some more slow ones are there, until it is refused
            for _ in range(4):
                slow.append(stack.enter_context(contextlib.closing(join(tight, path, key))))
            most = max(most, tight.rss)
            refused += ask(c, key) == 503
        assert refused > 5, f"{len(slow)} slow {kind} took no memory that anybody missed"
        assert most - before < MEMORY + SLACK, f"{(most - before) / MIB:.0f} MiB of {MEMORY // MIB}"
        assert tight.metric("latchkey_requests_in_flight") > 10
        assert tight.metric("latchkey_buffer_limit_bytes") == MEMORY and tight.metric("latchkey_frame_bytes") > 0
        wait_until(lambda: tight.metric("latchkey_buffer_bytes") > 0.9 * MEMORY, 5, "the figure that says why some were refused")
    wait_until(lambda: gets_in(tight, key), 10, "service for others")
    wait_until(lambda: tight.metric("latchkey_requests_in_flight") == 0, 10, "the end of every request")
    wait_until(lambda: tight.metric("latchkey_buffer_bytes") < 0.1 * MEMORY, 10, "the memory's return")
    # Every 503 that a client was sent is on record (slow ones were refused too, so there are more).
    wait_until(lambda: sum(r["status"] == "503" and r["outcome"] == "refused" for r in tight.export()) >= refused, 10, "their records", 0.1)


@plain
def test_R2_what_the_start_said_holds_with_every_place_taken(up):
    settings = {"limits": {"memory": "4MiB", "connections": 1500, "requests_in_flight": 0}}
    g = gateway_on(up, **settings).start()
    try:
        most = int(re.match(r"at most (\d+) MiB", said_at_start(g))[1]) * MIB
        key, path, socks = g.create_key()["key"], "/" + unique(), []
        up.on(path, stream_of(16 * MIB))
        with contextlib.ExitStack() as stack:
            for _ in range(1450):  # all are accepted before any takes a buffer
                socks.append(stack.enter_context(contextlib.closing(socket.create_connection(g.address, timeout=bound(10)))))
            wait_until(lambda: g.metric("latchkey_connections_open") == 1450, 10, "the connections")
            for n, s in enumerate(socks):
                s.sendall(request_bytes("GET", path, key) if n % 2 else b"GET / HTTP/1.1\r\nHost: a\r\n")
            wait_until(lambda: g.metric("latchkey_refused_total") > 700, 10, "more requests than there is memory for")
            assert g.rss < most, f"{g.rss / MIB:.0f} of {most / MIB:.0f} MiB"
        wait_until(lambda: gets_in(g, key), 10, "service for others")
        assert g.stop() == 0
    finally:
        if g.alive:
            g.kill()


@plain
@pytest.mark.parametrize("slow", [52, 53, 54, 55, 200])  # 54 take 94.9 % of the memory, and one head more would take it beyond 95
def test_R2_slow_heads_without_a_key_do_not_hold_the_memory_for_as_long_as_a_head_may_take(up, slow):
    g = gateway_on(up, limits={"memory": "4MiB"}, client={"head": "300s"}).start()
    try:
        key = g.create_key()["key"]
        with contextlib.ExitStack() as stack:
            for _ in range(slow):
                s = stack.enter_context(contextlib.closing(socket.create_connection(g.address, timeout=bound(10))))
                s.sendall(b"GET / HTTP/1.1\r\nHost: a\r\n")
            wait_until(lambda: gets_in(g, key), 15, "service for others")
        assert g.stop() == 0
    finally:
        if g.alive:
            g.kill()


@plain
@pytest.mark.parametrize("more", [0, 1, 4])
def test_R2_where_the_kernel_gives_no_memory_requests_are_lost_but_not_the_process(up, more):
    """RLIMIT_AS a little above what it has: mmap() and operator new fail in every thread."""
    g = Gateway(up, {"usage": {"flush_interval": "50ms", "ring_bytes": "1MiB"}}, workers=1).start()
    try:
        key, path = g.create_key()["key"], "/" + unique()
        up.on(path, stream_of(16 * MIB))
        with g.client() as c:
            served(c.get("/warm", key))
        g.export()
        limit = g.status_bytes("VmSize") + more * MIB
        resource.prlimit(g.pid, resource.RLIMIT_AS, (limit, resource.RLIM_INFINITY))
        answers = []
        with contextlib.ExitStack() as stack:
            for n in range(400):
                with contextlib.suppress(OSError):
                    stack.enter_context(contextlib.closing(slow_reader(g, path, key)))
                if n % 20 == 0:
                    with contextlib.suppress(OSError, Broken, TimedOut), g.client() as c:
                        c.request("GET", "/probe", key)
                        answers.append(c.response(timeout=2).status)
                assert g.alive, g.log()[-3000:]
        assert set(answers) <= {200, 503}, answers
        assert g.alive, g.log()[-3000:]
        resource.prlimit(g.pid, resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        wait_until(lambda: gets_in(g, key), 15, "service for others")
        wait_until(lambda: g.metric("latchkey_requests_in_flight") == 0, 10, "the end of every request")
        assert g.stop() == 0, g.log()[-3000:]
    finally:
        if g.alive:
            g.kill()


def test_R2_refused_uploads_that_drip_on_hold_no_memory(tight):
    """Nobody needs a key for it: what is read after a refusal goes nowhere, and the head's buffer goes back at once."""
    key, stop, dripping = tight.create_key()["key"], threading.Event(), []

    def drip():
        while not stop.wait(0.3):
            for c in list(dripping):
                with contextlib.suppress(OSError, Broken):
                    c.send(b"x")
    with contextlib.ExitStack() as stack:
        thread = threading.Thread(target=drip)
        stack.callback(thread.join)
        stack.callback(stop.set)
        thread.start()
        for _ in range(130):  # more than there are buffers
            c = stack.enter_context(tight.client())
            c.send(b"POST /x HTTP/1.1\r\nHost: h\r\nContent-Length: 100000\r\n\r\nx")
            problem(c.response(), 401, "key_missing")
            dripping.append(c)
        assert gets_in(tight, key), "those who were refused keep others out"


def test_R2_what_the_upstream_has_done_is_not_answered_by_a_refusal(tight, up):
    """Each admitted request has a buffer kept for its answer, however many slow readers take what there is."""
    key, path, go = tight.create_key()["key"], "/" + unique(), threading.Event()

    def script(x):
        x.body()
        go.wait(bound(30))
        with contextlib.suppress(OSError):
            x.answer(201, [], b"y" * MIB)
    up.on(path, script)
    with contextlib.ExitStack() as stack:
        stack.callback(go.set)
        clients = [stack.enter_context(tight.client(receive_buffer=4096)) for _ in range(60)]
        for c in clients:
            c.request("POST", path, key, body=b"buy 1")
        asked = MEMORY // (72 * 1024) // 3 - 6  # three buffers each, and those above 95 % are refused
        wait_until(lambda: len(up.seen(path)) >= asked, 10, "requests that fill the memory")
        go.set()
        answers = [c.response(timeout=30) for c in clients]
    statuses = sorted(r.status for r in answers)
    assert statuses.count(201) == len(up.seen(path)), f"executed {len(up.seen(path))}: {statuses}"
    assert all(len(r.body) == MIB for r in answers if r.status == 201)
    assert set(statuses) <= {201, 503}


@pytest.mark.parametrize("beside", [0, 1, 2, 3])
def test_R2_an_upload_is_refused_whole_or_has_its_memory(up, beside):
    """Uploads that drip, each with four buffers, beside heads that never end, each with one: so they meet the bound at every fill of the
    last four. No upstream gets half of a request that is then refused."""
    for g in run(gateway_on(up, limits={"memory": "4MiB"})):
        key, path = g.create_key()["key"], "/" + unique()
        up.on(path, lambda x: x.until_closed(60))
        with contextlib.ExitStack() as stack:
            clients = [stack.enter_context(g.client()) for _ in range(20)]
            for c in clients:  # at 98 % nobody is accepted
                served(c.get("/warm", key))
            for c in clients[:beside]:
                c.send(b"GET / HTTP/1.1\r\n")
            served(clients[-1].get("/warm", key))
            taken = []
            for c in clients[beside:]:
                c.send(request_bytes("POST", path, key, [("Content-Length", "100")]) + b"x")
                wait_until(lambda c=c: len(up.seen(path)) > len(taken) or readable(c), 10, "an upload's fate")
                if len(up.seen(path)) == len(taken):
                    break
                taken.append(c)
            problem(c.response(), 503, "overloaded")
            assert len(taken) > 10
            assert not any(map(readable, taken)), "refused, and the upstream has seen the half"
        wait_until(lambda: gets_in(g, key), 10, "service for others")
        assert len(up.seen(path)) == len(taken), "refused, and the upstream has seen the half"


@plain
def test_R2_what_a_rush_of_requests_needed_is_the_kernels_again_though_its_connections_stay(up):
    """Many requests at once need frames; on the heap these would lie among the connections that were made meanwhile, and keep their
    pages as long as those stay."""
    many = 3000
    if resource.getrlimit(resource.RLIMIT_NOFILE)[0] < 3 * many:  # the gateway has two for each connection
        pytest.skip("the limit of open files is too low")
    settings = {"usage": {"flush_interval": "50ms", "ring_bytes": "1MiB"}, "client": {"head": "300s"}}
    g = Gateway(up, settings, workers=1).start()
    try:
        served_key, rush = g.create_key()["key"], b"GET / HTTP/1.1\r\nHost: a\r\n"
        with g.client() as c:
            for _ in range(200):
                served(c.get("/warm", served_key))
        before = g.rss
        with contextlib.ExitStack() as stack:
            socks = []
            for _ in range(many):  # a connection, and a request that is not whole yet, in turn
                socks.append(stack.enter_context(contextlib.closing(socket.create_connection(g.address, timeout=bound(10)))))
                socks[-1].sendall(rush)
            wait_until(lambda: g.metric("latchkey_connections_open") >= many, 10, "the connections")
            wait_until(lambda: g.rss - before > many * 5000, 10, "a page and the frames of every request")
            for s in socks:
                s.sendall(b"\r\n")
            for s in socks:
                assert s.recv(4096).startswith(b"HTTP/1.1 401 ")
            wait_until(lambda: g.rss - before < many * 2048, 30, "the memory of the requests")
            assert g.metric("latchkey_connections_open") >= many
        wait_until(lambda: g.rss - before < many * 900, 30, "the memory of the connections")
        assert g.stop() == 0
    finally:
        if g.alive:
            g.kill()
