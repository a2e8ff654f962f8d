"""T2 and what else TLS towards clients must do: the same answers, records and breaks as without it, and its own faults."""
import contextlib
import hashlib
import json
import os
import random
import re
import shutil
import signal
import socket
import ssl
import subprocess
import threading
import time

import pytest

from conftest import run
from harness import (PROGRAM, SLOW, Broken, Gateway, RawClient, TimedOut, TlsClient, bound, certificate, chunked, problem,
                     request_bytes, served, temporary_folder, tls_rules, tls_settings, told_fields, toml, unique, wait_until)
from wire import Reader

MIB = 1 << 20
V12 = (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_2)
V13 = (ssl.TLSVersion.TLSv1_3, ssl.TLSVersion.TLSv1_3)
UNEXPECTED_MESSAGE = b"\x15\x03\x01\x00\x02\x02\x0a"

plain = pytest.mark.skipif(SLOW > 1, reason="sanitizers need memory of their own")


def ms(n):
    return f"{int(n * SLOW)}ms"


@pytest.fixture(scope="module")
def certificates():
    folder = temporary_folder("tls")
    return [certificate(folder, "localhost", "api.example", stem="first"),
            certificate(folder, "other.example", "*.wild.example", stem="second"),
            certificate(folder, "rsa.example", stem="third", key="rsa:2048")]


@pytest.fixture(scope="module")
def secure(upstream, certificates):
    waits = {"tls_handshake": ms(600), "head": ms(3000), "idle": ms(3000), "body_stall": ms(3000), "write_stall": ms(3000)}
    yield from run(Gateway(upstream, tls_settings(*certificates, client=waits, usage={"flush_interval": "50ms"})))


@pytest.fixture(scope="module")
def its_key(secure):
    return secure.create_key("tls")["key"]


@pytest.fixture
def tls(secure):
    with secure.tls_client() as c:
        yield c


def tagged(stem="tls"):
    rid = unique(stem)
    return "/" + rid, rid, [("X-Request-Id", rid)]


def alive_after(client, key):
    path = "/" + unique()
    assert served(client.get(path, key))["target"] == path


def failed(gateway):
    return gateway.metric("latchkey_tls_handshakes_failed_total")


def noise(size, seed=1):
    return random.Random(seed).randbytes(size)


# --- T2: what is not a handshake, or not an end of one

def test_T2_plain_http_on_the_tls_port_is_told_to_use_https(secure, its_key, upstream):
    before, handshakes = len(secure.export()), failed(secure)
    with RawClient(secure.tls_address) as c:
        c.request("POST", "/" + unique(), its_key, body=b"x" * 100_000)
        told = problem(c.response(), 400, "tls_required")
        assert "https://" in told["detail"] and c.end() == "fin"
    record = secure.record(told["request_id"])
    assert record["status"] == "400" and record["outcome"] == "refused" and record["client_ip"] == "127.0.0.1"
    assert record["application"] == "" and int(record["response_bytes"]) > 0
    assert len(secure.export()) == before + 1 and failed(secure) == handshakes


@pytest.mark.parametrize("first", [b"G", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b"get / http/1.1\r\n\r\n"])
def test_T2_whatever_looks_like_a_request_line_is_answered_in_clear(secure, first):
    with RawClient(secure.tls_address) as c:
        c.send(first)
        problem(c.response(), 400, "tls_required")


@pytest.mark.parametrize("junk", [b"\x00" * 64, b"\x16\x03", b"\x80\x80\x01\x03\x01", b"\x17\x03\x03\x00\x20" + b"x" * 32,
                                  b"\x16\x03\x01\x00\x05\x02\x00\x00\x01\x00", b"\x16\x03\x01\xff\xff" + b"x" * 1000,
                                  noise(4096)], ids=range(7))
