"""P1, P2, P4: stops and deaths at each moment of a restart in place. Here the test plays one of the two processes: a script in the
place of the program file is the successor, or this process is the one before."""
import array
import concurrent.futures
import contextlib
import fcntl
import json
import os
import pathlib
import re
import shutil
import signal
import socket
import subprocess
import threading
import time

import pytest

from conftest import run
from harness import (PROGRAM, SLOW, Gateway, RawClient, Successor, bound, lasting_port, problem, running, served,
                     temporary_folder, unique, wait_until)
from test_reload import QUICK, SCRIPT, children, on_record, refused, replace, rings


@pytest.fixture
def live(up):
    """At its end no process of it and no ring is left."""
    gateway = Gateway(up, dict(QUICK))
    yield from run(gateway)
    for old in list(gateway.before):
        assert gateway.end_of(old) == 0
    assert not rings(gateway)


# --- the successor is a script

@pytest.fixture
def copied(up):
    gateway = Gateway(up, {**QUICK, "client": {"idle": "1h"}}, program=str(temporary_folder("program") / "latchkey"))
    shutil.copy(PROGRAM, gateway.program)
    yield from run(gateway)


def real_again(gateway):
    shutil.copy(PROGRAM, gateway.program + ".new")
    os.rename(gateway.program + ".new", gateway.program)


TOLD = SCRIPT.replace("import array", "import array, pathlib, signal") + """
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM, signal.SIGINT])
here = pathlib.Path("{folder}")
def mark(name):
    (here / name).touch()
def wait_for(name):
    while not (here / name).exists():
        time.sleep(0.01)
def told():
    return signal.sigtimedwait([signal.SIGTERM], 60) is not None
until('sockets'); s.send(b'prepared'); until('quiet'); mark('quiet')
"""


def play(gateway, text):
    folder = temporary_folder("script")
    replace(gateway, TOLD.replace("{folder}", str(folder)) + text)
    return folder


def seen(folder, name):
    wait_until((folder / name).exists, 20, name)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_P2_a_stop_before_the_commit_reaches_a_successor_that_may_serve_and_both_end(copied, number):
    folder = play(copied, "told() and mark('told'); s.send(b'serving []'); until('main'); mark('main'); wait_for('go'); mark('end')")
    os.kill(copied.pid, signal.SIGHUP)
    seen(folder, "quiet")
    child = children(copied.pid)[0]
    copied.process.send_signal(number)
    seen(folder, "told")
    seen(folder, "main")  # it has let clients in, so it is the service, and ends as it likes
    assert copied.alive and running(child)
    (folder / "go").touch()
    assert copied.wait() == 0
    assert (folder / "end").exists() and Successor(child).wait(bound(10)) == 0
    assert "was ended" not in copied.log()
    real_again(copied)
    copied.start()


def test_P2_a_successor_that_was_told_to_stop_and_does_not_serve_leaves_the_stop_to_the_old_one(copied):
    folder = play(copied, "told(); s.send(b'failed told to stop'); sys.exit(1)")
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        reload = pool.submit(copied.cli, "reload", check=False)
        seen(folder, "quiet")
        child = children(copied.pid)[0]
        copied.terminate()
        done = reload.result()
    assert copied.wait() == 0 and not running(child)
    assert done.returncode == 1 and "the gateway is stopping" in done.stderr, done
    assert "goes on as before" not in copied.log() and "all goes on" not in copied.log()
    real_again(copied)
    copied.start()


def test_P2_a_second_SIGTERM_ends_the_old_one_at_once_and_is_passed_on(copied):
    folder = play(copied, "told(); s.send(b'serving []'); until('main'); mark('main'); told() and mark('again')")
    os.kill(copied.pid, signal.SIGHUP)
    seen(folder, "quiet")
    copied.terminate()
    seen(folder, "main")
    wait_until(lambda: "draining for at most" in copied.log(), 10, "the drain")
    copied.terminate()
    assert copied.wait() == 1
    seen(folder, "again")
    real_again(copied)
    copied.start()


def test_P2_a_stop_before_the_successor_can_serve_kills_it_and_waits_for_nothing(copied):
    replace(copied, "#!/bin/sh\nexec sleep 100\n")
    os.kill(copied.pid, signal.SIGHUP)
    child = wait_until(lambda: children(copied.pid), 10, "the successor")[0]
    assert copied.stop() == 0 and not running(child)
    real_again(copied)
    copied.start()


