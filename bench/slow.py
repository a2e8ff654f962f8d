#!/usr/bin/python3
"""slowhttptest's three modes against Latchkey on loopback, and what another client sees meanwhile.

  bench/slow.py [--connections N] [--seconds N] [--program PATH]

Slow heads (-H, Slowloris), slow bodies (-B) and slow readers (-X) in turn, each bounded. The attackers have a key, so that bodies and
downloads get as far as they can; they come from this machine, which limits.connections_per_address does not count, so nothing but
the deadlines and the bounds of memory and requests stands against them. Two clients probe all the while: one keeps its connection, one
opens a new one for every request. Printed: what the probes got and their latencies, slowhttptest's own verdict, and the gateway's memory.
"""
import argparse
import asyncio
import contextlib
import http.client
import json
import multiprocessing
import pathlib
import re
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time

ROOT = pathlib.Path(__file__).resolve().parents[1]
MODES = {"slow heads": ["-H", "-i", "2", "-x", "24"], "slow bodies": ["-B", "-i", "2", "-s", "8192", "-x", "10"],
         "slow readers": ["-X", "-w", "512", "-y", "1024", "-n", "5", "-z", "32", "-k", "3"]}


async def answer(reader, writer):
    """Reads each request whole and answers: /bytes/N with N bytes, everything else with two."""
    with contextlib.suppress(OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
        while True:
            head = await reader.readuntil(b"\r\n\r\n")
            length = re.search(rb"\r\nContent-Length: (\d+)", head)
            if length:
                await reader.readexactly(int(length[1]))
            size = re.match(rb"GET /bytes/(\d+)", head)
            size = int(size[1]) if size else 2
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % size)
            for at in range(0, size, 65536):
                writer.write(b"x" * min(65536, size - at))
                await writer.drain()
    writer.close()


def serve(port):
    """An upstream that has room for everyone: what is tried is the gateway."""
    async def main():
        server = await asyncio.start_server(answer, "127.0.0.1", 0, backlog=4096)
        port.send(server.sockets[0].getsockname()[1])
        await server.serve_forever()
    asyncio.run(main())


class Gateway:
    def __init__(self, program):
        mine, its = multiprocessing.Pipe()
        self.upstream = multiprocessing.Process(target=serve, args=(its,), daemon=True)
        self.upstream.start()
        self.folder = pathlib.Path(tempfile.mkdtemp(prefix="latchkey-slow-"))
        data, ready = self.folder / "data", self.folder / "ready"
        self.log = open(self.folder / "log", "w")
        self.process = subprocess.Popen([program, "serve", "--upstream", f"http://127.0.0.1:{mine.recv()}", "--listen", "127.0.0.1:0", "--admin-listen", "127.0.0.1:0", "--data", data,
                                         "--ready-file", ready], stdout=self.log, stderr=self.log)
        until = time.monotonic() + 10
        while not ready.exists():
            if self.process.poll() is not None or time.monotonic() > until:
                sys.exit("bench/slow.py: the gateway did not start:\n" + (self.folder / "log").read_text())
            time.sleep(0.02)
        self.address = json.loads(ready.read_text())["listen"][0]
        made = subprocess.run([program, "keys", "create", "--name", "slow", "--json", "--data", data], check=True, capture_output=True)
        self.key = json.loads(made.stdout)["key"]

    @property
    def rss_mib(self):
        status = pathlib.Path(f"/proc/{self.process.pid}/status").read_text()
        return int(re.search(r"VmRSS:\s+(\d+)", status)[1]) / 1024

    def stop(self):
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(40)
        except subprocess.TimeoutExpired:
            self.process.kill()
        self.log.close()
        self.upstream.terminate()
        shutil.rmtree(self.folder, ignore_errors=True)


class Probe(threading.Thread):
    """A request every 50 ms; `got` counts statuses and failures by name."""

    def __init__(self, gateway, keeps):
        super().__init__(daemon=True)
        self.gateway, self.keeps, self.got, self.took_ms, self.over = gateway, keeps, {}, [], threading.Event()
        self.start()

    def run(self):
        connection = None
        while not self.over.wait(0.05):
            began = time.monotonic()
            try:
                connection = connection or http.client.HTTPConnection(self.gateway.address, timeout=10)
                connection.request("GET", "/probe", headers={"X-API-KEY": self.gateway.key})
                response = connection.getresponse()
                response.read()
                what = response.status
                if not self.keeps or response.will_close:
                    connection.close()
                    connection = None
            except (OSError, http.client.HTTPException) as failure:
                what, connection = type(failure).__name__, None
            self.took_ms.append((time.monotonic() - began) * 1000)
            self.got[what] = self.got.get(what, 0) + 1

    def stop(self):
        self.over.set()
        self.join(15)
        took = sorted(self.took_ms) or [0.0]
        return f"{self.got}, median {statistics.median(took):.1f} ms, 99 % {took[int(len(took) * 0.99)]:.1f} ms, most {took[-1]:.1f} ms"


def attack(gateway, mode, words, connections, seconds):
    path = "/bytes/4194304" if mode == "slow readers" else "/form"
    # slowhttptest has no option for a field: the key goes in behind the value of one that it sends.
    field = ["-m", "*/*\r\nX-API-KEY: " + gateway.key]
    command = ["slowhttptest", *words, "-c", str(connections), "-r", str(max(100, connections // 4)), "-l", str(seconds), "-p", "3", *field,
               "-u", f"http://{gateway.address}{path}"]
    if mode == "slow bodies":
        command += ["-t", "POST"]
    probes = {"kept": Probe(gateway, True), "new": Probe(gateway, False)}
    most = gateway.rss_mib
    with open(gateway.folder / "slowhttptest", "w+") as out:
        tool = subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL)
        try:
            until = time.monotonic() + seconds + 20
            while tool.poll() is None and time.monotonic() < until:
                most = max(most, gateway.rss_mib)
                time.sleep(0.1)
        finally:
            if tool.poll() is None:
                tool.kill()
                tool.wait()
        out.seek(0)
        said = re.sub(r"\x1b\[[0-9;]*[mJH]", "", out.read())
    print(f"{mode}: {connections} connections, {seconds} s, memory at most {most:.0f} MiB")
    for name, probe in probes.items():
        print(f"  {name:5} {probe.stop()}")
    available = re.findall(r"service available:\s+(\w+)", said)
    ends = re.findall(r"(initializing|pending|connected|error|closed):\s+(\d+)", said)[-5:]
    print(f"  slowhttptest: service available in {available.count('YES')} of {len(available)} reports; at its end "
          + ", ".join(f"{n} {name}" for name, n in ends), flush=True)
    return all(set(p.got) == {200} for p in probes.values())


def main():
    words = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    words.add_argument("--connections", type=int, default=1000)
    words.add_argument("--seconds", type=int, default=20)
    words.add_argument("--program", default=str(ROOT / "build/release/latchkey"))
    asked = words.parse_args()
    if not shutil.which("slowhttptest"):
        sys.exit("bench/slow.py: slowhttptest is missing: apt-get install slowhttptest")
    gateway = Gateway(asked.program)
    try:
        fine = [attack(gateway, mode, how, asked.connections, asked.seconds) for mode, how in MODES.items()]
    finally:
        gateway.stop()
    print("every probe was served" if all(fine) else "probes were refused or lost")
    return 0 if all(fine) else 1


if __name__ == "__main__":
    sys.exit(main())
