#!/usr/bin/python3
"""Latchkey beside nginx, HAProxy and the bare floor, on one machine with two cores: the proxies on CPU 0, one at a time; the load
generator and the upstream, in one process, on CPU 1.

  bench/compare.py --quick                          under a minute: saturation, 4,000/s, refused
  bench/compare.py                                  every scenario, under ten minutes
  bench/compare.py --only latchkey,nginx --scenarios saturation,rate4k --rounds 9
  LATCHKEY_BEFORE=FILE bench/compare.py --only latchkey,nginx --reference before     another Latchkey in the same rounds

How to read it. A shared machine drifts by half within minutes, so every figure is taken in short slices, interleaved between the
proxies; "x nginx" is the median of the ratios within a round, with the quartiles, and is the figure to trust. CPU time is the
kernel's account of all the proxy's processes (user and system, all threads), with what it had still to do for its account. Latencies of the open-loop scenarios count from when a request was due.
Silences are times of 2 ms and more in which no response ended, a second: what stops a proxy, or the machine, as a whole (one a slice is the least there can be but none).
A mark behind a name: `!N` others used the machine (more than 5 % of a core) in N of its samples; `~` it could not keep the rate.
Before anything is measured every proxy is checked to do the same work: 401 without a valid key, the key removed, X-Consumer-Id set,
bodies whole both ways, a usage line for every request; while it is measured, the upstream checks the first three on every request. A wrong
answer ends the run: figures of a proxy that does not do its work are not figures.
"""
import argparse
import json
import math
import os
import pathlib
import platform
import random
import statistics
import subprocess
import sys
import time

from peers import BEFORE, HERE, LOAD_CPU, NAMES, PROXY_CPU, Bench, Failure, run

MIB = 1 << 20
# name -> (words for bench_load, seconds of a slice, what it measures)
SCENARIOS = {
    "saturation": ("mode=closed connections=64 path=/bytes/1024 body=1024 keys={keys}", 0.8, "64 connections, 1 KiB"),
    "rate4k": ("mode=open rate=4000 connections=64 path=/bytes/1024 body=1024 keys={keys}", 1.2, "4,000/s, Poisson, 1 KiB"),
    "rate20k": ("mode=open rate=20000 connections=64 path=/bytes/1024 body=1024 keys={keys}", 0.8, "20,000/s, Poisson, 1 KiB"),
    "refused": ("mode=closed connections=64 path=/bytes/1024 status=401 key=ext-000000000000000000000000000000000000", 0.6, "64 connections, a wrong key"),
    "post": ("mode=closed connections=64 path=/up upload=1024 keys={keys}", 0.8, "64 connections, POST, 1 KiB up"),
    "fresh": ("mode=fresh connections=32 path=/bytes/1024 body=1024 keys={keys}", 0.8, "a new connection for every request"),
    "body100k": ("mode=closed connections=16 path=/bytes/102400 body=102400 keys={keys}", 0.7, "16 connections, 100 KiB down"),
    "up100k": ("mode=closed connections=16 path=/up upload=102400 keys={keys}", 0.7, "16 connections, 100 KiB up"),
    "down10m": ("mode=closed connections=4 path=/bytes/10485760 body=10485760 keys={keys}", 1.0, "4 connections, 10 MiB down"),
    "up10m": ("mode=closed connections=4 path=/up upload=10485760 keys={keys}", 1.0, "4 connections, 10 MiB up"),
    "tls": ("mode=closed connections=64 path=/bytes/1024 body=1024 keys={keys} tls=1", 0.8, "64 TLS connections, 1 KiB"),
    "tls_fresh": ("mode=fresh connections=32 path=/bytes/1024 body=1024 keys={keys} tls=1", 0.8, "a new TLS connection, whole handshake, for every request"),
    "tls_down10m": ("mode=closed connections=4 path=/bytes/10485760 body=10485760 keys={keys} tls=1", 1.0, "4 TLS connections, 10 MiB down"),
    "tls_up10m": ("mode=closed connections=4 path=/up upload=10485760 keys={keys} tls=1", 1.0, "4 TLS connections, 10 MiB up"),
    "idle": ("mode=idle connections={idle} path=/bytes/1024 body=1024 keys={keys}", 0, "memory: 100,000 keys, then idle connections"),
    "tls_idle": ("mode=idle connections={idle} path=/bytes/1024 body=1024 keys={keys} tls=1", 0, "memory: likewise, TLS connections"),
}
QUICK = ("saturation", "rate4k", "refused")
BULK = ("body100k", "up100k", "down10m", "up10m", "tls_down10m", "tls_up10m")
IDLE = ("idle", "tls_idle")
LATENCY = ("rate4k", "rate20k")
PERCENTILES = ("p50_us", "p99_us", "p999_us")


