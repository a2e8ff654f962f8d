"""The scripted upstream: a threaded HTTP/1.1 server that keeps every byte it was sent and breaks where a script says so.

A script is a function of one Exchange. It reads the request's body when it wants it, sends what it likes, and the connection
is kept only if the exchange stayed in step. Scripts are chosen by the request's path, so one upstream serves a whole session:

    upstream.on("/half", lambda x: (x.send(b"HTTP/1.1 200 OK\\r\\nContent-Le"), x.reset()))
"""
import contextlib
import json
import re
import socket
import threading
import time
from dataclasses import dataclass

from wire import Broken, Malformed, Message, Reader, TimedOut, bound, declared_framing, parse_head, read_body, reset

RAW_KEPT = 1 << 20  # bytes of a connection that are kept verbatim; more are only counted


@dataclass
class Request(Message):
    """A request as it arrived; `connection` is the Connection it came on, `number` its place there (from 1)."""
    connection: object = None
    number: int = 0

    @property
    def method(self):
        return self.start.split(" ")[0]

    @property
    def target(self):
        return self.start.split(" ")[1]

    @property
    def path(self):
        return self.target.partition("?")[0]

    @property
    def version(self):
        return self.start.split(" ")[2]


class Connection:
    def __init__(self, sock):
        self.sock = sock
        self.raw = bytearray()
        self.size = 0
        self.open = True
        self.ended = None  # how the peer ended it: 'fin', 'reset'
        self.requests = []
        self.last_byte = time.monotonic()

    def tap(self, data):
        self.size += len(data)
        self.last_byte = time.monotonic()
        if len(self.raw) < RAW_KEPT:
            self.raw += data[: RAW_KEPT - len(self.raw)]


class Exchange:
    """One request in a script's hands."""

    def __init__(self, upstream, connection, reader, request):
        self.upstream, self.connection, self.reader, self.request = upstream, connection, reader, request
        self.keep = True
        self.body_read = False

    def body(self, timeout=20, sink=None):
        """Reads the request's body; raises Broken where it stops short."""
        if not self.body_read:
            self.body_read = True
            framing, length = declared_framing(self.request.fields)
            try:
                read_body(self.reader, self.request, framing, length, time.monotonic() + bound(timeout), sink)
            finally:
                self.upstream.notify()
        return self.request.body

    def send(self, data):
        self.connection.sock.settimeout(bound(30))
        self.connection.sock.sendall(data)

    def drip(self, data, pause=0.0):
        """One byte a write."""
        for at in range(len(data)):
            self.send(data[at : at + 1])
            if pause:
                time.sleep(pause)

    def answer(self, status=200, fields=(), body=b"", reason="OK", framing="length", trailers=()):
        head = f"HTTP/1.1 {status} {reason}\r\n" + "".join(f"{n}: {v}\r\n" for n, v in fields)
        if framing == "length":
            head += f"Content-Length: {len(body)}\r\n"
        elif framing == "chunked":
            head += "Transfer-Encoding: chunked\r\n"
            body = b"".join(b"%x\r\n%b\r\n" % (len(body[i : i + 4096]), body[i : i + 4096]) for i in range(0, len(body), 4096))
            body += b"0\r\n" + b"".join(f"{n}: {v}\r\n".encode() for n, v in trailers) + b"\r\n"
        elif framing == "close":
            self.keep = False
        self.send(head.encode("latin-1") + b"\r\n" + (b"" if self.request.method == "HEAD" else body))

    def close(self):
        """Ends with FIN, whatever the peer does."""
        self.keep = False
        try:
            self.connection.sock.shutdown(socket.SHUT_WR)
        except OSError:
            pass

    def reset(self):
        self.keep = False
        reset(self.connection.sock)

    def until_closed(self, timeout=20):
        """Reads and drops until the peer ends the connection: 'fin' or 'reset'."""
        deadline = time.monotonic() + bound(timeout)
        self.keep = False
        try:
            while True:
                self.reader.fill(deadline)
                self.reader.buffer.clear()
        except Broken as end:
            self.connection.ended = end.kind
            return end.kind


def describe(x):
    """The default script: takes the body and answers with what arrived, as JSON."""
    body = x.body()
    r = x.request
    told = {"method": r.method, "target": r.target, "fields": list(r.fields), "trailers": list(r.trailers),
            "size": len(body), "body": body[:65536].decode("latin-1")}
    x.answer(200, [("Content-Type", "application/json")], json.dumps(told).encode())


def pour(x, size):
    """A body of `size` MiB, as much of it as is taken."""
    x.keep = False
    x.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % (size << 20))
    with contextlib.suppress(OSError):
        for _ in range(size):
            x.send(b"x" * (1 << 20))