def test_T2_garbage_is_told_so_by_an_alert_and_ended_without_a_record(secure, junk):
    before, records = failed(secure), len(secure.export())
    with RawClient(secure.tls_address) as c:
        c.send(junk)
        c.half_close()
        assert c.end() == "fin"
        if junk not in (b"\x16\x03", b"\x80\x80\x01\x03\x01"):  # the beginning of one, and its end: nothing is left to be said
            assert c.leftover[:1] == b"\x15" and len(c.leftover) == 7 and c.leftover[5] == 2, c.leftover
    wait_until(lambda: failed(secure) == before + 1, 5, "the count of it")
    assert len(secure.export()) == records


def test_T2_a_first_message_that_claims_to_be_huge_is_refused_before_it_comes(secure):
    with RawClient(secure.tls_address) as c:
        c.send(b"\x16\x03\x01\x40\x00\x01\x01\xff\xf0")
        assert c.end() == "fin" and c.leftover == b"\x15\x03\x01\x00\x02\x02\x32"


@plain
def test_T2_clients_that_stop_before_the_end_of_a_huge_hello_take_no_more_than_the_start_said(up, certificates):
    """The line about memory says what a connection may take; a hello of nearly 16 KiB is the most that one can leave us with."""
    waits = {"tls_handshake": "1h"}
    g = Gateway(up, tls_settings(*certificates, client=waits, usage={"ring_bytes": "1MiB"}), workers=1).start()
    try:
        told = wait_until(lambda: re.search(r"connections \d+ x (\d+) KiB", g.log()), 5, "the line about memory")
        with contextlib.ExitStack() as stack:
            with g.tls_client() as c:
                alive_after(c, g.create_key()["key"])
            before = g.rss
            for _ in range(300):
                c = stack.enter_context(RawClient(g.tls_address))
                c.send(huge_hello()[:-1])
            with g.tls_client() as c:  # the last one's bytes were read before
                problem(c.get("/"), 401)
            each = (g.rss - before) / 300 / 1024
            assert 20 < each < int(told[1]), f"{each:.1f} KiB of {told[1]}"
        assert g.stop() == 0
    finally:
        if g.alive:
            g.kill()


def huge_hello():
    """A ClientHello of 16 KiB in two records, most of it padding (RFC 7685)."""
    extension = b"\x00\x15" + (16_200).to_bytes(2, "big") + b"\0" * 16_200
    body = b"\x03\x03" + b"r" * 32 + b"\x00" + b"\x00\x02\x13\x01" + b"\x01\x00" + len(extension).to_bytes(2, "big") + extension
    hello = b"\x01" + len(body).to_bytes(3, "big") + body
    return b"".join(b"\x16\x03\x01" + len(part).to_bytes(2, "big") + part for part in (hello[:8000], hello[8000:]))


def test_T2_a_handshake_that_stalls_ends_at_its_deadline_and_is_counted(secure):
    before, records, descriptors = failed(secure), len(secure.export()), secure.descriptors
    with contextlib.ExitStack() as stack:
        silent, begun = (stack.enter_context(RawClient(secure.tls_address)) for _ in range(2))
        begun.send(client_hello()[:50])
        assert silent.end() == "fin" and begun.end() == "fin"
    wait_until(lambda: failed(secure) == before + 2, 5, "the count of both")
    assert len(secure.export()) == records
    wait_until(lambda: secure.descriptors <= descriptors, 5, "their descriptors")


def test_T2_a_handshake_that_drips_ends_at_its_deadline_all_the_same(secure):
    """The deadline is for the whole, not for a byte: one comes every 50 ms, and all would take 10 s and more."""
    before = failed(secure)
    with RawClient(secure.tls_address) as c:
        stop = threading.Event()

        def drip():
            for byte in client_hello():
                if stop.wait(bound(0.05)):
                    return
                with contextlib.suppress(OSError):
                    c.sock.send(bytes([byte]))
        t = threading.Thread(target=drip)
        t.start()
        try:
            assert c.end(timeout=5) in ("fin", "reset")
        finally:
            stop.set()
            t.join()
    wait_until(lambda: failed(secure) == before + 1, 5, "the count of it")


