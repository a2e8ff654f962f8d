#!/usr/bin/python3
"""Starts the proxies of the comparison (Latchkey, nginx, HAProxy, the floor) on CPU 0, and the load generator with its upstream on
CPU 1, all on free loopback ports, and ends what it started. compare.py measures with it; from the command line it runs a command
against each proxy:

  bench/peers.py [--only latchkey,nginx] [--build DIR] -- wrk -t1 -c64 -d5s -H 'X-API-KEY: {key}' {url}/bytes/1024

{url}, {port}, {tls_port}, {key} (a good one), {keys} (CSV name,key), {pids} (comma-separated) and {name} are filled in.
"""
import argparse
import contextlib
import csv
import json
import os
import pathlib
import resource
import secrets
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time

HERE = pathlib.Path(__file__).resolve().parent
KEY_COUNT = 100_000
PROXY_CPU, LOAD_CPU = 0, 1
MACHINE = os.sched_getaffinity(0)  # before anybody pins this process
NAMES = ("latchkey", "nginx", "haproxy", "floor")
BEFORE = "before"  # another Latchkey, of LATCHKEY_BEFORE


class Failure(Exception):
    """What stops the comparison, in a sentence for whoever runs it."""


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def answers(port):
    with socket.socket() as s:
        s.settimeout(1)
        return s.connect_ex(("127.0.0.1", port)) == 0


def pinned(cpu):
    """For a child before its program starts; None: wherever this machine lets us. What the parent has pinned itself to does not count."""
    return lambda: os.sched_setaffinity(0, {cpu} & MACHINE or MACHINE)


def make_keys(file, count=KEY_COUNT):
    """Keys without a checksum of ours, so that every gateway takes them as they are."""
    with open(file, "w", newline="") as out:
        writer = csv.writer(out, lineterminator="\n")
        writer.writerow(("name", "key"))
        writer.writerows((f"app-{n:06d}", "ext-" + secrets.token_hex(18)) for n in range(count))


def make_certificate(folder):
    """One for all proxies: EC P-256, signed by itself. Its folder has server.pem, server.key, and both.pem for HAProxy."""
    subprocess.run(["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-noenc", "-days", "2", "-subj", "/CN=api.example.com",
                    "-keyout", folder / "server.key", "-out", folder / "server.pem"], check=True, capture_output=True, stdin=subprocess.DEVNULL)
    (folder / "both.pem").write_bytes((folder / "server.pem").read_bytes() + (folder / "server.key").read_bytes())


def http(port, method, path, key=None, body=b""):
    """One request on a connection of its own: (status, body)."""
    head = f"{method} {path} HTTP/1.1\r\nHost: api.example.com\r\nConnection: close\r\n"
    head += f"X-API-KEY: {key}\r\n" if key else ""
    head += f"Content-Length: {len(body)}\r\n" if body else ""
    with socket.create_connection(("127.0.0.1", port), 5) as s:
        s.settimeout(10)
        s.sendall(head.encode() + b"\r\n" + body)
        answer = b"".join(iter(lambda: s.recv(1 << 18), b""))
    text, _, rest = answer.partition(b"\r\n\r\n")
    return int(text.split()[1]), rest


class Process:
    def __init__(self, command, log, cpu, **pipes):
        self.log = log
        self.output = open(log, "ab")
        pipes.setdefault("stdin", subprocess.DEVNULL)
        pipes.setdefault("stdout", self.output)
        self.process = subprocess.Popen([str(c) for c in command], stderr=self.output, preexec_fn=pinned(cpu), **pipes)

    def pids(self):
        """The process and its children (nginx's worker)."""
        found, todo = [], [self.process.pid]
        while todo:
            pid = todo.pop()
            found.append(pid)
            with contextlib.suppress(OSError):
                todo += map(int, pathlib.Path(f"/proc/{pid}/task/{pid}/children").read_text().split())
        return found

    def wait_for(self, port, name):
        end = time.monotonic() + 60
        while not answers(port):
            if self.process.poll() is not None or time.monotonic() > end:
                raise Failure(f"{name} did not start: {pathlib.Path(self.log).read_text(errors='replace')[-2000:]}")
            time.sleep(0.02)

    def stop(self):
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(15)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        self.output.close()


