"""The program under test: started, watched, spoken to by its command line, and ended.

Environment: LATCHKEY (the program; default build/release/latchkey), LATCHKEY_SLOW (factor on every bound; see README.md).
"""
import atexit
import contextlib
import csv
import ctypes
import io
import itertools
import json
import os
import pathlib
import random
import re
import resource
import shutil
import signal
import socket
import subprocess
import tempfile
import time

from upstream import Blackhole, Upstream, describe, refused_port
from wire import (SLOW, Broken, Fields, Malformed, RawClient, Response, TimedOut, TlsClient, bound, chunked, request_bytes, reset,
                  tls_rules)

# What the tests take from here although it lives elsewhere.
__all__ = ["SLOW", "Blackhole", "Broken", "Malformed", "RawClient", "Response", "TimedOut", "TlsClient", "Upstream", "bound",
           "chunked", "describe", "refused_port", "request_bytes", "reset", "tls_rules"]

ROOT = pathlib.Path(__file__).resolve().parents[2]
# Usage rings of this run lie in a folder of its own on tmpfs: those of killed gateways would stay in memory else.
os.environ["RUNTIME_DIRECTORY"] = tempfile.mkdtemp(prefix="latchkey-e2e-", dir="/dev/shm")
atexit.register(shutil.rmtree, os.environ["RUNTIME_DIRECTORY"], ignore_errors=True)

# A gateway that a gateway started becomes a child of this process when the one before it ends.
assert ctypes.CDLL(None).prctl(36, 1, 0, 0, 0) == 0, "PR_SET_CHILD_SUBREAPER"

# LATCHKEY_IO_URING=false: the whole suite without it, as where the kernel has none.
IO_URING = os.environ.get("LATCHKEY_IO_URING", "true") == "true"
PROGRAM = str(ROOT / os.environ.get("LATCHKEY", "build/release/latchkey"))
SANITIZER = re.compile(r"ERROR: \w+Sanitizer|WARNING: ThreadSanitizer|runtime error:|SUMMARY: \w+Sanitizer|ERROR: LeakSanitizer")
CSV_COLUMNS = ("time,request_id,application,application_id,key_id,api,method,host,path,status,outcome,request_bytes,"
               "response_bytes,duration_ms,upstream_ms,client_ip").split(",")
serials = itertools.count(1)


def unique(stem="t"):
    """A text that no other test of this run has: for paths and request ids."""
    return f"{stem}-{os.getpid():x}-{next(serials)}"


def lasting_port():
    """A port that is free at every address and stays so: the kernel gives it to nobody who asks for any, unless it has been told to
    give them all. (One that it gave to 127.0.0.1 may be another test's at 127.0.0.2 meanwhile, and is then not to be had at 0.0.0.0.)"""
    lowest, highest = map(int, pathlib.Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split())
    ports = range(max(1024, lowest - 12_000), lowest) or range(highest + 1, 65_536) or range(lowest, highest)
    for _ in range(100):
        port = random.choice(ports)
        with contextlib.suppress(OSError), socket.create_server(("0.0.0.0", port)):
            return port
    raise AssertionError(f"no free port in {ports}")


def wait_until(condition, timeout=10, what="the condition", pause=0.01):
    """Polls until `condition()` is true; its value. For states that no event announces (another process, the kernel)."""
    deadline = time.monotonic() + bound(timeout)
    while True:
        value = condition()
        if value:
            return value
        assert time.monotonic() < deadline, f"{what} did not come about in {bound(timeout)} s"
        time.sleep(pause)


