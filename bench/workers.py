#!/usr/bin/python3
"""What a second worker on a second core adds: requests a second of two over those of one.

  bench/workers.py [--rounds N] [--seconds N] [--check 1.9] [--build DIR]

A gateway with one worker has CPU 0, with all its threads; one with two workers has CPUs 0 and 1. On two cores a load that makes whole
exchanges would need one of them for itself. So this one sends requests that are refused, pipelined by the hundred: the gateway parses,
routes, looks the key up, answers and keeps its account for each one singly, while the load only moves bytes and counts them. Its share
of the CPU is printed, and what it takes of CPU 1 the second worker cannot have. So two ratios are: as measured, and for as much CPU
as two whole cores have (the requests that a second of the gateway's CPU time serves, with two workers and with one, times two).
Rounds of one slice each, in turns first; the median of the ratios within a round counts. Each slice starts with an empty account.
"""
import argparse
import contextlib
import os
import pathlib
import selectors
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time

from compare import cpu_seconds, spread
from peers import HERE, MACHINE, PROXY_CPU, Failure, Process, free_port, make_keys, run

CONNECTIONS, PIPELINED = 32, 400  # one small buffer of the gateway's holds so many
REQUEST = b"GET /resource HTTP/1.1\r\nHost: api.example.com\r\nX-API-KEY: ext-" + b"0" * 36 + b"\r\n\r\n"


class Gateway:
    def __init__(self, program, data, folder, workers, cpus):
        self.program, self.data, self.port, self.workers = program, data, free_port(), workers
        command = [program, "serve", "--listen", f"127.0.0.1:{self.port}", "--admin-listen", f"127.0.0.1:{free_port()}", "--upstream",
                   f"http://127.0.0.1:{free_port()}", "--data", data, "--workers", str(workers)]
        self.process = Process(["/usr/bin/taskset", "-c", ",".join(map(str, sorted(cpus))), *command], folder / f"log-{workers}", None)
        try:
            self.process.wait_for(self.port, f"the gateway with {workers} workers")
        except Failure:
            self.process.stop()
            raise

    def settle(self):
        subprocess.run([self.program, "usage", "export", "--data", self.data, "--from", "2100-01-01"], check=True, capture_output=True)


def read_one(s):
    """One whole answer: its bytes."""
    s.sendall(REQUEST)
    answer = b""
    while b"\r\n\r\n" not in answer:
        answer += s.recv(65536)
    head, _, body = answer.partition(b"\r\n\r\n")
    length = next(int(line.split(b":")[1]) for line in head.split(b"\r\n") if line.lower().startswith(b"content-length:"))
    while len(body) < length:
        body += s.recv(65536)
    if not head.startswith(b"HTTP/1.1 401 "):
        raise Failure(f"a wrong key was answered by {head[:80]!r}")
    return len(head) + 4 + len(body)


def load(gateway, seconds):
    """Keeps PIPELINED requests on each connection for so long: answers a second."""
    block, into = REQUEST * PIPELINED, bytearray(1 << 20)
    poll = selectors.DefaultSelector()
    got, wanted = {}, 0
    with contextlib.ExitStack() as open_ones:
        open_ones.enter_context(contextlib.closing(poll))
        for _ in range(CONNECTIONS):
            s = open_ones.enter_context(socket.create_connection(("127.0.0.1", gateway.port), 5))
            wanted = PIPELINED * read_one(s)
            s.setblocking(False)
            s.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, wanted)  # to be woken once for a block
            s.send(block)
            got[s] = 0
            poll.register(s, selectors.EVENT_READ)
        begin, blocks = time.monotonic(), 0
        while (now := time.monotonic()) < begin + seconds:
            for ready, _ in poll.select(0.1):
                s = ready.fileobj
                n = s.recv_into(into, 0, socket.MSG_TRUNC)  # counted, not copied
                got[s] += n
                if n == 0 or got[s] > wanted:
                    raise Failure(f"{got[s]} bytes came of {wanted}")
                if got[s] == wanted:
                    if s.send(block) != len(block):
                        raise Failure("a block of requests was not taken whole")
                    got[s], blocks = 0, blocks + 1
        return blocks * PIPELINED / (now - begin)


def sample(gateway, seconds):
    load(gateway, 0.2)
    gateway.settle()
    own, used, begin = cpu_seconds([os.getpid()]), cpu_seconds(gateway.process.pids()), time.monotonic()
    rate = load(gateway, seconds)
    span = time.monotonic() - begin
    return {"rate": rate, "load": (cpu_seconds([os.getpid()]) - own) / span, "gateway": (cpu_seconds(gateway.process.pids()) - used) / span}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--seconds", type=float, default=1.0, help="of a slice")
    parser.add_argument("--check", type=float, metavar="RATIO", help="exit 1 if the median for two whole cores is under it (the goal is 1.9)")
    parser.add_argument("--build", default=HERE.parent / "build" / "release", help="folder with latchkey; LATCHKEY names another program")
    args = parser.parse_args()
    second = sorted(MACHINE - {PROXY_CPU})[:1]
    if not second or PROXY_CPU not in MACHINE:
        raise Failure("two cores are needed")
    program = pathlib.Path(os.environ.get("LATCHKEY") or pathlib.Path(args.build) / "latchkey").resolve()
    folder = pathlib.Path(tempfile.mkdtemp(prefix="latchkey-workers-"))
    with contextlib.ExitStack() as ended:
        ended.callback(shutil.rmtree, folder, ignore_errors=True)
        make_keys(folder / "keys.csv")
        gateways = []
        for workers, cpus in ((1, {PROXY_CPU}), (2, {PROXY_CPU, *second})):
            data = folder / f"data-{workers}"
            subprocess.run([program, "keys", "import", folder / "keys.csv", "--data", data], check=True, capture_output=True)
            gateways.append(Gateway(program, data, folder, workers, cpus))
            ended.callback(gateways[-1].process.stop)
        os.sched_setaffinity(0, set(second))
        rounds = []
        for turn in range(args.rounds):
            taken = {g.workers: sample(g, args.seconds) for g in (gateways if turn % 2 == 0 else gateways[::-1])}
            rounds.append((taken[1], taken[2]))
    for name, side in (("1 worker", 0), ("2 workers", 1)):
        middle = {k: statistics.median(r[side][k] for r in rounds) for k in ("rate", "load", "gateway")}
        print(f"{name:10} {middle['rate']:10,.0f} requests a second, {middle['gateway']:.2f} cores; the load {middle['load']:.2f}")
    measured = spread([two["rate"] / one["rate"] for one, two in rounds])
    ratio = spread([2 * (two["rate"] / two["gateway"]) / (one["rate"] / one["gateway"]) for one, two in rounds])
    for name, r in (("measured", measured), ("for two whole cores", ratio)):
        print(f"ratio, {name}: {r['median']:.3f} [{r['low']:.3f}..{r['high']:.3f}], range {r['min']:.3f} to {r['max']:.3f}, {args.rounds} rounds")
    if args.check and ratio["median"] < args.check:
        print(f"under {args.check:g}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    run(main)
