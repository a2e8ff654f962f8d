"""Several upstreams of one api: one of three down, all down, one slow, and what comes back. And one that speaks TLS."""
import collections
import shutil
import ssl
import subprocess
import threading

import pytest

from conftest import run
from harness import SLOW, Gateway, Upstream, bound, problem, unique, wait_until


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
