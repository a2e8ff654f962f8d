#!/usr/bin/env python3
"""Exports a large account as CSV and looks at the memory that it takes.

    ./dev build bench && python3 bench/export.py [--records N,N...] [--build DIR] [--rss MB]

Fills a usage.db with so many records (bench_fill), runs `latchkey usage export` on it into a pipe that counts rows, and
prints rows, seconds and the peak resident memory of the export. Exit code 1 if rows are missing or the peak is over the
bound (--rss, 32 MB); the time is printed and never judged. Wants 40 bytes of disk a record, in a folder that is removed.
"""
import argparse
import pathlib
import shutil
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parents[1]


def peak_mb(pid):
    """The peak resident memory since the program's start; of the process that runs now (rusage would count this script's)."""
    for line in pathlib.Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024 / 1e6
    return 0.0  # it has ended


def export(program, data):
    """(rows without the header, bytes, seconds, peak MB)"""
    begin = time.monotonic()
    rows = size = 0
    peak = 0.0
    with subprocess.Popen([program, "usage", "export", "--data", data], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE) as run:
        while piece := run.stdout.read1(1 << 20):
            rows += piece.count(b"\n")
            size += len(piece)
            peak = max(peak, peak_mb(run.pid))
    if run.returncode != 0:
        sys.exit(f"the export ended with {run.returncode}")
    return rows - 1, size, time.monotonic() - begin, peak


def main():
    ask = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ask.add_argument("--records", default="1000000,10000000", help="numbers of records")
    ask.add_argument("--build", default=str(ROOT / "build/release"), help="where latchkey and bench_fill are")
    ask.add_argument("--rss", type=float, default=32, help="bound of the peak in MB")
    flags = ask.parse_args()
    failed = False
    for count in (int(n) for n in flags.records.split(",")):
        folder = tempfile.mkdtemp(prefix="latchkey-export-")
        try:
            subprocess.run([f"{flags.build}/bench_fill", folder, str(count)], check=True)
            rows, size, seconds, peak = export(f"{flags.build}/latchkey", folder)
            packed = (pathlib.Path(folder) / "usage.db").stat().st_size
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        print(f"{rows:>11,} rows in {seconds:.1f} s ({rows / seconds:,.0f} a second), {size / 1e6:,.0f} MB of CSV from "
              f"{packed / 1e6:,.0f} MB; peak {peak:.1f} MB", flush=True)
        if rows != count:
            print(f"wanted {count:,} rows")
        if peak > flags.rss:
            print(f"over the bound of {flags.rss:.0f} MB")
        failed = failed or rows != count or peak > flags.rss
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
