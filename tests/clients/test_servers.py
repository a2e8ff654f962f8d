"""Real servers behind the gateway, and requests that are nearly right in front of it: tests/e2e/test_differential.py, for those that are
not installed everywhere."""
import json
import subprocess
import threading

import pytest

from differential import Seen, compare
from harness import Gateway
from programs import BUILD, HERE

SERVERS = {"go": [BUILD / "go_server"], "node": ["node", HERE / "node_server.mjs"]}


class ProgramServer:
    """A program that tells on its standard output what it saw."""

    methods = "[A-Z]+"

    def __init__(self, command):
        self.seen = []
        self.process = subprocess.Popen([str(w) for w in command], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE)
        self.url = f"http://127.0.0.1:{int(self.process.stdout.readline())}"
        self.reader = threading.Thread(target=self.read, daemon=True)
        self.reader.start()

    def read(self):
        for line in self.process.stdout:
            told = json.loads(line)
            fields, trailers = ([(n, v) for n, values in (told[kind] or {}).items() for v in values] for kind in ("fields", "trailers"))
            self.seen.append(Seen(told["method"], told["target"], fields, told["sha256"], told["size"], told["whole"], trailers))

    def stop(self):
        self.process.terminate()
        self.process.wait(10)
        self.reader.join(10)
        self.process.stdout.close()


@pytest.mark.parametrize("name", SERVERS)
def test_no_server_sees_another_request_than_the_account_has(name):
    server = ProgramServer(SERVERS[name])
    gateway = Gateway(server.url, {"usage": {"flush_interval": "50ms"}})
    try:
        gateway.start()
        compare(gateway, server, seed=9110, count=1200)
        assert gateway.stop() == 0
    finally:
        if gateway.alive:
            gateway.kill()
        server.stop()
