#!/usr/bin/env python3
"""Bodies of 10 GiB in both directions, and the memory that they take.

    ./dev build && python3 bench/long_body.py [--gib N] [--program FILE] [--rss MB]

Sends one body of N GiB (default 10) up through the gateway, with a length and in chunks, and fetches one down; counts every
byte at the other end, and prints seconds and the gateway's peak resident memory so far. Exit code 1 if a byte is missing or
the peak is over the bound (--rss, 48 MB); times are printed and never judged. Loopback only; nothing is written to a disk
but the account.
"""
import argparse
import json
import pathlib
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time

ROOT = pathlib.Path(__file__).resolve().parents[1]
PIECE = bytes(1 << 20)
FRAMED_PIECE = b"%x\r\n" % len(PIECE) + PIECE + b"\r\n"


def read_head(s):
    """(head, what of the body came with it)"""
    data = b""
    while b"\r\n\r\n" not in data:
        piece = s.recv(65536)
        if not piece:
            raise EOFError("the connection ended inside a head")
        data += piece
    head, _, rest = data.partition(b"\r\n\r\n")
    return head.lower(), rest


def count(s, rest, length):
    """Bytes of a body with a length that arrive, at most `length`."""
    got, buffer = len(rest), bytearray(1 << 20)
    while got < length:
        n = s.recv_into(buffer)
        if n == 0:
            break
        got += n
    return got


def count_chunked(s, rest):
    """Bytes of a chunked body; the framing is ours or the gateway's, without extensions and trailers."""
    got, data = 0, bytearray(rest)
    while True:
        while b"\r\n" not in data:
            data += s.recv(1 << 20)
        line, _, data = data.partition(b"\r\n")
        size = int(line, 16)
        if size == 0:
            return got
        while len(data) < size + 2:
            piece = s.recv(1 << 20)
            if not piece:
                return got
            data += piece
        got += size
        del data[: size + 2]


def answer(s, size):
    """One connection of the upstream: GET sends `size` bytes, POST counts and says how many came."""
    with s:
        head, rest = read_head(s)
        if head.startswith(b"get "):
            s.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\nConnection: close\r\n\r\n" % size)
            for _ in range(size // len(PIECE)):
                s.sendall(PIECE)
            return
        got = count_chunked(s, rest) if b"transfer-encoding: chunked" in head else count(s, rest, size)
        said = b"%d" % got
        s.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\nConnection: close\r\n\r\n" % len(said) + said)


def serve(listener, size):
    while True:
        s, _ = listener.accept()
        threading.Thread(target=answer, args=(s, size), daemon=True).start()


def upload(address, key, size, chunked):
    """How many bytes the upstream saw."""
    with socket.create_connection(address) as s:
        framing = b"Transfer-Encoding: chunked" if chunked else b"Content-Length: %d" % size
        s.sendall(b"POST /sink HTTP/1.1\r\nHost: bench\r\nX-API-KEY: %s\r\n%s\r\n\r\n" % (key, framing))
        piece = FRAMED_PIECE if chunked else PIECE
        for _ in range(size // len(PIECE)):
            s.sendall(piece)
        if chunked:
            s.sendall(b"0\r\n\r\n")
        head, rest = read_head(s)
        if not head.startswith(b"http/1.1 200"):
            sys.exit(f"the upload got {head[:200]!r}")
        return int(rest or s.recv(64))


def download(address, key, size):
    with socket.create_connection(address) as s:
        s.sendall(b"GET /spring HTTP/1.1\r\nHost: bench\r\nX-API-KEY: %s\r\n\r\n" % key)
        head, rest = read_head(s)
        if not head.startswith(b"http/1.1 200"):
            sys.exit(f"the download got {head[:200]!r}")
        return count(s, rest, size)


def start(program, folder, upstream):
    """(process, address, key)"""
    settings, ready = folder / "latchkey.toml", folder / "ready"
    settings.write_text(f'listen = "127.0.0.1:0"\nadmin_listen = "127.0.0.1:0"\ndata_dir = "data"\n[client]\nrequest = "1h"\n'
                        f'[[api]]\nname = "bench"\nupstreams = ["http://127.0.0.1:{upstream}"]\n')
    process = subprocess.Popen([program, "serve", "--config", settings, "--ready-file", ready], stdin=subprocess.DEVNULL,
                               stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 30
    while not ready.exists():
        if process.poll() is not None or time.monotonic() > deadline:
            sys.exit("the gateway did not start")
        time.sleep(0.01)
    host, port = json.loads(ready.read_text())["listen"][0].rsplit(":", 1)
    made = subprocess.run([program, "keys", "create", "--name", "bench", "--config", settings, "--json"], check=True,
                          stdout=subprocess.PIPE).stdout
    return process, (host, int(port)), json.loads(made)["key"].encode()


def peak_mb(pid):
    for line in pathlib.Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024 / 1e6
    raise KeyError("VmHWM")


def main():
    ask = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ask.add_argument("--gib", type=float, default=10, help="GiB of each body")
    ask.add_argument("--program", default=str(ROOT / "build/release/latchkey"))
    ask.add_argument("--rss", type=float, default=48, help="bound of the peak in MB")
    flags = ask.parse_args()
    size = int(flags.gib * 1024) * len(PIECE)
    folder = pathlib.Path(tempfile.mkdtemp(prefix="latchkey-long-"))
    failed = False
    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=serve, args=(listener, size), daemon=True).start()
        process, address, key = start(flags.program, folder, listener.getsockname()[1])
        try:
            for name, run in [("up, with a length", lambda: upload(address, key, size, False)),
                              ("up, in chunks", lambda: upload(address, key, size, True)),
                              ("down", lambda: download(address, key, size))]:
                begin = time.monotonic()
                got = run()
                peak = peak_mb(process.pid)
                print(f"{name}: {got:,} of {size:,} bytes in {time.monotonic() - begin:.1f} s; peak {peak:.1f} MB", flush=True)
                failed = failed or got != size or peak > flags.rss
        finally:
            process.terminate()
            process.wait(60)
            shutil.rmtree(folder, ignore_errors=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
