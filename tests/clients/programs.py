"""The clients, each behind the same few words: `with client.session(base, parallel) as s: results = s.ask(requests)`.

A Program speaks by lines, as README.md says; curl, Postman's newman and Chromium are driven in their own ways. `lacks` names what
a client cannot do, `follows` says whether it goes after a redirect by itself."""
import contextlib
import dataclasses
import hashlib
import json
import os
import pathlib
import platform
import queue
import subprocess
import tempfile
import threading

from harness import ROOT, bound

HERE = pathlib.Path(__file__).resolve().parent
BUILD = ROOT / "build" / "clients"
UNIT = bytes(range(251))
WAIT = 120  # seconds that a client may take over one step


def pattern(size):
    """The body of `size` bytes that every client makes by itself."""
    return (UNIT * (size // len(UNIT) + 1))[:size]


@dataclasses.dataclass
class Request:
    id: str
    method: str
    path: str
    body: str = "-"  # or length:N, stream:N
    flags: tuple = ()  # close, expect
    fields: tuple = ()

    @property
    def size(self):
        return None if self.body == "-" else int(self.body.partition(":")[2])

    def line(self):
        words = [self.id, self.method, self.path, self.body, ",".join(self.flags) or "-", *(f"{n}: {v}" for n, v in self.fields)]
        return "\t".join(words) + "\n"


@dataclasses.dataclass
class Result:
    id: str
    status: int = 0
    size: int = 0
    sha256: str = ""
    fields: dict = dataclasses.field(default_factory=dict)
    error: str = ""


def parse_result(line):
    id, status, *rest = line.rstrip("\n").split("\t")
    if status == "error":
        return Result(id, error=rest[0])
    return Result(id, int(status), int(rest[0]), rest[1], dict(f.partition(": ")[::2] for f in rest[2:]))


class Client:
    """`absent`: why it is not on this machine."""

    def __init__(self, name, follows=False, lacks=(), can=(), unpacks=True, spare=1, absent=""):
        self.name, self.follows, self.lacks, self.unpacks, self.spare, self.absent = name, follows, set(lacks), unpacks, spare, absent
        self.lacks |= {"upgrade"} - set(can)

    def __repr__(self):
        return self.name


# --- programs that speak by lines

class Program(Client):
    def __init__(self, name, command, env=None, **how):
        super().__init__(name, **how)
        self.command, self.env = [str(w) for w in command], {n: str(v) for n, v in (env or {}).items()}

    @contextlib.contextmanager
    def session(self, base, parallel=1):
        process = subprocess.Popen([*self.command, base, str(parallel)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
                                   env={**os.environ, **self.env})
        lines = queue.SimpleQueue()

        def read():
            for line in process.stdout:
                lines.put(line)
            lines.put("")
        threading.Thread(target=read, daemon=True).start()
        try:
            yield Conversation(process, lines)
            process.stdin.close()
            assert process.wait(bound(WAIT)) == 0
        finally:
            process.kill()
            process.wait()
            process.stdout.close()


class Conversation:
    def __init__(self, process, lines):
        self.process, self.lines = process, lines

    def ask(self, requests):
        writer = threading.Thread(target=self._write, args=(requests,), daemon=True)
        writer.start()
        results = {}
        for _ in requests:
            line = self.lines.get(timeout=bound(WAIT))
            assert line, f"the client ended after {len(results)} of {len(requests)} answers"
            result = parse_result(line)
            results[result.id] = result
        return [results[r.id] for r in requests]

    def _write(self, requests):
        with contextlib.suppress(BrokenPipeError):
            for r in requests:
                self.process.stdin.write(r.line())
            self.process.stdin.flush()


# --- curl: one run of the program a step, with all requests in its configuration

class Curl(Client):
    """`words`: lines for its configuration."""

    def __init__(self, name, words=(), **how):
        super().__init__(name, unpacks=False, **how)
        self.words = words

    @contextlib.contextmanager
    def session(self, base, parallel=1):
        with tempfile.TemporaryDirectory() as folder:
            yield CurlSession(self.words, pathlib.Path(folder), base, parallel)


class CurlSession:
    def __init__(self, words, folder, base, parallel):
        self.words, self.folder, self.base, self.parallel = words, folder, base, parallel

    def ask(self, requests):
        config = self.folder / "config"
        config.write_text("\nnext\n".join("\n".join(self._lines(r)) for r in requests))
        together = ["--parallel", "--parallel-max", str(self.parallel)] if self.parallel > 1 else []
        done = subprocess.run(["curl", "-sS", *together, "-K", config], capture_output=True, timeout=bound(WAIT))
        codes = dict(line.split("\t", 1) for line in done.stdout.decode().splitlines())
        assert len(codes) == len(requests), f"{done.stdout}{done.stderr}"
        return [self._result(r, codes[r.id]) for r in requests]

    def _lines(self, r):
        yield from self.words
        yield f'url = "{self.base}{r.path}"'
        yield f'output = "{self.folder}/{r.id}.body"'
        yield f'dump-header = "{self.folder}/{r.id}.head"'
        yield f'write-out = "{r.id}\\t%{{http_code}}\\t%{{exitcode}}\\n"'
        yield f"max-time = {bound(WAIT)}"
        yield "head" if r.method == "HEAD" else f"request = {r.method}"
        if r.body != "-":
            (self.folder / f"{r.id}.sent").write_bytes(pattern(r.size))
            yield ("upload-file = " if r.body.startswith("stream") else "data-binary = @") + f"{self.folder}/{r.id}.sent"
        if r.body.startswith("stream"):
            yield 'header = "Transfer-Encoding: chunked"'
        yield from ("expect100-timeout = 60",) if "expect" in r.flags else ('header = "Expect:"',)
        for name, value in [*r.fields, *([("Connection", "close")] if "close" in r.flags else [])]:
            yield 'header = "%s"' % f"{name}: {value}".replace('"', '\\"')

    def _result(self, r, told):
        status, code = told.split("\t")
        if code != "0":
            return Result(r.id, error=f"curl's exit code {code}, status {status}")
        file = self.folder / f"{r.id}.body"
        body = file.read_bytes() if file.exists() and r.method != "HEAD" else b""
        head = (self.folder / f"{r.id}.head").read_text().strip().split("\n\n")[-1]  # behind interim ones
        fields = dict(line.partition(": ")[::2] for line in head.splitlines()[1:])
        return Result(r.id, int(status), len(body), hashlib.sha256(body).hexdigest(), {n.lower(): v for n, v in fields.items()})


# --- Postman: newman runs the collection, one iteration a request

class Newman(Client):
    @contextlib.contextmanager
    def session(self, base, parallel=1):
        assert parallel == 1
        with tempfile.TemporaryDirectory() as folder:
            yield NewmanSession(pathlib.Path(folder), base)


class NewmanSession:
    def __init__(self, folder, base):
        self.folder, self.base = folder, base

    def ask(self, requests):
        data, out = self.folder / "data.json", self.folder / "out.json"
        data.write_text(json.dumps([self._iteration(r) for r in requests]))
        done = subprocess.run(
            [BUILD / "node_modules" / ".bin" / "newman", "run", HERE / "postman_collection.json", "--iteration-data", data,
             "--working-dir", self.folder, "--reporters", "json", "--reporter-json-export", out],
            capture_output=True, text=True, timeout=bound(WAIT))
        assert out.exists(), f"{done.stdout}{done.stderr}"
        run = json.loads(out.read_text())["run"]
        assert len(run["executions"]) == len(requests), run["failures"]
        return [self._result(r, e) for r, e in zip(requests, run["executions"])]

    def _iteration(self, r):
        fields = [*r.fields, *([("Connection", "close")] if "close" in r.flags else [])]
        file = None
        if r.body != "-":
            file = str(self.folder / f"{r.id}.sent")
            pathlib.Path(file).write_bytes(pattern(r.size))
        return {"id": r.id, "method": r.method, "url": self.base + r.path, "fields": fields, "file": file}

    def _result(self, r, execution):
        response = execution.get("response")
        if not response or "code" not in response:
            return Result(r.id, error=str(execution.get("requestError") or execution))
        body = bytes(response["stream"]["data"])
        fields = {h["key"].lower(): h["value"] for h in response["header"]}
        failed = [str(a["error"]) for a in execution.get("assertions", ()) if "error" in a]
        return Result(r.id, response["code"], len(body), hashlib.sha256(body).hexdigest(), fields, "; ".join(failed))


# --- Chromium: one browser for all steps, over the DevTools protocol on a pipe; a new profile each step, and so new connections

PAGE_SCRIPT = (HERE / "page.js").read_text()


class Chromium(Client):
    browser = None
    trusted = ()  # digests of public keys, as its switch wants them; set before the first session

    @contextlib.contextmanager
    def session(self, base, parallel=1, page=None):
        """`page`: the URL of the page that asks; by default one of the same origin, through the api that needs no key."""
        if not self.browser:
            self.browser = Browser(self.trusted)
        context = self.browser.call("Target.createBrowserContext")["browserContextId"]
        target = self.browser.call("Target.createTarget", url="about:blank", browserContextId=context)["targetId"]
        session = self.browser.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        try:
            self.browser.call("Page.enable", session)
            self.browser.call("Page.navigate", session, url=page or base + "/page/page")
            self.browser.loaded(session)
            yield Page(self.browser, session, base, parallel)
        finally:
            self.browser.call("Target.disposeBrowserContext", browserContextId=context)

    def close(self):
        if self.browser:
            self.browser.close()


class Page:
    def __init__(self, browser, session, base, parallel):
        self.browser, self.session, self.base, self.parallel = browser, session, base, parallel

    def ask(self, requests):
        plan = [{"id": r.id, "method": r.method, "url": self.base + r.path, "size": r.size, "fields": dict(r.fields)}
                for r in requests]
        told = self.evaluate(f"{PAGE_SCRIPT}; run({json.dumps(plan)}, {self.parallel})")
        return [Result(**one) for one in told]

    def evaluate(self, script):
        told = self.browser.call("Runtime.evaluate", self.session, expression=script, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in told, told
        return told["result"].get("value")


class Browser:
    def __init__(self, trusted):
        self.folder = tempfile.TemporaryDirectory()
        ours, theirs = os.pipe(), os.pipe()  # what it reads as descriptor 3, what it writes as 4
        command = [os.environ.get("BROWSER", "chromium-headless-shell"), "--headless", "--no-sandbox", "--disable-gpu",
                   "--remote-debugging-pipe", "--no-first-run", "--disable-dev-shm-usage", f"--user-data-dir={self.folder.name}",
                   f"--ignore-certificate-errors-spki-list={','.join(trusted)}"]
        # The shell puts the pipes where the browser looks for them.
        self.process = subprocess.Popen(["sh", "-c", 'exec "$@" 3<&0 4>&1 </dev/null >&2', "sh", *command],
                                        stdin=ours[0], stdout=theirs[1], stderr=subprocess.DEVNULL)
        os.close(ours[0])
        os.close(theirs[1])
        self.to, self.answers = os.fdopen(ours[1], "wb"), os.fdopen(theirs[0], "rb")
        self.replies, self.pages, self.serial = queue.SimpleQueue(), queue.SimpleQueue(), 0
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self):
        buffer = b""
        while piece := self.answers.read1(1 << 16):
            *messages, buffer = (buffer + piece).split(b"\0")
            for message in map(json.loads, messages):
                if "id" in message:
                    self.replies.put(message)
                elif message["method"] == "Page.loadEventFired":
                    self.pages.put(message["sessionId"])

    def call(self, method, session=None, **params):
        self.serial += 1
        message = {"id": self.serial, "method": method, "params": params, **({"sessionId": session} if session else {})}
        self.to.write(json.dumps(message).encode() + b"\0")
        self.to.flush()
        reply = self.replies.get(timeout=bound(WAIT))
        assert reply["id"] == self.serial and "result" in reply, reply
        return reply["result"]

    def loaded(self, session):
        assert self.pages.get(timeout=bound(WAIT)) == session

    def close(self):
        with contextlib.suppress(AssertionError, queue.Empty, OSError):
            self.call("Browser.close")
        self.process.wait(bound(WAIT))
        self.folder.cleanup()


# Quick to start; and allowed to say `Connection: close`.
JAVA = ["-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC", "-Xshare:auto", "-Dhttp.maxConnections=8",
        "-Djdk.httpclient.allowRestrictedHeaders=connection", "-Dsun.net.http.allowRestrictedHeaders=true"]
DOTNET = BUILD / "node_modules" / "dotnet-3.1-linux-x64"
DOTNET_ABSENT = ("" if (platform.system(), platform.machine()) == ("Linux", "x86_64")
                 else "the .NET Core runtime of package.json is for Linux on x86-64")
CHROMIUM = Chromium("chromium", follows=True, lacks={"stream", "close", "expect"})
# What each lacks is argued in README.md.
CLIENTS = [
    Curl("curl", lacks={"dialogue"}),
    Curl("curl-http2-upgrade", ["http2"], lacks={"dialogue"}, can={"upgrade"}),
    Curl("curl-http1.0", ["http1.0"], lacks={"dialogue", "stream", "expect", "keep-alive"}),
    *(Program(f"python-{library}", ["/usr/bin/python3", HERE / "python_client.py", library], **how) for library, how in {
        "http.client": {"unpacks": False, "lacks": {"expect", "stale", "hints"}},
        "requests": {"follows": True, "lacks": {"expect", "hints"}},
        "httpx": {"follows": True, "lacks": {"expect"}},
        "aiohttp": {"follows": True}}.items()),
    Program("node-http", ["node", HERE / "node_client.mjs", "http"], unpacks=False),
    Program("node-fetch", ["node", HERE / "node_client.mjs", "fetch"], follows=True, lacks={"expect"}, spare=2),
    Program("go", [BUILD / "go_client"], follows=True),
    *(Program(f"java-{version}", ["java", *JAVA, "-cp", BUILD, "JavaClient", version], follows=True, unpacks=False,
              can={"upgrade"} if version == "http2" else (), lacks={"hints"} if version == "url" else ())
      for version in ("http2", "http1", "url")),
    Program("dotnet", [DOTNET / "dotnet", "exec", BUILD / "DotnetClient.exe"], follows=True, absent=DOTNET_ABSENT,
            env={"DOTNET_ROOT": DOTNET, "LD_LIBRARY_PATH": BUILD / "openssl11", "COMPlus_EnableDiagnostics": 0}),
    Program("mono", ["mono", BUILD / "DotnetClient.exe"], follows=True, lacks={"hints", "tls-upload"}),
    Newman("postman", follows=True, lacks={"stream", "expect", "parallel", "dialogue"}, spare=20),
    CHROMIUM,
]
