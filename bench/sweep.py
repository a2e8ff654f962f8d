#!/usr/bin/python3
"""Is the cost flat? CPU time a request with few and with many connections, keys, apis and workers.

  bench/sweep.py [--quick] [--only connections,keys,apis,workers] [--rows TEXT] [--rounds N] [--check 1.15] [--build DIR]

Two gateways, or one in two states, that differ in nothing but what is swept; a round measures the small and the large side one after
the other, in turns first, and what counts is the median of the ratios within the rounds. CPU time is the kernel's account of the whole
process; the gateway runs on CPU 0, load generator and upstream on CPU 1.

A gateway that sleeps between requests pays for being woken, more than for the request. So either both sides are saturated by 64
connections, where sleep is rare and a difference shows undiluted, or both get one rate (Poisson).
  connections  1 beside 64 at one rate, since one cannot saturate; 64 beside 64 with some 9,936 idle ones (held by a second generator);
               64 beside 10,000 that are all used in turn, at two rates, and what that costs the floor. The same process each time.
  keys         of a million in the store every request draws one at random, so that each misses the processor's caches: the honest row.
               (So does the load generator on its own list, in a cache that the cores may share: that counts against us.) Beside it
               100 of the million.
  apis         1,000 [[api]] told apart by path or by host, asked at random, 1 KiB from the same upstream. They share its connections,
               as apis of one server do. Two rows tell the parts apart: 1,000 of which one is asked (the router alone), and 1,000
               that differ in idle_per_target, so that each has connections of its own: 1,000 cold sockets, as of 1,000 servers.
               What those cost the kernel, the floor tells (bench_floor): it has 1,000 connections and takes any of them.
  workers      both cores cannot be given to two workers here, since the load needs one: not throughput but the total CPU of a request
               is compared. On one core that two workers share, saturated; at one rate, where two workers are woken more often than one;
               on both cores with a load that sleeps, at one rate and at one rate for each worker.
A million keys are imported once (half a minute) and kept in build/sweep, 450 MB. Ratios only: with --check N
it exits 1 if a median is over N, the floor's not counted. A round in which the machine did not keep a row's rate is left out, and noted.
"""
import argparse
import contextlib
import csv
import json
import os
import pathlib
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time

from compare import busy_seconds, cpu_seconds, environment, spread
from peers import HERE, LOAD_CPU, MACHINE, PROXY_CPU, Failure, Load, Process, free_port, make_keys, run

MANY_CONNECTIONS, MANY_KEYS, SOME_KEYS, MANY_APIS = 10_000, 1_000_000, 100_000, 1000
STORES = HERE.parent / "build" / "sweep"
KEPT_FROM = 100_000  # keys; smaller stores are made anew
OPEN = "mode=open rate=10000 connections=64"
SATURATED = "mode=closed connections=64"
BY_PATH, BY_HOST = "path=/api{n}/bytes/1024", "host=h{n}.example.com path=/bytes/1024"


class Overrun(Failure):
    """The rate was not kept."""


class Side:
    """One side of a comparison: which gateway, what it is asked, and how many other connections stand idle meanwhile."""

    def __init__(self, gateway, words, idle=0):
        self.gateway, self.words, self.idle = gateway, words, idle


# gateway -> how it is started (settings() says what is meant)
GATEWAYS = {
    "plain": {}, "keys-1": {"keys": 1}, "keys-100k": {"keys": SOME_KEYS}, "keys-1m": {"keys": MANY_KEYS},
    "path-1": {"apis": 1, "by": "path"}, "path-1000": {"apis": MANY_APIS, "by": "path"},
    "own-1000": {"apis": MANY_APIS, "by": "path", "own": True}, "floor-64": {"floor": 64}, "floor-1000": {"floor": MANY_APIS},
    "host-1": {"apis": 1, "by": "host"}, "host-1000": {"apis": MANY_APIS, "by": "host"},
    "workers-1": {}, "workers-2": {"workers": 2}, "free-1": {"cpu": None}, "free-2": {"cpu": None, "workers": 2},
}


