"""What a request and its response look like on the other side: bodies, framing, connections, fields (RFC 9110, RFC 9112)."""
import contextlib
import email.utils
import hashlib
import os
import pathlib
import re
import sys
import threading
import time

import pytest

from conftest import run
from harness import PROGRAM, SLOW, Gateway, bound, chunked, problem, request_bytes, served, told_fields, unique, wait_until

MIB = 1 << 20
MEMORY_SLACK = 16 * MIB * (4 if SLOW > 1 else 1)  # sanitizers keep freed memory in quarantine


def soon():
    return time.monotonic() + bound(10)


def ask(client, key, method="GET", target=None, fields=(), body=None, **more):
    """Sends a request to a path of its own; what the upstream was told."""
    client.request(method, target or "/" + unique(), key, fields, body, **more)
    return served(client.response(method))


# --- methods and bodies

@pytest.mark.parametrize("method", ["GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "PROPFIND", "X-OWN"])
def test_method_reaches_the_upstream_unchanged(client, key, method):
    assert ask(client, key, method)["method"] == method


def test_head_has_the_fields_of_get_and_no_body(client, upstream, key):
    """RFC 9110 9.3.2"""
    path = upstream.on("/" + unique(), lambda x: x.answer(200, [("X-A", "b")], b"hello"))
    client.request("HEAD", path, key)
    r = client.response("HEAD")
    assert (r.status, r.body, r.fields.get("content-length"), r.fields.get("x-a")) == (200, b"", "5", "b")
    assert client.get(path, key).body == b"hello", "the connection is in step"


@pytest.mark.parametrize("status", [204, 304])
def test_a_bodiless_status_has_no_body_and_the_connection_goes_on(client, upstream, key, status):
    """RFC 9112 6.3 rule 1"""
    path = upstream.on("/" + unique(), lambda x: x.answer(status, [("ETag", '"x"')], framing="none"))
    r = client.get(path, key)
    assert (r.status, r.body, r.fields.get("etag")) == (status, b"", '"x"')
    assert "transfer-encoding" not in r.fields
    assert ask(client, key)["method"] == "GET"


@pytest.mark.parametrize("size", [0, 1, 1023, 65535, 65536, 65537, 1 * MIB])
def test_a_body_with_length_arrives_whole(client, upstream, key, size):
    path, body = "/" + unique(), os.urandom(size)
    client.request("POST", path, key, body=body)
    assert served(client.response())["size"] == size
    assert upstream.only(path).body == body


def test_a_chunked_body_arrives_whole_whatever_its_chunks(client, upstream, key):
    """RFC 9112 7.1"""
    path, body = "/" + unique(), os.urandom(200_000)
    pieces, at = [], 0
    for size in [1, 2, 3, 7, 64, 4096, 65536, 100_000]:
        pieces.append(body[at:at + size])
        at += size
    pieces.append(body[at:])
    client.send(request_bytes("POST", path, key, [("Transfer-Encoding", "chunked")]) + chunked(*pieces))
    served(client.response())
    assert upstream.only(path).body == body


def test_request_trailers_pass(client, upstream, key):
    """RFC 9110 6.5"""
    path = "/" + unique()
    client.send(request_bytes("POST", path, key, [("Transfer-Encoding", "chunked"), ("Trailer", "X-Sum")])
                + chunked(b"abc", trailers=[("X-Sum", "42")]))
    served(client.response())
    arrived = upstream.only(path)
    assert arrived.body == b"abc" and arrived.trailers.get("x-sum") in ("42", None), "passed or dropped, never altered"
    assert "X-Sum" not in arrived.fields, "a trailer is not merged into the head"


@pytest.mark.parametrize("name", ["X-Consumer-Id", "X-Consumer-Groups", "x_consumer_custom_id", "X-Anonymous-Consumer"])
def test_who_calls_cannot_be_told_in_a_trailer_either(client, upstream, key, name):
    path = "/" + unique()
    client.send(request_bytes("POST", path, key, [("Transfer-Encoding", "chunked")]) + chunked(b"abc", trailers=[(name, "admin")]))
    problem(client.response(), 400, "invalid_chunk")
    assert not upstream.seen(path)


@pytest.mark.parametrize("lines, status", [(8, 200), (9, 400)])
def test_empty_lines_before_a_request_are_counted_however_they_come(client, upstream, key, lines, status):
    for _ in range(2 if status == 200 else 1):  # for each request anew
        for byte in b"\r\n" * lines:
            client.send(bytes([byte]))
        if status == 200:
            served(client.get("/" + unique(), key))
        else:
            problem(client.response(), 400, "malformed_request")


def test_a_body_that_comes_byte_by_byte_arrives_whole(client, upstream, key):
    path = "/" + unique()
    for byte in request_bytes("POST", path, key, body=b"dripping"):
        client.send(bytes([byte]))
    served(client.response())
    assert upstream.only(path).body == b"dripping"


def test_chunk_framing_cut_at_every_byte(client, upstream, key):
    path = "/" + unique()
    client.send(request_bytes("POST", path, key, [("Transfer-Encoding", "chunked")]))
    for byte in chunked(b"abc", b"d" * 17, trailers=[("X-T", "1")]):
        client.send(bytes([byte]))
    served(client.response())
    assert upstream.only(path).body == b"abc" + b"d" * 17


@pytest.mark.parametrize("framing", ["length", "chunked", "close"])
@pytest.mark.parametrize("size", [0, 5, 100_000])
def test_a_response_arrives_whole_in_each_framing(gateway, upstream, key, framing, size):
    """RFC 9112 6.3"""
    body = os.urandom(size)
    path = upstream.on("/" + unique(), lambda x: x.answer(200, [], body, framing=framing))
    with gateway.client() as c:
        r = c.get(path, key)
        assert r.body == body and r.complete
        if "close" not in r.fields.get("connection", ""):
            assert ask(c, key)["method"] == "GET", "the connection is in step"


@pytest.mark.parametrize("framing", ["length", "chunked"])
def test_short_and_long_responses_take_turns_on_a_connection(client, upstream, key, framing):
    """A server that gave a long answer is read with a larger buffer the next time, whatever comes then."""
    bodies = [os.urandom(n) for n in (100_000, 5, 0, 65_536, 600_000, 100_000, 131_072, 1, 1_200_000, 70_000)]
    paths = [upstream.on("/" + unique(), lambda x, b=b: x.answer(200, [], b, framing=framing)) for b in bodies]
    for path, body in zip(paths, bodies):
        r = client.get(path, key)
        assert r.body == body and r.complete


@pytest.mark.parametrize("framing", [b"Transfer-Encoding: chunked", b"Content-Length: 1000", b"X-Until: close"])
def test_a_response_that_drips_behind_a_long_one_holds_no_large_buffer(up, framing):
    """There are some 30 of them a worker (512 KiB each), and an event stream lasts for hours."""
    streams, over = 25, threading.Event()
    first = b"5\r\nevent\r\n" if b"chunked" in framing else b"event"

    def stream(x):
        x.keep = False
        x.send(b"HTTP/1.1 200 OK\r\n" + framing + b"\r\n\r\n" + first)
        over.wait(bound(30))

    long = up.on("/long", lambda x: x.answer(200, [], b"x" * 200_000))
    events = up.on("/events", stream)

    def mapped(g):
        sizes = [int(end, 16) - int(begin, 16) for begin, end in
                 re.findall(r"^(\w+)-(\w+) rw-p 0+ 00:00 0 *$", pathlib.Path(f"/proc/{g.pid}/maps").read_text(), re.M)]
        return sum(size for size in sizes if size < 32 << 20)  # (no heap of a thread)

    # ThreadSanitizer maps memory of its own for each connection.
    countable = b"__tsan_init" not in pathlib.Path(PROGRAM).read_bytes()
    for g in run(Gateway(up, workers=1)):
        key = g.create_key()["key"]
        with contextlib.ExitStack() as open_streams:
            before = mapped(g)
            for _ in range(streams):
                with g.client() as c:
                    assert len(c.get(long, key).body) == 200_000
                e = open_streams.enter_context(g.client())
                e.request("GET", events, key)
                wait_until(lambda: b"event" in e.reader.buffer or e.reader.fill(time.monotonic() + bound(5)), 10, "the first event")
            wait_until(lambda: not countable or mapped(g) - before < streams << 18, 10, "the large buffers, given back")
            over.set()


def test_response_trailers_pass_or_are_dropped_but_never_merged(client, upstream, key):
    """RFC 9110 6.5"""
    path = upstream.on("/" + unique(), lambda x: x.answer(200, [], b"abc", framing="chunked", trailers=[("X-Sum", "42")]))
    r = client.get(path, key)
    assert r.body == b"abc" and "X-Sum" not in r.fields and r.trailers.get("x-sum") in ("42", None)


def test_status_and_reason_pass(client, upstream, key):
    path = upstream.on("/" + unique(), lambda x: x.answer(418, [], b"", reason="I'm a teapot"))
    assert client.get(path, key).start == "HTTP/1.1 418 I'm a teapot"


def test_repeated_response_fields_keep_their_order(client, upstream, key):
    """RFC 9110 5.3"""
    path = upstream.on("/" + unique(), lambda x: x.answer(200, [("Set-Cookie", "a=1"), ("Set-Cookie", "b=2"), ("Via", "x")]))
    r = client.get(path, key)
    assert r.fields.all("set-cookie") == ["a=1", "b=2"]


def test_repeated_request_fields_keep_their_order(client, key):
    """RFC 9110 5.3"""
    told = ask(client, key, fields=[("X-L", "1"), ("Accept", "a"), ("X-L", "2")])
    assert told_fields(told).all("x-l") == ["1", "2"]


def test_target_and_query_arrive_as_sent(client, key):
    target = f"/{unique()}/a%20b;v=1?x=%2F..%2F&y=a+b&z"
    assert ask(client, key, target=target)["target"] == target


# --- interim responses, early answers, both directions

def test_continue_comes_from_the_upstream_and_not_before(gateway, upstream, key):
    """RFC 9110 10.1.1"""
    path, go = "/" + unique(), threading.Event()

    def script(x):
        assert go.wait(bound(10))
        x.send(b"HTTP/1.1 100 Continue\r\n\r\n")
        x.answer(200, [], x.body())
    upstream.on(path, script)
    with gateway.client() as c:
        c.request("POST", path, key, [("Expect", "100-continue"), ("Content-Length", "5")])
        arrived = upstream.wait(lambda: upstream.seen(path))[0]
        assert arrived.fields.get("expect", "").lower() == "100-continue"
        assert c.leftover == b""
        go.set()
        raw = c.reader.until(b"\r\n\r\n", soon())
        assert raw.startswith(b"HTTP/1.1 100 ")
        c.send(b"hello")
        assert c.response().body == b"hello"
        assert ask(c, key)["method"] == "GET"


def test_a_final_answer_instead_of_continue_leaves_no_body_behind(gateway, upstream, key):
    """RFC 9110 10.1.1: the client never sends the body, so it must not be waited for nor mistaken"""
    path = upstream.on("/" + unique(), lambda x: (x.answer(403, [("Connection", "close")], b"no"), x.close()))
    with gateway.client() as c:
        c.request("POST", path, key, [("Expect", "100-continue"), ("Content-Length", "24")])
        r = c.response()
        assert (r.status, r.body) == (403, b"no")
        if "close" in r.fields.get("connection", "").lower():
            assert c.end() == "fin"
        else:
            c.send(b"GET /smuggled HTTP/1.1\r\n")
            assert ask(c, key)["method"] == "GET"
    assert not upstream.seen("/smuggled")


def test_a_refusal_does_not_invite_the_body(client, upstream):
    """RFC 9110 10.1.1: a 401 comes at once, without 100"""
    client.request("POST", "/" + unique(), "no-such-key-at-all-here", [("Expect", "100-continue"), ("Content-Length", "5")])
    r = client.response()
    assert r.status == 401 and not r.informational


def test_an_early_response_to_a_long_upload_reaches_the_client(gateway, upstream, key):
    """RFC 9112 9.3: the server may answer before it read everything"""
    path = upstream.on("/" + unique(), lambda x: (x.reader.some(1000, soon()), x.answer(413, [("Connection", "close")], b"enough"), x.until_closed()))
    with gateway.client() as c:
        c.request("POST", path, key, [("Content-Length", str(64 * MIB))], body=b"x" * 100_000)
        stop = threading.Event()

        def more():
            try:
                while not stop.is_set():
                    c.send(b"y" * 65536)
            except OSError:
                pass
        sender = threading.Thread(target=more, daemon=True)
        sender.start()
        r = c.response()
        stop.set()
        assert (r.status, r.body) == (413, b"enough")
        sender.join(bound(10))


def test_both_directions_flow_at_the_same_time(gateway, upstream, key):
    """The answer starts before the request ends, piece for piece."""
    path = "/" + unique()

    def echo(x):
        x.body_read = True
        x.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        for _ in range(20):
            line = x.reader.until(b"\r\n", soon())
            piece = x.reader.until(b"\r\n", soon())[:-2]
            x.send(line + piece + b"\r\n")
        x.reader.until(b"0\r\n\r\n", soon())
        x.send(b"0\r\n\r\n")
        x.request.complete = True
    upstream.on(path, echo)
    with gateway.client() as c:
        c.request("POST", path, key, [("Transfer-Encoding", "chunked")])
        head = c.reader.until(b"\r\n\r\n", soon())
        assert head.startswith(b"HTTP/1.1 200")
        for n in range(20):
            c.send(b"4\r\n%04d\r\n" % n)
            assert c.reader.until(b"%04d\r\n" % n, soon()).endswith(b"%04d\r\n" % n)
        c.send(b"0\r\n\r\n")
        assert c.reader.until(b"0\r\n\r\n", soon()) == b"0\r\n\r\n"
        if b"connection: close" in head.lower():
            assert c.end() == "fin"
        else:
            assert ask(c, key)["method"] == "GET"


def test_64_mib_up_in_bounded_memory(gateway, upstream, key):
    path, size, sums = "/" + unique(), 64 * MIB, {}

    def sink(x):
        digest = hashlib.sha256()
        x.body(60, digest.update)
        sums["up"] = digest.hexdigest()
        x.answer(200, [], b"ok")
    upstream.on(path, sink)
    block, digest, peak, before = os.urandom(MIB), hashlib.sha256(), 0, gateway.rss
    with gateway.client() as c:
        c.request("PUT", path, key, [("Content-Length", str(size))])
        for _ in range(size // MIB):
            c.send(block, 60)
            digest.update(block)
            peak = max(peak, gateway.rss)
        assert c.response(timeout=60).body == b"ok"
    assert sums["up"] == digest.hexdigest()
    assert peak - before < MEMORY_SLACK, f"{(peak - before) >> 20} MiB more"


@pytest.mark.parametrize("framing", ["length", "chunked"])
def test_64_mib_down_in_bounded_memory(gateway, upstream, key, framing):
    path, size, block = "/" + unique(), 64 * MIB, os.urandom(MIB)

    def source(x):
        head = "Transfer-Encoding: chunked" if framing == "chunked" else f"Content-Length: {size}"
        x.send(f"HTTP/1.1 200 OK\r\n{head}\r\n\r\n".encode())
        for _ in range(size // MIB):
            x.send(b"%x\r\n%b\r\n" % (MIB, block) if framing == "chunked" else block)
        if framing == "chunked":
            x.send(b"0\r\n\r\n")
    upstream.on(path, source)
    before, peak, digest = gateway.rss, [0], hashlib.sha256()

    def take(piece):
        digest.update(piece)
        peak[0] = max(peak[0], gateway.rss)
    with gateway.client() as c:
        c.request("GET", path, key)
        r = c.response(timeout=60, sink=take)
        assert r.body_size == size
    assert digest.hexdigest() == hashlib.sha256(block * (size // MIB)).hexdigest()
    assert peak[0] - before < MEMORY_SLACK, f"{(peak[0] - before) >> 20} MiB more"


# --- connections

def test_1000_pipelined_requests_in_one_write_are_answered_in_order(client, upstream, key):
    """RFC 9112 9.3.2"""
    stem = "/" + unique()
    threading.Thread(target=client.send, args=(b"".join(request_bytes("GET", f"{stem}/{n}", key) for n in range(1000)), 60), daemon=True).start()
    for n in range(1000):
        assert served(client.response(timeout=30))["target"] == f"{stem}/{n}"


def test_pipelined_requests_with_bodies_stay_apart(client, key):
    """RFC 9112 9.3.2"""
    stem, raw = "/" + unique(), b""
    for n in range(50):
        raw += request_bytes("POST", f"{stem}/{n}", key, body=b"%d" % n * n)
        raw += request_bytes("POST", f"{stem}/c{n}", key, [("Transfer-Encoding", "chunked")], chunked(b"%d" % n, b"x" * n))
    client.send(raw)
    for n in range(50):
        told = served(client.response())
        assert (told["target"], told["body"]) == (f"{stem}/{n}", str(n) * n)
        told = served(client.response())
        assert (told["target"], told["body"]) == (f"{stem}/c{n}", f"{n}" + "x" * n)


def test_a_kept_connection_serves_many_requests(client, upstream, key):
    for _ in range(200):
        assert served(client.get("/" + unique(), key))["method"] == "GET"


def test_upstream_connections_are_reused(gateway, upstream, key):
    path = "/" + unique()
    with gateway.client() as c:
        for _ in range(20):
            served(c.get(path, key))
    used = {id(r.connection) for r in upstream.seen(path)}
    assert len(used) == 1, f"{len(used)} upstream connections for 20 requests in turn"


def test_connection_close_ends_after_the_answer(gateway, key):
    """RFC 9112 9.6"""
    with gateway.client() as c:
        r = c.get("/" + unique(), key, [("Connection", "close")])
        assert r.status == 200 and "close" in r.fields.get("connection", "").lower()
        assert c.end() == "fin" and c.leftover == b""


def test_nothing_behind_connection_close_is_executed(gateway, upstream, key):
    """RFC 9112 9.6"""
    path = "/" + unique()
    with gateway.client() as c:
        c.send(request_bytes("GET", "/" + unique(), key, [("Connection", "close")]) + request_bytes("GET", path, key))
        assert c.response().status == 200
        c.end()
        assert c.leftover == b""
    assert not upstream.seen(path)


def test_http_1_0_closes_unless_asked_to_stay(gateway, key):
    """RFC 9112 9.3"""
    with gateway.client() as c:
        assert c.get("/" + unique(), key, version="HTTP/1.0").status == 200
        assert c.end() == "fin"
    with gateway.client() as c:
        for _ in range(3):
            r = c.get("/" + unique(), key, [("Connection", "keep-alive")], version="HTTP/1.0")
            assert r.status == 200 and "keep-alive" in r.fields.get("connection", "").lower()


def test_http_1_0_gets_no_chunks(gateway, upstream, key):
    """RFC 9112 6.1: a 1.0 client does not know chunked"""
    path = upstream.on("/" + unique(), lambda x: x.answer(200, [], b"abc" * 1000, framing="chunked"))
    with gateway.client() as c:
        r = c.get(path, key, [("Connection", "keep-alive")], version="HTTP/1.0")
        assert "transfer-encoding" not in r.fields and r.body == b"abc" * 1000


def test_http_1_0_gets_no_interim_response(gateway, upstream, key):
    """RFC 9110 15.2"""
    path = upstream.on("/" + unique(), lambda x: (x.send(b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n"), x.answer(200, [], b"x")))
    with gateway.client() as c:
        r = c.get(path, key, version="HTTP/1.0")
        assert r.status == 200 and not r.informational


def test_the_upstream_is_spoken_to_in_1_1_whatever_the_client_speaks(client, upstream, key):
    """RFC 9110 2.5"""
    path = "/" + unique()
    client.request("GET", path, key, version="HTTP/1.0")
    client.response()
    assert upstream.only(path).version == "HTTP/1.1"


# --- fields on the way

@pytest.mark.parametrize("name, value", [("Keep-Alive", "timeout=9"), ("Proxy-Connection", "keep-alive"), ("Proxy-Authorization", "Basic eA=="),
                                         ("Upgrade", "websocket"), ("TE", "gzip")])
def test_a_hop_by_hop_field_of_the_request_is_removed(client, key, name, value):
    """RFC 9110 7.6.1"""
    fields = told_fields(ask(client, key, fields=[(name, value), ("X-Stays", "1")]))
    assert name not in fields and fields.get("x-stays") == "1"


def test_fields_named_by_connection_are_removed_both_ways(client, upstream, key):
    """RFC 9110 7.6.1"""
    fields = told_fields(ask(client, key, fields=[("Connection", "x-one, X-Two"), ("X-One", "1"), ("x-two", "2"), ("X-Three", "3")]))
    assert "x-one" not in fields and "x-two" not in fields and fields.get("x-three") == "3"
    path = upstream.on("/" + unique(), lambda x: x.answer(200, [("Connection", "X-One"), ("X-One", "1"), ("Keep-Alive", "timeout=1"),
                                                                ("Proxy-Authenticate", "x"), ("X-Three", "3")]))
    r = client.get(path, key)
    assert "x-one" not in r.fields and "keep-alive" not in r.fields and r.fields.get("x-three") == "3"


IDENTITY = ["X-Consumer-Id", "X-Consumer-Username", "X-Credential-Identifier"]


def test_the_upstream_learns_who_calls(gateway, client):
    made = gateway.create_key("Jörg & söhne 100%")
    fields = told_fields(ask(client, made["key"]))
    assert fields.get("x-consumer-id") == made["application_id"]
    assert fields.get("x-consumer-username") == "J%C3%B6rg%20&%20s%C3%B6hne%20100%25"
    assert fields.get("x-credential-identifier") == made["id"]


@pytest.mark.parametrize("name", IDENTITY)
def test_identity_cannot_be_spoofed_nor_removed(client, key, name):
    fields = told_fields(ask(client, key, fields=[(name, "evil"), (name.lower(), "evil"), ("Connection", name)]))
    assert fields.get(name) not in (None, "", "evil")


@pytest.mark.parametrize("name", [n.replace("-", "_") for n in IDENTITY] + ["X-Consumer_Id", "x_forwarded_for", "X.Consumer.Id"])
def test_an_alias_never_reaches_the_upstream(gateway, key, upstream, name):
    path = "/" + unique()
    with gateway.client() as c:
        c.request("GET", path, key, [(name, "evil")])
        r = c.response()
    if r.status != 200:
        problem(r, 400)
    for arrived in upstream.seen(path):
        assert name not in arrived.fields and ("x-consumer-id", "evil") not in [
            (re.sub("[^a-z0-9]", "-", n.lower()), v) for n, v in arrived.fields]


def test_the_key_never_reaches_the_upstream(gateway, upstream, key):
    path = "/" + unique()
    with gateway.client() as c:
        c.request("POST", path, key, body=b"x")
        served(c.response())
        c.request("GET", path, None, [("x-api-key", key)])
        served(c.response())
    for arrived in upstream.seen(path):
        assert key.encode() not in bytes(arrived.connection.raw) and "x-api-key" not in arrived.fields


def test_the_key_is_in_no_log_and_no_record(gateway, client, key):
    assert ask(client, key)["method"] == "GET"
    assert key not in gateway.log() and key not in gateway.cli("usage", "export").stdout
    for file in gateway.data.rglob("*"):
        if file.is_file():
            assert key.encode() not in file.read_bytes(), file


@pytest.mark.parametrize("sent", ["abc-123", "a" * 128, "A.b_C-9"])
def test_a_wellformed_request_id_is_kept_and_echoed(client, upstream, key, sent):
    path = "/" + unique()
    r = client.get(path, key, [("X-Request-Id", sent)])
    assert r.fields.get("x-request-id") == sent == upstream.only(path).fields.get("x-request-id")


@pytest.mark.parametrize("sent", [None, "", "a b", "a" * 129, "x\xe9", "a,b", "<script>", '"a"'])
def test_a_bad_or_missing_request_id_is_made_anew(client, upstream, key, sent):
    path = "/" + unique()
    r = client.get(path, key, [] if sent is None else [("X-Request-Id", sent)])
    made = r.fields.get("x-request-id")
    assert made and made != sent and re.fullmatch(r"[A-Za-z0-9._-]{8,128}", made)
    assert upstream.only(path).fields.get("x-request-id") == made


def test_a_response_without_a_date_gets_one(client, key):
    """RFC 9110 section 6.6.1."""
    dates = client.get("/" + unique(), key).fields.all("date")
    assert [abs(email.utils.parsedate_to_datetime(d).timestamp() - time.time()) < 60 for d in dates] == [True]


def test_made_request_ids_differ(client, key):
    ids = [client.get("/" + unique(), key).fields.get("x-request-id") for _ in range(50)]
    assert len(set(ids)) == 50


def test_a_refusal_has_a_request_id_too(client):
    r = client.get("/x", None, [("X-Request-Id", "mine-1")])
    assert problem(r, 401)["request_id"] == "mine-1" == r.fields.get("x-request-id")


TRACE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


def test_a_traceparent_is_passed_on(client, key):
    """W3C Trace Context: same trace id; a gateway may put its own parent id"""
    fields = told_fields(ask(client, key, fields=[("traceparent", TRACE), ("tracestate", "a=b")]))
    assert fields.get("traceparent").split("-")[1] == TRACE.split("-")[1] and fields.get("tracestate") == "a=b"


@pytest.mark.parametrize("sent", [None, "x", TRACE.upper(), TRACE[:-1], "00-" + "0" * 32 + "-b7ad6b7169203331-01",
                                  "00-0af7651916cd43dd8448eb211c80319c-" + "0" * 16 + "-01", "ff" + TRACE[2:], TRACE + "-x"])
def test_a_bad_or_missing_traceparent_is_made_anew(client, key, sent):
    """W3C Trace Context 3.2"""
    fields = told_fields(ask(client, key, fields=[] if sent is None else [("traceparent", sent), ("tracestate", "a=b")]))
    made = fields.get("traceparent")
    assert made != sent and re.fullmatch(r"00-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}", made)
    assert sent is None or "tracestate" not in fields, "a state without its parent means nothing"


def test_forwarding_fields_of_an_untrusted_client_are_replaced(gateway, client, key):
    """RFC 7239 8.1"""
    sent = [("X-Forwarded-For", "1.2.3.4"), ("X-Forwarded-For", "5.6.7.8"), ("X-Forwarded-Proto", "https"), ("X-Forwarded-Host", "evil"),
            ("X-Forwarded-Port", "1"), ("Forwarded", "for=1.2.3.4;host=evil")]
    fields = told_fields(ask(client, key, fields=sent, host="api.example"))
    assert fields.get("x-forwarded-for") == "127.0.0.1"
    assert fields.get("x-forwarded-proto") == "http"
    assert fields.get("x-forwarded-host") == "api.example"
    assert fields.get("x-forwarded-port") == str(gateway.address[1])
    forwarded = fields.get("forwarded")
    assert "for=127.0.0.1" in forwarded and "evil" not in forwarded and "1.2.3.4" not in forwarded and "proto=http" in forwarded


@pytest.mark.parametrize("name", ["X-Forwarded-Prefix", "X-Forwarded-User", "X-Real-IP", "x_real_ip", "X-Original-URL", "X-Rewrite-URL",
                                  "True-Client-IP", "CF-Connecting-IP", "Client-IP", "X-Forwarded", "Forwarded-For", "WL-Proxy-Client-IP"])
def test_an_untrusted_client_cannot_speak_for_a_proxy(client, key, name):
    """Spring takes X-Forwarded-Prefix, gin X-Real-IP, Symfony X-Original-URL, chi True-Client-IP from whoever sends it, and many a PHP
    program Client-IP before anything else."""
    assert name.lower() not in told_fields(ask(client, key, fields=[(name, "evil")]))


def test_the_host_of_the_client_is_kept(client, key):
    assert told_fields(ask(client, key, host="api.example:8443")).get("host") == "api.example:8443"


# --- slow peers

def test_a_slow_reader_does_not_grow_memory(gateway, upstream, key):
    """The upstream offers 256 MiB, the client takes nothing: the upstream's sends stop."""
    path, sent = "/" + unique(), [0]

    def flood(x):
        x.keep = False
        x.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % (256 * MIB))
        x.connection.sock.settimeout(bound(1))
        try:
            while sent[0] < 256 * MIB:
                sent[0] += x.connection.sock.send(b"z" * MIB)
        except OSError:
            pass
        sent.append("stopped")
        upstream.notify()
    upstream.on(path, flood)
    before = gateway.rss
    with gateway.client(receive_buffer=4096) as c:
        c.request("GET", path, key)
        upstream.wait(lambda: len(sent) > 1, 30)
        assert sent[0] < 64 * MIB, "the upstream was not held back"
        assert gateway.rss - before < MEMORY_SLACK
    wait_until(lambda: not upstream.only(path).connection.open, 10, "the end of the abandoned exchange")


def test_a_reader_of_single_bytes_is_served_in_constant_memory(gateway, upstream, key):
    """A sip now and then: neither memory nor the upstream runs ahead of it."""
    path, sent = "/" + unique(), [0]

    def flood(x):
        x.keep = False
        x.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % (256 * MIB))
        with contextlib.suppress(OSError):
            while sent[0] < 256 * MIB:
                sent[0] += x.connection.sock.send(b"z" * MIB)
    upstream.on(path, flood)
    with gateway.client(receive_buffer=4096) as c:
        c.request("GET", path, key)
        c.sock.settimeout(bound(10))
        assert c.sock.recv(1) == b"H"
        wait_until(lambda: sent[0] > 0, 10, "the flood")
        before = gateway.rss
        for _ in range(50):
            assert len(c.sock.recv(1)) == 1
            time.sleep(0.02)  # the reader's own pace
        assert sent[0] < 64 * MIB, "the upstream was not held back"
        assert gateway.rss - before < MEMORY_SLACK
    wait_until(lambda: not upstream.only(path).connection.open, 10, "the end of the abandoned exchange")


def test_a_dripping_response_arrives_while_it_drips(client, upstream, key):
    path = upstream.on("/" + unique(), lambda x: x.drip(b"HTTP/1.1 200 OK\r\nContent-Length: 26\r\n\r\nabcdefghijklmnopqrstuvwxyz", 0.001))
    assert client.get(path, key).body == b"abcdefghijklmnopqrstuvwxyz"


def test_a_response_is_not_held_back_until_it_is_whole(gateway, upstream, key):
    """Event streams: a piece that was sent is delivered."""
    path, go = "/" + unique(), threading.Event()

    def script(x):
        x.send(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n6\r\ndata:1\r\n")
        assert go.wait(bound(10))
        x.send(b"6\r\ndata:2\r\n0\r\n\r\n")
    upstream.on(path, script)
    with gateway.client() as c:
        c.request("GET", path, key)
        assert c.reader.until(b"data:1", soon())
        go.set()
        assert c.reader.until(b"0\r\n\r\n", soon())


def test_a_client_that_half_closes_still_gets_its_answer(gateway, upstream, key):
    """C2; RFC 9112 9.6 speaks of closing, not of half-closing"""
    path, go = "/" + unique(), threading.Event()
    upstream.on(path, lambda x: (go.wait(bound(10)), x.answer(200, [], b"late")))
    with gateway.client() as c:
        c.request("GET", path, key)
        c.half_close()
        upstream.wait(lambda: upstream.seen(path))
        go.set()
        assert c.response().body == b"late"
        assert c.end() == "fin"


# --- many at once

@pytest.mark.parametrize("io_uring", ["used", "off", "forbidden"])
def test_requests_that_come_together_get_each_its_answer_and_its_record(upstream, io_uring):
    """Where the kernel has it and may use it, sockets that are ready together are read and sent to by one system call."""
    forbidden = [sys.executable, str(pathlib.Path(__file__).parent / "no_io_uring.py")]
    for g in run(Gateway(upstream, {"io_uring": io_uring != "off"}, workers=1, prefix=forbidden if io_uring == "forbidden" else ())):
        key, rounds, stem = g.create_key()["key"], 10, unique()
        of = [(f"/{stem}-{n}", f"{stem}-{n}".encode() * (n % 7 + 1)) for n in range(48)]
        for path, body in of:
            upstream.on(path, lambda x, body=body: (x.body(), x.answer(200, [("X-Of", body.decode()[:64])], body)))
        with contextlib.ExitStack() as stack:
            clients = [stack.enter_context(g.client()) for _ in of]
            for turn in range(rounds):
                for n, (c, (path, body)) in enumerate(zip(clients, of)):
                    if n % 5 == 4:
                        c.request("GET", path, "no-such-key-0000000000000000000")
                    elif n % 3 == 0:
                        c.request("POST", path, key, (), b"b" * (turn * 100))
                    else:
                        c.request("GET", path, key)
                for n, (c, (path, body)) in enumerate(zip(clients, of)):
                    r = c.response()
                    assert (r.status, n % 5 == 4 or r.body == body) == (401 if n % 5 == 4 else 200, True), (turn, n)
            clients[0].reset()  # and one is gone where others are served
            for c, (path, body) in zip(clients[1:], of[1:]):
                c.request("GET", path, key)
            assert [c.response().body for c in clients[1:]] == [body for _, body in of[1:]]
        rings = 0
        for fd in pathlib.Path(f"/proc/{g.pid}/fd").iterdir():
            with contextlib.suppress(FileNotFoundError):  # closed meanwhile
                rings += os.readlink(fd) == "anon_inode:[io_uring]"
        assert rings == 0 if io_uring != "used" else rings in (0, 1)
        assert g.metric("latchkey_io_uring_workers") == rings
        assert ("io_uring" in g.log()) == (io_uring != "off" and rings == 0), "says why not"
        wanted = len(of) * rounds + len(of) - 1
        wait_until(lambda: sum(r["path"].startswith(f"/{stem}") for r in g.export()) == wanted, 10, "a record for each")
