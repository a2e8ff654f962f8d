"""Requests that are nearly right, sent through the gateway to a server of somebody else: whether gateway, server, client and account
agree on what they were. A request that only one of them saw is a smuggled one."""
import contextlib
import hashlib
import json
import re
import socket
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from harness import Nginx, wait_until
from mutants import EVIL, Mutants, folded, strictly
from wire import Broken, Fields, Malformed, Reader, bound, read_response

OURS = re.compile("x-(consumer|credential|anonymous-consumer|forwarded|original)-.*|forwarded|x-real-ip|x-request-id")


class Seen:
    """A request as a server saw it. body: its SHA-256 and size, or None where the server does not say; whole: it came to its end."""

    def __init__(self, method, target, fields, body=None, size=None, whole=True, trailers=()):
        self.method, self.target, self.fields = method, target, Fields(fields)
        self.body, self.size, self.whole, self.trailers = body, size, whole, Fields(trailers)
        self.id = ", ".join(self.fields.all("x-request-id"))

    def __repr__(self):
        return f"<{self.method} {self.target} {self.size} bytes, {'whole' if self.whole else 'broken off'}, {list(self.fields)}>"


class PythonServer:
    """Python's http.server, which reads its requests with the mail parser: bare LF, obs-fold and much else are fine with it."""

    methods = ".+"  # that it knows; others it may refuse

    def __init__(self):
        self.seen = []
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (PythonHandler,), {"kept": self}))
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def stop(self):
        self.server.shutdown()
        self.server.server_close()


class PythonHandler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize = 65536

    def __getattr__(self, name):  # whatever the method
        if name.startswith("do_"):
            return self.answer
        raise AttributeError(name)

    def answer(self):
        body, whole = self.body()
        self.kept.seen.append(Seen(self.command, self.path, self.headers.items(), hashlib.sha256(body).hexdigest(), len(body), whole))
        if not whole:
            self.close_connection = True
            return
        self.send_response(200)
        self.send_header("Content-Length", "2")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(b"ok")

    def body(self):
        if "chunked" in self.headers.get("Transfer-Encoding", "").lower():
            body = b""
            while True:
                line = self.rfile.readline(1000)
                size = int(line.split(b";")[0] or b"0", 16) if line.strip() else 0
                if size == 0:
                    break
                body += self.exactly(size)
                self.rfile.readline(10)
            while line.strip():
                line = self.rfile.readline(10000)
            return body, line.endswith(b"\n")
        length = int(self.headers.get("Content-Length", "0"))
        body = self.exactly(length)
        return body, len(body) == length

    def exactly(self, size):
        pieces = []
        while size and (piece := self.rfile.read1(min(size, 65536))):
            pieces.append(piece)
            size -= len(piece)
        return b"".join(pieces)

    def log_message(self, *_):
        pass


NGINX_FIELDS = ["host", "x_request_id", "x_consumer_id", "x_consumer_username", "x_credential_identifier", "x_forwarded_for",
                "x_forwarded_host", "x_forwarded_user", "forwarded", "x_real_ip", "x_api_key"]


class NginxServer(Nginx):
    """nginx that takes each request with its body, hands it on to itself and logs it. Underscores and dots in names are fine with it."""

    methods = "[A-Z_-]+"

    def __init__(self):
        variables = ", ".join(f'"{n}": "$http_{n}"' for n in NGINX_FIELDS)
        self.log = None
        super().__init__(http="""
    log_format seen escape=json '{"method": "$request_method", "target": "$request_uri", "size": "$content_length", "status": $status, VARIABLES}';
    underscores_in_headers on; ignore_invalid_headers off; client_body_buffer_size 64k;
    server {
        listen unix:FOLDER/sink;
        access_log off;
        location / { return 204; }
    }""".replace("VARIABLES", variables), server="""
        access_log FOLDER/seen.log seen;
        location / { proxy_pass http://unix:FOLDER/sink; proxy_request_buffering on; }""")
        self.log = self.folder / "seen.log"

    @property
    def seen(self):
        found = []
        for line in self.log.read_text(errors="replace").splitlines():
            told = json.loads(line)
            fields = [(n.replace("_", "-"), told[n]) for n in NGINX_FIELDS if told[n]]
            if told["method"]:
                found.append(Seen(told["method"], told["target"], fields, size=int(told["size"]) if told["size"] else None,
                                  whole=told["status"] == 204))
        return found