def cases(most):
    """dimension, what is compared, small side, large side; `most` connections are allowed."""
    laps = {rate: f"mode=open rate={rate} warm={most / rate + 0.3:.2f}" for rate in (10000, 20000)}
    all_by_path = f"{SATURATED} spread={MANY_APIS} warm=0.6 {BY_PATH}"
    return [
        ("connections", "1 -> 64, 4,000/s", Side("plain", "mode=open rate=4000 connections=1"), Side("plain", "mode=open rate=4000 connections=64")),
        ("connections", f"64 -> 64 + {most - 64:,} idle, saturated", Side("plain", SATURATED), Side("plain", SATURATED, most - 64)),
        *(("connections", f"{what}64 -> {most:,} in turn, {rate:,}/s", Side(who, f"{lap} connections=64"), Side(who, f"{lap} connections={most}"))
          for rate, lap in laps.items() for what, who in (("", "plain"), ("floor: ", "floor-64"))),
        ("keys", "1 -> 100,000, saturated", Side("keys-1", SATURATED), Side("keys-100k", SATURATED)),
        ("keys", "1 -> 1,000,000, saturated", Side("keys-1", SATURATED), Side("keys-1m", SATURATED)),
        ("keys", "1 -> 1,000,000, 100 used, saturated", Side("keys-1", SATURATED), Side("keys-1m", SATURATED + " keys={some}")),
        ("keys", "1 -> 1,000,000, 10,000/s", Side("keys-1", OPEN), Side("keys-1m", OPEN)),
        ("apis", "1 -> 1,000, one asked, saturated", Side("path-1", f"{SATURATED} spread=1 {BY_PATH}"),
         Side("path-1000", f"{SATURATED} spread=1 {BY_PATH}")),
        ("apis", "1 -> 1,000 by path, saturated", Side("path-1", f"{SATURATED} spread=1 {BY_PATH}"), Side("path-1000", all_by_path)),
        ("apis", "1 -> 1,000, own connections, sat.", Side("path-1", f"{SATURATED} spread=1 {BY_PATH}"), Side("own-1000", all_by_path)),
        ("apis", "floor: 64 -> 1,000 connections, sat.", Side("floor-64", SATURATED), Side("floor-1000", f"{SATURATED} warm=0.6")),
        ("apis", "1 -> 1,000 by host, saturated", Side("host-1", f"{SATURATED} spread=1 {BY_HOST}"),
         Side("host-1000", f"{SATURATED} spread={MANY_APIS} warm=0.6 {BY_HOST}")),
        ("apis", "1 -> 1,000 by path, 10,000/s", Side("path-1", f"{OPEN} spread=1 {BY_PATH}"),
         Side("path-1000", f"{OPEN} spread={MANY_APIS} warm=1 {BY_PATH}")),
        ("workers", "1 -> 2 on one core, saturated", Side("workers-1", SATURATED), Side("workers-2", SATURATED)),
        ("workers", "1 -> 2 on one core, 10,000/s", Side("workers-1", OPEN), Side("workers-2", OPEN)),
        ("workers", "1 -> 2, both cores, 10,000/s", Side("free-1", OPEN + " spin=0"), Side("free-2", OPEN + " spin=0")),
        ("workers", "1 -> 2, both cores, 5,000/s each", Side("free-1", "mode=open rate=5000 connections=32 spin=0"), Side("free-2", OPEN + " spin=0")),
    ]