def test_T2_a_handshake_whose_bytes_come_one_by_one_but_in_time_is_served(secure, its_key):
    front, back = socket.socketpair()
    with RawClient(secure.tls_address) as raw:
        def carry(a, b):
            with contextlib.suppress(OSError):
                while data := a.recv(1):
                    b.sendall(data)
        for pair in ((back, raw.sock), (raw.sock, back)):
            threading.Thread(target=carry, args=pair, daemon=True).start()
        raw.sock.settimeout(None)
        with tls_rules().wrap_socket(front, server_hostname="localhost") as c:
            c.settimeout(bound(10))
            c.sendall(request_bytes("GET", "/drip", its_key))
            assert c.recv(1000).startswith(b"HTTP/1.1 200 ")
    back.close()


def test_T2_a_client_that_only_looks_whether_the_port_is_open_is_no_failure(secure):
    before = failed(secure)
    for _ in range(3):
        with RawClient(secure.tls_address) as c:
            c.half_close()
            assert c.end() == "fin"
    assert failed(secure) == before


def test_T2_renegotiation_is_refused(secure, its_key):
    """`R` on a line of its own makes s_client ask for it."""
    done = s_client(secure, "-tls1_2", input="R\n")
    assert "no renegotiation" in done.stderr, done.stderr[-1000:]
    assert secure.alive


def test_T2_old_versions_get_an_alert_that_says_so(secure):
    for version, alert in ((b"\x03\x00", 40), (b"\x03\x01", 70), (b"\x03\x02", 70)):  # SSL 3.0 had no protocol_version
        with RawClient(secure.tls_address) as c:
            body = version + b"r" * 32 + b"\x00" + b"\x00\x04\xc0\x2f\x00\xff" + b"\x01\x00"
            hello = b"\x01" + len(body).to_bytes(3, "big") + body
            c.send(b"\x16\x03\x01" + len(hello).to_bytes(2, "big") + hello)
            assert c.end() == "fin"
            assert c.leftover[0] == 21 and c.leftover[5:] == bytes([2, alert]), c.leftover


def client_hello():
    """The first message of Python's client."""
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    o = tls_rules().wrap_bio(incoming, outgoing, server_hostname="localhost")
    with contextlib.suppress(ssl.SSLWantReadError):
        o.do_handshake()
    return outgoing.read()


def s_client(gateway, *words, input=""):
    return subprocess.run(["openssl", "s_client", "-connect", "%s:%d" % gateway.tls_address, *words], input=input, text=True,
                          capture_output=True, timeout=bound(20))


# --- what works as it does without

@pytest.mark.parametrize("versions", [V12, V13], ids=["1.2", "1.3"])
def test_requests_one_after_the_other_on_one_connection(secure, its_key, versions):
    with secure.tls_client(versions=versions) as c:
        assert c.sock.version() == ("TLSv1.2" if versions is V12 else "TLSv1.3")
        for _ in range(20):
            alive_after(c, its_key)
        # Forward secrecy and an AEAD, whatever the client would take.
        assert re.match(r"(TLS_|ECDHE-).*(GCM|CHACHA20)", c.sock.cipher()[0]), c.sock.cipher()


def test_the_upstream_is_told_that_it_was_https_and_where(secure, its_key, tls, upstream):
    fields = told_fields(served(tls.get("/" + unique(), its_key)))
    assert fields.get("x-forwarded-proto") == "https" and fields.get("x-forwarded-port") == str(secure.tls_address[1])
    assert fields.get("forwarded").endswith(";proto=https")
    with secure.client() as c:  # the plain port beside it says what it is
        fields = told_fields(served(c.get("/" + unique(), its_key)))
        assert fields.get("x-forwarded-proto") == "http" and fields.get("forwarded").endswith(";proto=http")


@pytest.mark.parametrize("target, status", [("https://test.example/x", 200), ("https://test.example:443/x", 200), ("http://test.example/x", 400),
                                            ("https://test.example:80/x", 400), ("https://elsewhere.example/x", 400)])
def test_an_absolute_form_must_be_https_and_agree_with_host(tls, its_key, target, status):
    assert tls.get(target, its_key).status == status


def test_pipelined_requests_are_answered_in_order(tls, its_key):
    paths = ["/" + unique() for _ in range(200)]
    tls.send(b"".join(request_bytes("GET", p, its_key) for p in paths))
    for p in paths:
        assert served(tls.response())["target"] == p


