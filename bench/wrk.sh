#!/bin/sh
# bench/wrk.sh [SECONDS] [CONNECTIONS] [peers.py options]: wrk's view of Latchkey, nginx and HAProxy, with the same settings as
# compare.py. A quick look only: wrk uses one key, and it and the upstream share a core, so absolute figures are low for all of them.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
seconds=${1:-5} connections=${2:-64}
[ $# -lt 1 ] || shift
[ $# -lt 1 ] || shift
command -v wrk >/dev/null || {
    echo "bench/wrk.sh: wrk is missing: apt-get install wrk" >&2
    exit 1
}
exec /usr/bin/python3 "$here/peers.py" "$@" -- \
    wrk -t1 -c"$connections" -d"${seconds}s" --latency -H 'X-API-KEY: {key}' '{url}/bytes/1024'