def settings(folder, listen, admin, upstream, workers=1, apis=1, by="", own=False):
    """The settings file; `by` names how several apis are told apart; `own`: none shares its upstream connections."""
    lines = [f'listen = "127.0.0.1:{listen}"', f'admin_listen = "127.0.0.1:{admin}"', f"workers = {workers}",
             "[limits]", f"connections = {MANY_CONNECTIONS + 100}"]
    for n in range(apis):
        lines += ["[[api]]", f'name = "api{n:04}"', f'upstreams = ["http://127.0.0.1:{upstream}"]']
        lines += [f"idle_per_target = {128 + n}"] if own else []
        lines += [f'path_prefixes = ["/api{n:04}"]', "strip_prefix = true"] if by == "path" else []
        lines += [f'hosts = ["h{n:04}.example.com"]'] if by == "host" else []
    (folder / "latchkey.toml").write_text("\n".join(lines) + "\n")
    return folder / "latchkey.toml"


def make_store(program, count, folder):
    """A data folder with `count` keys, keys.csv with all of them, some.csv with 100; large ones are kept for the next time."""
    kept = STORES / str(count) if count >= KEPT_FROM else folder / f"store-{count}-{time.monotonic_ns()}"
    if not kept.exists():
        making = kept.with_suffix(".making")
        shutil.rmtree(making, ignore_errors=True)
        making.mkdir(parents=True)
        print(f"importing {count:,} keys" + (f", kept in {kept}" if count >= KEPT_FROM else ""), file=sys.stderr, flush=True)
        make_keys(making / "keys.csv", count)
        with open(making / "keys.csv", newline="") as f:
            rows = list(csv.reader(f))
        with open(making / "some.csv", "w", newline="") as out:
            csv.writer(out, lineterminator="\n").writerows([rows[0]] + rows[1::max(1, count // 100)][:100])
        done = subprocess.run([program, "keys", "import", making / "keys.csv", "--data", making / "data"], capture_output=True, text=True)
        if done.returncode != 0:
            raise Failure(f"latchkey keys import: {done.stderr or done.stdout}")
        making.rename(kept)
    for account in (kept / "data").glob("usage*"):  # of an earlier run
        account.unlink()
    return kept


class Gateway:
    def __init__(self, sweep, name, keys=100, cpu=PROXY_CPU, floor=0, **how):
        self.store, self.folder, self.port = make_store(sweep.program, keys, sweep.folder), sweep.folder / name, free_port()
        self.folder.mkdir()
        upstream = sweep.load.upstream
        if floor:
            command = [sweep.floor_program, str(self.port), self.store / "keys.csv", str(upstream), str(floor)]
        else:
            command = [sweep.program, "serve", "--config", settings(self.folder, self.port, free_port(), upstream, **how), "--data", self.store / "data"]
        self.process = Process(command, self.folder / "log", cpu)
        try:
            self.process.wait_for(self.port, name)
        except Failure:
            self.process.stop()
            raise

    def log(self):
        return pathlib.Path(self.process.log).read_text(errors="replace")[-1500:]


class Sweep:
    """Everything that runs; what was started is ended with it."""

    def __init__(self, args):
        build = pathlib.Path(args.build).resolve()
        self.program = pathlib.Path(os.environ.get("LATCHKEY") or build / "latchkey").resolve()
        self.load_program, self.floor_program, self.seconds = build / "bench_load", build / "bench_floor", 0.6 if args.quick else 1.0
        for file in (self.program, self.load_program, self.floor_program):
            if not os.access(file, os.X_OK):
                raise Failure(f"{file} is not there: ./dev build bench")
        self.programs, self.proxies, self.notes, self.gateways = {"latchkey": self.program}, [], [], {}

    def __enter__(self):
        self.ended = contextlib.ExitStack()
        self.folder = pathlib.Path(tempfile.mkdtemp(prefix="latchkey-sweep-"))
        self.ended.callback(shutil.rmtree, self.folder, ignore_errors=True)
        self.load = self.start_load("load")
        self.idlers = self.start_load("idlers")
        return self

    def start_load(self, name):
        folder = self.folder / name
        folder.mkdir()
        load = Load(self.load_program, folder)
        self.ended.callback(load.stop)
        return load

    def __exit__(self, *_):
        self.ended.close()

    def start(self, names):
        for name in names:
            gateway = Gateway(self, name, **GATEWAYS[name])
            self.ended.callback(gateway.process.stop)
            self.gateways[name] = gateway

    def stop(self):
        for gateway in self.gateways.values():
            gateway.process.stop()
            shutil.rmtree(gateway.folder)  # the next dimension may have one of this name
        self.gateways = {}

    def sample(self, side):
        gateway = self.gateways[side.gateway]
        if side.idle:
            held = self.idlers.job(f"mode=idle connections={side.idle} port={gateway.port} body=1024 keys={gateway.store}/keys.csv")
            if held["ready"] < side.idle:
                raise Failure(f"{held['ready']} of {side.idle} idle connections stand; the log: {gateway.log()}")
        own = [p for g in self.gateways.values() for p in g.process.pids()] + [self.load.process.pid, self.idlers.process.pid, os.getpid()]
        words = side.words.replace("{some}", f"{gateway.store}/some.csv")
        words += "" if "keys=" in words else f" keys={gateway.store}/keys.csv"
        words += "" if "warm=" in words else " warm=0.3"
        begin, busy, used = time.monotonic(), busy_seconds(), cpu_seconds(own)
        pids = ",".join(map(str, gateway.process.pids()))
        taken = self.load.job(f"body=1024 {words} port={gateway.port} seconds={self.seconds} pids={pids}")
        taken["others"] = max(0.0, busy_seconds() - busy - (cpu_seconds(own) - used)) / (time.monotonic() - begin)
        self.verify(taken, side, gateway)
        if side.idle:
            self.idlers.job("release")
        return taken

    def verify(self, taken, side, gateway):
        seen = taken["upstream"]
        wrong = {k: taken[k] for k in ("broken", "wrong_status", "wrong_length", "unfinished") if taken[k]}
        wrong |= {"upstream " + k: seen[k] for k in ("leaked_keys", "anonymous", "malformed") if seen[k]}
        if wrong or not taken["completed"]:
            if "mode=open" in side.words and wrong and wrong.keys() <= {"unfinished", "wrong_status", "wrong_length"}:
                raise Overrun(wrong)  # what came too fast was refused, or is not answered yet
            raise Failure(f"{side.gateway}, {side.words}: {wrong or 'nothing completed'}; the log: {gateway.log()}")


def most_connections():
    """Descriptors for 10,000 clients in the gateway, the requests that are in flight and idle upstreams; fewer where the limit says so."""
    wanted = MANY_CONNECTIONS + 5000
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < wanted:
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, wanted))
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return MANY_CONNECTIONS if hard >= wanted else (hard - 300) // 2


def measure(sweep, chosen, rounds):
    """[(dimension, label, [small samples], [large samples])]; a dimension's gateways run only while it is measured."""
    rows = [(*case[:2], [], [], case[2:]) for case in chosen]
    missed = {}
    for dimension in dict.fromkeys(row[0] for row in rows):
        mine = [row for row in rows if row[0] == dimension]
        sweep.start(dict.fromkeys(side.gateway for row in mine for side in row[4]))
        begin = time.monotonic()
        for turn in range(rounds):
            for _, label, small, large, sides in mine:
                order = (0, 1) if turn % 2 == 0 else (1, 0)
                try:
                    taken = {which: sweep.sample(sides[which]) for which in order}
                except Overrun as e:
                    missed.setdefault(label, []).append(str(e))
                    continue
                small.append(taken[0])
                large.append(taken[1])
        print(f"{dimension}: {rounds} rounds, {time.monotonic() - begin:.0f} s", file=sys.stderr, flush=True)
        sweep.stop()
    for label, what in missed.items():
        sweep.notes.append(f"{label}: the machine did not keep the rate in {len(what)} of {rounds} rounds: {'; '.join(what)}")
    return [row[:4] for row in rows if row[2]]


def summarise(dimension, label, small, large):
    ratios = [b["cpu_us_per_request"] / a["cpu_us_per_request"] for a, b in zip(small, large)]
    return {"dimension": dimension, "label": label, "small_us": statistics.median(t["cpu_us_per_request"] for t in small),
            "large_us": statistics.median(t["cpu_us_per_request"] for t in large), "ratio": spread(ratios),
            "per_second": [statistics.median(t["per_second"] for t in side) for side in (small, large)],
            "upstream_connections": max(t["upstream"]["connections"] for t in large),
            "disturbed": sum(t["others"] > 0.05 for t in small + large), "samples": {"small": small, "large": large}}


def print_table(rows):
    print(f"{'':12}{'':36}{'CPU us, small':>14}{'large':>8}{'ratio, median':>15}{'quartiles':>18}{'range':>18}")
    for row in rows:
        r = row["ratio"]
        print(f"{row['dimension']:12}{row['label']:36}{row['small_us']:14.2f}{row['large_us']:8.2f}{r['median']:15.3f}"
              f"{r['low']:10.3f}..{r['high']:.3f}{r['min']:11.3f}..{r['max']:.3f}" + (f"  !{row['disturbed']}" if row["disturbed"] else ""))
    print("!N: others used more than 5 % of a core during N of its samples")


def arguments():
    known = list(dict.fromkeys(case[0] for case in cases(MANY_CONNECTIONS)))
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="3 rounds of short slices")
    parser.add_argument("--only", default=",".join(known), help="dimensions, by comma")
    parser.add_argument("--rows", default="", metavar="TEXT", help="only those of the rows with TEXT in their names")
    parser.add_argument("--rounds", type=int, help="default 9 (quick: 3)")
    parser.add_argument("--check", type=float, metavar="RATIO", help="exit 1 if a median ratio is over it (the goal is 1.15)")
    parser.add_argument("--build", default=HERE.parent / "build" / "release", help="folder with latchkey, bench_load and bench_floor; LATCHKEY names another program")
    parser.add_argument("--out", default=HERE / "out", help="folder for the JSON")
    args = parser.parse_args()
    args.only = args.only.split(",")
    args.rounds = args.rounds or (3 if args.quick else 9)
    if set(args.only) - set(known):
        parser.error("--only knows " + ", ".join(known))
    return args