def test_a_request_that_comes_in_records_of_one_byte_is_served(tls, its_key):
    for byte in request_bytes("POST", "/" + unique(), its_key, body=b"0123456789"):
        tls.send(bytes([byte]))
    assert served(tls.response())["body"] == "0123456789"


def test_a_chunked_upload_arrives_with_its_trailers_dropped_or_kept_as_without_tls(tls, its_key, secure):
    pieces = [noise(n, n) for n in (1, 70_000, 16384, 16385, 300)]
    tls.request("POST", "/" + unique(), its_key, [("Transfer-Encoding", "chunked")], chunked(*pieces))
    assert served(tls.response())["size"] == sum(map(len, pieces))
    alive_after(tls, its_key)


@pytest.mark.parametrize("versions", [V12, V13], ids=["1.2", "1.3"])
def test_10_MiB_each_way_arrive_as_they_were(secure, its_key, upstream, versions):
    path, rid, fields = tagged()
    data, digest = noise(10 * MIB), hashlib.sha256()

    def script(x):
        x.body(60, digest.update)
        x.answer(200, [], data)
    upstream.on(path, script)
    with secure.tls_client(versions=versions) as c:
        # By one thread: Python 3.11 lets two threads into one TLS object at once, and that breaks it now and then.
        c.send(request_bytes("POST", path, its_key, fields, data), timeout=60)
        r = c.response(timeout=60)
        assert r.body == data and digest.digest() == hashlib.sha256(data).digest()
        alive_after(c, its_key)
    record = secure.record(rid)
    assert int(record["response_bytes"]) == len(r.raw_head) + len(data)  # of what was inside, not of the records around it
    assert int(record["request_bytes"]) == len(request_bytes("POST", path, its_key, fields, data))


def test_401_and_the_challenge_come_as_without_tls_and_the_connection_goes_on(secure, its_key, tls):
    for shown, code in ((None, "key_missing"), ("lk_wrong", "key_invalid")):
        path, rid, fields = tagged()
        r = tls.get(path, shown, fields)
        problem(r, 401, code)
        assert r.fields.get("www-authenticate") == 'ApiKey realm="latchkey"'
        record = secure.record(rid)
        assert record["status"] == "401" and record["client_ip"] == "127.0.0.1"
        assert int(record["response_bytes"]) == len(r.raw_head) + len(r.body)
    alive_after(tls, its_key)


def test_R8_a_key_that_is_revoked_is_dead_on_a_live_tls_connection(secure, tls):
    made = secure.create_key("short-lived")
    alive_after(tls, made["key"])
    secure.cli("keys", "revoke", made["id"], "--yes")
    problem(tls.get("/x", made["key"]), 401, "key_invalid")


def test_ambiguous_framing_is_refused_and_the_connection_ends_in_good_order(tls, its_key):
    tls.send(b"POST / HTTP/1.1\r\nHost: h\r\nX-API-KEY: %b\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n" % its_key.encode())
    problem(tls.response(), 400, "ambiguous_framing")
    assert tls.end() == "fin"  # close_notify came before


# --- ends and breaks

def test_a_response_until_the_end_of_the_connection_is_told_its_end(secure, its_key, upstream, tls):
    path, rid, fields = tagged()
    data = noise(3 * MIB)
    upstream.on(path, lambda x: (x.send(b"HTTP/1.1 200 OK\r\n\r\n" + data), x.close()))
    tls.request("GET", path, its_key, fields, version="HTTP/1.0")
    r = tls.response(timeout=30)
    assert r.framing == "close" and r.complete and r.body == data
    assert secure.record(rid)["outcome"] == "served"


