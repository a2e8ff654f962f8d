"""R8, P2 and T2's plain part: what is done to the process and its listener while it serves. P3 and P4: test_reload.py."""
import concurrent.futures
import contextlib
import re
import shlex
import subprocess
import threading
import time

import pytest

from conftest import run
from harness import PROGRAM, SLOW, Broken, Gateway, RawClient, bound, problem, served, unique, wait_until

# What TLS clients open with: a ClientHello of TLS 1.2 and 1.3 (RFC 8446 4.1.2), and SSLv2's.
HELLO = bytes.fromhex(
    "16030100c6010000c20303" + "5a" * 32 + "20" + "a5" * 32 + "0026130213031301c02cc030009fcca9cca8ccaac02bc02f009ec024c028006bc023c027"
    "0067009d009c003d003c" + "01000053" + "000b000403000102000a00160014001d0017001e0019001801000101010201030104" + "0023000000160000"
    "00170000" + "000d00140012040305030603080708080804080508060401")
SSLV2 = bytes.fromhex("802e0100020015000000100100800300800700c0060040020080040080" + "00" * 18)


@pytest.fixture
def loaded(up):
    yield from run(Gateway(up, {"usage": {"flush_interval": "50ms", "ring_bytes": "1MiB"}, "drain": f"{int(10 * SLOW)}s"}))


class Load:
    """Clients that ask one request after the other. `answers`: (when it was sent, status or None)"""

    def __init__(self, gateway, key, clients=8):
        self.gateway, self.key, self.answers, self.over = gateway, key, [], threading.Event()
        self.pool = concurrent.futures.ThreadPoolExecutor(clients)
        self.done = [self.pool.submit(self.ask) for _ in range(clients)]

    def ask(self):
        while not self.over.is_set():
            with contextlib.suppress(OSError), self.gateway.client() as c:
                for _ in range(50):
                    if self.over.is_set():
                        return
                    began, status = time.monotonic(), None
                    with contextlib.suppress(Broken, OSError):
                        status = c.get("/" + unique(), self.key).status
                    self.answers.append((began, status))
                    if status is None:
                        break

    def stop(self):
        self.over.set()
        for d in self.done:
            d.result()
        self.pool.shutdown()
        return self.answers

    def running(self, more=200):
        goal = len(self.answers) + more
        wait_until(lambda: len(self.answers) >= goal, 20, "more answers")


def test_R8_under_load_no_request_that_began_after_the_revocation_gets_through(loaded):
    made = loaded.create_key()
    load = Load(loaded, made["key"])
    load.running()
    loaded.cli("keys", "revoke", made["id"], "--yes")
    revoked = time.monotonic()
    load.running()
    answers = load.stop()
    assert {s for _, s in answers} == {200, 401}
    assert {s for began, s in answers if began > revoked} == {401}


def listens(gateway):
    try:
        gateway.client().close()
    except OSError:
        return False
    return True


def test_P2_while_it_drains_answers_say_close_and_nobody_new_is_let_in(loaded, up):
    key, path, go = loaded.create_key()["key"], "/" + unique(), threading.Event()
    up.on(path, lambda x: (go.wait(bound(10)), x.answer(200, [], b"late")))
    with loaded.client() as flying, loaded.client() as idle:
        served(idle.get("/x", key))
        flying.request("GET", path, key)
        up.wait(lambda: up.seen(path))
        loaded.terminate()
        idle.end()
        assert idle.leftover == b""
        wait_until(lambda: not listens(loaded), 5, "the end of its listeners")
        go.set()
        r = flying.response()
        assert r.body == b"late" and r.fields.get("connection") == "close"
        assert flying.end() == "fin"
    assert loaded.wait() == 0
    loaded.start()


@pytest.mark.parametrize("hello", [HELLO, SSLV2, HELLO[:5], HELLO * 20], ids=["TLS", "SSLv2", "its first bytes", "a long one"])
def test_T2_a_TLS_client_on_the_plain_port_is_turned_away(loaded, hello):
    with loaded.client() as c:
        c.send(hello)
        c.half_close()
        with contextlib.suppress(Broken):
            problem(c.response(), 400)
        c.end()
    with loaded.client() as c:
        assert c.get("/x").status == 401


def test_T2_a_TLS_hello_is_refused_without_waiting_for_more(loaded):
    """It holds a line feed or not: no first byte of a handshake begins a method."""
    with loaded.client() as c:
        c.send(HELLO)
        problem(c.response(timeout=3), 400, "malformed_request")
        assert c.end() == "fin"


def test_an_upstream_on_the_command_line_makes_up_for_a_settings_file_without_an_api(up):
    """Found by use: the file was refused for the lack of what was given. Also through a reload. (Of commands that read the file, see run_test.cpp.)"""
    gateway = Gateway(settings={"usage": {"flush_interval": "50ms"}}, flags=["--upstream", up.url])
    with contextlib.contextmanager(run)(gateway):
        key = gateway.create_key()["key"]
        for _ in range(2):
            with gateway.client() as c:
                served(c.get("/x", key))
            gateway.reload()


def test_the_greeting_names_every_listener_and_the_directory_for_a_shell_in_any_other(up):
    gateway = Gateway(up, {"listen": ["127.0.0.1:0", "127.0.0.1:0"], "data_dir": "./it's mine"})
    data = gateway.data = gateway.folder / "it's mine"
    with contextlib.contextmanager(run)(gateway):
        first, second = gateway.told["listen"]
        said = f"serving http://{first} and http://{second}, data in {data}; make a key with: latchkey keys create --name NAME --data "
        line = wait_until(lambda: next((x for x in gateway.log().splitlines() if said in x), ""), 5, "the greeting")
        assert shlex.split(line.split(said)[1]) == [str(data)]


def test_the_demo_api_takes_16_MiB_and_says_when_a_body_is_longer():
    process = subprocess.Popen([PROGRAM, "demo-upstream"], stdout=subprocess.PIPE, text=True)
    try:
        address = re.search(r"127\.0\.0\.1:(\d+)", process.stdout.readline())
        for size, status in ((16 << 20, 200), ((16 << 20) + 1, 413)):
            with RawClient(("127.0.0.1", int(address[1]))) as c:
                c.send(b"POST /echo HTTP/1.1\r\nHost: h\r\nContent-Length: %d\r\n\r\n" % size)
                if status == 200:
                    c.send(bytes(size))
                assert c.response().status == status
    finally:
        process.kill()
        process.wait()
