"""Several upstreams of one api: one of three down, all down, one slow, and what comes back. One upstream of several apis. And one
that speaks TLS."""
import collections
import shutil
import ssl
import subprocess
import threading

import pytest

from conftest import run
from harness import SLOW, Gateway, Upstream, bound, problem, refused_port, served, unique, wait_until


def ms(n):
    return f"{int(n * SLOW)}ms"


def named(name):
    """A script that says who answers."""
    return lambda x: (x.body(), x.answer(200, [("X-From", name)], b"ok"))


@pytest.fixture
def three():
    ups = [Upstream(default=named(str(n))) for n in range(3)]
    yield ups
    for u in ups:
        u.stop()
        assert not u.faults, u.faults


@pytest.fixture
def front(three):
    api = {"name": "three", "upstreams": [u.url for u in three], "require_key": False,
           "deadlines": {"response_head": ms(500), "connect": ms(500), "idle": "5s"}}
    yield from run(Gateway(settings={"api": [api], "usage": {"flush_interval": "50ms", "ring_bytes": "1MiB"}}, workers=1))


def who(client, method="GET"):
    client.request(method, "/" + unique(), body=b"abc" if method == "POST" else None)
    r = client.response()
    return r.fields.get("x-from") if r.status == 200 else r.status


def down(upstream):
    """As a stopped server: its port refuses, its connections end."""
    upstream.close_connections()
    upstream.wait(lambda: not upstream.open_connections())
    upstream.stop()


def up_again(three, n):
    three[n] = Upstream(default=named(str(n)), port=three[n].port)


def test_U1_one_of_three_down_costs_no_request(front, three):
    with front.client() as c:
        assert collections.Counter(who(c) for _ in range(30)) == {"0": 10, "1": 10, "2": 10}, "taken in turn"
        down(three[1])
        after = collections.Counter(who(c, method) for method in ["GET", "PUT"] * 30)
        assert set(after) == {"0", "2"} and min(after.values()) >= 20, after
        up_again(three, 1)
        wait_until(lambda: who(c) == "1", 10, "its return")


def test_U1_a_post_too_goes_elsewhere_when_its_connection_was_refused(front, three):
    down(three[0])
    with front.client() as c:
        assert {who(c, "POST") for _ in range(30)} == {"1", "2"}


def test_U1_all_three_down_is_502_and_the_first_that_comes_back_serves(front, three):
    with front.client() as c:
        who(c)
        for u in three:
            down(u)
        for _ in range(10):
            c.request("GET", "/x")
            problem(c.response(), 502, ["upstream_unreachable", "upstream_reset"])
        up_again(three, 2)
        assert {who(c) for _ in range(10)} == {"2"}, "with none usable all are tried, those that are down too"


def test_U7_one_slow_of_three_costs_its_own_requests_only(front, three):
    go = threading.Event()
    three[1].default = lambda x: go.wait(bound(5))
    with front.client() as c:
        said = collections.Counter(who(c) for _ in range(12))
    go.set()
    assert said == {"0": 4, 504: 4, "2": 4}, said
    three[1].default = named("1")
    with front.client() as c:
        wait_until(lambda: who(c) == "1", 10, "its return")


def apis_on(url, count, **more):
    return [{"name": f"api{n}", "path_prefixes": [f"/api{n}"], "strip_prefix": True, "require_key": False, "upstreams": [f"{url}/base{n}"],
             **more} for n in range(count)]


class Gate:
    """An upstream's script that answers nobody until `count` requests wait."""

    def __init__(self, count):
        self.all_there = threading.Barrier(count)

    def __call__(self, x):
        self.all_there.wait(bound(10))
        x.answer(200, [], x.request.path.encode())


def test_200_apis_with_one_upstream_take_no_more_connections_to_it_than_one(up):
    at_once, apis = 8, 200
    up.default = Gate(at_once)
    for g in run(Gateway(settings={"api": apis_on(up.url, apis)}, workers=1)):
        clients = [g.client() for _ in range(at_once)]
        for first in range(0, apis, at_once):
            for n, c in enumerate(clients, first):
                c.request("GET", f"/api{n}/x")
            for n, c in enumerate(clients, first):
                r = c.response()
                assert (r.status, r.body) == (200, f"/base{n}/x".encode()), "each api has its own base path"
        assert len(up.connections) == at_once, "connections go from api to api"
        assert g.metric("latchkey_upstream_connections") <= at_once
        for c in clients:
            c.close()


