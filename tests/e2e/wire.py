"""HTTP/1.1 as bytes: a strict reader for both sides, and the raw client.

Nothing here repairs anything. A message that RFC 9112 calls malformed raises Malformed; a message that stops short raises
Broken with what had arrived; a wait that is not answered raises TimedOut. A test that gets an answer got exactly that answer.
"""
import os
import re
import socket
import ssl
import struct
import time
from dataclasses import dataclass, field

SLOW = float(os.environ.get("LATCHKEY_SLOW", "1"))
HEAD_LIMIT = 256 * 1024
TOKEN = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
CONTROL = re.compile(rb"[\x00-\x08\x0a-\x1f\x7f]")
CHUNK_LINE = re.compile(rb"([0-9A-Fa-f]{1,16})(?:[ \t]*;[^\r\n\x00]*)?")


def bound(seconds):
    """`seconds`, stretched by LATCHKEY_SLOW: sanitizer builds need more time for the same work."""
    return seconds * SLOW


class Malformed(Exception):
    """The peer's bytes break RFC 9112."""


class TimedOut(Exception):
    """The peer stayed silent for longer than the bound."""


class Broken(Exception):
    """The peer ended the connection inside a message. kind: as Reader.ended; partial: what had arrived."""

    def __init__(self, kind, partial=None):
        super().__init__(f"connection ended inside a message ({kind}); so far: {partial!r}"[:400])
        self.kind = kind
        self.partial = partial


class Fields(list):
    """Header fields in order, as (name, value) pairs of str (latin-1)."""

    def all(self, name):
        return [v for n, v in self if n.lower() == name.lower()]

    def get(self, name, default=None):
        """The one value of a field; more than one is a failure of the test's subject."""
        found = self.all(name)
        assert len(found) < 2, f"{name} stands {len(found)} times: {found}"
        return found[0] if found else default

    def __contains__(self, name):
        return bool(self.all(name))


@dataclass
class Message:
    start: str = ""
    fields: Fields = field(default_factory=Fields)
    body: bytes = b""
    trailers: Fields = field(default_factory=Fields)
    framing: str = "none"  # none, length, chunked, close
    body_size: int = 0
    complete: bool = False
    raw_head: bytes = b""


@dataclass
class Response(Message):
    informational: list = field(default_factory=list)

    @property
    def status(self):
        return int(self.start.split(" ")[1])

    def __repr__(self):
        return f"<{self.start} {list(self.fields)} {self.framing} {self.body_size} bytes {self.body[:300]!r}>"


class Reader:
    """A socket with a buffer; every wait ends at `deadline` (time.monotonic). `tap` sees every byte that arrives."""

    def __init__(self, sock, tap=None):
        self.sock = sock
        self.buffer = bytearray()
        self.tap = tap
        self.ended = None  # None, 'fin', 'reset', or of TLS 'torn': an end without close_notify

    def fill(self, deadline):
        if self.ended:
            raise Broken(self.ended)
        left = deadline - time.monotonic()
        if left <= 0:
            raise TimedOut("no byte arrived in time")
        self.sock.settimeout(left)
        try:
            data = self.sock.recv(262144)
        except socket.timeout:
            raise TimedOut("no byte arrived in time") from None
        except OSError as why:
            self.ended = "torn" if isinstance(why, ssl.SSLEOFError) else "reset"
            raise Broken(self.ended) from None
        if not data:
            self.ended = "fin"
            raise Broken("fin")
        if self.tap:
            self.tap(data)
        self.buffer += data

    def until(self, mark, deadline, limit=HEAD_LIMIT):
        at = self.buffer.find(mark)
        while at < 0:
            if len(self.buffer) > limit:
                raise Malformed(f"no {mark!r} within {limit} bytes")
            start = max(0, len(self.buffer) - len(mark))
            self.fill(deadline)
            at = self.buffer.find(mark, start)
        taken = bytes(self.buffer[: at + len(mark)])
        del self.buffer[: at + len(mark)]
        return taken

    def some(self, most, deadline):
        if not self.buffer:
            self.fill(deadline)
        taken = bytes(self.buffer[:most])
        del self.buffer[: len(taken)]
        return taken


