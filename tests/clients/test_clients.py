"""What each client does, and what must come of it: the same for all. README.md says who they are and what some cannot do.

Behind every step stands the account: one record for each request that the client counted, with the status that it saw."""
import collections
import hashlib

import pytest

from harness import unique, wait_until
from programs import Request, pattern
from service import SIZE, TEXT

WRONG_KEY = "lk_000000000000000000000000000000000000"


def sha256(data):
    return hashlib.sha256(data).hexdigest()


def refused(result):
    """Whether the gateway answered by itself."""
    return result.fields.get("content-type") == "application/problem+json"


class Step:
    """One client's requests to one gateway under a path of their own."""

    def __init__(self, client, gateway, base=None):
        self.client, self.gateway, self.mark = client, gateway, unique("step")
        self.base = base or "http://%s:%d" % gateway.address
        self.counted = collections.Counter()  # (request id, status, outcome) of each request that was answered
        self.connections = 0

    def request(self, what="echo", method="GET", body="-", flags=(), fields=(), key=None, api="api"):
        id = unique("r")
        ours = [("X-API-KEY", key or self.gateway.key), ("X-Request-Id", id)]
        return Request(id, method, f"/{api}/{self.mark}/{what}", body, flags, [*ours, *fields])

    def ask(self, *requests, parallel=1, session=None):
        if session is None:
            with self.client.session(self.base, parallel) as own:
                return self.ask(*requests, session=own)
        before = self.gateway.metric("latchkey_connections_accepted_total")
        results = session.ask(requests)
        assert [r.error for r in results if r.error] == []
        assert all(r.fields.get("x-request-id") == r.id for r in results)
        self.connections = self.gateway.metric("latchkey_connections_accepted_total") - before
        self.counted.update((r.id, r.status, "refused" if refused(r) else "served") for r in results)
        return results

    def one(self, *words, **how):
        return self.ask(self.request(*words, **how))[0]

    def check_account(self):
        """Exactly one record for each request, with its status and who answered."""
        wait_until(lambda: self.gateway.metric("latchkey_requests_in_flight") == 0, 10, "the end of every request")
        rows = [r for r in self.gateway.export() if self.mark in r["path"]]
        assert collections.Counter((r["request_id"], int(r["status"]), r["outcome"]) for r in rows) == self.counted


@pytest.fixture
def step(client, gateway, upstream):
    s = Step(client, gateway)
    yield s
    s.check_account()
    upstream.forget()


def told(result):
    assert result.status == 200
    return result.fields["x-told"]


# --- methods and bodies

def test_requests_without_a_body(step):
    got, deleted, head = step.ask(*(step.request(method=m) for m in ("GET", "DELETE", "HEAD")))
    assert [told(r) for r in (got, deleted, head)] == [f"{m} 0 {sha256(b'')}" for m in ("GET", "DELETE", "HEAD")]
    assert (got.size, got.sha256) == (1000, sha256(pattern(1000))) and (deleted.size, deleted.sha256) == (got.size, got.sha256)
    assert head.size == 0 and head.fields["content-length"] == "1000"


def test_bodies_with_length(step):
    wanted = [(method, size) for method in ("POST", "PUT") for size in (0, 10, 3_000_000)]
    results = step.ask(*(step.request(method=m, body=f"length:{n}") for m, n in wanted))
    assert [told(r) for r in results] == [f"{m} {n} {sha256(pattern(n))}" for m, n in wanted]


@pytest.mark.wants("stream")
def test_a_body_without_length(step, upstream):
    request = step.request(method="POST", body="stream:3000000")
    assert told(step.ask(request)[0]) == f"POST 3000000 {sha256(pattern(3_000_000))}"
    assert upstream.only(request.path).fields.get("transfer-encoding") == "chunked"


@pytest.mark.wants("expect")
def test_a_body_that_waits_for_100_continue(step):
    request = step.request("continue", "POST", "length:3000000", ("expect",), [("Expect", "100-continue")])
    assert told(step.ask(request)[0]) == f"True 3000000 {sha256(pattern(3_000_000))}"