@pytest.mark.parametrize("framing", ["length", "chunked", "until_close"])
def test_U6_a_response_that_breaks_off_looks_broken(secure, its_key, upstream, tls, framing):
    path, rid, fields = tagged()
    head = {"length": b"Content-Length: 1000\r\n\r\n", "chunked": b"Transfer-Encoding: chunked\r\n\r\n100\r\n", "until_close": b"\r\n"}[framing]
    upstream.on(path, lambda x: (x.send(b"HTTP/1.1 200 OK\r\n" + head + b"x" * 256), x.reset() if framing == "until_close" else x.close()))
    tls.request("GET", path, its_key, fields, version="HTTP/1.0" if framing == "until_close" else "HTTP/1.1")
    with pytest.raises(Broken) as broken:
        tls.response()
    assert broken.value.kind == "reset", broken.value  # an alert: Python's ssl makes a quiet end of a reset and of a missing close_notify
    assert secure.record(rid)["outcome"] == "upstream_aborted"


def test_an_idle_connection_is_ended_with_a_word(secure, its_key):
    with secure.tls_client() as c:
        alive_after(c, its_key)
        assert c.end(timeout=15) == "fin"


def test_a_client_that_ends_its_side_with_a_word_is_answered_still(secure, its_key, upstream):
    """C2: half-close is close_notify here. (Python's ssl cannot send it alone, so OpenSSL's state machine is driven by hand.)"""
    path, _, fields = tagged()
    seen, go = threading.Event(), threading.Event()
    upstream.on(path, lambda x: (seen.set(), go.wait(bound(10)), x.answer(200, [], b"late")))
    with RawClient(secure.tls_address) as raw:
        incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        o = tls_rules().wrap_bio(incoming, outgoing, server_hostname="localhost")

        def step(f, *args):
            while True:
                try:
                    return f(*args)
                except ssl.SSLWantReadError:
                    raw.send(outgoing.read())
                    incoming.write(raw.sock.recv(65536))
        step(o.do_handshake)
        o.write(request_bytes("GET", path, its_key, fields))
        raw.send(outgoing.read())
        assert seen.wait(bound(10))
        with contextlib.suppress(ssl.SSLWantReadError):
            o.unwrap()
        raw.send(outgoing.read())
        go.set()
        ended = b""
        with contextlib.suppress(Broken, TimedOut):
            reader = Reader(raw.sock, None)
            reader.until(b"\0never\0", time.monotonic() + bound(2))
        ended = bytes(reader.buffer)
        assert len(ended) > 100, "no answer"  # the head and body in a record


@pytest.mark.parametrize("how", ["reset", "close"])
def test_C1_a_client_that_vanishes_in_its_upload_is_on_record_and_leaves_nothing(secure, its_key, upstream, how):
    path, rid, fields = tagged()
    before = secure.descriptors
    got = threading.Event()
    upstream.on(path, lambda x: (got.set(), x.until_closed()))
    c = secure.tls_client()
    c.send(request_bytes("POST", path, its_key, [*fields, ("Content-Length", "1000000")]) + b"x" * 1000)
    assert got.wait(bound(10))
    c.reset() if how == "reset" else c.close()
    record = secure.record(rid)
    assert record["outcome"] == "client_aborted"
    upstream.wait(lambda: upstream.only(path).connection.open is False)
    upstream.close_connections()
    wait_until(lambda: secure.descriptors <= before, 10, "the descriptors of before", 0.1)


def test_C1_a_client_that_resets_while_the_upstream_thinks_is_noticed(secure, its_key, upstream):
    path, rid, fields = tagged()
    got = threading.Event()
    upstream.on(path, lambda x: (x.body(), got.set(), x.until_closed()))
    c = secure.tls_client()
    c.request("GET", path, its_key, fields)
    assert got.wait(bound(10))
    c.reset()
    assert secure.record(rid)["outcome"] == "client_aborted"


@plain
def test_C5_slow_readers_take_a_bounded_memory_each_and_others_are_served(secure, its_key, upstream):
    path, body = "/" + unique(), b"x" * (32 * MIB)

    def script(x):
        x.keep = False
        with contextlib.suppress(OSError):
            x.answer(200, [], body)
    upstream.on(path, script)
    with contextlib.ExitStack() as stack:
        before = secure.rss
        slow = [stack.enter_context(secure.tls_client(receive_buffer=4096)) for _ in range(20)]
        for c in slow:
            c.request("GET", path, its_key)
        upstream.wait(lambda: len(upstream.seen(path)) == len(slow))
        with secure.tls_client() as c:
            for _ in range(50):
                alive_after(c, its_key)
        assert secure.rss - before < 20 * 700 * 1024 + 8 * MIB, f"{(secure.rss - before) / MIB:.1f} MiB for 20 slow readers"
        for c in slow:
            c.reset()