def cpu_seconds(pids):
    """What the processes have used so far, by the kernel's account."""
    total = 0
    for pid in pids:
        for task in pathlib.Path(f"/proc/{pid}/task").glob("*/schedstat"):
            try:
                total += int(task.read_text().split()[0])
            except OSError:
                pass
    return total / 1e9


def busy_seconds():
    """Of all cores: user, nice, system, interrupts, and what the host took away."""
    ticks = list(map(int, pathlib.Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]))
    return (sum(ticks) - ticks[3] - ticks[4]) / os.sysconf("SC_CLK_TCK")


def port_of(proxy, scenario):
    return proxy.tls_port if scenario.startswith("tls") else proxy.port


def does(proxy, scenario):
    """The floor has no TLS."""
    return proxy.name != "floor" or not scenario.startswith("tls")


class Round:
    """Measures one slice and judges it."""

    def __init__(self, bench, warm):
        self.bench, self.warm = bench, warm

    def sample(self, proxy, scenario, seconds):
        bench = self.bench
        own = [pid for p in bench.proxies for pid in p.process.pids()] + [bench.load.process.pid, os.getpid()]
        words = f"{SCENARIOS[scenario][0].format(keys=bench.keys_file, idle=0)} port={port_of(proxy, scenario)}"
        self.verify(proxy, scenario, bench.load.job(f"{words} warm=0 seconds={self.warm}"), warming=True)
        proxy.settle()
        begin, busy, used = time.monotonic(), busy_seconds(), cpu_seconds(own)
        pids = proxy.process.pids()
        taken = bench.load.job(f"{words} warm=0.02 seconds={seconds} pids={','.join(map(str, pids))}")
        span = time.monotonic() - begin
        taken["others"] = round(max(0.0, (busy_seconds() - busy) - (cpu_seconds(own) - used)) / span, 3)
        used = cpu_seconds(pids)
        proxy.settle()
        taken["cpu_ns"] += round((cpu_seconds(pids) - used) * 1e9)
        taken["cpu_us_per_request"] = taken["cpu_ns"] / 1e3 / max(1, taken["completed"])
        self.verify(proxy, scenario, taken)
        moved = taken["bytes_in"] + taken["bytes_out"]
        taken["mib_per_second"] = moved / MIB / taken["seconds"]
        taken["cpu_s_per_gib"] = taken["cpu_ns"] / 1e9 / (moved / (1 << 30)) if moved else 0.0
        taken["silences_per_second"] = taken["silences"] / taken["seconds"]
        taken["cpu_share"] = taken["cpu_ns"] / 1e9 / taken["seconds"]
        return taken

    def verify(self, proxy, scenario, taken, warming=False):
        wrong = {k: taken[k] for k in ("broken", "wrong_status", "wrong_length") if taken[k]}
        seen = taken["upstream"]
        wrong |= {"upstream " + k: seen[k] for k in ("leaked_keys", "anonymous", "malformed") if seen[k]}
        if scenario == "refused" and seen["requests"]:
            wrong["refused requests forwarded"] = seen["requests"]
        if not taken["completed"] and not warming:  # 10 MiB may take longer than that
            wrong["completed"] = 0
        if wrong:
            raise Failure(f"{proxy.name}, {scenario}: {wrong}; the log: {pathlib.Path(proxy.process.log).read_text(errors='replace')[-1500:]}")
        if seen["requests"] > 1000 and seen["connections"] > seen["requests"] / 20:
            note = f"{proxy.name} made {seen['connections']} upstream connections for {seen['requests']} requests in {scenario}"
            if note not in self.bench.notes:
                self.bench.notes.append(note)


def idle_memory(bench, proxy, connections, scenario):
    """Memory with the keys in it, and what an idle kept-alive connection holds, after it had one request."""
    bench.load.job(f"mode=closed connections=64 warm=0 seconds=0.3 port={proxy.port} body=1024 keys={bench.keys_file}")
    time.sleep(5)  # the last of its records are written, in some proxies by another thread, and what it needed goes back to the kernel
    before = proxy.memory_kib()
    words = SCENARIOS[scenario][0].format(keys=bench.keys_file, idle=connections)
    ready = bench.load.job(f"{words} port={port_of(proxy, scenario)}")["ready"]
    time.sleep(5)  # likewise
    held = proxy.memory_kib() - before
    bench.load.job("release")
    if ready < connections:
        raise Failure(f"{proxy.name} answered {ready} of {connections} idle connections")
    return {"pss_mib": before / 1024, "kib_per_connection": held / ready, "start_s": proxy.start_s, "others": 0.0}


