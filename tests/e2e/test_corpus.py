"""Every raw request and raw response of tests/corpus, each on a fresh connection of its own.

What the cases mean stands in tests/corpus/make.py. Beside each case's own expectation: no request behind a refused one is ever
executed, a connection that goes on answers the next request with that request's answer, and the key reaches no upstream.
"""
import itertools
import json
import threading

import pytest

from conftest import run, watched
from harness import ROOT, SLOW, Broken, Gateway, Upstream, problem, request_bytes

CORPUS = ROOT / "tests" / "corpus"
REQUESTS = json.loads((CORPUS / "requests.json").read_text())
RESPONSES = json.loads((CORPUS / "responses.json").read_text())
ONE_SEGMENT = 65536  # a longer message may still be under way when the refusal closes, and the reset may overtake it
canaries = itertools.count(1)


@pytest.fixture(scope="module")
def server():
    u = Upstream()
    yield u
    u.stop()


@pytest.fixture(scope="module")
def proxy(server):
    waits = f"{int(2000 * SLOW)}ms"
    settings = {"client": {"head": waits, "body_stall": waits, "write_stall": waits, "idle": "30s"},
                "api": [{"name": "default", "upstreams": [server.url],
                         "deadlines": {"response_head": waits, "body_stall": waits, "idle": "1s"}}]}
    for gateway in run(Gateway(settings=settings)):
        gateway.corpus_key = gateway.create_key("corpus")["key"]
        yield from watched(gateway, server)


@pytest.fixture(scope="module", autouse=True)
def nothing_slipped_through(proxy, server):
    """Over the whole module: what arrived after its case had been judged, and the key in any bytes."""
    yield
    assert not [r for r in server.requests if r.path == "/smuggled"]
    assert not [c for c in server.connections if proxy.corpus_key.encode() in bytes(c.raw)], "the key reached the upstream"


def raw_bytes(raw, key):
    pieces = raw if isinstance(raw, list) else [raw]
    text = "".join(p if isinstance(p, str) else p[0] * p[1] for p in pieces)
    return text.replace("{{K}}", f"X-API-KEY: {key}\r\n").replace("{{KEY}}", key).encode("latin-1")


def pour(client, data):
    """Sends without waiting for the end: the peer may refuse and close while bytes are still to go."""
    def send():
        try:
            client.send(data)
        except OSError:
            pass
    if len(data) <= ONE_SEGMENT:
        return send()
    threading.Thread(target=send, daemon=True).start()


def canary(client, key):
    """The next request on a connection gets its own answer."""
    path = f"/canary-{next(canaries)}"
    client.send(request_bytes("GET", path, key))
    response = client.response()
    assert response.status == 200 and json.loads(response.body)["target"] == path, f"a foreign answer: {response}"


def check_arrived(request, expect):
    """What the upstream got of a forwarded request."""
    fields = request.fields
    if "upstream_method" in expect:
        assert request.method == expect["upstream_method"]
    if "upstream_target" in expect:
        assert request.target == expect["upstream_target"]
    if "upstream_body" in expect:
        assert request.body == expect["upstream_body"].encode("latin-1")
    for name, value in expect.get("upstream_fields", {}).items():
        assert fields.get(name) == value or (name == "Content-Length" and request.framing == "chunked"), list(fields)
    for name in expect.get("upstream_absent_fields", []):
        assert name not in fields, list(fields)
    for name in expect.get("upstream_present_fields", []):
        assert fields.get(name), list(fields)
    for name, value in expect.get("upstream_not_value", {}).items():
        assert fields.get(name) not in (None, value), list(fields)
    for name, part in expect.get("upstream_not_in_value", {}).items():
        assert not any(part in v for v in fields.all(name)), list(fields)
    for name in expect.get("upstream_absent_trailers", []):
        assert name not in request.trailers and fields.get(name) != "evil", (list(fields), list(request.trailers))
    assert len(fields.all("X-Consumer-Id")) == 1, list(fields)


