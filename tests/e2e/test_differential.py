"""Requests that are nearly right, in front of servers of others: everybody counts the same requests, and each is what it was on record."""
import os

import pytest

from conftest import run
from differential import NginxServer, PythonServer, compare
from harness import SLOW, Gateway
from mutants import Mutants, strictly
from wire import chunked, request_bytes

MUTANTS = max(200, int(1200 / SLOW))
SERVERS = {"python": PythonServer, "nginx": NginxServer}


@pytest.mark.parametrize("name", SERVERS)
def test_no_server_sees_another_request_than_the_account_has(name):
    """RFC 9112 11.2: 1200 mutants, always the same"""
    if name == "nginx" and not os.path.exists("/usr/sbin/nginx"):
        pytest.skip("no nginx")
    server = SERVERS[name]()
    try:
        for gateway in run(Gateway(server.url, {"usage": {"flush_interval": "50ms"}})):
            compare(gateway, server, seed=9112, count=MUTANTS)
    finally:
        server.stop()


# --- what the comparison stands on

def test_the_strict_reading_is_strict():
    whole = request_bytes("POST", "/a", fields=[("Transfer-Encoding", "chunked")], body=chunked(b"hello")) + request_bytes("GET", "/b?c")
    assert [(r.method, r.target, r.body) for r in strictly(whole)] == [("POST", "/a", b"hello"), ("GET", "/b?c", b"")]
    assert len(strictly(whole[:-1])) == 1 and len(strictly(b"\r\n" + whole)) == 2
    for old, new in [(b"POST /a HTTP/1.1\r\n", b"POST /a HTTP/1.1\n"), (b"Transfer-Encoding:", b"Transfer-Encoding :"), (b"5\r\n", b"+5\r\n"),
                     (b"5\r\n", b"5\n"), (b"POST /a", b"POST  /a"), (b"chunked\r\n", b"chunked\r\n x\r\n"), (b"chunked", b"xchunked"),
                     (b"Host: ", b"Host: a\r\nHost: "), (b"/a HTTP/1.1", b"/a#b HTTP/1.1"), (b"POST /a HTTP/1.1", b"POST /a HTTP/1.0"),
                     (b"chunked\r\n", b"chunked\r\nContent-Length: 5\r\n"), (b"hello\r\n", b"hello"), (b"POST /a HTTP/1.1", b"POST /a HTTP/1.1\x00")]:
        assert old in whole and strictly(whole.replace(old, new, 1)) == [], (old, new)


def test_the_mutants_are_the_same_each_time_and_differ_from_each_other():
    first, second, other = (list(Mutants(seed, 300, "/x", "key")) for seed in (1, 1, 2))
    assert first == second != other and len(set(first)) > 270
    assert 60 < sum(len(strictly(data)) >= 2 for data in first) < 240