def figure(scenario):
    """The cost that is compared."""
    return "kib_per_connection" if scenario in IDLE else "cpu_s_per_gib" if scenario in BULK else "cpu_us_per_request"


def columns(scenario):
    if scenario in IDLE:
        return ["pss_mib", "kib_per_connection", "start_s"]
    if scenario in BULK:
        return ["mib_per_second", "cpu_s_per_gib", "cpu_share"]
    if scenario in LATENCY:
        by_chance = ["silences_per_second"] if scenario != "rate4k" else []  # there nothing is due for so long 1.3 times a second
        return ["cpu_us_per_request", *PERCENTILES, *by_chance]
    return ["per_second", "cpu_us_per_request", "cpu_share", "p99_us", "silences_per_second"]


def spread(values):
    ordered = sorted(values)
    quartile = statistics.quantiles(ordered, n=4, method="inclusive") if len(ordered) > 1 else [ordered[0]] * 3
    return {"median": statistics.median(ordered), "low": quartile[0], "high": quartile[2], "min": ordered[0], "max": ordered[-1]}


def geometric(ratios):
    """Their geometric mean and its standard error (0 of one)."""
    logs = [math.log(r) for r in ratios]
    return math.exp(statistics.fmean(logs)), statistics.stdev(logs) / math.sqrt(len(logs)) if len(logs) > 1 else 0.0


def summarise(samples, reference):
    """samples[scenario][name] is a list by round -> the same with medians, spreads, and ratios paired by round."""
    table = {}
    for scenario, by_name in samples.items():
        for name, taken in by_name.items():
            if not taken:
                continue
            row = {c: spread([t[c] for t in taken]) for c in columns(scenario)}
            pairs = [t[figure(scenario)] / r[figure(scenario)] for t, r in zip(taken, by_name.get(reference, [])) if r[figure(scenario)] > 0]
            row["ratio"] = spread(pairs) if pairs else None
            row["latency"] = {}
            if scenario in LATENCY and by_name.get(reference):
                row["latency"] = {p: geometric([t[p] / r[p] for t, r in zip(taken, by_name[reference])]) for p in PERCENTILES}
            row["disturbed"] = sum(t["others"] > 0.05 for t in taken)
            rate = {"rate4k": 4000, "rate20k": 20000}.get(scenario)
            row["late"] = bool(rate) and any(t["unfinished"] or t["per_second"] < 0.95 * rate for t in taken)
            row["rounds"] = len(taken)
            table.setdefault(scenario, {})[name] = row
    return table


def number(value):
    return f"{value:,.0f}" if value >= 1000 else f"{value:.1f}" if value >= 100 else f"{value:.2f}"


def print_table(table, reference):
    for scenario, rows in table.items():
        shown = columns(scenario)
        print(f"\n{scenario}: {SCENARIOS[scenario][2]}")
        print(f"  {'':14}" + "".join(f"{c:>30}" for c in shown) + f"{'x ' + reference:>26}")
        for name, row in rows.items():
            mark = (f" !{row['disturbed']}" if row["disturbed"] else "") + (" ~" if row["late"] else "")
            cells = "".join(f"{number(row[c]['median']) + ' [' + number(row[c]['min']) + '..' + number(row[c]['max']) + ']':>30}" for c in shown)
            ratio = row["ratio"]
            print(f"  {name + mark:14}{cells}" + (f"{ratio['median']:12.3f} [{ratio['low']:.3f}..{ratio['high']:.3f}]" if ratio else f"{'-':>26}"))
        for name, row in rows.items():
            if row["latency"] and name != reference:
                print(f"  {name} to {reference}, geometric mean of the rounds' ratios (standard error): " +
                      ", ".join(f"{p[:-3]} {mean:.2f} ({error:.2f})" for p, (mean, error) in row["latency"].items()))


def version(command, pick=0):
    done = subprocess.run(command, capture_output=True, text=True)
    lines = (done.stdout + done.stderr).strip().splitlines()
    return lines[pick].strip() if lines else "unknown"