def raise_descriptor_limit():
    """The soft limit to the hard one; the limit that holds then."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard


def toml_value(value):
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(toml_value(v) for v in value) + "]"
    return json.dumps(value)


def toml(settings):
    """Nested dicts as TOML; a list of dicts becomes [[name]] sections."""
    out = []

    def table(values, path, header):
        if header:
            out.append(header)
        for name, value in values.items():
            if not isinstance(value, dict) and not (isinstance(value, list) and value and isinstance(value[0], dict)):
                out.append(f"{name} = {toml_value(value)}")
        for name, value in values.items():
            inner = f"{path}{name}"
            if isinstance(value, dict):
                table(value, inner + ".", f"[{inner}]")
            elif isinstance(value, list) and value and isinstance(value[0], dict):
                for entry in value:
                    table(entry, inner + ".", f"[[{inner}]]")

    table(settings, "", "")
    return "\n".join(out) + "\n"


def temporary_folder(kind):
    """A new folder that goes when the run ends."""
    folder = pathlib.Path(tempfile.mkdtemp(prefix=f"latchkey-{kind}-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


class Successor:
    """A gateway that another one started, with what the harness needs of subprocess.Popen. Its end is seen when its parent has
    ended, too: this process then gets it as its child."""

    def __init__(self, pid):
        self.pid, self.returncode = pid, None

    def poll(self):
        if self.returncode is None:
            try:
                done, status = os.waitpid(self.pid, os.WNOHANG)
                self.returncode = os.waitstatus_to_exitcode(status) if done else None
            except ChildProcessError:  # its parent lives, or was there a moment ago
                if not os.path.exists(f"/proc/{self.pid}"):
                    self.returncode = -1
        return self.returncode

    def wait(self, timeout=None):
        deadline = time.monotonic() + (timeout or 60)
        while self.poll() is None:
            if time.monotonic() > deadline:
                raise subprocess.TimeoutExpired(["latchkey"], timeout)
            time.sleep(0.01)
        return self.returncode

    def send_signal(self, number):
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self):
        self.send_signal(signal.SIGKILL)


def running(pid):
    try:
        return pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


class Gateway:
    """One gateway with a data directory of its own.

    upstream: an Upstream or URL for the api "default"; settings: more TOML as nested dicts (an `api` list replaces the default);
    prefix: words put before the program (prlimit, ...); flags: more of `serve`'s; program: another file; environment: more of it.
    The data directory outlives stop() and kill(), so start() resumes."""

    def __init__(self, upstream=None, settings=None, data=None, prefix=(), workers=2, program=PROGRAM, environment=None, flags=()):
        self.program, self.environment, self.before = program, {**os.environ, **(environment or {})}, []
        self.folder = temporary_folder("e2e")
        self.data = pathlib.Path(data) if data else self.folder / "data"
        self.prefix, self.flags, self.process, self.runs = list(prefix), list(flags), None, 0
        self.log_file = self.folder / "log"
        self.settings = {"io_uring": IO_URING, "listen": ["127.0.0.1:0"], "admin_listen": "127.0.0.1:0", "data_dir": str(self.data), "workers": workers,
                         "log": {"level": "info"}, **(settings or {})}
        if upstream is not None and "api" not in self.settings:
            url = upstream.url if isinstance(upstream, Upstream) else upstream
            self.settings["api"] = [{"name": "default", "upstreams": [url], "deadlines": {"idle": "1s"}}]

    # --- its life

    def start(self, timeout=15):
        self.launch()
        ready = self.folder / "ready"
        wait_until(lambda: ready.exists() or not self.alive, timeout, "the ready file")
        assert self.alive, f"the gateway did not start (exit {self.process.returncode}):\n{self.log()[-3000:]}"
        told = wait_until(lambda: self._ready(ready), 5, "a whole ready file")
        self.address, self.tls_address = (self._first(told[name]) for name in ("listen", "tls_listen"))
        admin_host, admin_port = told["admin_listen"].rsplit(":", 1)
        self.admin_address = (admin_host, int(admin_port))
        self.told = told
        assert told["pid"] == self.pid
        return self

    def launch(self):
        """Starts the program without waiting for it."""
        config = self.folder / "latchkey.toml"
        config.write_text(toml(self.settings))
        ready = self.folder / "ready"
        ready.unlink(missing_ok=True)
        self.runs += 1
        with open(self.log_file, "ab") as log:
            self.process = subprocess.Popen(
                [*self.prefix, self.program, "serve", "--config", str(config), "--ready-file", str(ready), *self.flags],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=self.folder, env=self.environment)
        return self.process

    # --- restarts in place

    def configure(self):
        """Writes the settings as they are now."""
        (self.folder / "latchkey.toml").write_text(toml(self.settings))

    def reload(self, timeout=60):
        """`latchkey reload`, which must go well; the process of before, which drains."""
        old = self.process
        said = self.cli("reload", timeout=timeout).stdout
        self.follow()
        assert said == f"process {self.pid} serves\n" and self.pid != old.pid
        return old

    def follow(self):
        """Takes the process that the ready file names for the gateway."""
        told = self._ready(self.folder / "ready")
        if told["pid"] != self.pid:
            self.before.append(self.process)
            self.process = Successor(told["pid"])
        self.told = told
        return self

    def end_of(self, old, timeout=20):
        """The exit code of a process that handed over."""
        code = old.wait(bound(timeout))
        self.before.remove(old)
        assert not self.sanitizer_findings(), self.log()[-8000:]
        return code

    def refuse_to_start(self, timeout=15):
        """Starts the program, which must end by itself with an error; what it said."""
        self.log_file.write_text("")
        self.launch()
        try:
            code = self.wait(timeout)
        finally:
            if self.alive:
                self.kill()
        assert code > 0, f"exit code {code}:\n{self.log()[-3000:]}"
        return self.log()

    @staticmethod
    def _first(addresses):
        if not addresses:
            return None
        host, port = addresses[0].rsplit(":", 1)
        return host, int(port)

    @staticmethod
    def _ready(file):
        try:
            return json.loads(file.read_text())
        except ValueError:
            return None

    @property
    def pid(self):
        return self.process.pid

    @property
    def alive(self):
        return self.process is not None and self.process.poll() is None

    def terminate(self):
        self.process.send_signal(signal.SIGTERM)

    def wait(self, timeout=20):
        """Its exit code. A sanitizer's finding fails every test that waits for an end, one that expects an error too."""
        code = self.process.wait(bound(timeout))
        assert not self.sanitizer_findings(), self.log()[-8000:]
        return code

    def stop(self, timeout=20):
        """SIGTERM; the exit code."""
        if self.alive:
            self.terminate()
        try:
            return self.wait(timeout)
        except subprocess.TimeoutExpired:
            self.kill()
            raise AssertionError(f"SIGTERM did not end the gateway:\n{self.log()[-3000:]}") from None

    def kill(self):
        for process in (*self.before, self.process):
            process.kill()
            process.wait()
        self.before = []
        assert not self.sanitizer_findings(), self.log()[-8000:]

    # --- what it costs and says

    def log(self):
        return self.log_file.read_text(errors="replace") if self.log_file.exists() else ""

    def sanitizer_findings(self):
        return [line for line in self.log().splitlines() if SANITIZER.search(line)]

    def status_bytes(self, name):
        for line in pathlib.Path(f"/proc/{self.pid}/status").read_text().splitlines():
            if line.startswith(name + ":"):
                return int(line.split()[1]) * 1024
        raise KeyError(name)

    @property
    def rss(self):
        return self.status_bytes("VmRSS")

    @property
    def descriptors(self):
        return len(os.listdir(f"/proc/{self.pid}/fd"))

    @property
    def cpu_seconds(self):
        parts = pathlib.Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(parts[11]) + int(parts[12])) / os.sysconf("SC_CLK_TCK")

    def client(self, **how):
        return RawClient(self.address, **how)

    def tls_client(self, **how):
        """Trusts the gateway's first certificate, unless told otherwise."""
        if "trusted" not in how and "rules" not in how:
            how["trusted"] = self.settings["tls"]["certificate"][0]["chain"]
        return TlsClient(self.tls_address, **how)

    def admin(self, path):
        with RawClient(self.admin_address) as c:
            c.request("GET", path, host="localhost", fields=[("Connection", "close")])
            return c.response()

    def metric(self, name):
        """The sum of a metric's samples."""
        body = self.admin("/metrics").body.decode()
        found = re.findall(rf"^{re.escape(name)}(?:\{{[^}}]*\}})? ([0-9.e+-]+)$", body, re.M)
        assert found, f"no metric {name} in:\n{body[:2000]}"
        return sum(float(v) for v in found)

    # --- its command line

    def cli(self, *words, check=True, input=None, timeout=30, through=(), stdout=subprocess.PIPE):
        """`through`: words that run the command; stdout: where it writes, if not into what is returned."""
        done = subprocess.run([*through, PROGRAM, *words, "--data", str(self.data)], stdout=stdout, stderr=subprocess.PIPE, text=True, input=input,
                              timeout=bound(timeout), stdin=None if input is not None else subprocess.DEVNULL)
        assert not SANITIZER.search(done.stderr), done.stderr
        if check:
            assert done.returncode == 0, f"{words} -> {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done

    def create_key(self, name="tester"):
        """{'id', 'key', 'application_id', 'name'}"""
        return json.loads(self.cli("keys", "create", "--name", name, "--json").stdout)

    def export(self):
        """Every usage record as a dict, oldest first."""
        return parse_usage(self.cli("usage", "export").stdout)

    def records(self, request_id, count=1, timeout=5):
        """The records of one request id, once there are `count`."""
        def found():
            rows = [r for r in self.export() if r["request_id"] == request_id]
            return rows if len(rows) >= count else None
        return wait_until(found, timeout, f"{count} usage record(s) of {request_id}", 0.05)

    def record(self, request_id):
        """The one record of a request id."""
        rows = self.records(request_id)
        assert len(rows) == 1, f"{len(rows)} records of {request_id}: {rows}"
        return rows[0]