def test_a_limit_of_connections_holds_for_the_apis_that_share_it_and_for_no_other(up):
    go = threading.Event()
    up.on("/base0/slow", lambda x: (go.wait(bound(10)), x.answer(200, [], b"slow")))
    apis = apis_on(up.url, 3, connections_per_target=1)
    del apis[2]["connections_per_target"]
    for g in run(Gateway(settings={"api": apis}, workers=1)):
        with g.client() as slow, g.client() as c:
            slow.request("GET", "/api0/slow")
            up.only("/base0/slow")
            problem(c.get("/api0/x"), 503, "overloaded")
            problem(c.get("/api1/x"), 503, "overloaded")
            served(c.get("/api2/x"))
            go.set()
            assert slow.response().body == b"slow"
            served(c.get("/api1/x"))
            assert len(up.connections) == 2, "one for the two, one for the third"


def test_apis_that_share_connections_keep_deadlines_and_limits_of_their_own(up):
    go = threading.Event()
    for n in (0, 1):
        up.on(f"/base{n}/late", lambda x: (go.wait(bound(10)), x.answer(200, [], b"late")))
    apis = apis_on(up.url, 2, deadlines={"idle": "10s"})
    apis[0] |= {"deadlines": {"idle": "10s", "response_head": ms(300)}, "body_bytes": 10}
    for g in run(Gateway(settings={"api": apis}, workers=1)):
        with g.client() as short, g.client() as long:
            served(short.get("/api0/x"))
            served(long.get("/api1/x"))
            assert len(up.connections) == 1
            long.request("GET", "/api1/late")
            up.only("/base1/late")
            short.request("GET", "/api0/late")
            problem(short.response(), 504, "upstream_timeout")
            go.set()
            assert long.response().body == b"late"
            for api, status in ((0, 413), (1, 200)):
                with g.client() as c:
                    c.request("POST", f"/api{api}/x", body=b"x" * 11)
                    assert c.response().status == status


def test_U1_an_upstream_of_many_apis_that_is_down_is_one_that_is_down():
    held, port = refused_port()
    for g in run(Gateway(settings={"api": apis_on(f"http://127.0.0.1:{port}", 20)}, workers=1)):
        with g.client() as c:
            for n in range(20):
                problem(c.get(f"/api{n}/x"), 502, "upstream_unreachable")
        assert g.log().count("cannot be reached") == 1, "said once, not by each api"
    held.close()


@pytest.fixture
def tls_upstream(tmp_path):
    """Speaks TLS: a plain request is answered by an alert and the end."""
    if not shutil.which("openssl"):
        pytest.skip("needs openssl to make a certificate")
    subprocess.run(["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=localhost", "-days", "1", "-keyout",
                    tmp_path / "key.pem", "-out", tmp_path / "cert.pem"], check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "cert.pem", tmp_path / "key.pem")
    shaken = []

    def shake_hands(connection):
        try:
            context.wrap_socket(connection.sock.dup(), server_side=True)
        except OSError as e:
            shaken.append(e)
        raise OSError("no HTTP here")
    u = Upstream(on_accept=shake_hands)
    yield u, shaken
    u.stop()


@pytest.mark.parametrize("method", ["GET", "POST"])
def test_U10_an_upstream_that_speaks_TLS_is_502_and_never_relayed(tls_upstream, method):
    """Its alert is no response, whether it comes whole, in part or with a reset."""
    upstream, shaken = tls_upstream
    for g in run(Gateway(upstream, {"usage": {"flush_interval": "50ms", "ring_bytes": "1MiB"}}, workers=1)):
        key, rid = g.create_key()["key"], unique()
        with g.client() as c:
            c.request(method, "/x", key, [("X-Request-Id", rid)], body=b"abc" if method == "POST" else None)
            problem(c.response(), 502, ["upstream_invalid", "upstream_reset"])
            assert c.get("/x").status == 401, "the client's connection goes on"
        assert shaken, "no handshake was tried"
        row = g.record(rid)
        assert (row["status"], row["outcome"]) == ("502", "upstream_failed")
