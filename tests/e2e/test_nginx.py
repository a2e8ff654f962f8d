"""nginx behind, curl before: programs of others agree with us."""
import hashlib
import os
import shutil
import subprocess

import pytest

from conftest import run
from harness import Gateway, Nginx, bound, unique

pytestmark = [pytest.mark.skipif(not shutil.which("curl"), reason="no curl"),
              pytest.mark.skipif(not os.path.exists("/usr/sbin/nginx"), reason="no nginx")]


@pytest.fixture(scope="module")
def nginx():
    n = Nginx()
    (n.root / "small").write_bytes(b"hello")
    (n.root / "empty").write_bytes(b"")
    (n.root / "large").write_bytes(os.urandom(20_000_000))
    yield n
    n.stop()


@pytest.fixture(scope="module")
def front(nginx):
    for g in run(Gateway(nginx.url)):
        g.its_key = g.create_key("nginx")["key"]
        yield g


def curl(gateway, key, *words, path="/", input=None):
    """stdout of curl; its failure fails the test."""
    command = ["curl", "-sS", "--fail-with-body", "--max-time", str(bound(30)), "-H", "X-API-KEY: " + key, *words,
               *(f"http://127.0.0.1:{gateway.address[1]}{p}" for p in ([path] if isinstance(path, str) else path))]
    done = subprocess.run(command, capture_output=True, input=input, timeout=bound(40))
    assert done.returncode == 0, (command, done.stderr, done.stdout[:500])
    return done.stdout


@pytest.mark.parametrize("words", [[], ["--http1.0"], ["-H", "Connection: close"], ["--compressed"]])
def test_files_of_nginx_arrive_whole(front, nginx, words):
    for name in ("small", "empty", "large"):
        got = curl(front, front.its_key, *words, path="/" + name)
        assert hashlib.sha256(got).digest() == hashlib.sha256((nginx.root / name).read_bytes()).digest(), name


def test_a_kept_connection_fetches_many_files(front):
    told = curl(front, front.its_key, "-w", "%{num_connects}", path=["/small"] * 20)
    assert told.count(b"hello") == 20
    assert told.replace(b"hello", b"") == b"1" + b"0" * 19, "one connection for all"


def test_conditions_and_ranges_pass(front, nginx):
    """RFC 9110 13, 14"""
    with front.client() as c:
        r = c.get("/small", front.its_key)
        assert r.body == b"hello"
        again = c.get("/small", front.its_key, [("If-None-Match", r.fields.get("etag"))])
        assert again.status == 304 and again.body == b""
        part = c.get("/large", front.its_key, [("Range", "bytes=5-14")])
        assert part.status == 206 and part.body == (nginx.root / "large").read_bytes()[5:15]
        assert c.get("/missing", front.its_key).status == 404
        c.request("HEAD", "/large", front.its_key)
        head = c.response("HEAD")
        assert head.fields.get("content-length") == "20000000" and head.body == b""


def test_an_upload_through_to_nginx(front):
    with front.client() as c:
        c.request("POST", "/put/x", front.its_key, body=os.urandom(300_000))
        assert c.response().status == 204
        assert c.get("/small", front.its_key).body == b"hello"


@pytest.mark.parametrize("words", [
    ["-T", "{file}"], ["-T", "{file}", "--http1.0"], ["-T", "{file}", "-H", "Connection: close"], ["--data-binary", "@{file}"],
    ["-T", "{file}", "-H", "Expect: 100-continue"], ["-T", "{file}", "-H", "Expect:"], ["-T", "-", "-H", "Transfer-Encoding: chunked"],
    ["--data-binary", "@{file}", "-H", "Expect: 100-continue"], ["-F", "part=@{file}"],
])
def test_uploads_of_curl_arrive_whole(gateway, upstream, key, tmp_path, words):
    body = os.urandom(2_500_000)
    file = tmp_path / "body"
    file.write_bytes(body)
    path = "/" + unique()

    def script(x):
        if "100-continue" in x.request.fields.get("expect", "").lower():
            x.send(b"HTTP/1.1 100 Continue\r\n\r\n")
        x.answer(200, [], hashlib.sha256(x.body()).hexdigest().encode())
    upstream.on(path, script)
    got = curl(gateway, key, *(w.format(file=file) for w in words), path=path, input=body if "-" in words else None)
    if "-F" in words:
        assert body in upstream.only(path).body
    else:
        assert got.decode() == hashlib.sha256(body).hexdigest()


def test_curl_shows_the_problem_of_a_refusal(gateway):
    done = subprocess.run(["curl", "-sS", "-i", f"http://127.0.0.1:{gateway.address[1]}/"], capture_output=True, timeout=bound(10))
    assert done.stdout.startswith(b"HTTP/1.1 401 ") and b"application/problem+json" in done.stdout
