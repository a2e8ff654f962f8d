"""Fixtures. The shared gateway and upstream live for the whole run; each module is followed by a check of their health."""
import os

import pytest

from harness import PROGRAM, Gateway, Upstream, raise_descriptor_limit, wait_until

raise_descriptor_limit()


def pytest_collection_modifyitems(items):
    if os.path.exists(PROGRAM):
        return
    reason = f"no program at {PROGRAM}: build it, or name it by LATCHKEY"
    for item in items:
        if "no_program" not in item.keywords:
            item.add_marker(pytest.mark.skip(reason=reason))


def pytest_configure(config):
    config.addinivalue_line("markers", "no_program: tests the harness itself and needs no gateway")


def run(gateway):
    """Starts a gateway for a fixture and ends it with every check that an end deserves."""
    gateway.start()
    try:
        yield gateway
        assert gateway.alive, f"the gateway died:\n{gateway.log()[-4000:]}"
        assert gateway.stop() == 0, f"SIGTERM must end with exit code 0:\n{gateway.log()[-4000:]}"
        assert not gateway.sanitizer_findings(), gateway.log()[-8000:]
    finally:
        if gateway.alive:
            gateway.kill()


@pytest.fixture(scope="session")
def upstream():
    u = Upstream()
    yield u
    u.stop()


@pytest.fixture
def up():
    """An upstream of the test's own, for gateways that it may ruin."""
    u = Upstream()
    yield u
    u.stop()
    assert not u.faults, u.faults


@pytest.fixture(scope="session")
def gateway(upstream):
    yield from run(Gateway(upstream))


@pytest.fixture(scope="session")
def key(gateway):
    """A valid key in clear."""
    return gateway.create_key("session tester")["key"]


@pytest.fixture
def client(gateway):
    with gateway.client() as c:
        yield c


@pytest.fixture(scope="module", autouse=True)
def unharmed(request):
    """Puts watched() around each module that uses the shared gateway."""
    names = {n for item in request.session.items if item.module is request.module for n in getattr(item, "fixturenames", ())}
    if "gateway" not in names or not os.path.exists(PROGRAM):
        yield
    else:
        yield from watched(request.getfixturevalue("gateway"), request.getfixturevalue("upstream"))


def watched(gateway, upstream):
    """Behind it: the gateway is alive, keeps no descriptor, no sanitizer spoke, nothing malformed reached the upstream."""
    upstream.close_connections()
    wait_until(lambda: not upstream.open_connections(), 10, "the end of the pooled connections")
    before = settled_descriptors(gateway)
    yield gateway
    assert gateway.alive, f"the gateway died:\n{gateway.log()[-4000:]}"
    upstream.close_connections()
    wait_until(lambda: gateway.descriptors <= before, 15, f"the {before} descriptors of the start", 0.1)
    assert not gateway.sanitizer_findings(), gateway.log()[-8000:]
    assert not upstream.faults, upstream.faults
    upstream.forget()


def settled_descriptors(gateway):
    """The descriptors of the idle gateway: pooled upstream connections end after their idle deadline of 1 s."""
    lowest = gateway.descriptors

    def stands():
        nonlocal lowest
        now = gateway.descriptors
        same, lowest = now == lowest, min(now, lowest)
        return same
    wait_until(stands, 10, "a stable number of descriptors", 0.2)
    return gateway.descriptors


def fixture_of(settings=None, **how):
    """A module-scoped gateway with settings of its own on the shared upstream."""
    @pytest.fixture(scope="module")
    def own(upstream):
        yield from run(Gateway(upstream, settings, **how))
    return own
