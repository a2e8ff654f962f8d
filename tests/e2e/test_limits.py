"""What one request may weigh: head, target, fields, body, requests a connection (RFC 6585 5, RFC 9110 15.5)."""
import contextlib
import threading

import pytest

from conftest import fixture_of, run
from harness import Broken, Gateway, bound, chunked, problem, request_bytes, served, unique, wait_until

small = fixture_of({"limits": {"head_bytes": "4KiB", "target_bytes": "512B", "fields": 20, "body_bytes": "1000B", "requests_per_connection": 5}})
one_at_a_time = fixture_of({"limits": {"requests_in_flight": 1}}, workers=1)


@pytest.fixture(scope="module")
def its_key(small):
    return small.create_key("limits")["key"]


def refused(gateway, raw, status, code=None):
    """One refusal, then the end of the connection and not a byte more."""
    with gateway.client() as c:
        c.send(raw)
        r = c.response()
        problem(r, status, code)
        assert "close" in r.fields.get("connection", "").lower()
        c.end()
        assert c.leftover == b""


def test_a_head_over_the_limit_is_431(small, its_key):
    refused(small, request_bytes("GET", "/x", its_key, [("X-Big", "a" * 4096)]), 431, "head_too_large")


def test_a_head_without_end_is_431_before_it_ends(small, its_key):
    refused(small, request_bytes("GET", "/x", its_key)[:-2] + b"X: " + b"a" * 5000, 431)


def test_a_target_over_the_limit_is_414(small, its_key):
    refused(small, request_bytes("GET", "/" + "a" * 512, its_key), 414, "target_too_long")


def test_a_request_line_without_end_is_414(small):
    refused(small, b"GET /" + b"a" * 5000, [414, 431])


def test_a_target_at_the_limit_passes(small, its_key):
    with small.client() as c:
        assert served(c.get("/" + "a" * 511, its_key))["method"] == "GET"


def test_too_many_fields_are_431(small, its_key):
    refused(small, request_bytes("GET", "/x", its_key, [(f"X-{n}", "1") for n in range(19)]), 431, "too_many_fields")


def test_as_many_fields_as_allowed_pass(small, its_key):
    with small.client() as c:
        assert served(c.get("/x", its_key, [(f"X-{n}", "1") for n in range(18)]))


def test_a_length_over_the_limit_is_413_at_once(small, upstream, its_key):
    """Not one body byte is waited for, nothing reaches the upstream."""
    path = "/" + unique()
    refused(small, request_bytes("POST", path, its_key, [("Content-Length", "1001")]), 413, "body_too_large")
    assert not upstream.seen(path)


def test_a_body_at_the_limit_passes(small, its_key):
    with small.client() as c:
        c.request("POST", "/x", its_key, body=b"b" * 1000)
        assert served(c.response())["size"] == 1000
        c.send(request_bytes("POST", "/x", its_key, [("Transfer-Encoding", "chunked")]) + chunked(b"b" * 500, b"b" * 500))
        assert served(c.response())["size"] == 1000


def test_chunks_that_exceed_the_limit_are_413_and_the_upstream_sees_the_break(small, upstream, its_key):
    path = "/" + unique()
    with small.client() as c:
        c.request("POST", path, its_key, [("Transfer-Encoding", "chunked")])
        try:
            for _ in range(40):
                c.send(b"40\r\n" + b"x" * 64 + b"\r\n")
        except OSError:
            pass
        try:
            problem(c.response(), 413, "body_too_large")
        except Broken:
            pass  # the reset may overtake the answer, since we went on sending
        c.end()
    for r in upstream.seen(path):
        upstream.wait(lambda: not r.connection.open)
        assert not r.complete and r.body_size <= 1000


def test_the_connection_ends_after_its_number_of_requests(small, its_key):
    with small.client() as c:
        for n in range(5):
            r = c.get("/x", its_key)
            assert ("close" in r.fields.get("connection", "").lower()) == (n == 4)
        assert c.end() == "fin"


def test_requests_in_flight_are_counted_over_all_workers(up):
    """Four are four, wherever their connections have come to."""
    for g in run(Gateway(up, {"limits": {"requests_in_flight": 4}}, workers=4)):
        key = g.create_key()["key"]
        for _ in range(8):
            path, go = "/" + unique(), threading.Event()
            up.on(path, lambda x, go=go: (go.wait(bound(20)), x.answer(200, [], b"done")))
            with contextlib.ExitStack() as stack:
                clients = [stack.enter_context(g.client()) for _ in range(4)]
                for c in clients:
                    c.request("GET", path, key)
                up.wait(lambda path=path: len(up.seen(path)) == 4)
                for c in [stack.enter_context(g.client()) for _ in range(8)]:
                    problem(c.get("/x", key), 503, "overloaded")
                    problem(c.get("/x", "no key of ours"), 401)  # who is refused takes no place
                go.set()
                assert [c.response().body for c in clients] == [b"done"] * 4
            wait_until(lambda: g.metric("latchkey_requests_in_flight") == 0, 5, "the end of all")


def test_more_requests_in_flight_than_allowed_are_503_with_retry_after(one_at_a_time, upstream):
    key = one_at_a_time.create_key("flight")["key"]
    path, go = "/" + unique(), threading.Event()
    upstream.on(path, lambda x: (go.wait(bound(10)), x.answer(200, [], b"done")))
    with one_at_a_time.client() as slow, one_at_a_time.client() as c:
        slow.request("GET", path, key)
        upstream.wait(lambda: upstream.seen(path))
        r = c.get("/x", key)
        problem(r, 503, "overloaded")
        assert int(r.fields.get("retry-after")) >= 1
        go.set()
        assert slow.response().body == b"done"
    with one_at_a_time.client() as c:
        served(c.get("/x", key))