def parse_usage(text):
    reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
    rows = list(reader)
    assert reader.fieldnames == CSV_COLUMNS, reader.fieldnames
    for row in rows:
        assert None not in row and None not in row.values(), f"torn row {row}"
    return rows


def problem(response, status, code=None):
    """Asserts a refusal of the gateway's own (RFC 9457); its members."""
    statuses = [status] if isinstance(status, int) else status
    assert response.status in statuses, f"wanted {statuses}: {response}"
    assert response.fields.get("content-type") == "application/problem+json", response
    told = json.loads(response.body)
    for name in ("type", "title", "status", "detail", "instance", "code", "request_id"):
        assert name in told, f"{name} is missing: {told}"
    assert told["status"] == response.status
    if code:
        assert told["code"] in ([code] if isinstance(code, str) else code), told
    return told


def served(response, status=200):
    """Asserts that the upstream answered; for the default script, what it was told."""
    assert response.status == status and response.complete, response
    return json.loads(response.body) if response.fields.get("content-type") == "application/json" else None


def pipes_of(gateway):
    """How many of its descriptors are ends of pipes that it made itself (its standard streams may be pipes, too)."""
    found = 0
    for file in pathlib.Path(f"/proc/{gateway.pid}/fd").iterdir():
        with contextlib.suppress(OSError):
            found += int(file.name) > 2 and os.readlink(file).startswith("pipe:")
    return found