def test_P2_a_stop_while_a_command_ends_waits_for_no_successor(copied):
    """An import is half sent: the successor waits for its end, and is gone when SIGTERM comes."""
    folder = play(copied, "")
    with contextlib.closing(socket.socket(socket.AF_UNIX)) as c:
        c.connect(str(copied.data / "admin.sock"))
        c.sendall(b"POST /v1/keys/import HTTP/1.1\r\nHost: x\r\nContent-Type: text/csv\r\nContent-Length: 1000\r\n\r\nname,key\n")
        wait_until(lambda: copied.cli("keys", "import", "-", input="name,key\n", check=False).returncode == 5, 10, "the import")
        os.kill(copied.pid, signal.SIGHUP)
        child = wait_until(lambda: children(copied.pid), 10, "the successor")[0]
        wait_until(lambda: "starts as the successor" in copied.log(), 10, "its line")
        copied.terminate()
        wait_until(lambda: not running(child), 10, "the end of the successor")
        assert not (folder / "quiet").exists()
    assert copied.wait() == 0
    real_again(copied)
    copied.start()


def test_P4_takeover_pause_bounds_the_wait_of_commands(copied):
    copied.settings = {**copied.settings, "takeover": "10m", "takeover_pause": "1s"}
    copied.configure()
    copied.reload()
    play(copied, "time.sleep(600)")
    refused(copied, "within 1000 ms", "takeover_pause")
    copied.create_key("the commands work")
    real_again(copied)
    copied.reload()


# --- this process is the one before

class Before:
    """The old side of a handover, for a successor in the folder of `gateway`, which must not run."""

    def __init__(self, gateway):
        self.gateway = gateway
        self.listener = socket.create_server(("127.0.0.1", 0), reuse_port=True)
        self.health = socket.create_server(("127.0.0.1", 0))
        self.admin = socket.socket(socket.AF_UNIX)
        self.admin.bind(str(gateway.data / "admin.sock"))
        self.admin.listen()
        self.lock = open(gateway.data / "lock", "a")
        self.line, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.line.settimeout(bound(20))
        gateway.configure()
        self.ready = gateway.folder / "ready"
        self.ready.unlink(missing_ok=True)
        with open(gateway.log_file, "ab") as log:
            self.process = subprocess.Popen(
                [PROGRAM, "serve", "--config", str(gateway.folder / "latchkey.toml"), "--ready-file", str(self.ready)],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, pass_fds=[theirs.fileno()], cwd=gateway.folder,
                env={**os.environ, "LATCHKEY_HANDOVER": str(theirs.fileno())})
        theirs.close()

    def give(self):
        file = os.stat(self.gateway.data / "admin.sock")
        estate = {"version": 1, "device": file.st_dev, "inode": file.st_ino, "health": {"host": "127.0.0.1", "port": 0},
                  "listen": [{"host": "127.0.0.1", "port": 0, "tls": False, "sockets": 1}]}
        for text, sockets in ("estate " + json.dumps(estate), (self.lock, self.health, self.admin)), ("sockets", (self.listener,)):
            rights = array.array("i", [s.fileno() for s in sockets])
            self.line.sendmsg([text.encode()], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)])

    def hear(self, word):
        said = self.line.recv(65536).decode()
        assert said.split(" ")[0] == word, said
        return said

    def end(self):
        return self.process.wait(bound(20))

    def served(self):
        with RawClient(self.listener.getsockname()) as c:
            problem(c.get("/x"), 401)

    def close(self):
        for one in (self.listener, self.health, self.admin, self.lock, self.line):
            one.close()
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        (self.gateway.data / "admin.sock").unlink(missing_ok=True)


@pytest.fixture
def before(up):
    gateway = Gateway(up, dict(QUICK))
    gateway.data.mkdir(mode=0o700)
    with contextlib.closing(Before(gateway)) as b:
        yield b
    assert not gateway.sanitizer_findings(), gateway.log()[-8000:]


def starting(b):
    """It waits for its estate; its signals are blocked by then."""
    wait_until(lambda: len(os.listdir(f"/proc/{b.process.pid}/task")) > 2, 10, "its threads, of the log and of the watch")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("prepared", [False, True], ids=["starting", "prepared"])
def test_P2_a_successor_told_to_stop_before_it_serves_gives_up_and_lets_nobody_in(before, number, prepared):
    if prepared:
        before.give()
        before.hear("prepared")
    else:
        starting(before)
    before.process.send_signal(number)
    assert "told to stop before it served" in before.hear("failed")
    assert before.end() == 1 and not before.ready.exists()
    with RawClient(before.listener.getsockname()):
        before.listener.settimeout(bound(10))
        before.listener.accept()  # its client is still ours


@pytest.mark.parametrize("prepared", [False, True], ids=["starting", "prepared"])
def test_P1_a_successor_whose_predecessor_dies_before_all_is_quiet_ends_at_once(before, prepared):
    if prepared:
        before.give()
        before.hear("prepared")
    else:
        starting(before)
    before.line.close()
    assert before.end() == 1
    assert "ended before it had handed over" in before.gateway.log()


