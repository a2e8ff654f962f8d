#!/usr/bin/python3
"""For whom the worker waits: how often, and how long, it could run and another thread had the processor.

  bench/waits.py [--rate 20000] [--rounds 3]                                  as root, with perf (linux-perf)
  LATCHKEY=NEW LATCHKEY_BEFORE=OLD bench/waits.py                             two programs, by turns

Gateway on one CPU, load generator and upstream on another, as in compare.py; the kernel's own record of the scheduler (`perf sched`) tells each wait
of the worker between its being woken and its running, and who ran meanwhile: the gateway's other threads (the flusher, above all), or others (threads
of the kernel, perf itself). Counts are of a slice, medians of the rounds; a wait in which the host had the processor has nobody who ran.
"""
import argparse
import bisect
import collections
import os
import pathlib
import random
import shutil
import statistics
import subprocess
import time

from peers import BEFORE, HERE, PROXY_CPU, Bench, Failure, run

LEAST_MS = (0.1, 0.2, 0.4)
Turn = collections.namedtuple("Turn", "begin end thread waited")  # of the CPU; seconds, and ms


def turns_of(record):
    """Who had the proxy's CPU from when to when, by `perf sched timehist`."""
    said = subprocess.run(["perf", "sched", "timehist", "-i", record], capture_output=True, text=True).stdout
    turns = []
    for line in said.splitlines():
        words = line.split()
        if len(words) < 6 or words[1] != f"[{PROXY_CPU:04}]":
            continue
        try:
            end, waited, ran = float(words[0]), float(words[-2]), float(words[-1])
        except ValueError:
            continue
        turns.append(Turn(end - ran / 1000, end, " ".join(words[2:-3]).split("[")[0], waited))
    if not turns:
        raise Failure("perf has recorded nothing of the scheduler: is this run as root?")
    return turns


def waits_behind(turns, ours):
    """Of the worker, in ms: behind other threads of the gateway's, and behind all else."""
    ends = [t.end for t in turns]
    behind, else_ = [], []
    for turn in turns:
        if not turn.thread.startswith("worker-") or turn.waited < LEAST_MS[0]:
            continue
        had = collections.Counter()
        for other in turns[bisect.bisect_left(ends, turn.begin - turn.waited / 1000):]:
            if other.begin > turn.begin:
                break
            if not other.thread.startswith("worker-") and other.thread != "<idle>":
                had[other.thread] += min(other.end, turn.begin) - max(other.begin, turn.begin - turn.waited / 1000)
        (behind if had and had.most_common(1)[0][0] == ours else else_).append(turn.waited)
    return behind, else_


def sample(args, name):
    with Bench.alone(args.build, name) as bench:
        proxy = bench.proxies[0]
        words = f"mode=open rate={args.rate} connections=64 path=/bytes/1024 body=1024 keys={bench.keys_file} port={proxy.port}"
        bench.load.job(f"{words} warm=0 seconds=1")
        record = bench.folder / "sched"
        perf = subprocess.Popen(["perf", "sched", "record", "-a", "-o", record, "--", "sleep", str(args.seconds + 1)],
                                stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            time.sleep(0.4)
            bench.load.job(f"{words} warm=0.1 seconds={args.seconds}")
        finally:
            perf.wait(args.seconds + 30)
        ours = pathlib.Path(f"/proc/{proxy.process.pids()[0]}/comm").read_text().strip()
        return waits_behind(turns_of(record), ours)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rate", type=int, default=20000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=3.0, help="of a slice")
    parser.add_argument("--build", default=HERE.parent / "build" / "release", help="folder with bench_load, and latchkey where LATCHKEY names none")
    args = parser.parse_args()
    if not shutil.which("perf"):
        raise Failure("perf is not installed (linux-perf)")
    names = ["latchkey"] + ([BEFORE] if os.environ.get("LATCHKEY_BEFORE") else [])
    taken = {name: [] for name in names}
    for _ in range(args.rounds):
        for name in random.sample(names, len(names)):
            taken[name].append(sample(args, name))
    print(f"waits of the worker in {args.seconds:g} s at {args.rate:,}/s, medians of {args.rounds} rounds")
    print(f"{'':12}{'behind':>10}" + "".join(f"{f'> {least} ms':>12}" for least in LEAST_MS) + f"{'in all, ms':>12}{'longest':>10}")
    for name in names:
        for column, behind in enumerate(("flusher", "others")):
            waits = [sampled[column] for sampled in taken[name]]
            counts = [statistics.median(sum(w > least for w in ws) for ws in waits) for least in LEAST_MS]
            print(f"{name:12}{behind:>10}" + "".join(f"{c:12g}" for c in counts) +
                  f"{statistics.median(map(sum, waits)):12.1f}{max(max(ws, default=0) for ws in waits):10.2f}")
    return 0


if __name__ == "__main__":
    run(main)
