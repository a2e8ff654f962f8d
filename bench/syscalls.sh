#!/bin/bash
# bench/syscalls.sh [--check MAX] [--only NAME] [--requests N] [--seconds S] [--build DIR]
# System calls per request of a running proxy (default: latchkey), counted by strace: over N requests at saturation, and S seconds
# at 4,000/s (fewer, where strace slows it too much; the rate that was reached is printed). With --check it exits 1 if saturation
# takes more than MAX a request: a guard against regressions, since the kernel has most of a proxy's time. N is a number and not a
# time: making the 64 connections costs some 500 calls, which a slow machine would spread over fewer requests.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
check='' only=latchkey requests=6000 seconds=2 build=$here/../build/release

# Called by peers.py for the proxy it has started: one traced run, one row (and under it what the calls were).
if [ "${1-}" = --trace ]; then
    name=$2 pids=$3 port=$4 keys=$5 load=$6 out=$7 requests=$8 seconds=$9
    IFS=, read -ra attach <<<"$pids"
    attach=("${attach[@]/#/--attach=}")
    for mode in closed open; do
        words=("mode=$mode" rate=4000 "port=$port" "keys=$keys" connections=64 body=1024)
        span=("seconds=$seconds")
        [ "$mode" = open ] || span=("requests=$requests" seconds=60)
        # Warm connections first, so that what is traced is exchanges and not their making.
        "$load" "${words[@]}" seconds=0.5 >/dev/null
        strace -f -c -U calls,name -o "$out/calls" "${attach[@]}" 2>"$out/strace.log" &
        tracer=$!
        for _ in $(seq 100); do
            grep -q attached "$out/strace.log" && break
            sleep 0.05
        done
        grep -q attached "$out/strace.log" || {
            cat "$out/strace.log" >&2
            exit 1
        }
        done_json=$("$load" "${words[@]}" warm=0 "${span[@]}" spin=0)
        kill -INT "$tracer"
        wait "$tracer" || true
        /usr/bin/python3 - "$name" "$mode" "$out/calls" "$done_json" "$out/per_request" <<'PY'
import json, sys
name, mode, calls_file, done, result = sys.argv[1:]
done = json.loads(done)
calls = {}
for line in open(calls_file):
    words = line.split()
    if len(words) >= 2 and words[0].isdigit() and words[-1] != "total":
        calls[words[-1]] = int(words[0])
requests = done["upstream"]["requests"] or sum(done["statuses"].values())
if not requests or not calls or done["wrong_status"] or done["broken"]:
    sys.exit(f"bench/syscalls.sh: the traced run failed: {done}")
per_request = sum(calls.values()) / requests
print(f"{name:10} {mode:6} {requests:8} requests {done['per_second']:9.0f}/s {per_request:7.2f} calls a request")
for call, n in sorted(calls.items(), key=lambda item: -item[1]):
    if n / requests >= 0.01:
        print(f"{'':18}{call:20} {n / requests:6.2f}")
if mode == "closed":
    open(result, "a").write(f"{name} {per_request:.3f}\n")
PY
    done
    exit 0
fi

while [ $# -gt 0 ]; do
    [ $# -ge 2 ] || {
        echo "bench/syscalls.sh: $1 wants a value" >&2
        exit 2
    }
    case $1 in
        --check) check=$2 ;;
        --only) only=$2 ;;
        --requests) requests=$2 ;;
        --seconds) seconds=$2 ;;
        --build) build=$2 ;;
        *)
            echo "bench/syscalls.sh: no option $1" >&2
            exit 2
            ;;
    esac
    shift 2
done
command -v strace >/dev/null || {
    echo "bench/syscalls.sh: strace is missing: apt-get install strace" >&2
    exit 1
}
out=$(mktemp -d)
trap 'rm -rf "$out"' EXIT
/usr/bin/python3 "$here/peers.py" --only "$only" --build "$build" -- \
    "$here/syscalls.sh" --trace '{name}' '{pids}' '{port}' '{keys}' "$build/bench_load" "$out" "$requests" "$seconds"
[ -n "$check" ] || exit 0
/usr/bin/python3 - "$check" "$out/per_request" <<'PY'
import sys
most = float(sys.argv[1])
rows = [line.split() for line in open(sys.argv[2])]
over = [(name, value) for name, value in rows if float(value) > most]
for name, value in over:
    print(f"{name}: {value} system calls a request at saturation; at most {most:g} are allowed", file=sys.stderr)
sys.exit(1 if over or not rows else 0)
PY
