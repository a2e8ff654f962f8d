"""Requests that are nearly right: valid ones, changed at a few bytes around what frames, routes and identifies them; and a strict
reading of what came out (RFC 9112), for whoever compares what others make of it. The same seed gives the same bytes."""
import random
import re
import time

from wire import Broken, Fields, Malformed, Message, Reader, declared_framing, parse_head, read_body

TOKEN = r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+"
EVIL = "evil"  # stands where a client claims to be somebody: no upstream may find it there

# What is put between, over or in front of bytes: whatever a reader might skip, end a line at, or take for something else.
BYTES = [b"\r", b"\n", b"\r\n", b"\n\n", b"\r\n\r\n", b"\r\r\n", b"\n\r", b" ", b"\t", b"\x0b", b"\x0c", b"\x00", b"\x7f", b"\x85", b"\xa0",
         b"\xff", b"\xc0\x8a", b"\xc4\x8a", b"\xe2\x80\xa8", b":", b"::", b",", b";", b"\"", b"\\", b"'", b"#", b"?", b"%", b"%0d%0a", b"%00",
         b"%2f", b"%5c", b"/", b"//", b"/../", b"..;/", b"0", b"1", b"5", b"-", b"+", b"_", b".", b"x", b"0x", b"a", b"F", b"e1", b"@", b"[", b"]",
         b"\r\n ", b"\r\n\t", b"\n ", b" \r\n", b":\r\n", b"\xef\xbb\xbf", b"99999999999999999999", b"ffffffffffffffff0"]
LINES = [b"Content-Length: 5", b"Content-Length: 0", b"Content-Length: 5, 5", b"Content-Length:", b"Content-Length: +5", b"Content-Length: 05",
         b"Transfer-Encoding: chunked", b"Transfer-Encoding: identity", b"Transfer-Encoding: chunked, identity", b"Transfer-Encoding:",
         b"Transfer-Encoding: Chunked", b"transfer-encoding:\tchunked ", b"Transfer-Encoding: \"chunked\"", b"Transfer-Encoding : chunked",
         b"Transfer-Encoding: gzip, chunked", b"Transfer_Encoding: chunked", b"Transfer.Encoding: chunked", b"Content_Length: 3",
         b"TE: trailers", b"Trailer: Content-Length", b"Connection: close", b"Connection: keep-alive", b"Connection: Content-Length",
         b"Connection: X-Consumer-Id, Host", b"Connection: Transfer-Encoding", b"Host: other.test", b"Host:", b"Expect: 100-continue",
         b"Upgrade: h2c", b"HTTP2-Settings: AAMAAABkAAQAAP__", b"Connection: Upgrade, HTTP2-Settings", b" folded", b"\tfolded", b": empty",
         b"X-Consumer-Id: evil", b"x_consumer_id: evil", b"X.Consumer.Username: evil", b"X-Credential-Identifier: evil",
         b"X-Forwarded-For: evil", b"X_Forwarded_Host: evil", b"X-Forwarded-User: evil", b"Forwarded: for=evil", b"X-Real-IP: evil",
         b"X-HTTP-Method-Override: DELETE", b"X-Request-Id: a b", b"Content-Length: 5\r\nContent-Length: 5", b"X: y\rZ: w", b"X: y\nZ: w"]


def bases(target, key):
    """Valid requests, one or several behind each other."""
    def head(line, *fields):
        return "\r\n".join([line, "Host: h.test", "X-API-KEY: " + key, *fields, "", ""]).encode("latin-1")

    def get(path="/behind"):
        return head(f"GET {target}{path} HTTP/1.1")
    smuggled = head(f"GET {target}/inner HTTP/1.1")
    sized = head(f"POST {target}/sized HTTP/1.1", f"Content-Length: {len(smuggled)}") + smuggled
    coded = b"%x\r\n%b\r\n0\r\n\r\n" % (len(smuggled), smuggled)
    chunked = head(f"POST {target}/coded HTTP/1.1", "Transfer-Encoding: chunked") + coded
    trailing = head(f"POST {target}/trailing HTTP/1.1", "Transfer-Encoding: chunked", "Trailer: X-Sum") + (
        b"5;a=b;c=\"d\\\"e\"\r\nhello\r\n3\r\n\r\n0\r\n0\r\nX-Sum: 1\r\nX-More: 2\r\n\r\n")
    return [
        get() + get(),
        sized + get(),
        chunked + get(),
        trailing + get(),
        head(f"PUT {target}/short?a=b;c HTTP/1.1", "Content-Length: 5", "Connection: keep-alive") + b"hello" + chunked + get(),
        head(f"GET http://h.test{target}/absolute HTTP/1.1") + get(),
        head(f"GET {target}/a/./b/../c%41;p=1?q HTTP/1.1", "X-Forwarded-For: 1.2.3.4", "Cookie: a=b") + get(),
        head(f"POST {target}/old HTTP/1.0", "Content-Length: 5", "Connection: keep-alive") + b"hello" + get(),
        b"\r\n" + head(f"DELETE {target}/lines HTTP/1.1", "Content-Length: 0") + b"\r\n" + get(),
    ]