def parse_field_lines(raw):
    """Field lines with their CRLFs -> Fields. RFC 9112 section 5."""
    fields = Fields()
    for line in raw.split(b"\r\n")[:-1]:
        if b"\r" in line or b"\n" in line:
            raise Malformed(f"bare CR or LF in {line[:80]!r}")
        name, colon, value = line.partition(b":")
        if not colon or not TOKEN.fullmatch(name):
            raise Malformed(f"field line {line[:80]!r}")
        value = value.strip(b" \t")
        if CONTROL.search(value):
            raise Malformed(f"control byte in {line[:80]!r}")
        fields.append((name.decode("latin-1"), value.decode("latin-1")))
    return fields


def parse_head(raw):
    """A head with its empty line -> (start line, Fields)."""
    start, _, rest = raw.partition(b"\r\n")
    if CONTROL.search(start):
        raise Malformed(f"control byte in the start line {start[:80]!r}")
    return start.decode("latin-1"), parse_field_lines(rest[:-2])


def declared_framing(fields):
    """('chunked', 0), ('length', n) or ('none', 0); everything ambiguous is Malformed. RFC 9112 section 6.3."""
    lengths, codings = fields.all("content-length"), fields.all("transfer-encoding")
    if lengths and codings:
        raise Malformed("Content-Length and Transfer-Encoding in one message")
    if codings:
        if len(codings) != 1 or codings[0].lower() != "chunked":
            raise Malformed(f"Transfer-Encoding {codings}")
        return "chunked", 0
    if lengths:
        if len(lengths) != 1 or not re.fullmatch(r"[0-9]{1,19}", lengths[0]):
            raise Malformed(f"Content-Length {lengths}")
        return "length", int(lengths[0])
    return "none", 0


def read_body(reader, message, framing, length, deadline, sink=None):
    """Reads the body into message.body (or `sink`), trailers too; sets complete. Broken carries the message."""
    message.framing = framing
    pieces = []

    def take(piece):
        message.body_size += len(piece)
        pieces.append(piece) if sink is None else sink(piece)

    try:
        if framing == "length":
            while length:
                piece = reader.some(length, deadline)
                length -= len(piece)
                take(piece)
        elif framing == "chunked":
            read_chunks(reader, message, deadline, take)
        elif framing == "close":
            try:
                while True:
                    take(reader.some(262144, deadline))
            except Broken as end:
                if end.kind != "fin":
                    raise
        message.complete = True
    except Broken as end:
        raise Broken(end.kind, message) from None
    finally:
        message.body = b"".join(pieces)
    return message


def read_chunks(reader, message, deadline, take):
    while True:
        line = reader.until(b"\r\n", deadline, 65536)[:-2]
        matched = CHUNK_LINE.fullmatch(line)
        if not matched:
            raise Malformed(f"chunk line {line[:60]!r}")
        size = int(matched[1], 16)
        if size == 0:
            break
        while size:
            piece = reader.some(size, deadline)
            size -= len(piece)
            take(piece)
        while len(reader.buffer) < 2 and b"\r".startswith(bytes(reader.buffer)):
            reader.fill(deadline)
        if reader.buffer[:2] != b"\r\n":
            raise Malformed("chunk data not followed by CRLF")
        del reader.buffer[:2]
    raw = b""
    while not raw.endswith(b"\r\n\r\n") and raw != b"\r\n":
        raw += reader.until(b"\r\n", deadline, 65536)
    message.trailers = parse_field_lines(raw[:-2]) if raw != b"\r\n" else Fields()


def read_response(reader, method="GET", timeout=10, sink=None):
    """One final response, its 1xx heads in `informational`."""
    deadline = time.monotonic() + bound(timeout)
    response = Response()
    while True:
        try:
            raw = reader.until(b"\r\n\r\n", deadline)
        except Broken as end:
            raise Broken(end.kind, response if reader.buffer or response.informational else None) from None
        start, fields = parse_head(raw)
        if not re.fullmatch(r"HTTP/1\.[01] [1-9][0-9]{2} [^\r\n]*", start):
            raise Malformed(f"status line {start[:80]!r}")
        status = int(start.split(" ")[1])
        if status >= 200 or status == 101:
            break
        response.informational.append((status, fields))
    response.start, response.fields, response.raw_head = start, fields, raw
    framing, length = declared_framing(fields)
    if method == "HEAD" or status in (204, 304, 101):
        framing = "none"
    elif framing == "none":
        framing = "close"
    return read_body(reader, response, framing, length, deadline, sink)