def test_P1_a_successor_whose_predecessor_dies_when_all_is_quiet_is_the_service(before):
    before.give()
    before.hear("prepared")
    before.line.send(b"quiet")
    before.line.close()
    wait_until(before.ready.exists, 20, "the ready file")
    before.served()
    before.process.terminate()
    assert before.end() == 0


def test_P2_a_successor_told_to_stop_once_it_serves_ends_in_order_and_says_so_by_its_exit_code(before):
    before.give()
    before.hear("prepared")
    before.line.send(b"quiet")
    before.hear("serving")
    before.served()
    before.process.terminate()
    assert before.end() == 0 and not before.ready.exists()


@pytest.mark.parametrize("more", [0, 1], ids=["and_that_is_all", "and_once_more"])
@pytest.mark.parametrize("first", ["predecessor", "manager"])
def test_P2_a_stop_that_the_old_one_passes_on_and_the_service_manager_gives_too_is_one(before, up, first, more):
    """A manager tells all processes of a service at once, a terminal those of a job."""
    path, go = "/" + unique(), threading.Event()
    up.on(path, lambda x: (go.wait(bound(20)), x.answer(200, [], b"late")))
    before.give()
    before.hear("prepared")
    before.line.send(b"quiet")
    before.hear("serving")
    before.line.send(b"main")
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        made = pool.submit(before.gateway.create_key)
        before.line.send(b"done " + before.hear("refresh").split(" ")[1].encode())
        key = made.result()["key"]
    pid = before.process.pid

    def tell(who):
        if who == "predecessor":
            os.kill(pid, signal.SIGTERM)
        else:
            subprocess.run(["/bin/kill", "-TERM", str(pid)], check=True)
        wait_until(lambda: re.search(r"^ShdPnd:\s+0+$", pathlib.Path(f"/proc/{pid}/status").read_text(), re.M), 10, "its notice")
    with RawClient(before.listener.getsockname()) as flying:
        flying.request("GET", path, key)
        up.wait(lambda: up.seen(path))
        tell(first)
        wait_until(lambda: "draining for at most" in before.gateway.log(), 10, "the drain")
        tell("manager" if first == "predecessor" else "predecessor")
        if more:
            tell(first)
            assert before.end() == 1
            go.set()
        else:
            go.set()
            assert flying.response().body == b"late"
            assert before.end() == 0


def test_P3_SIGHUP_to_a_successor_that_starts_is_a_reload_when_it_may_have_one(before):
    starting(before)
    before.process.send_signal(signal.SIGHUP)
    before.give()
    before.hear("prepared")
    before.line.send(b"quiet")
    before.hear("serving")
    before.line.send(b"main")
    before.served()
    assert not children(before.process.pid)  # not while there is one before it
    before.line.close()
    assert before.end() == 0
    told = json.loads(before.ready.read_text())
    assert told["pid"] != before.process.pid
    before.served()
    last = Successor(told["pid"])
    last.send_signal(signal.SIGTERM)
    assert last.wait(bound(20)) == 0