def main():
    args = arguments()
    begin = time.monotonic()
    os.sched_setaffinity(0, {LOAD_CPU} & MACHINE or MACHINE)
    most = most_connections()
    chosen = [case for case in cases(most) if case[0] in args.only and args.rows in case[1]]
    if not chosen:
        raise Failure(f"no row of {', '.join(args.only)} has {args.rows} in its name")
    with Sweep(args) as sweep:
        if most < MANY_CONNECTIONS:
            sweep.notes.append(f"{most:,} connections instead of {MANY_CONNECTIONS:,}: the limit of open files (ulimit -Hn) allows no more")
        about = environment(sweep) | {"latchkey": subprocess.run([sweep.program, "--version"], capture_output=True, text=True).stdout.strip()}
        rows = [summarise(*row) for row in measure(sweep, chosen, args.rounds)]
    print(f"{about['date']}, {about['cpu']}, {about['cores']} cores, Linux {about['kernel']}; {about['latchkey']}; {args.rounds} rounds")
    print_table(rows)
    for note in sweep.notes:
        print("note:", note)
    out = pathlib.Path(args.out)
    out.mkdir(parents=True, exist_ok=True)
    file = out / time.strftime("sweep-%Y%m%dT%H%M%S.json")
    file.write_text(json.dumps({"environment": about, "arguments": sys.argv[1:], "rows": rows, "notes": sweep.notes}, indent=1))
    print(f"{time.monotonic() - begin:.0f} s; {file}")
    over = [f"{r['dimension']}, {r['label']}: {r['ratio']['median']:.3f}"
            for r in rows if args.check and not r["label"].startswith("floor") and r["ratio"]["median"] > args.check]
    for line in over:
        print(f"over {args.check:g}: {line}", file=sys.stderr)
    return 1 if over else 0


if __name__ == "__main__":
    run(main)