class Load(Process):
    """bench_load with its upstream; one job at a time."""

    def __init__(self, program, folder):
        self.upstream = free_port()
        super().__init__([program, f"upstream={self.upstream}"], folder / "load.log", LOAD_CPU, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self.wait_for(self.upstream, "bench_load")

    def job(self, words, timeout=60):
        self.process.stdin.write(words.encode() + b"\n")
        self.process.stdin.flush()
        if not select.select([self.process.stdout], [], [], timeout)[0]:
            raise Failure(f"the load generator did not answer within {timeout} s: {words}")
        line = self.process.stdout.readline()
        if not line:
            raise Failure(f"the load generator ended at: {words}")
        answer = json.loads(line)
        if "error" in answer:
            raise Failure(f"{words}: {answer['error']}")
        return answer

    def stop(self):
        self.process.stdin.close()
        super().stop()


class Proxy:
    """One started proxy. `usage_lines()` says how many usage lines it has written by now."""

    def __init__(self, name, bench):
        self.name, self.bench, self.port, self.tls_port = name, bench, free_port(), free_port()
        self.folder = bench.folder / name
        self.folder.mkdir(mode=0o755)
        begin = time.monotonic()
        self.process = Process(getattr(self, "command_" + name)(), self.folder / "log", PROXY_CPU)
        try:
            self.process.wait_for(self.port, name)
        except Failure:
            self.process.stop()
            raise
        self.start_s = time.monotonic() - begin

    def fill(self, template, into):
        text = (HERE / "conf" / template).read_text()
        values = {"DIR": self.folder, "PORT": self.port, "UPSTREAM": self.bench.load.upstream, "LOG": self.folder / "usage.log",
                  "TLS_PORT": self.tls_port, "CERTIFICATE": self.bench.folder / "server.pem", "CERTIFICATE_KEY": self.bench.folder / "server.key",
                  "CERTIFICATE_AND_KEY": self.bench.folder / "both.pem"}
        for name, value in values.items():
            text = text.replace(f"@{name}@", str(value))
        (self.folder / into).write_text(text)
        return self.folder / into

    def command_nginx(self):
        with open(self.folder / "nginx.keys", "w") as out:
            out.writelines(f'"{key}" {name};\n' for name, key in self.bench.keys)
        for part in ("client", "proxy", "fastcgi", "uwsgi", "scgi"):
            (self.folder / f"nginx.{part}").mkdir()
        user = ["-g", "user root;"] if os.getuid() == 0 else []
        return [self.bench.programs["nginx"], "-e", self.folder / "nginx.error.log", "-c", self.fill("nginx.conf", "nginx.conf"), *user]

    def command_haproxy(self):
        with open(self.folder / "haproxy.keys", "w") as out:
            out.writelines(f"{key} {name}\n" for name, key in self.bench.keys)
        return [self.bench.programs["haproxy"], "-db", "-f", self.fill("haproxy.cfg", "haproxy.cfg")]

    def command_floor(self):
        return [self.bench.programs["floor"], self.port, self.bench.keys_file, self.bench.load.upstream]

    def command_before(self):
        return self.command_latchkey()

    def command_latchkey(self):
        program, data = self.bench.programs[self.name], self.folder / "data"
        done = subprocess.run([program, "keys", "import", self.bench.keys_file, "--data", data], capture_output=True, text=True)
        if done.returncode != 0:
            raise Failure(f"latchkey keys import: {done.stderr or done.stdout}")
        return [program, "serve", "--listen", f"127.0.0.1:{self.port}", "--admin-listen", f"127.0.0.1:{free_port()}", "--upstream",
                f"http://127.0.0.1:{self.bench.load.upstream}", "--data", data, "--workers", "1",
                "--tls-listen", f"127.0.0.1:{self.tls_port}", "--tls-cert", self.bench.folder / "server.pem", "--tls-key", self.bench.folder / "server.key"]

    def settle(self):
        """Latchkey packs its records later, in the background: here it does so at once, so that it is done in its own time."""
        if self.name in ("latchkey", BEFORE):
            done = subprocess.run([self.bench.programs[self.name], "usage", "export", "--data", self.folder / "data", "--from", "2100-01-01"], capture_output=True)
            if done.returncode != 0:
                raise Failure("latchkey usage export: " + done.stderr.decode(errors="replace"))

    def usage_lines(self):
        """None for the floor, whose records stay in memory."""
        if self.name == "floor":
            return None
        if self.name in ("latchkey", BEFORE):
            done = subprocess.run([self.bench.programs[self.name], "usage", "export", "--data", self.folder / "data"], capture_output=True)
            if done.returncode != 0:
                raise Failure("latchkey usage export: " + done.stderr.decode(errors="replace"))
            return max(0, done.stdout.count(b"\n") - 1)
        log = self.folder / ("usage.log" if self.name == "nginx" else "log")
        return log.read_bytes().count(b"\n") if log.exists() else 0

    def faults(self):
        """What it does not do that all have to do; empty when all is well."""
        found = []
        for name, key in (self.bench.keys[0], self.bench.keys[-1]):
            status, head = http(self.port, "GET", "/echo", key)
            fields = head.decode(errors="replace").lower()
            found += [] if status == 200 else [f"a good key: {status}"]
            found += ["the key reaches the upstream"] if key.lower() in fields or "x-api-key" in fields else []
            found += [] if f"\r\nx-consumer-id: {name}\r\n" in fields else ["no X-Consumer-Id for the upstream"]
        key = self.bench.keys[1][1]
        for what, wrong in (("no key", None), ("a wrong key", "ext-" + "0" * 36)):
            status, _ = http(self.port, "GET", "/echo", wrong)
            found += [] if status == 401 else [f"{what}: {status}"]
        status, body = http(self.port, "GET", f"/bytes/{10 << 20}", key)
        found += [] if status == 200 and len(body) == 10 << 20 else [f"10 MiB down: {status}, {len(body)} bytes"]
        status, body = http(self.port, "POST", "/up", key, b"u" * (1 << 20))
        found += [] if status == 200 and int(body or 0) == 1 << 20 else [f"1 MiB up: {status}, {body[:80]!r}"]
        return found + self.account_faults(key)

    def account_faults(self, key):
        before = self.usage_lines()
        if before is None:
            return []
        end = time.monotonic() + 10
        while self.usage_lines() < 6 and time.monotonic() < end:  # what was asked above has to be written first
            time.sleep(0.2)
        before = self.usage_lines()
        for _ in range(25):
            http(self.port, "GET", "/bytes/100", key)
        while (written := self.usage_lines() - before) < 25 and time.monotonic() < end + 10:
            time.sleep(0.2)
        return [] if written == 25 else [f"{written} usage lines for 25 requests"]

    def memory_kib(self):
        """Proportional set size of all its processes."""
        total = 0
        for pid in self.process.pids():
            with contextlib.suppress(OSError):
                for line in pathlib.Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
                    total += int(line.split()[1]) if line.startswith("Pss:") else 0
        return total


class Bench:
    """The load generator and the proxies, as a context: what was started is ended with it, and the scratch folder is removed."""

    def __init__(self, build, only=NAMES):
        build = pathlib.Path(build).resolve()
        given = {name: os.path.abspath(os.environ[name]) for name in ("LATCHKEY", "LATCHKEY_BEFORE") if os.environ.get(name)}
        self.programs = {"latchkey": given.get("LATCHKEY") or str(build / "latchkey"), BEFORE: given.get("LATCHKEY_BEFORE"), "floor": str(build / "bench_floor"),
                         "nginx": shutil.which("nginx", path="/usr/sbin:/usr/bin"), "haproxy": shutil.which("haproxy", path="/usr/sbin:/usr/bin")}
        self.load_program = build / "bench_load"
        self.only, self.notes, self.proxies = (*only, BEFORE) if self.programs[BEFORE] else only, [], []

    @staticmethod
    def alone(build, name):
        """One proxy and no other, whatever LATCHKEY_BEFORE says."""
        bench = Bench(build)
        bench.only = (name,)
        return bench

    def __enter__(self):
        if not os.access(self.load_program, os.X_OK):
            raise Failure(f"{self.load_program} is not built: cmake --preset bench && cmake --build --preset bench")
        hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        self.folder = pathlib.Path(tempfile.mkdtemp(prefix="latchkey-bench-"))
        self.folder.chmod(0o755)
        self.load = None
        try:
            self.keys_file = self.folder / "keys.csv"
            make_keys(self.keys_file)
            make_certificate(self.folder)
            with open(self.keys_file, newline="") as f:
                self.keys = list(csv.reader(f))[1:]
            self.load = Load(self.load_program, self.folder)
            self.start_proxies()
        except BaseException:
            self.__exit__()
            raise
        return self

    def start_proxies(self):
        for name in self.only:
            program = self.programs[name]
            if not program or not os.access(program, os.X_OK):
                self.notes.append(f"{name} is left out: it is not there ({program or 'apt-get install ' + ('nginx-light' if name == 'nginx' else name)})")
                continue
            self.proxies.append(Proxy(name, self))
        if not self.proxies:
            raise Failure("nothing to measure: " + "; ".join(self.notes))

    def __exit__(self, *_):
        for proxy in self.proxies:
            proxy.process.stop()
        if self.load:
            self.load.stop()
        shutil.rmtree(self.folder, ignore_errors=True)


def run(main):
    """How a script ends: by what its main() says, a failure in one line, and 143 or 130 where a signal ended it (with all that it started)."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        sys.exit(main())
    except Failure as failure:
        sys.exit(f"bench/{pathlib.Path(sys.argv[0]).name}: {failure}")
    except KeyboardInterrupt:
        sys.exit(130)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default=",".join(NAMES[:3]))
    parser.add_argument("--build", default=HERE.parent / "build" / "release")
    parser.add_argument("command", nargs=argparse.REMAINDER)
    args = parser.parse_args()
    command = args.command[1:] if args.command[:1] == ["--"] else args.command
    if not command or set(args.only.split(",")) - set(NAMES):
        parser.error("a command is needed, and --only knows " + ", ".join(NAMES))
    code = 0
    with Bench(args.build, args.only.split(",")) as bench:
        for note in bench.notes:
            print("note:", note, file=sys.stderr)
        for proxy in bench.proxies:
            values = {"url": f"http://127.0.0.1:{proxy.port}", "port": str(proxy.port), "tls_port": str(proxy.tls_port), "key": bench.keys[0][1], "keys": str(bench.keys_file),
                      "pids": ",".join(map(str, proxy.process.pids())), "name": proxy.name}
            filled = command
            for name, value in values.items():
                filled = [word.replace("{" + name + "}", value) for word in filled]
            print(f"== {proxy.name}", flush=True)
            code = subprocess.run(filled, preexec_fn=pinned(LOAD_CPU)).returncode or code
    return code


if __name__ == "__main__":
    run(main)