class Case:
    """One request case on its way."""

    def __init__(self, proxy, server, case):
        self.proxy, self.server, self.expect = proxy, server, case["expect"]
        self.raw = raw_bytes(case["raw"], proxy.corpus_key)
        start = self.raw.lstrip(b"\r\n").split(b" ")[0]
        self.method = "HEAD" if start == b"HEAD" else "GET"
        self.mark, self.bytes_mark = len(server.requests), server.bytes_received()

    def arrived(self):
        return self.server.requests[self.mark:]

    def refused(self, client, response, close):
        if self.method != "HEAD":
            problem(response, self.expect["status"])
        if self.expect["verdict"] == "refuse":
            assert not self.arrived(), "the upstream got a request that was refused"
            assert self.server.bytes_received() == self.bytes_mark, "bytes of a refused request reached the upstream"
        self.nothing_completed()
        if 401 == response.status:
            assert "WWW-Authenticate" in response.fields
        if close is True:
            client.end(5)
            assert client.leftover == b"", f"more than one answer: {client.leftover[:200]!r}"

    def forwarded(self, client, response):
        answers = [response] + [client.response() for _ in range(self.expect.get("responses", 1) - 1)]
        assert [r.status for r in answers] == [200] * len(answers), answers
        assert len(self.arrived()) == len(answers) or "then_status" in self.expect
        check_arrived(self.arrived()[0], self.expect)
        if "then_status" in self.expect:
            last = client.response()
            assert last.status in self.expect["then_status"]
            if last.status != 200:
                problem(last, last.status)
                client.end(5)
                assert client.leftover == b""
        elif self.expect.get("ends"):
            assert client.end(5) == "fin"
            assert client.leftover == b""
        elif "close" not in response.fields.get("connection", "").lower():
            canary(client, self.proxy.corpus_key)

    def broken(self, client):
        """RFC 9112 8: the upstream must see that the request is incomplete."""
        try:
            response = client.response(self.method)
            problem(response, self.expect["status"])
        except Broken:
            pass
        client.end(5)
        self.nothing_completed()

    def nothing_completed(self):
        for request in self.arrived():
            self.server.wait(lambda: not request.connection.open, 5)
            assert not request.complete, f"a broken request was completed for the upstream: {bytes(request.connection.raw)[-300:]!r}"


@pytest.mark.parametrize("case", REQUESTS, ids=[c["id"] for c in REQUESTS])
def test_request(proxy, server, case):
    it = Case(proxy, server, case)
    verdict = it.expect["verdict"]
    with proxy.client() as client:
        pour(client, it.raw)
        if verdict == "break":
            return it.broken(client)
        try:
            response = client.response(it.method)
        except Broken:
            assert verdict == "refuse" and len(it.raw) > ONE_SEGMENT and not it.arrived(), "closed without an answer"
            return
        if verdict == "forward" or (verdict == "either" and response.status == 200):
            it.forwarded(client, response)
        else:
            it.refused(client, response, it.expect.get("close", True) if verdict == "refuse" else None)


def play(case):
    """The script that sends a response case."""
    raw = raw_bytes(case["raw"], "")

    def script(x):
        x.body()
        try:
            x.send(raw)
        except OSError:
            x.keep = False
            return
        if case["after"] == "close":
            x.close()
        elif case["after"] == "reset":
            x.reset()
    return script


def outcome_of(response, broken):
    if broken is not None:
        return "break" if broken.partial is not None and broken.partial.start else "bad"
    return "bad" if response.status in (502, 504) and response.fields.get("content-type") == "application/problem+json" else "pass"


def check_passed(response, expect):
    assert response.status == expect.get("status", 200), response
    if "body" in expect:
        assert response.body == expect["body"].encode("latin-1")
    for name in expect.get("absent_fields", []):
        assert name not in response.fields
    for name in expect.get("absent_trailers", []):
        assert name not in response.trailers
    for name, values in expect.get("repeated_fields", {}).items():
        assert response.fields.all(name) == values
    assert b"X-Evil" not in response.raw_head


@pytest.mark.parametrize("case", RESPONSES, ids=[c["id"] for c in RESPONSES])
def test_response(proxy, server, case):
    path = server.on(f"/r/{case['id']}", play(case))
    expect, response, broken = case["expect"], None, None
    allowed = {"pass_once": ["pass"]}.get(expect["verdict"], expect["verdict"].split("_or_"))
    if case["after"] == "reset":
        allowed = allowed + ["bad"]  # the reset may overtake the head
    with proxy.client() as client:
        client.request(case["method"], path, proxy.corpus_key)
        try:
            response = client.response(case["method"])
        except Broken as end:
            broken = end
        got = outcome_of(response, broken)
        assert got in allowed, f"{got} instead of {allowed}: {response or broken}"
        assert broken is None or got == "break", "closed without an answer"
        if got == "pass":
            check_passed(response, expect)
        if got == "bad":
            problem(response, [502, 504])
        if broken is None:
            assert client.leftover == b"", f"bytes behind the response: {client.leftover[:200]!r}"
            if "close" not in response.fields.get("connection", "").lower():
                canary(client, proxy.corpus_key)
    for _ in range(2):
        with proxy.client() as fresh:
            canary(fresh, proxy.corpus_key)


def test_the_corpus_is_large_enough_and_each_case_says_why():
    assert len(REQUESTS) >= 260 and len(RESPONSES) >= 65
    assert all(c["reason"] and c["expect"]["verdict"] for c in REQUESTS + RESPONSES)