def test_a_response_in_each_framing(step):
    wanted = {"download": SIZE, "chunked": SIZE // 8, "until-close": SIZE // 8}
    for result, size in zip(step.ask(*map(step.request, wanted)), wanted.values()):
        assert (result.status, result.size, result.sha256) == (200, size, sha256(pattern(size)))


def test_a_packed_response_passes_untouched(step):
    result = step.one("gzip", fields=[] if step.client.unpacks else [("Accept-Encoding", "gzip")])
    if step.client.unpacks:
        assert (result.size, result.sha256) == (len(TEXT), sha256(TEXT))
    else:
        assert result.fields["content-encoding"] == "gzip" and 0 < result.size < len(TEXT) // 10


# --- statuses

def test_statuses_of_the_upstream_pass(step):
    missing, empty, new, known, last = step.ask(
        step.request("missing"), step.request("nothing"), step.request("etag"),
        step.request("etag", fields=[("If-None-Match", '"v1"')]), step.request())
    assert (missing.status, missing.sha256) == (404, sha256(b"no such thing here"))
    assert (empty.status, empty.size) == (204, 0)
    assert (new.status, new.fields["etag"], new.size) == (200, '"v1"', 3)
    assert (known.status, known.size) == (304, 0)
    assert told(last).startswith("GET ")


def test_a_redirect_passes(step):
    result = step.one("moved")
    if step.client.follows:
        assert told(result).startswith("GET 0 ")
        step.counted[result.id, 302, "served"] += 1
    else:
        assert result.status == 302 and result.fields["location"].endswith("/moved/there")


@pytest.mark.wants("keep-alive")
def test_a_wrong_key_is_told_and_the_connection_goes_on(step):
    wrong, right = step.ask(step.request(key=WRONG_KEY), step.request())
    assert wrong.status == 401 and refused(wrong)
    assert wrong.fields["www-authenticate"].startswith("ApiKey")
    assert told(right).startswith("GET ")
    assert step.connections <= step.client.spare


def test_a_path_without_an_api(step):
    result = step.one(api="elsewhere", method="POST", body="length:10")
    assert result.status == 404 and refused(result)


@pytest.mark.wants("hints")
def test_an_interim_response_that_nobody_asked_for(step):
    hinted, plain = step.ask(step.request("hint"), step.request())
    assert told(hinted) == told(plain) and hinted.sha256 == plain.sha256


HALVES = pytest.mark.parametrize("what", ["broken-length", "broken-chunk"])


def half(step, what):
    """RFC 9112 section 8: the client must be able to tell. Some ask once more before they do."""
    request = step.request(what)
    with step.client.session(step.base) as session:
        result, = session.ask([request])
    assert result.error, "half of a response was taken for the whole"
    wait_until(lambda: step.gateway.metric("latchkey_requests_in_flight") == 0, 10, "the end of every request")
    rows = wait_until(lambda: [r for r in step.gateway.export() if step.mark in r["path"]], 10, "the record")
    assert {(r["request_id"], r["status"], r["outcome"]) for r in rows} == {(request.id, "200", "upstream_aborted")}
    step.counted.update((request.id, 200, "upstream_aborted") for _ in rows)


@HALVES
def test_a_response_that_breaks_off_is_no_whole_one(step, what):
    half(step, what)


# --- connections

@pytest.mark.wants("keep-alive")
def test_a_hundred_requests_on_one_connection(step):
    step.ask(*(step.request(method=m, body=b) for m, b in [("GET", "-"), ("POST", "length:100")] * 50))
    assert step.connections <= step.client.spare


@pytest.mark.wants("close")
def test_a_hundred_requests_each_on_a_connection_of_its_own(step):
    step.ask(*(step.request(method=m, body=b, flags=("close",)) for m, b in [("GET", "-"), ("POST", "length:100")] * 50))
    assert step.connections == 100


@pytest.mark.wants("parallel")
def test_eight_at_a_time(step):
    results = step.ask(*(step.request(method="POST", body=f"length:{n * 100}") for n in range(200)), parallel=8)
    assert [told(r) for r in results] == [f"POST {n * 100} {sha256(pattern(n * 100))}" for n in range(200)]
    if "keep-alive" not in step.client.lacks:
        assert step.connections <= 50  # of 200: most found one that was free; how many do is the client's own affair


def test_a_gateway_that_ends_connections_with_a_word(client, ending_gateway):
    step = Step(client, ending_gateway)
    step.ask(*(step.request(method=m, body=b) for m, b in [("GET", "-"), ("POST", "length:100")] * 25))
    if "keep-alive" not in client.lacks:
        assert 7 <= step.connections <= 8 + step.client.spare  # the browser's page came on the first
    step.check_account()


@pytest.mark.wants("dialogue", "stale")
def test_a_gateway_that_ends_an_idle_connection(client, hasty_gateway):
    step = Step(client, hasty_gateway)
    with client.session("http://%s:%d" % hasty_gateway.address) as session:
        for method, body in [("GET", "-"), ("POST", "length:100"), ("GET", "-"), ("POST", "length:100")]:
            step.ask(step.request(method=method, body=body), session=session)
            wait_until(lambda: hasty_gateway.metric("latchkey_connections_open") == 0, 10, "the end of the idle connection")
    step.check_account()


@pytest.mark.wants("upgrade")
def test_an_upgrade_to_http_2_is_not_taken_and_not_passed_on(step, upstream):
    """RFC 9113 section 3.1: what RFC 7540 called h2c is obsolete, and a server may ignore any Upgrade (RFC 9110 section 7.8)."""
    directly, through = step.request("directly"), step.request(method="POST", body="length:1000")
    with step.client.session(upstream.url) as session:
        session.ask([directly])
    assert upstream.only(directly.path).fields.get("upgrade") == "h2c", "the client does ask"
    assert told(step.ask(through)[0]) == f"POST 1000 {sha256(pattern(1000))}"
    arrived = upstream.only(through.path).fields
    assert not any(name in arrived for name in ("Upgrade", "HTTP2-Settings"))


# --- answers that come before the upload has ended

REFUSALS = pytest.mark.parametrize("why, status", [("key", 401), ("size", 413), ("upstream", 403)])


def refuse(step, why, status, body):
    result = step.one("early" if why == "upstream" else "echo", "POST", body, api="small" if why == "size" else "api",
                      key=WRONG_KEY if why == "key" else None)
    assert result.status == status
    assert refused(result) if why != "upstream" else result.sha256 == sha256(b"not interested")


@REFUSALS
def test_a_refusal_of_a_long_upload_is_seen(step, why, status):
    refuse(step, why, status, "length:20000000")


@REFUSALS
@pytest.mark.wants("stream")
def test_a_refusal_of_an_upload_without_length_is_seen(step, why, status):
    refuse(step, why, status, "stream:20000000")


# --- TLS

@pytest.fixture
def tls_step(client, tls_gateway, upstream, trusting):
    s = Step(client, tls_gateway, "https://%s:%d" % tls_gateway.tls_address)
    yield s
    s.check_account()
    upstream.forget()


def test_the_same_by_tls(tls_step):
    s = tls_step
    down = {"download": SIZE, "chunked": SIZE // 8, "until-close": SIZE // 8}
    up = (0, 10, 3_000_000)
    results = s.ask(*map(s.request, down), *(s.request(method="POST", body=f"length:{n}") for n in up), s.request(key=WRONG_KEY),
                    *(s.request() for _ in range(20)))
    for result, size in zip(results, down.values()):
        assert (result.status, result.size, result.sha256) == (200, size, sha256(pattern(size)))
    assert [told(r) for r in results[3:6]] == [f"POST {n} {sha256(pattern(n))}" for n in up]
    assert [r.status for r in results[6:]] == [401] + [200] * 20


@pytest.mark.wants("tls-upload")
def test_refusals_of_long_uploads_by_tls_are_seen(tls_step):
    def upload(what="echo", **how):
        return tls_step.request(what, "POST", "length:20000000", **how)
    results = tls_step.ask(upload(key=WRONG_KEY), upload(api="small"), upload("early"))
    assert [(r.status, refused(r)) for r in results] == [(401, True), (413, True), (403, False)]


@HALVES
def test_a_response_that_breaks_off_by_tls_is_no_whole_one(tls_step, what):
    half(tls_step, what)