class Upstream:
    """`port` 0 lets the kernel choose. `idle_close`: seconds after which an idle connection is closed. `max_requests`: after so
    many the connection is closed without a word. `spring`: the connection is reset as soon as request number `spring`'s first
    byte arrives. `greeting`: bytes sent on accept, before anything is read."""

    def __init__(self, default=describe, idle_close=None, max_requests=None, spring=None, greeting=None, on_accept=None,
                 host="127.0.0.1", port=0):
        self.default, self.idle_close, self.max_requests = default, idle_close, max_requests
        self.spring, self.greeting, self.on_accept = spring, greeting, on_accept
        self.scripts = {}
        self.patterns = []
        self.connections = []
        self.requests = []
        self.faults = []  # what the gateway sent that breaks RFC 9112
        self.changed = threading.Condition()
        self.listener = socket.create_server((host, port), backlog=1024)
        self.address = self.listener.getsockname()
        self.port = self.address[1]
        self.url = f"http://{host}:{self.port}"
        threading.Thread(target=self._accept, daemon=True).start()

    def on(self, path, script):
        """Runs `script` for requests whose path is `path`."""
        self.scripts[path] = script
        return path

    # --- what arrived

    def notify(self):
        with self.changed:
            self.changed.notify_all()

    def wait(self, condition, timeout=10):
        """Waits until `condition()`; its value, or an AssertionError when the bound passes."""
        with self.changed:
            deadline = time.monotonic() + bound(timeout)
            while True:
                value = condition()
                if value:
                    return value
                left = deadline - time.monotonic()
                assert left > 0, "the upstream did not see what the test waits for"
                self.changed.wait(min(left, 0.05))

    def seen(self, path):
        """Requests with this path so far, in order of arrival."""
        with self.changed:
            return [r for r in self.requests if r.path == path]

    def only(self, path, timeout=10):
        """The one request with this path."""
        self.wait(lambda: self.seen(path), timeout)
        found = self.seen(path)
        assert len(found) == 1, f"{len(found)} requests for {path}"
        return found[0]

    def bytes_received(self):
        with self.changed:
            return sum(c.size for c in self.connections)

    def forget(self):
        """Drops finished connections and all requests from memory; scripts stay."""
        with self.changed:
            self.connections = [c for c in self.connections if c.open]
            self.requests = []

    def open_connections(self):
        with self.changed:
            return [c for c in self.connections if c.open]

    def close_connections(self):
        """Ends every open connection with FIN, as a restarting server does."""
        for c in self.open_connections():
            try:
                c.sock.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass

    def stop(self):
        try:
            self.listener.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass
        self.listener.close()
        for c in self.open_connections():
            reset(c.sock)

    # --- the server

    def _accept(self):
        while True:
            try:
                sock, _ = self.listener.accept()
            except OSError:
                return
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            connection = Connection(sock)
            with self.changed:
                self.connections.append(connection)
                self.changed.notify_all()
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection):
        reader = Reader(connection.sock, connection.tap)
        try:
            if self.on_accept:
                self.on_accept(connection)
            if self.greeting:
                connection.sock.sendall(self.greeting)
            while self._exchange(connection, reader):
                pass
        except Broken as end:
            connection.ended = connection.ended or end.kind
        except Malformed as fault:
            self.faults.append((str(fault), bytes(connection.raw[-2000:])))
        except (OSError, TimedOut):
            pass
        finally:
            connection.open = False
            try:
                connection.sock.shutdown(socket.SHUT_WR)
            except OSError:
                pass
            connection.sock.close()
            self.notify()

    def _exchange(self, connection, reader):
        number = len(connection.requests) + 1
        if not reader.buffer:
            try:
                reader.fill(time.monotonic() + (self.idle_close if self.idle_close and number > 1 else 3600))
            except TimedOut:
                return False
        if self.spring and number >= self.spring:
            reset(connection.sock)
            return False
        raw = reader.until(b"\r\n\r\n", time.monotonic() + bound(30))
        start, fields = parse_head(raw)
        if not re.fullmatch(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+ \S+ HTTP/1\.1", start):
            raise Malformed(f"request line {start!r}")
        request = Request(start=start, fields=fields, raw_head=raw, connection=connection, number=number)
        declared_framing(fields)
        if len(fields.all("host")) != 1:
            raise Malformed(f"Host: {fields.all('host')}")
        with self.changed:
            connection.requests.append(request)
            self.requests.append(request)
            self.changed.notify_all()
        x = Exchange(self, connection, reader, request)
        self.scripts.get(request.path, self.default)(x)
        if x.keep and not x.body_read and declared_framing(fields) == ("none", 0):
            request.complete = True
        self.notify()
        return x.keep and request.complete and number != self.max_requests


def refused_port():
    """A port on which nothing listens. Bound and never listening, so that nobody else gets it."""
    sock = socket.socket()
    sock.bind(("127.0.0.1", 0))
    return sock, sock.getsockname()[1]


class Blackhole:
    """A listener whose queue is full: SYNs are dropped, so a connect neither succeeds nor fails."""

    def __init__(self):
        self.listener = socket.socket()
        self.listener.bind(("127.0.0.1", 0))
        self.listener.listen(0)
        self.port = self.listener.getsockname()[1]
        self.fillers = []
        for _ in range(4):
            filler = socket.socket()
            filler.setblocking(False)
            filler.connect_ex(("127.0.0.1", self.port))
            self.fillers.append(filler)

    def stop(self):
        for sock in self.fillers + [self.listener]:
            sock.close()
