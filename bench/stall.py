#!/usr/bin/python3
"""What a pause costs: the proxy is stopped for some milliseconds, four times a second, under a constant rate from many clients.

  bench/stall.py [--stall MS] [--rate N] [--connections N] [--rounds N] [--only latchkey,nginx,haproxy]

A host that takes the processor away, or another process on it, does the same. What has come meanwhile is ready at once, on as many
connections: more than there are idle upstream connections. The table has the medians of the rounds: latency from when a request was
due (no smaller than the pause), responses a second, upstream connections made, and responses that were not the upstream's, those of the
warm-up among them. Without pauses (--stall 0), and at a rate that is too much, it shows how a proxy bears that. LATCHKEY_BEFORE: another build.
"""

import argparse
import contextlib
import os
import pathlib
import signal
import statistics
import sys
import threading
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))
from peers import HERE, LOAD_CPU, MACHINE, Bench, run

BETWEEN_S = 0.25
COLUMNS = ("p50_us", "p99_us", "p999_us", "per_second", "made", "wrong_status", "cpu_us")


def worst(column):
    return min if column == "per_second" else max


class Pauses:
    """While it is entered, the processes are stopped again and again; they go on when it is left."""

    def __init__(self, pids, seconds):
        self.pids, self.seconds, self.ended = pids, seconds, threading.Event()
        self.thread = threading.Thread(target=self.pause)

    def send(self, number):
        for pid in self.pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)

    def pause(self):
        while not self.ended.wait(BETWEEN_S):
            try:
                self.send(signal.SIGSTOP)
                time.sleep(self.seconds)
            finally:
                self.send(signal.SIGCONT)

    def __enter__(self):
        self.thread.start()

    def __exit__(self, *_):
        self.ended.set()
        self.thread.join()


def sample(bench, proxy, args):
    pids = proxy.process.pids()
    words = f"mode=open rate={args.rate} connections={args.connections} body=1024 keys={bench.keys_file} port={proxy.port}"
    with Pauses(pids, args.stall / 1000) if args.stall else contextlib.nullcontext():
        said = bench.load.job(f"{words} warm=1 seconds=2 pids={','.join(map(str, pids))}")
    return said | {"made": said["upstream"]["connections"], "cpu_us": said["cpu_ns"] / 1000 / max(1, said["completed"])}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stall", type=float, default=15, metavar="MS")
    parser.add_argument("--rate", type=int, default=15000)
    parser.add_argument("--connections", type=int, default=4000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", default="latchkey,nginx,haproxy")
    parser.add_argument("--build", default=HERE.parent / "build" / "release", help="folder with bench_load, and latchkey where LATCHKEY names none")
    args = parser.parse_args()
    os.sched_setaffinity(0, {LOAD_CPU} & MACHINE or MACHINE)
    with Bench(args.build, args.only.split(",")) as bench:
        for note in bench.notes:
            print("note:", note, file=sys.stderr)
        taken = {proxy.name: [] for proxy in bench.proxies}
        for turn in range(args.rounds):
            for proxy in bench.proxies if turn % 2 == 0 else reversed(bench.proxies):
                taken[proxy.name].append(sample(bench, proxy, args))
    pauses = f"stopped for {args.stall:g} ms four times a second" if args.stall else "without pauses"
    print(f"{args.rate:,}/s from {args.connections:,} connections, {pauses}; medians (and the worst) of {args.rounds} rounds of 2 s")
    print(f"{'':10}" + "".join(f"{c:>14}" for c in COLUMNS))
    for name, samples in taken.items():
        print(f"{name:10}" + "".join(f"{statistics.median(s[c] for s in samples):14,.0f}" for c in COLUMNS))
        print(f"{'':10}" + "".join(f"{f'({worst(c)(s[c] for s in samples):,.0f})':>14}" for c in COLUMNS))
    return 0


if __name__ == "__main__":
    run(main)
