#!/usr/bin/env python3
"""What many keys cost: import, start and memory, at 100,000 and 1,000,000 keys.

    ./dev build && python3 bench/startup.py [--keys N,N...] [--rounds R] [--program FILE] [--pss N=MB,N=MB...]

Prints, for each number of keys: seconds of the import into an empty store and of the same import again; milliseconds from
starting the process to the first 200 of /readyz (median and range of the rounds, the file in the page cache); the process's
proportional set size (PSS) then and after 2,000 requests with different keys. Exit code 1 if a PSS is over its bound (30 MB
at 100,000 keys, 200 MB at 1,000,000); times are printed and never judged. Everything is on loopback, in a folder that is
removed.
"""
import argparse
import http.client
import pathlib
import random
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parents[1]
ALPHABET = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
REQUESTS = 2000


def write_keys(file, count):
    """`count` keys of another system, 32 characters each; a sample of them."""
    chance = random.Random(count)
    sample = []
    with open(file, "w", encoding="ascii") as out:
        out.write("name,key\n")
        for i in range(count):
            key = "".join(chance.choices(ALPHABET, k=32))
            out.write(f"Application {i:07},{key}\n")
            if i % (count // REQUESTS or 1) == 0:
                sample.append(key)
    return sample


def import_seconds(program, file, data):
    begin = time.monotonic()
    said = subprocess.run([program, "keys", "import", file, "--data", data], check=True, capture_output=True, text=True).stdout
    return time.monotonic() - begin, said.strip()


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        return taken.getsockname()[1]


class Gateway:
    """A started gateway with the demo API; `ready_ms` after the start /readyz answered 200."""

    def __init__(self, program, data):
        self.port, admin = free_port(), free_port()
        begin = time.monotonic()
        self.process = subprocess.Popen(
            [program, "serve", "--demo", "--data", data, "--listen", f"127.0.0.1:{self.port}",
             "--admin-listen", f"127.0.0.1:{admin}"], stdin=subprocess.DEVNULL, stderr=subprocess.PIPE)
        while not self.is_ready(admin):
            if self.process.poll() is not None:
                sys.exit("the gateway did not start: " + self.process.stderr.read().decode())
            if time.monotonic() - begin > 120:
                self.process.kill()
                sys.exit("the gateway was not ready within two minutes")
            time.sleep(0.001)
        self.ready_ms = (time.monotonic() - begin) * 1e3

    @staticmethod
    def is_ready(port):
        asked = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
        try:
            asked.request("GET", "/readyz")
            return asked.getresponse().status == 200
        except OSError:
            return False
        finally:
            asked.close()

    def pss_mb(self):
        for line in pathlib.Path(f"/proc/{self.process.pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) * 1024 / 1e6
        raise KeyError("Pss")

    def use(self, keys):
        c = http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)
        for key in keys:
            c.request("GET", "/hello", headers={"X-API-KEY": key})
            answer = c.getresponse()
            answer.read()
            if answer.status != 200:
                sys.exit(f"an imported key got {answer.status}")
        c.close()

    def stop(self):
        self.process.terminate()
        self.process.communicate(timeout=60)
        if self.process.returncode != 0:
            sys.exit(f"the gateway ended with {self.process.returncode}")


def measure(program, count, rounds, folder):
    file, data = str(folder / f"{count}.csv"), str(folder / f"data-{count}")
    sample = write_keys(file, count)
    first, said = import_seconds(program, file, data)
    again, said_again = import_seconds(program, file, data)
    if (said, said_again) != (f"imported {count}, unchanged 0", f"imported 0, unchanged {count}"):
        sys.exit(f"the imports said: {said}; {said_again}")
    times, at_rest, used = [], [], []
    for _ in range(rounds):
        g = Gateway(program, data)
        times.append(g.ready_ms)
        at_rest.append(g.pss_mb())
        g.use(sample)
        used.append(g.pss_mb())
        g.stop()
    size = (pathlib.Path(data) / "keys.db").stat().st_size / 1e6
    print(f"{count:>9,} keys: import {first:.2f} s, again {again:.2f} s; keys.db {size:.0f} MB; "
          f"start to ready {statistics.median(times):.0f} ms ({min(times):.0f} to {max(times):.0f}); "
          f"PSS {max(at_rest):.1f} MB, after {len(sample):,} requests {max(used):.1f} MB", flush=True)
    return max(used)


def main():
    ask = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ask.add_argument("--keys", default="100000,1000000", help="numbers of keys")
    ask.add_argument("--rounds", type=int, default=5, help="starts for each")
    ask.add_argument("--program", default=str(ROOT / "build/release/latchkey"))
    ask.add_argument("--pss", default="100000=30,1000000=200", help="bounds in MB by number of keys")
    flags = ask.parse_args()
    bounds = {int(n): float(mb) for n, mb in (pair.split("=") for pair in flags.pss.split(",") if pair)}
    folder = pathlib.Path(tempfile.mkdtemp(prefix="latchkey-startup-"))
    over = []
    try:
        for count in (int(n) for n in flags.keys.split(",")):
            pss = measure(flags.program, count, flags.rounds, folder)
            if pss > bounds.get(count, float("inf")):
                over.append(f"{count:,} keys: {pss:.1f} MB, bound {bounds[count]:.0f}")
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    for line in over:
        print("over its bound:", line)
    return 1 if over else 0


if __name__ == "__main__":
    sys.exit(main())
