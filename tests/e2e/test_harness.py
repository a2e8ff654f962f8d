"""The harness against itself: the raw client speaks to the scripted upstream without a gateway between."""
import json
import socket
import time
import tomllib

import pytest

from harness import (CSV_COLUMNS, Blackhole, Broken, Malformed, RawClient, TimedOut, Upstream, bound, chunked, parse_usage,
                     refused_port, toml)

pytestmark = pytest.mark.no_program


@pytest.fixture(scope="module")
def server():
    u = Upstream()
    yield u
    u.stop()


def direct(server):
    return RawClient(server.address)


def test_the_default_script_tells_what_arrived(server):
    with direct(server) as c:
        c.request("POST", "/a?b=c", body=b"hello", fields=[("X-A", "1")])
        told = json.loads(c.response().body)
        assert (told["method"], told["target"], told["body"]) == ("POST", "/a?b=c", "hello")
        assert ["X-A", "1"] in told["fields"]
        assert c.get("/next").status == 200, "the connection is kept"


def test_chunks_and_trailers_are_read_both_ways(server):
    server.on("/chunky", lambda x: (x.body(), x.answer(200, framing="chunked", body=b"z" * 10000, trailers=[("X-T", "t")])))
    with direct(server) as c:
        c.send(b"POST /chunky HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n" + chunked(b"ab", b"c", trailers=[("X-U", "u")]))
        r = c.response()
        assert (r.body_size, r.framing, list(r.trailers)) == (10000, "chunked", [("X-T", "t")])
        arrived = server.only("/chunky")
        assert (arrived.body, list(arrived.trailers)) == (b"abc", [("X-U", "u")])


@pytest.mark.parametrize("raw, kind", [
    (b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nabc", Broken),
    (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n", Broken),
    (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabcX", Malformed),
    (b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 5\r\n\r\nabcde", Malformed),
    (b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n", Malformed),
    (b"HTTP/1.1 200 OK\nContent-Length: 0\r\n\r\n", Malformed),
    (b"HTTP/1.1 200 OK\r\nA: b\r\n c\r\n\r\n", Malformed),
    (b"HTTP/1.1 200 OK\r\nA : b\r\n\r\n", Malformed),
    (b"HTTP/1.1 20 OK\r\n\r\n", Malformed),
    (b"HTTP/1.1 200 OK\r\nA: b\x00\r\n\r\n", Malformed),
    (b"HTTP/1.1 200 OK\r\nA: b", Broken),
])
def test_the_response_parser_refuses_what_is_not_http(server, raw, kind):
    server.on("/raw", lambda x: (x.send(raw), x.close()))
    with direct(server) as c:
        c.request("GET", "/raw")
        with pytest.raises(kind):
            c.response()


def test_a_close_delimited_body_ends_with_fin_but_not_with_reset(server):
    server.on("/open", lambda x: (x.send(b"HTTP/1.1 200 OK\r\n\r\nabc"), x.close()))
    with direct(server) as c:
        c.request("GET", "/open")
        r = c.response()
        assert (r.body, r.framing, r.complete) == (b"abc", "close", True)

    def torn(x):
        x.send(b"HTTP/1.1 200 OK\r\n\r\nabc")
        if not x.reader.buffer:
            x.reader.fill(time.monotonic() + bound(10))
        x.reset()
    server.on("/torn", torn)
    with direct(server) as c:
        c.request("GET", "/torn")
        c.send(b"now")
        with pytest.raises(Broken) as broken:
            c.response()
        assert broken.value.kind == "reset"


def test_informational_heads_are_kept_apart(server):
    server.on("/hints", lambda x: (x.send(b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n"), x.answer(200)))
    with direct(server) as c:
        r = c.get("/hints")
        assert (r.status, r.informational) == (200, [(103, [("Link", "</a>")])])


def test_a_silent_peer_is_a_timeout(server):
    server.on("/silent", lambda x: x.until_closed())
    with direct(server) as c:
        c.request("GET", "/silent")
        with pytest.raises(TimedOut):
            c.response(timeout=0.05)


def test_a_malformed_request_is_noted_and_not_answered(server):
    with direct(server) as c:
        c.send(b"GET /bad HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n")
        assert c.end() == "fin"
    assert server.faults.pop()[0].startswith("Content-Length and Transfer-Encoding")
    assert not server.seen("/bad")


def test_a_broken_upload_is_seen_as_incomplete(server):
    server.on("/upload", lambda x: x.body())
    with direct(server) as c:
        c.send(b"POST /upload HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\nabc")
        server.wait(lambda: server.seen("/upload"))
    server.wait(lambda: not server.only("/upload").connection.open)
    assert not server.only("/upload").complete


def test_idle_and_counted_connections_are_closed():
    u = Upstream(idle_close=0.05, max_requests=2)
    with RawClient(u.address) as c:
        assert c.get("/1").status == 200
        assert c.end() == "fin"
    with RawClient(u.address) as c:
        c.get("/1")
        c.get("/2")
        assert c.end() == "fin"
    u.stop()


def test_the_spring_closes_as_the_request_arrives():
    u = Upstream(spring=2)
    with RawClient(u.address) as c:
        c.get("/1")
        c.request("GET", "/2")
        with pytest.raises(Broken) as broken:
            c.response()
        assert broken.value.kind == "reset" and not u.seen("/2")
    u.stop()


def test_a_refused_port_refuses_and_a_blackhole_does_neither():
    keeper, port = refused_port()
    with pytest.raises(ConnectionRefusedError):
        RawClient(("127.0.0.1", port))
    keeper.close()
    hole = Blackhole()
    s = socket.socket()
    s.settimeout(0.2)
    with pytest.raises(socket.timeout):
        s.connect(("127.0.0.1", hole.port))
    s.close()
    hole.stop()


def test_settings_are_written_as_toml():
    text = toml({"a": 1, "b": {"c": "d"}, "api": [{"name": "x", "flag": True, "deadlines": {"idle": "1s"}}]})
    assert tomllib.loads(text) == {"a": 1, "b": {"c": "d"}, "api": [{"name": "x", "flag": True, "deadlines": {"idle": "1s"}}]}


def test_a_torn_usage_row_is_found():
    with pytest.raises(AssertionError):
        parse_usage(",".join(CSV_COLUMNS) + "\r\n2026-01-01T00:00:00.000Z,abc\r\n")