class Mutants:
    """Iterates over `count` changed requests, as bytes."""

    def __init__(self, seed, count, target, key):
        self.random, self.count, self.bases = random.Random(seed), count, bases(target, key)

    def __iter__(self):
        for _ in range(self.count):
            data = self.random.choice(self.bases)
            for _ in range(self.random.choice((1, 1, 1, 2, 2, 3))):
                data = self.changed(data)
            yield data

    def changed(self, data):
        r = self.random
        return r.choice((self.insert, self.insert, self.replace, self.remove, self.line, self.line, self.line, self.edge, self.number,
                         self.twice, self.case))(data)

    # --- one change each

    def place(self, data):
        """Half of the time next to something that delimits."""
        r = self.random
        if r.random() < 0.5:
            found = [m.start() for m in re.finditer(rb"[\r\n:; ,/?]|chunked|HTTP", data)]
            if found:
                return min(len(data), r.choice(found) + r.choice((0, 0, 1, 2)))
        return r.randrange(len(data) + 1)

    def insert(self, data):
        at = self.place(data)
        return data[:at] + self.random.choice(BYTES) + data[at:]

    def replace(self, data):
        at = self.place(data)
        return data[:at] + self.random.choice(BYTES) + data[at + self.random.choice((1, 1, 2)):]

    def remove(self, data):
        at = self.place(data)
        return data[:at] + data[at + self.random.choice((1, 1, 2, 4)):]

    def line(self, data):
        """A line more, somewhere: in a head, or where one of a body's stands."""
        found = [m.end() for m in re.finditer(rb"\r\n", data)]
        if not found:
            return data
        at = self.random.choice(found)
        return data[:at] + self.random.choice(LINES) + b"\r\n" + data[at:]

    def edge(self, data):
        """Another line end."""
        found = [m.start() for m in re.finditer(rb"\r\n", data)]
        if not found:
            return data
        at = self.random.choice(found)
        return data[:at] + self.random.choice((b"\n", b"\r", b"\r\r\n", b"\n\r\n", b" \r\n", b"\x00\r\n", b"\r\n ", b"")) + data[at + 2:]

    def number(self, data):
        """A length or a chunk's size that is another."""
        found = list(re.finditer(rb"(?<=Content-Length: )\d+|(?<=\r\n)[0-9a-f]{1,3}(?=[\r;])", data))
        if not found:
            return data
        m = self.random.choice(found)
        n = int(m[0], 16 if m[0].isalnum() and not m[0].isdigit() else 10)
        to = self.random.choice((str(n + 1), str(max(0, n - 1)), "0", f"0{n}", f"+{n}", f"-{n}", f" {n}", f"{n} ", f"0x{n}", f"{n}.0", f"{n},{n}",
                                 f"{n}e0", f"0000000000{n}", f"{n:x}", f"{n:X}", str(n + 2**64), f"{n + 2**64:x}", f"{n}\t", f"{n};"))
        return data[:m.start()] + to.encode() + data[m.end():]

    def twice(self, data):
        """A line once more, or two lines in another order."""
        lines = data.split(b"\r\n")
        at = self.random.randrange(len(lines))
        if self.random.random() < 0.5:
            lines.insert(self.random.randrange(len(lines) + 1), lines[at])
        else:
            to = self.random.randrange(len(lines))
            lines[at], lines[to] = lines[to], lines[at]
        return b"\r\n".join(lines)

    def case(self, data):
        at = self.random.randrange(len(data))
        end = at + self.random.choice((1, 3, 12))
        return data[:at] + data[at:end].swapcase() + data[end:]


class Given:
    """A socket that has nothing more to say."""

    def settimeout(self, _):
        pass

    def recv(self, _):
        return b""


class Read(Message):
    def __init__(self, start, fields):
        super().__init__(start=start, fields=fields)
        self.method, self.target, self.version = start.split(" ")

    @property
    def host(self):
        return self.fields.get("host")


def strictly(data):
    """The requests that `data` begins with, as far as there is one way to read them. RFC 9112 to the letter; what it leaves to the
    recipient's will (a bare LF, obs-fold, blanks around) is none."""
    reader = Reader(Given())
    reader.buffer += data
    found = []
    try:
        while True:
            while reader.buffer.startswith(b"\r\n"):
                del reader.buffer[:2]
            start, fields = parse_head(reader.until(b"\r\n\r\n", time.monotonic() + 60))
            if not re.fullmatch(rf"{TOKEN} [!-\"$-~]+ HTTP/1\.[01]", start):
                raise Malformed(start)
            request = Read(start, fields)
            if len(fields.all("host")) > 1 or ("host" not in fields and request.version == "HTTP/1.1"):
                raise Malformed("Host")
            framing, length = declared_framing(fields)
            if framing == "chunked" and request.version == "HTTP/1.0":
                raise Malformed("a transfer coding in HTTP/1.0")
            read_body(reader, request, framing, length, time.monotonic() + 60)
            found.append(request)
    except (Broken, Malformed):
        return found


def folded(fields):
    """Names as a server knows them that makes variables of them (CGI, WSGI)."""
    return Fields((re.sub("[^a-z0-9]", "-", n.lower()), v) for n, v in fields)
