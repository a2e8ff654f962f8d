"""Fixtures: the gateway and the upstream of tests/e2e, laid out for the clients."""
import importlib.util
import pathlib
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


@pytest.fixture
def trusting(monkeypatch):
    """Whoever is started now trusts CERTIFICATE, each client in its own way."""
    for name in ("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "NODE_EXTRA_CA_CERTS"):
        monkeypatch.setenv(name, CERTIFICATE["chain"])


# Ends each connection after its seventh response, and says so in it.
ending_gateway = gateway_of(limits={"requests_per_connection": 7})
# Ends a connection that is idle for a moment, without a word.
hasty_gateway = gateway_of(client={"idle": "100ms"})


@pytest.fixture(scope="session", autouse=True)
def browser_ends():
    yield
    CHROMIUM.close()