def environment(bench):
    model = next((line.split(":", 1)[1].strip() for line in pathlib.Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")), "unknown")
    commands = {"latchkey": "--version", "nginx": "-v", "haproxy": "-v", BEFORE: "--version"}
    return {"date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), "cpu": model, "cores": os.cpu_count(), "kernel": platform.release(),
            "versions": {p.name: version([bench.programs[p.name], commands[p.name]]) for p in bench.proxies if p.name in commands}}


def measure(bench, args, scenarios, deadline):
    """All rounds, or as many as fit before `deadline`. Every round measures every scenario, each proxy in turn."""
    samples = {s: {p.name: [] for p in bench.proxies} for s in scenarios}
    for scenario in (s for s in IDLE if s in scenarios):
        for proxy in (p for p in bench.proxies if does(p, scenario)):
            samples[scenario][proxy.name].append(idle_memory(bench, proxy, args.idle_connections, scenario))
    timed = [s for s in scenarios if s not in IDLE]
    measuring = Round(bench, 0.15 if args.quick else 0.25)
    for turn in range(args.rounds):
        begin = time.monotonic()
        for scenario in timed:
            for proxy in random.sample(bench.proxies, len(bench.proxies)):  # nobody always comes behind the same one
                if not does(proxy, scenario):
                    continue
                seconds = min(SCENARIOS[scenario][1], 0.5) if args.quick else SCENARIOS[scenario][1]
                samples[scenario][proxy.name].append(measuring.sample(proxy, scenario, seconds))
        took = time.monotonic() - begin
        print(f"round {turn + 1} of {args.rounds}: {took:.1f} s", file=sys.stderr, flush=True)
        if time.monotonic() + took * 1.1 > deadline:
            if turn + 1 < args.rounds:
                bench.notes.append(f"{turn + 1} of {args.rounds} rounds: the time was up")
            break
    return samples


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="under a minute: " + ", ".join(QUICK))
    parser.add_argument("--rounds", type=int, help="default 7 (quick: as many as fit)")
    parser.add_argument("--only", default=",".join(NAMES), help="proxies, by comma")
    parser.add_argument("--scenarios", default="", help=", ".join(SCENARIOS))
    parser.add_argument("--idle-connections", type=int, default=4000)
    parser.add_argument("--reference", default="nginx")
    parser.add_argument("--build", default=HERE.parent / "build" / "release", help="folder with latchkey, bench_load, bench_floor; LATCHKEY names another program")
    parser.add_argument("--out", default=HERE / "out", help="folder for the JSON")
    args = parser.parse_args()
    args.only = args.only.split(",")
    args.scenarios = args.scenarios.split(",") if args.scenarios else list(QUICK if args.quick else SCENARIOS)
    if unknown := set(args.only) - set(NAMES) | set(args.scenarios) - set(SCENARIOS):
        parser.error("unknown: " + ", ".join(sorted(unknown)))
    if args.reference not in args.only and not (args.reference == BEFORE and os.environ.get("LATCHKEY_BEFORE")):
        parser.error(f"--reference {args.reference} is not among those that are measured")
    args.rounds = args.rounds or (12 if args.quick else 7)
    return args


def main():
    args = arguments()
    begin = time.monotonic()
    os.sched_setaffinity(0, {LOAD_CPU} & os.sched_getaffinity(0) or os.sched_getaffinity(0))
    with Bench(args.build, args.only) as bench:
        for proxy in bench.proxies:
            if faults := proxy.faults():
                raise Failure(f"{proxy.name} does not do the same work: " + "; ".join(faults))
        print(f"all do the same work ({', '.join(p.name for p in bench.proxies)}); ready after {time.monotonic() - begin:.1f} s", file=sys.stderr)
        samples = measure(bench, args, args.scenarios, begin + (50 if args.quick else 560))
        about = environment(bench)
        notes = bench.notes
    table = summarise(samples, args.reference)
    print(f"{about['date']}, {about['cpu']}, {about['cores']} cores, Linux {about['kernel']}; proxies on CPU {PROXY_CPU}, load on CPU {LOAD_CPU}; median [min..max]")
    print("; ".join(f"{name}: {text}" for name, text in about["versions"].items()))
    print_table(table, args.reference)
    for note in notes:
        print("note:", note)
    out = pathlib.Path(args.out)
    out.mkdir(parents=True, exist_ok=True)
    file = out / time.strftime("compare-%Y%m%dT%H%M%S.json")
    file.write_text(json.dumps({"environment": about, "arguments": sys.argv[1:], "medians": table, "samples": samples, "notes": notes}, indent=1))
    print(f"\n{time.monotonic() - begin:.0f} s; {file}")


if __name__ == "__main__":
    run(main)
