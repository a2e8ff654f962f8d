"""The Python clients: python_client.py LIBRARY BASE PARALLEL, where LIBRARY is http.client, requests, httpx or aiohttp.

Reads requests from standard input and writes what came of them, as README.md here says."""
import asyncio
import hashlib
import http.client
import sys
import threading
import urllib.parse

UNIT = bytes(range(251)) * 64
input_lock, output_lock = threading.Lock(), threading.Lock()


def pieces(size):
    """The body of `size` bytes that README.md describes, in pieces; a piece begins where the pattern does."""
    while size > 0:
        yield UNIT[:size]
        size -= len(UNIT)


async def async_pieces(size):
    for piece in pieces(size):
        yield piece


class Request:
    def __init__(self, line):
        self.id, self.method, self.path, body, flags, *fields = line.rstrip("\n").split("\t")
        kind, _, size = body.partition(":")
        self.streamed, self.size = kind == "stream", int(size or 0)
        self.has_body = kind != "-"
        self.fields = dict(f.split(": ", 1) for f in fields)
        if "close" in flags.split(","):
            self.fields["Connection"] = "close"

    def body(self):
        if not self.has_body:
            return None
        return pieces(self.size) if self.streamed else b"".join(pieces(self.size))


def next_request():
    with input_lock:
        line = sys.stdin.readline()
    return Request(line) if line else None


def say(*columns):
    with output_lock:
        print(*columns, sep="\t", flush=True)


def say_response(request, status, body, fields):
    say(request.id, status, len(body), hashlib.sha256(body).hexdigest(), *(f"{n.lower()}: {v}" for n, v in fields))


def guarded(ask):
    """`ask` as a worker: until there are no more requests."""
    def work():
        for request in iter(next_request, None):
            try:
                say_response(request, *ask(request))
            except Exception as e:
                say(request.id, "error", f"{type(e).__name__}: {e}")
    return work


def with_http_client(base, parallel):
    url = urllib.parse.urlsplit(base)

    def worker():
        kind = http.client.HTTPSConnection if url.scheme == "https" else http.client.HTTPConnection
        connection = kind(url.hostname, url.port, timeout=60)

        def ask(r):
            try:
                connection.request(r.method, r.path, r.body(), r.fields)
            except (BrokenPipeError, ConnectionResetError):
                pass  # an early answer: it is there to be read, as the library's documentation of send() leaves to its user
            answer = connection.getresponse()
            return answer.status, answer.read(), answer.getheaders()
        guarded(ask)()
    in_threads(worker, parallel)


def with_requests(base, parallel):
    import requests
    session = requests.Session()
    session.mount("http://", requests.adapters.HTTPAdapter(pool_maxsize=parallel))

    def ask(r):
        answer = session.request(r.method, base + r.path, data=r.body(), headers=r.fields, timeout=60,
                                 allow_redirects=r.method != "HEAD")
        return answer.status_code, answer.content, answer.headers.items()
    in_threads(guarded(ask), parallel)


def with_httpx(base, parallel):
    import httpx
    client = httpx.Client(timeout=60, follow_redirects=True, limits=httpx.Limits(max_connections=parallel))

    def ask(r):
        answer = client.request(r.method, base + r.path, content=r.body(), headers=r.fields)
        return answer.status_code, answer.content, answer.headers.items()
    in_threads(guarded(ask), parallel)


def in_threads(work, parallel):
    workers = [threading.Thread(target=work) for _ in range(parallel)]
    for w in workers:
        w.start()
    for w in workers:
        w.join()


async def with_aiohttp(base, parallel):
    import aiohttp

    async def work(session):
        while request := await asyncio.get_running_loop().run_in_executor(None, next_request):
            body = async_pieces(request.size) if request.streamed else request.body()
            try:
                async with session.request(request.method, base + request.path, data=body, headers=request.fields,
                                           expect100="Expect" in request.fields) as answer:
                    say_response(request, answer.status, await answer.read(), answer.headers.items())
            except Exception as e:
                say(request.id, "error", f"{type(e).__name__}: {e}")

    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=parallel)) as session:
        await asyncio.gather(*(work(session) for _ in range(parallel)))


def main(library, base, parallel):
    if library == "aiohttp":
        asyncio.run(with_aiohttp(base, int(parallel)))
    else:
        {"http.client": with_http_client, "requests": with_requests, "httpx": with_httpx}[library](base, int(parallel))


if __name__ == "__main__":
    main(*sys.argv[1:])
