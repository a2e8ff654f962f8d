#!/usr/bin/python3
"""Two builds of Latchkey, driven at the same time: CPU time a request at saturation, and the ratio.

  LATCHKEY=NEW LATCHKEY_BEFORE=OLD python3 bench/paired.py [--rounds 30] [--seconds 1] [--scenario saturation|post|refused]

Both run on one CPU, their load generators (with an upstream each) on another, and the kernel gives each a few milliseconds by turns:
so whatever the machine does meanwhile, it does to both. Some 0.3 % can be told in half a minute, where slices one after the
other need an hour. What it does not show: how much a request costs in absolute terms (the caches are shared, too), and what only
shows while many connections are ready at once; for those, and for other proxies, see compare.py.
"""

import argparse
import concurrent.futures
import contextlib
import os
import pathlib
import statistics
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))
from compare import geometric
from peers import BEFORE, HERE, Bench, Failure, run

SCENARIOS = {"saturation": "status=200 body=1024 keys={keys}", "post": "path=/up upload=1024 keys={keys}", "refused": "status=401 key=" + "unknown-" + "0" * 28}
NAMES = ("latchkey", BEFORE)


def sample(bench, words, seconds):
    proxy = bench.proxies[0]
    pids = ",".join(map(str, proxy.process.pids()))
    said = bench.load.job(f"mode=closed connections=64 {words.format(keys=bench.keys_file)} port={proxy.port} warm=0.3 seconds={seconds} pids={pids}")
    if not said["completed"]:
        raise Failure(f"{proxy.name} answered nothing")
    return said["cpu_ns"] / said["completed"] / 1000


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--seconds", type=float, default=1.0, help="of a round")
    parser.add_argument("--scenario", choices=SCENARIOS, default="saturation")
    parser.add_argument("--build", default=HERE.parent / "build" / "release", help="folder with bench_load, and latchkey where LATCHKEY names none")
    args = parser.parse_args()
    if args.rounds < 2:
        parser.error("two rounds are the least")
    if not os.environ.get("LATCHKEY_BEFORE"):
        parser.error("LATCHKEY_BEFORE names the other program")
    with contextlib.ExitStack() as ended, concurrent.futures.ThreadPoolExecutor(len(NAMES)) as hands:
        benches = []
        for name in NAMES:
            benches.append(ended.enter_context(Bench.alone(args.build, name)))
        rounds = [list(hands.map(lambda b: sample(b, SCENARIOS[args.scenario], args.seconds), benches)) for _ in range(args.rounds)]
    for name, taken in zip(NAMES, zip(*rounds)):
        print(f"{name:10} {statistics.median(taken):8.2f} µs a request")
    ratio, error = geometric([new / old for new, old in rounds])
    print(f"ratio      {ratio:8.4f}, standard error {error:.4f}, {len(rounds)} rounds of {args.seconds:g} s, {args.scenario}")
    return 0


if __name__ == "__main__":
    run(main)