def told_fields(told):
    return Fields((n, v) for n, v in told["fields"])


def certificate(folder, *names, stem="server", days=30, key="ec", words=()):
    """A throw-away certificate of its own signature for these names or addresses (default: localhost) in `folder`, as
    [[tls.certificate]] wants it. days: from now, less than 0 for one that has expired; key: "ec" (P-256) or "rsa:BITS"; words: more for `openssl req`."""
    names = names or ("localhost",)
    chain, secret = pathlib.Path(folder) / f"{stem}.pem", pathlib.Path(folder) / f"{stem}.key"
    kind = ["ec", "-pkeyopt", "ec_paramgen_curve:P-256"] if key == "ec" else [key]
    subprocess.run(["openssl", "req", "-x509", "-newkey", *kind, "-noenc", "-keyout", str(secret), "-out", str(chain),
                    "-days", str(max(days, 1)), "-subj", f"/CN={names[0]}",
                    "-addext", "subjectAltName=" + ",".join(("IP:" if n[0].isdigit() else "DNS:") + n for n in names), *words],
                   check=True, capture_output=True, stdin=subprocess.DEVNULL)
    if days < 1:
        subprocess.run(["openssl", "x509", "-in", str(chain), "-signkey", str(secret), "-days", str(days), "-out", str(chain)],
                       check=True, capture_output=True)
    return {"chain": str(chain), "key": str(secret)}


def tls_settings(*certificates, **more):
    """Settings for a gateway that listens for TLS, beside its plain port: {"tls": ..., **more}."""
    return {"tls": {"listen": ["127.0.0.1:0"], "certificate": list(certificates)}, **more}


class Nginx:
    """Debian's nginx as an upstream: its own prefix and configuration, in the foreground. `root` is served at /, unless `server` says
    something else; `http` are more lines of that section. FOLDER in both is a folder of its own."""

    def __init__(self, program="/usr/sbin/nginx", http="", server=""):
        self.folder = temporary_folder("nginx")
        self.root = self.folder / "root"
        self.root.mkdir()
        self.folder.chmod(0o755)
        self.port = lasting_port()
        self.url = f"http://127.0.0.1:{self.port}"
        config = self.folder / "nginx.conf"
        temp = "".join(f"    {n}_temp_path {self.folder}/{n};\n" for n in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi"))
        server = server or f"""
        root {self.root};
        location /put/ {{ proxy_pass http://127.0.0.1:{self.port}/sink/; }}
        location /sink/ {{ return 204; }}"""
        config.write_text(f"""
daemon off; worker_processes 1; pid {self.folder}/pid; error_log {self.folder}/error.log;
{"user root;" if os.getuid() == 0 else ""}
events {{ worker_connections 512; }}
http {{
    access_log off; keepalive_timeout 5; client_max_body_size 0;
{temp}{http}
    server {{
        listen 127.0.0.1:{self.port};{server}
    }}
}}
""".replace("FOLDER", str(self.folder)))
        self.process = subprocess.Popen([program, "-p", str(self.folder), "-c", str(config)], stdin=subprocess.DEVNULL,
                                        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        wait_until(self._up, 10, "nginx")

    def _up(self):
        assert self.process.poll() is None, (self.folder / "error.log").read_text()
        with socket.socket() as s:
            return s.connect_ex(("127.0.0.1", self.port)) == 0

    def stop(self):
        self.process.terminate()
        self.process.wait(10)
