"""Fixtures: the gateway and the upstream of tests/e2e, laid out for the clients."""
import base64
import hashlib
import importlib.util
import pathlib
import shutil
import subprocess
import sys

import pytest

E2E = pathlib.Path(__file__).resolve().parents[1] / "e2e"
sys.path[:0] = [str(E2E), str(pathlib.Path(__file__).resolve().parent)]
spec = importlib.util.spec_from_file_location("e2e_fixtures", E2E / "conftest.py")
e2e_fixtures = importlib.util.module_from_spec(spec)
spec.loader.exec_module(e2e_fixtures)

from harness import Gateway, Upstream, certificate, temporary_folder, tls_settings  # noqa: E402
from programs import CHROMIUM, CLIENTS  # noqa: E402
from service import answer  # noqa: E402


def pytest_generate_tests(metafunc):
    """A test that takes `client` runs with each client that has what its marker `wants` names."""
    if "client" in metafunc.fixturenames:
        wanted = {word for marker in metafunc.definition.iter_markers("wants") for word in marker.args}
        able = [pytest.param(c, id=repr(c), marks=[pytest.mark.skip(reason=c.absent)] if c.absent else [])
                for c in CLIENTS if not wanted & c.lacks]
        metafunc.parametrize("client", able)


def pytest_configure(config):
    config.addinivalue_line("markers", "wants(words): what a client must be able to do for this test")


@pytest.fixture(scope="session")
def upstream():
    u = Upstream(default=answer)
    yield u
    assert not u.faults, u.faults
    u.stop()


def run(*command):
    return subprocess.run([str(w) for w in command], check=True, capture_output=True).stdout


def gateway_of(**settings):
    @pytest.fixture(scope="session")
    def own(upstream):
        apis = [{"name": "main", "path_prefixes": ["/api"], "upstreams": [upstream.url]},
                {"name": "small", "path_prefixes": ["/small"], "upstreams": [upstream.url], "body_bytes": "64KiB"},
                {"name": "page", "path_prefixes": ["/page"], "upstreams": [upstream.url], "require_key": False}]
        # Postman's newman, behind requests with files, ends only when its last idle connection does.
        more = {"client": {"idle": "3s"}, "usage": {"flush_interval": "50ms"}, **settings}
        for gateway in e2e_fixtures.run(Gateway(settings={"api": apis, **more})):
            gateway.key = gateway.create_key("client")["key"]
            yield gateway
    return own


gateway = gateway_of()
CERTIFICATE = certificate(temporary_folder("clients"), "127.0.0.1")
tls_gateway = gateway_of(**tls_settings(CERTIFICATE))


@pytest.fixture(scope="session")
def trust():
    """Environment in which each client trusts CERTIFICATE, in its own way: stores of its own, nothing of this machine's."""
    chain = CERTIFICATE["chain"]
    java, mono = temporary_folder("java") / "trusted", temporary_folder("mono")
    # OpenSSL's libraries, and .NET with them; requests; curl; Node.
    env = dict.fromkeys(("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "NODE_EXTRA_CA_CERTS"), chain)
    run("keytool", "-importcert", "-noprompt", "-alias", "gateway", "-file", chain, "-keystore", java, "-storepass", "trusted")
    env["JDK_JAVA_OPTIONS"] = f"-Djavax.net.ssl.trustStore={java} -Djavax.net.ssl.trustStorePassword=trusted"
    # Mono looks in a folder for a file of the name that OpenSSL's c_rehash would give it.
    store = mono / ".mono" / "new-certs" / "Trust"
    store.mkdir(parents=True)
    shutil.copy(chain, store / (run("openssl", "x509", "-in", chain, "-noout", "-hash").decode().strip() + ".0"))
    env["XDG_CONFIG_HOME"] = str(mono)
    return env


@pytest.fixture
def trusting(monkeypatch, trust):
    """Whoever is started now trusts CERTIFICATE."""
    for name, value in trust.items():
        monkeypatch.setenv(name, value)


# Ends each connection after its seventh response, and says so in it.
ending_gateway = gateway_of(limits={"requests_per_connection": 7})
# Ends a connection that is idle for a moment, without a word.
hasty_gateway = gateway_of(client={"idle": "100ms"})


@pytest.fixture(scope="session", autouse=True)
def browser_ends():
    # The browser takes no certificate from its environment, but one by the digest of its key, and for this run alone.
    key = run("openssl", "pkey", "-in", CERTIFICATE["key"], "-pubout", "-outform", "DER")
    CHROMIUM.trusted = (base64.b64encode(hashlib.sha256(key).digest()).decode(),)
    yield
    CHROMIUM.close()