def test_P2_SIGTERM_ends_a_start_that_waits_for_the_data_directory(tmp_path, up):
    gateway = Gateway(up)
    gateway.data.mkdir(mode=0o700)
    with open(gateway.data / "lock", "w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        gateway.launch()
        wait_until(lambda: len(os.listdir(f"/proc/{gateway.pid}/task")) > 2, 10, "its threads, of the log and of the watch")
        gateway.terminate()
        assert gateway.wait() == 0
    assert "is in use" not in gateway.log()


# --- both are real

@pytest.mark.parametrize("told", ["the old one", "both"])
def test_P2_SIGTERM_at_any_moment_of_a_reload_ends_both_in_order(live, told):
    """Swept over the time that a reload takes. What was answered is on record once, and the exit codes are 0. A service manager
    that stops a group of processes, and a terminal, tell both."""
    key, sent, handed, alone = live.create_key()["key"], [], 0, 0

    def ask():
        with live.client() as c:
            sent.append(unique("r"))
            served(c.get("/x", key, [("X-Request-Id", sent[-1])]))
    for step in range(24):
        ask()
        old, said = live.process, len(live.log())

        def started():  # on a busy machine all may be over before this process looks
            return children(old.pid) or [int(n) for n in re.findall(r"process (\d+) starts as", live.log()[said:])]
        os.kill(old.pid, signal.SIGHUP)
        child = wait_until(started, 10, "a successor", 0.0005)[0]
        live.before, live.process = [old], Successor(child)
        time.sleep(step * 0.002 * SLOW)  # the fault's moment
        old.send_signal(signal.SIGTERM)
        if told == "both":
            with contextlib.suppress(ProcessLookupError):
                os.kill(child, signal.SIGTERM)
        assert live.end_of(old) == 0
        if f"process {child} serves" not in live.log():
            assert live.wait() == -1  # the old one has waited for it
        else:
            handed += 1
            if told == "the old one" and running(child):  # let go just before the signal, which did not concern it then
                alone += 1
                ask()
                live.terminate()
            assert live.wait() == 0, live.log()[-3000:]
        assert not rings(live)
        live.start()
    print(f"{handed} of 24 had handed over, {alone} of them before the signal")
    on_record(live, sent)


@pytest.mark.parametrize("command", [None, "status", "keys list"])
def test_P1_a_successor_killed_while_the_old_one_drains_is_told_aloud_and_ends_that_one_soon(live, up, command):
    """A command that runs then takes the lock for a moment, but it is no gateway that serves."""
    path = "/" + unique()
    up.on(path, lambda x: x.until_closed())
    live.settings = {**live.settings, "client": {"idle": "1h", "takeover_idle": "1h"}, "drain": "1h"}
    live.configure()
    live.reload()
    key = live.create_key()["key"]
    with live.client() as idle, live.client() as flying:
        served(idle.get("/x", key))
        flying.request("GET", path, key)
        up.wait(lambda: up.seen(path))
        old = live.reload()
        live.process.kill()
        assert idle.end(20) == "fin"
        if command:
            live.cli(*command.split(), check=False)
        assert flying.end(20) in ("reset", "fin")
        assert old.wait(bound(20)) == 1
    live.before.remove(old)
    assert f"process {live.pid}, which took over, was killed by signal 9, and nobody accepts connections" in live.log()
    live.process.wait()
    live.settings = {**live.settings, **QUICK}
    live.start()
    assert {r["outcome"] for r in live.export() if r["path"] == path} == {"shut_down"}


def test_P2_a_successor_stopped_while_the_old_one_drains_leaves_it_its_time(live, up):
    path, go = "/" + unique(), threading.Event()
    up.on(path, lambda x: (go.wait(bound(30)), x.answer(200, [], b"late")))
    key = live.create_key()["key"]
    with live.client() as flying:
        flying.request("GET", path, key)
        up.wait(lambda: up.seen(path))
        old = live.reload()
        live.terminate()
        wait_until(lambda: not running(live.pid), 20, "its end")
        assert old.poll() is None
        go.set()
        assert flying.response().body == b"late"
    assert live.end_of(old) == 0
    assert live.wait() == 0
    assert "which took over" not in live.log()
    live.start()


def test_P4_takeover_idle_is_what_idle_connections_get(live):
    live.settings = {**live.settings, "client": {"idle": "1h", "takeover_idle": 0}}
    live.configure()
    live.reload()
    key = live.create_key()["key"]
    with live.client() as silent:
        served(silent.get("/x", key))
        old = live.reload()
        assert silent.end(4) == "fin"
    assert live.end_of(old) == 0


# --- addresses

def test_P4_the_health_address_may_change_its_host_and_keep_its_port(live):
    port = live.admin_address[1]
    live.settings["admin_listen"] = f"127.0.0.1:{port}"
    live.configure()
    live.reload()  # from port 0, which chose it: the same host, and the port is ours
    assert live.admin("/readyz").status == 200
    port = lasting_port()
    live.settings["admin_listen"] = f"127.0.0.1:{port}"
    live.configure()
    live.reload()
    for host, ask in (("0.0.0.0", "127.0.0.2"), ("127.0.0.1", "127.0.0.1"), ("[::]", "127.0.0.2"), ("127.0.0.3", "127.0.0.3")):
        live.settings["admin_listen"] = f"{host}:{port}"
        live.configure()
        live.reload()
        live.admin_address = (ask, port)
        assert live.admin("/readyz").status == 200
        with pytest.raises(OSError, match="in use"):  # nobody else comes to share it by mistake
            socket.create_server((ask, port))
    with socket.create_server(("127.0.0.1", 0)) as taken:  # the change is made, and the reload fails behind it
        kept = live.settings
        live.settings = {**kept, "admin_listen": f"0.0.0.0:{port}", "usage": {**kept["usage"], "ring_dir": "/proc/nowhere"}}
        live.configure()
        refused(live, "/proc/nowhere")
        live.settings = {**kept, "admin_listen": f"0.0.0.0:{port}", "listen": ["127.0.0.1:0", f"127.0.0.1:{taken.getsockname()[1]}"]}
        live.configure()
        refused(live, "cannot listen on")
        live.settings = kept
        live.configure()
    assert live.admin("/readyz").status == 200
    with pytest.raises(OSError, match="in use"):
        socket.create_server(("127.0.0.3", port))