def test_P2_a_drain_lets_running_requests_end_and_closes_the_others(up, certificates):
    path, rid, fields = tagged()
    seen, go = threading.Event(), threading.Event()
    up.on(path, lambda x: (x.body(), seen.set(), go.wait(bound(20)), x.answer(200, [], b"done")))
    g = Gateway(up, tls_settings(*certificates), workers=1).start()  # so that the ends of some say that it drains
    try:
        key = g.create_key()["key"]
        with g.tls_client() as busy, g.tls_client() as idle, RawClient(g.tls_address) as half, RawClient(g.tls_address) as silent:
            alive_after(idle, key)
            half.send(client_hello()[:40])
            busy.request("GET", path, key, fields)
            assert seen.wait(bound(10))
            g.terminate()
            assert idle.end() == "fin" and half.end() == "fin" and silent.end() == "fin"
            go.set()
            r = busy.response()
            assert r.body == b"done" and r.fields.get("connection") == "close" and busy.end() == "fin"
        assert g.wait() == 0
        assert g.record(rid)["outcome"] == "served"
    finally:
        if g.alive:
            g.kill()


def test_P2_a_drain_does_not_wait_for_bytes_that_are_no_request(up, certificates):
    """A handshake that drips (so that the kernel gathers it, unread), and a part of a record on a connection that waits."""
    minute = {"drain": ms(60_000), "client": {"tls_handshake": ms(60_000), "head": ms(60_000), "idle": ms(60_000)}}
    g = Gateway(up, tls_settings(*certificates, **minute), workers=1).start()
    try:
        key = g.create_key()["key"]
        with g.tls_client() as parted, RawClient(g.tls_address) as dripping:
            alive_after(parted, key)
            hello = client_hello()
            for n in range(24):
                dripping.send(hello[n:n + 1])
                time.sleep(0.03)  # each a part of its own
            with socket.socket(fileno=os.dup(parted.sock.fileno())) as raw:
                os.kill(g.pid, signal.SIGSTOP)
                dripping.send(hello[24:25])
                raw.send(b"\x17\x03\x03\x00\x40abc")
                g.terminate()
                os.kill(g.pid, signal.SIGCONT)
            assert g.wait() == 0
    finally:
        if g.alive:
            g.kill()


