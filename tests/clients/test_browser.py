"""What only a browser does: pages of another origin than the gateway's ask before they send a key (Fetch, "CORS protocol")."""
import pytest

from harness import wait_until
from programs import CHROMIUM, pattern
from test_clients import Step, sha256


@pytest.fixture
def foreign(gateway, upstream):
    """The browser on a page of another origin than the gateway's: the upstream itself."""
    with CHROMIUM.session("http://%s:%d" % gateway.address, page=upstream.url + "/page") as session:
        yield session


def records(step, count):
    def found():
        rows = [(r["method"], r["status"], r["outcome"]) for r in step.gateway.export() if step.mark in r["path"]]
        return rows if len(rows) >= count else None
    return wait_until(found, 10, f"{count} records")


def test_a_preflight_without_a_key_is_refused_as_any_request_is(gateway, upstream, foreign):
    step = Step(CHROMIUM, gateway)
    request = step.request("shared")
    result, = foreign.ask([request])
    assert "Failed to fetch" in result.error
    assert records(step, 1) == [("OPTIONS", "401", "refused")]
    assert upstream.seen(request.path) == []


def test_an_open_api_answers_preflights_itself(gateway, foreign):
    step = Step(CHROMIUM, gateway)
    result, = foreign.ask([step.request("shared", api="page")])
    assert (result.error, result.status, result.sha256) == ("", 200, sha256(pattern(1000)))
    assert sorted(records(step, 2)) == [("GET", "200", "served"), ("OPTIONS", "204", "served")]
