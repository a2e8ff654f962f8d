"""The upstream's script: what a request gets is named by the last word of its path."""
import gzip
import hashlib

from programs import pattern

SIZE = 8 << 20
PAGE = b"<!doctype html><title>page</title><link rel=icon href=data:,>"
TEXT = b"a text that gzip makes smaller " * 1000


def answer(x):
    SCRIPTS.get(x.request.path.rpartition("/")[2], echo)(x)


def echo(x):
    """Says in fields what arrived."""
    body = x.body()
    told = f"{x.request.method} {len(body)} {hashlib.sha256(body).hexdigest()}"
    x.answer(200, [("X-Told", told), ("Content-Type", "application/octet-stream")], pattern(1000))


def etag(x):
    known = x.request.fields.get("if-none-match") == '"v1"'
    x.answer(304 if known else 200, [("ETag", '"v1"')], b"" if known else b"new", framing="none" if known else "length")


def go_on(x):
    """Lets a client go on that asks first; one that does not ask is told that it did not."""
    asked = x.request.fields.get("expect", "").lower() == "100-continue"
    if asked:
        x.send(b"HTTP/1.1 100 Continue\r\n\r\n")
    body = x.body()
    x.answer(200, [("X-Told", f"{asked} {len(body)} {hashlib.sha256(body).hexdigest()}")], b"ok")


def refuse_early(x):
    """Answers a request whose body it does not read, and closes, as a server does that is not interested."""
    x.answer(403, [("Content-Type", "text/plain")], b"not interested")
    x.close()
    x.until_closed()


def hint(x):
    """An interim response that nobody asked for (RFC 8297)."""
    x.send(b"HTTP/1.1 103 Early Hints\r\nLink: </style.css>; rel=preload\r\n\r\n")
    echo(x)


def broken(framing):
    """A script that sends half of a response and resets the connection."""
    def script(x):
        x.send(b"HTTP/1.1 200 OK\r\n" + framing + b"\r\n\r\n" + (b"8000\r\n" if b"chunked" in framing else b"") + pattern(0x4000))
        x.reset()
    return script


def shared(x):
    """An API for pages of every origin: answers the browser's question first (Fetch, "CORS-preflight")."""
    allow = [("Access-Control-Allow-Origin", "*"), ("Access-Control-Allow-Headers", "X-API-KEY, X-Request-Id"),
             ("Access-Control-Expose-Headers", "X-Request-Id")]
    if x.request.method == "OPTIONS":
        x.answer(204, allow, framing="none")
    else:
        x.answer(200, allow, pattern(1000))


SCRIPTS = {
    "download": lambda x: x.answer(200, [], pattern(SIZE)),
    "chunked": lambda x: x.answer(200, [], pattern(SIZE // 8), framing="chunked"),
    "until-close": lambda x: x.answer(200, [], pattern(SIZE // 8), framing="close"),
    "gzip": lambda x: x.answer(200, [("Content-Encoding", "gzip")], gzip.compress(TEXT, mtime=0)),
    "missing": lambda x: x.answer(404, [("Content-Type", "text/plain")], b"no such thing here"),
    "nothing": lambda x: x.answer(204, framing="none"),
    "etag": etag,
    "moved": lambda x: x.answer(302, [("Location", x.request.path + "/there")], b"over there"),
    "continue": go_on,
    "early": refuse_early,
    "hint": hint,
    "broken-length": broken(b"Content-Length: 32768"),
    "broken-chunk": broken(b"Transfer-Encoding: chunked"),
    "shared": shared,
    "page": lambda x: x.answer(200, [("Content-Type", "text/html")], PAGE),
}