def test_P2_the_hard_stop_cuts_a_tls_response_without_a_word(up, certificates):
    path, rid, fields = tagged()
    up.on(path, lambda x: (x.send(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nx"), x.until_closed(60)))
    g = Gateway(up, tls_settings(*certificates, drain=ms(300))).start()
    try:
        key = g.create_key()["key"]
        with g.tls_client() as c:
            c.request("GET", path, key, fields)
            c.reader.until(b"\r\n\r\nx", time.monotonic() + bound(10))
            g.terminate()
            assert c.end() == "reset"
        assert g.wait() == 0
        assert g.record(rid)["outcome"] == "shut_down"
    finally:
        if g.alive:
            g.kill()


# --- names, tickets, protocols

@pytest.mark.parametrize("name, which", [("localhost", 0), ("api.example", 0), ("API.EXAMPLE", 0), ("other.example", 1), ("a.wild.example", 1),
                                         ("a.b.wild.example", 0), ("wild.example", 0), ("rsa.example", 2), ("unknown.example", 0), (None, 0)])
def test_the_certificate_is_the_one_with_the_name_asked_for_else_the_first(secure, certificates, name, which):
    with TlsClient(secure.tls_address, name=name) as c:
        assert c.shown() == ssl.PEM_cert_to_DER_cert(open(certificates[which]["chain"]).read())


@pytest.mark.parametrize("versions", [V12, V13], ids=["1.2", "1.3"])
def test_sessions_are_resumed_on_every_worker(secure, its_key, versions):
    rules = tls_rules(secure.settings["tls"]["certificate"][0]["chain"], versions=versions)
    before = secure.metric("latchkey_tls_resumed_total")
    with secure.tls_client(rules=rules) as c:
        alive_after(c, its_key)  # its ticket has come by then
        session = c.sock.session
    for _ in range(16):  # the kernel spreads connections over both workers
        with secure.tls_client(rules=rules, session=session) as c:
            alive_after(c, its_key)
            assert c.sock.session_reused
            session = c.sock.session
    assert secure.metric("latchkey_tls_resumed_total") == before + 16


def test_s_client_can_reconnect(secure):
    done = s_client(secure, "-reconnect", "-tls1_2")
    assert done.stdout.count("Reused, TLSv1.2") == 5, done.stdout[-2000:] + done.stderr[-1000:]


@pytest.mark.parametrize("offered, chosen", [(["http/1.1"], "http/1.1"), (["h2", "http/1.1"], "http/1.1"), (["http/1.0", "http/1.1"], "http/1.1"),
                                             (["http/1.0"], "http/1.0"), (None, None)])
def test_alpn_chooses_http_1_1(secure, its_key, offered, chosen):
    with secure.tls_client(alpn=offered) as c:
        assert c.sock.selected_alpn_protocol() == chosen
        alive_after(c, its_key)


def test_a_client_that_offers_only_other_protocols_is_told_so(secure):
    with pytest.raises(ssl.SSLError) as refused:
        secure.tls_client(alpn=["h2", "spdy/3"])
    assert "NO_APPLICATION_PROTOCOL" in str(refused.value).upper().replace(" ", "_")


def test_the_minimum_version_1_3_refuses_1_2(up, certificates):
    settings = tls_settings(*certificates)
    settings["tls"]["minimum_version"] = "1.3"
    g = Gateway(up, settings).start()
    try:
        with pytest.raises(ssl.SSLError, match="(?i)protocol.version"):
            g.tls_client(versions=V12)
        with g.tls_client(versions=V13) as c:
            alive_after(c, g.create_key()["key"])
        assert g.stop() == 0
    finally:
        if g.alive:
            g.kill()


def test_a_gateway_of_nothing_but_tls(up, certificates):
    g = Gateway(up, {**tls_settings(*certificates), "listen": []}).start()
    try:
        assert g.told["listen"] == [] and g.address is None
        wait_until(lambda: f"serving https://127.0.0.1:{g.tls_address[1]}," in g.log(), 5, "the greeting")
        with g.tls_client() as c:
            alive_after(c, g.create_key()["key"])
        status = json.loads(g.cli("status", "--output", "json").stdout)
        assert status["tls_listen"] == g.told["tls_listen"] and status["listen"] == []
        assert g.stop() == 0
    finally:
        if g.alive:
            g.kill()


@pytest.mark.skipif(not shutil.which("curl"), reason="curl is not installed")
@pytest.mark.parametrize("words", [["--http1.1"], ["--http2"], ["--tls-max", "1.2"], ["--no-alpn"]], ids=" ".join)
def test_curl(secure, its_key, words):
    done = subprocess.run(["curl", "-sS", "--cacert", secure.settings["tls"]["certificate"][0]["chain"], *words,
                           "-H", f"X-API-KEY: {its_key}", "-w", "\n%{http_code} %{http_version}",
                           f"https://localhost:{secure.tls_address[1]}/curl"], capture_output=True, text=True, timeout=bound(20))
    assert done.returncode == 0 and done.stdout.endswith("\n200 1.1"), done


# --- certificates that cannot be used

def broken_files(folder):
    """(what breaks, chain, key, part of what is said)"""
    good = certificate(folder, stem="good")
    other = certificate(folder, stem="other")
    encrypted, der, empty = (str(folder / n) for n in ("encrypted.key", "der.pem", "empty.pem"))
    subprocess.run(["openssl", "pkey", "-in", good["key"], "-aes256", "-passout", "pass:x", "-out", encrypted], check=True, capture_output=True)
    subprocess.run(["openssl", "x509", "-in", good["chain"], "-outform", "DER", "-out", der], check=True, capture_output=True)
    open(empty, "w").close()
    return [("missing", str(folder / "none.pem"), good["key"], "none.pem: cannot be read: No such file or directory; check `chain`"),
            ("missing key", good["chain"], str(folder / "none.key"), "none.key: cannot be read: No such file or directory; check `key`"),
            ("not PEM", der, good["key"], "der.pem: has no certificate in PEM form; write it as PEM"),
            ("empty", good["chain"], empty, "empty.pem: has no private key in PEM form"),
            ("another key", good["chain"], other["key"], "other.key: is not the key of the first certificate in "),
            ("encrypted", good["chain"], encrypted, "encrypted.key: is encrypted, and nobody is there to type its passphrase; decrypt it: openssl pkey")]


def test_certificates_that_cannot_be_used_stop_the_start_and_are_found_by_check(up):
    folder = temporary_folder("tls")
    for what, chain, key, said in broken_files(folder):
        g = Gateway(up, tls_settings({"chain": chain, "key": key}))
        assert said in g.refuse_to_start(), what
        done = subprocess.run([PROGRAM, "check", str(g.folder / "latchkey.toml")], capture_output=True, text=True)
        assert done.returncode == 7 and said in done.stderr, (what, done)


def test_certificates_that_clients_will_not_like_are_warned_of_and_used(up):
    folder = temporary_folder("tls")
    old = certificate(folder, stem="old", days=-1)
    os.chmod(old["key"], 0o644)
    g = Gateway(up, tls_settings(old)).start()
    try:
        for said in ("old.pem: has expired: clients will not accept it", "old.key: is a private key that everyone may read"):
            wait_until(lambda: said in g.log(), 5, said)
        with TlsClient(g.tls_address) as c:
            alive_after(c, g.create_key()["key"])
        done = subprocess.run([PROGRAM, "check", str(g.folder / "latchkey.toml")], capture_output=True, text=True)
        assert done.returncode == 0 and "warning: " in done.stderr and "has expired" in done.stderr, done
        assert g.stop() == 0
    finally:
        if g.alive:
            g.kill()


def test_paths_of_certificates_begin_at_the_settings_file(up):
    g = Gateway(up, tls_settings({"chain": "pki/server.pem", "key": "pki/server.key"}))
    (g.folder / "pki").mkdir()
    certificate(g.folder / "pki")
    (g.folder / "latchkey.toml").write_text(toml(g.settings))
    done = subprocess.run([PROGRAM, "check", str(g.folder / "latchkey.toml")], capture_output=True, text=True, cwd="/")
    assert done.returncode == 0, done


def test_flags_alone_make_a_tls_gateway(up):
    folder = temporary_folder("tls")
    c = certificate(folder)
    words = [PROGRAM, "serve", "--listen", "127.0.0.1:0", "--admin-listen", "127.0.0.1:0", "--upstream", up.url, "--data", str(folder / "data"),
             "--ready-file", str(folder / "ready"), "--tls-listen", "127.0.0.1:0"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=bound(20))
    assert done.returncode == 1 and "`tls.listen` has no certificate to show" in done.stderr, done
    done = subprocess.run([*words, "--tls-cert", c["chain"]], capture_output=True, text=True, timeout=bound(20))
    assert done.returncode == 2 and "--tls-key" in done.stderr, done
    process = subprocess.Popen([*words, "--tls-cert", c["chain"], "--tls-key", c["key"]], stderr=subprocess.DEVNULL)
    try:
        ready = folder / "ready"
        wait_until(lambda: ready.exists() and ready.read_text(), 15, "the ready file")
        host, port = json.loads(ready.read_text())["tls_listen"][0].rsplit(":", 1)
        with TlsClient((host, int(port)), trusted=c["chain"]) as t:
            problem(t.get("/"), 401, "key_missing")
    finally:
        process.terminate()
        assert process.wait(bound(20)) == 0