def reset(sock):
    """Ends a connection with RST."""
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    except OSError:
        pass
    sock.close()


class RawClient:
    """One TCP connection that sends exact bytes."""

    def __init__(self, address, receive_buffer=None, source=None):
        self.sock = socket.socket(socket.AF_INET)
        if receive_buffer:
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        if source:
            self.sock.bind((source, 0))
        self.sock.settimeout(bound(10))
        self.sock.connect(address)
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.reader = Reader(self.sock)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    @property
    def leftover(self):
        return bytes(self.reader.buffer)

    def send(self, data, timeout=10):
        self.sock.settimeout(bound(timeout))
        self.sock.sendall(data)

    def request(self, method="GET", target="/", key=None, fields=(), body=None, version="HTTP/1.1", host="test.example"):
        """Sends a well-formed request in one write; `body` gets a Content-Length unless `fields` frame it."""
        self.send(request_bytes(method, target, key, fields, body, version, host))

    def response(self, method="GET", timeout=10, sink=None):
        return read_response(self.reader, method, timeout, sink)

    def get(self, target="/", key=None, fields=(), **more):
        self.request("GET", target, key, fields, **more)
        return self.response()

    def end(self, timeout=10):
        """Waits for the peer to end the connection, and how (Reader.ended). Bytes that come first stay in `leftover`."""
        deadline = time.monotonic() + bound(timeout)
        try:
            while True:
                self.reader.fill(deadline)
        except Broken as end:
            return end.kind

    def half_close(self):
        self.sock.shutdown(socket.SHUT_WR)

    def reset(self):
        reset(self.sock)

    def close(self):
        self.sock.close()


class TlsClient(RawClient):
    """One TLS connection to a server whose certificate is signed by `trusted` (a PEM file), or by anyone. `how`: see tls_rules();
    `session`: of an earlier connection with the same `rules`, to resume."""

    def __init__(self, address, trusted=None, name="localhost", rules=None, session=None, receive_buffer=None, **how):
        super().__init__(address, receive_buffer)
        self.rules = rules or tls_rules(trusted, **how)
        try:
            self.sock = self.rules.wrap_socket(self.sock, server_hostname=name, suppress_ragged_eofs=False, session=session)
        except BaseException:
            self.sock.close()
            raise
        self.reader.sock = self.sock

    def shown(self):
        """The certificate that the server showed, as DER."""
        return self.sock.getpeercert(binary_form=True)


def tls_rules(trusted=None, versions=None, alpn=None):
    """A client's ssl.SSLContext. `versions`: (least, most) of ssl.TLSVersion."""
    rules = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    rules.options &= ~getattr(ssl, "OP_IGNORE_UNEXPECTED_EOF", 0x80)  # an end without close_notify is told from one with it
    if trusted:
        rules.load_verify_locations(trusted)
    else:
        rules.check_hostname = False
        rules.verify_mode = ssl.CERT_NONE
    if versions:
        rules.minimum_version, rules.maximum_version = versions
    if alpn:
        rules.set_alpn_protocols(alpn)
    return rules


def request_bytes(method="GET", target="/", key=None, fields=(), body=None, version="HTTP/1.1", host="test.example"):
    lines = [f"{method} {target} {version}"]
    if host is not None:
        lines.append(f"Host: {host}")
    if key is not None:
        lines.append(f"X-API-KEY: {key}")
    lines += [f"{n}: {v}" for n, v in fields]
    framed = any(n.lower() in ("content-length", "transfer-encoding") for n, _ in fields)
    if body is not None and not framed:
        lines.append(f"Content-Length: {len(body)}")
    return "\r\n".join(lines + ["", ""]).encode("latin-1") + (body or b"")


def chunked(*pieces, trailers=()):
    """Pieces in chunked coding, with trailer fields behind."""
    coded = b"".join(b"%x\r\n%b\r\n" % (len(p), p) for p in pieces if p)
    return coded + b"0\r\n" + b"".join(f"{n}: {v}\r\n".encode() for n, v in trailers) + b"\r\n"