class Talk:
    """What came back for some bytes: the final responses, and how it ended."""

    def __init__(self, address, data):
        self.data, self.responses, self.odd = data, [], None
        with socket.create_connection(address, timeout=bound(20)) as s:
            received = b""
            try:
                s.sendall(data)
                s.shutdown(socket.SHUT_WR)
                while piece := s.recv(65536):
                    received += piece
            except ConnectionError:
                pass
        reader = Reader(s)
        reader.buffer += received
        reader.ended = "fin"
        methods = [r.method for r in strictly(data)]
        try:
            while reader.buffer:
                method = methods[len(self.responses)] if len(self.responses) < len(methods) else "GET"
                self.responses.append(read_response(reader, method))
        except (Broken, Malformed) as why:
            self.odd = why


class Account:
    """What was sent, what came back, what the server saw and what is on record, joined by the request ids (all of them the gateway's)."""

    def __init__(self, gateway, server, seed, count):
        key = gateway.create_key("mutants")
        self.application, self.secret = key["application_id"], key["key"]
        self.talks = [Talk(gateway.address, data) for data in Mutants(seed, count, "/m", self.secret)]
        wait_until(lambda: gateway.metric("latchkey_requests_in_flight") == 0, 10, "the end of all requests")
        self.rows = {row["request_id"]: row for row in gateway.export()}
        self.served = {i for i, row in self.rows.items() if row["outcome"] == "served" and row["status"] in ("200", "204")}
        with contextlib.suppress(AssertionError):  # what never arrives is told below
            wait_until(lambda: self.served <= {s.id for s in server.seen if s.whole}, 5, "the server's word on each")
        seen = list(server.seen)
        self.seen = {s.id: s for s in seen}
        self.nobodys = [s for s in seen if self.seen[s.id] is not s or s.id not in self.rows]
        self.methods = server.methods

    def differences(self):
        yield from (f"nobody sent {s}" for s in self.nobodys)
        for i, row in self.rows.items():
            if i in self.served and not (i in self.seen and self.seen[i].whole):
                yield f"never arrived: {row}"
            if row["outcome"] == "served" and i not in self.served and re.fullmatch(self.methods, row["method"].lstrip("'")):
                yield f"the server refused {row}"
        for i, s in self.seen.items():
            if i in self.rows:
                yield from self.against_record(s, self.rows[i])
                yield from self.forged(s)
        for talk in self.talks:
            if talk.odd:
                yield f"{talk.odd!r} came back for {talk.data!r}"
            yield from self.against_strict(talk, strictly(talk.data))

    def against_record(self, s, row):
        if s.whole and row["outcome"] not in ("served", "client_aborted", "upstream_failed"):
            yield f"on record as {row['outcome']}: {s}"
        if (s.method, s.target.partition("?")[0]) != (row["method"].lstrip("'"), row["path"]):
            yield f"on record as {row}: {s}"
        if row["host"] and s.fields.get("host") != row["host"].lstrip("'"):
            yield f"on record for another host: {row}, {s}"

    def forged(self, s):
        fields = folded(s.fields)
        for n, v in [*fields, *folded(s.trailers)]:
            if self.secret in v or (OURS.fullmatch(n) and EVIL in v):
                yield f"{n}: {v} reached the server in {s}"
        if fields.all("x-consumer-id") != [self.application]:
            yield f"of another application: {s}"

    def against_strict(self, talk, strict):
        """What was let through is what a strict reader finds at its place."""
        for at, response in enumerate(talk.responses):
            s = self.seen.get(response.fields.get("x-request-id"))
            if s is None:
                continue
            if at >= len(strict):
                yield f"{s} was let through of {talk.data!r}"
                continue
            r = strict[at]
            sizes = (s.size,) if s.size is not None else (0, len(r.body))
            same_body = len(r.body) in sizes and s.body in (None, hashlib.sha256(r.body).hexdigest())
            if s.method != r.method or not same_body or (r.host and r.host != s.fields.get("host")):
                yield f"{r} was taken for {s} of {talk.data!r}"


def compare(gateway, server, seed, count):
    """Sends `count` mutants to the gateway, whose one upstream is `server`, and asserts that nobody differs."""
    account = Account(gateway, server, seed, count)
    differences = list(account.differences())
    assert not differences, f"{len(differences)} differences:\n" + "\n".join(differences[:5])
    refused = sum(r.status >= 400 for t in account.talks for r in t.responses)
    assert len(account.seen) > count / 3 and refused > count / 3, "these mutants are too tame or too wild to tell anything"
