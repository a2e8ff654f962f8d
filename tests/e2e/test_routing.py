"""Which api a request goes to, and what its upstream sees of the path and the host."""
import pytest

from conftest import run
from harness import Gateway, Upstream, problem, served, told_fields, unique


@pytest.fixture(scope="module")
def servers():
    all_of_them = {name: Upstream() for name in ("a", "b", "deep", "host", "open", "wild")}
    yield all_of_them
    for u in all_of_them.values():
        u.stop()


@pytest.fixture(scope="module")
def routed(servers):
    def url(name):
        return [servers[name].url]
    api = [
        {"name": "a", "path_prefixes": ["/a"], "upstreams": url("a")},
        {"name": "deep", "path_prefixes": ["/a/deep"], "upstreams": [servers["deep"].url + "/base"], "strip_prefix": True, "slashes": "keep"},
        {"name": "b", "path_prefixes": ["/b"], "upstreams": url("b"), "host": "upstream"},
        {"name": "host", "hosts": ["api.example.com"], "upstreams": url("host")},
        {"name": "wild", "hosts": ["*.example.com"], "path_prefixes": ["/w"], "upstreams": url("wild"), "forward_key": True},
        {"name": "open", "path_prefixes": ["/open"], "upstreams": url("open"), "require_key": False},
    ]
    yield from run(Gateway(settings={"api": api}))


@pytest.fixture(scope="module")
def its_key(routed):
    return routed.create_key("router")["key"]


def reached(servers, routed, key, target, host="other.test"):
    """(upstream's name, what it was told)"""
    with routed.client() as c:
        tag = unique()
        told = served(c.get(f"{target}?{tag}", key, host=host))
    found = [n for n, u in servers.items() if any(tag in r.target for r in u.requests)]
    assert len(found) == 1
    return found[0], told


@pytest.mark.parametrize("target, host, name, path", [
    ("/a", "other.test", "a", "/a"), ("/a/", "other.test", "a", "/a/"), ("/a/x", "other.test", "a", "/a/x"),
    ("/a/deep", "other.test", "deep", "/base/"), ("/a/deep/x", "other.test", "deep", "/base/x"), ("/a/deeper", "other.test", "a", "/a/deeper"),
    ("/a/../b/x", "other.test", "b", "/b/x"), ("/b//x", "other.test", "b", "/b/x"), ("/%61/x", "other.test", "a", "/a/x"),
    ("/x", "api.example.com", "host", "/x"), ("/x", "API.Example.COM", "host", "/x"), ("/x", "api.example.com:8080", "host", "/x"),
    ("/x", "api.example.com.", "host", "/x"), ("/w/x", "one.example.com", "wild", "/w/x"), ("/w", "one.two.example.com", "wild", "/w"),
    ("/a/deep/x%2Fy", "other.test", "deep", "/base/x%2Fy"),
])
def test_the_longest_prefix_of_the_resolved_path_wins(servers, routed, its_key, target, host, name, path):
    got, told = reached(servers, routed, its_key, target, host)
    assert (got, told["target"].partition("?")[0]) == (name, path) or (path == "/base/" and told["target"].startswith("/base"))


@pytest.mark.parametrize("target, host", [("/", "other.test"), ("/ab", "other.test"), ("/A", "other.test"), ("/w", "example.com"), ("/x", "one.example.com")])
def test_no_api_is_404(routed, its_key, target, host):
    with routed.client() as c:
        problem(c.get(target, its_key, host=host), 404, "no_route")
        problem(c.get(target, None, host=host), [404, 401])


def test_an_encoded_slash_is_refused_unless_the_api_keeps_it(routed, its_key):
    with routed.client() as c:
        problem(c.get("/a/x%2fy", its_key), 400)


@pytest.mark.parametrize("target", ["/open/../a/x", "/open/%2e%2e/a/x", "/open/./../a/x", "/open//../a/x", "/open/..%2fa/x", "/open/..;/a/x",
                                    "/open\\..\\a", "/open/%2e%2e%2fa", "/open/x/..%5c..%5ca"])
def test_no_spelling_leads_from_an_open_api_into_a_closed_one(servers, routed, target):
    before = len(servers["a"].requests), len(servers["open"].requests)
    with routed.client() as c:
        problem(c.get(target), [400, 401, 404])
    assert (len(servers["a"].requests), len(servers["open"].requests)) == before


@pytest.fixture(scope="module")
def one_server(servers):
    """A closed api and an open one on one server, as where a site has pages for everyone and others."""
    api = [{"name": "rest", "upstreams": [servers["open"].url], "require_key": False, "slashes": "keep"},
           {"name": "closed", "path_prefixes": ["/a", "/b/c"], "upstreams": [servers["open"].url], "slashes": "keep"},
           {"name": "stripped", "path_prefixes": ["/s", "/s/t"], "upstreams": [servers["open"].url], "strip_prefix": True, "require_key": False},
           {"name": "versioned", "path_prefixes": ["/v;2"], "upstreams": [servers["open"].url], "require_key": False},
           {"name": "marked", "path_prefixes": ["/m:n", "/@me", "/{all}"], "upstreams": [servers["open"].url]}]
    yield from run(Gateway(settings={"api": api}))


@pytest.mark.parametrize("target", ["/a;x", "/a;/x", "/a;x=1/y", "/b;x/c", "/b/c;x/y", "/./b;x/c;y", "/%61;x", "//a;x/y", "/x/../a;y/z",
                                    "/a%3Bx", "/a%3b/y", "/b%3bx/c;y", "/%3bx/a", "/s/t;x/y", "/s;x/t", "/rest/..%3b/a/x", "/rest/%2e%2e%3Bx/a", "/rest/.%3b/a"])
def test_parameters_lead_from_an_open_api_into_no_closed_one(servers, one_server, target):
    """Tomcat and its like take ";x" off a segment before they look whose path it is: "/a;x" is their "/a". Whoever decodes before
    that does the same to "/a%3Bx"."""
    before = len(servers["open"].requests)
    with one_server.client() as c:
        problem(c.get(target), 400, "invalid_target")
    assert len(servers["open"].requests) == before


@pytest.mark.parametrize("target", ["/a%2fx", "/a%2F", "/%2fa", "/%2f%2Fa/x", "/b%2fc", "/b%2Fc/x", "/b%2fc;x", "/b;x%2fc", "/s%2ft"])
def test_a_slash_that_is_kept_leads_into_no_closed_one(servers, one_server, target):
    """Whoever decodes before looking sees "/a/x"."""
    before = len(servers["open"].requests)
    with one_server.client() as c:
        problem(c.get(target), 400, "invalid_target")
    assert len(servers["open"].requests) == before


@pytest.mark.parametrize("target", ["/m%3An", "/m%3an/x", "/%40me", "/%7ball%7D/x", "/%7Ball}", "/m%3an;x", "/m:n;x", "/%2fm%3an", "/v%3b2/x"])
def test_an_escape_leads_into_no_closed_one(servers, one_server, target):
    """Nearly every server decodes before it looks."""
    before = len(servers["open"].requests)
    with one_server.client() as c:
        problem(c.get(target), 400, "invalid_target")
    assert len(servers["open"].requests) == before


@pytest.mark.parametrize("target, forwarded", [
    ("/m%3Ao", "/m%3Ao"), ("/x/m%3an", "/x/m%3an"), ("/%40you/%20%C3%A9%25", "/%40you/%20%C3%A9%25"), ("/x%2fa/y", "/x%2fa/y"), ("/ab%2F", "/ab%2F"), ("/x;a%2fb;c/%2f", "/x;a%2fb;c/%2f"), ("/x;y/z", "/x;y/z"), ("/ab;x", "/ab;x"), ("/b;x/d", "/b;x/d"), ("/s/u;x", "/u;x"), ("/v;2/x;y", "/v;2/x;y"), ("/x%3by", "/x%3by"),
    ("/x?;/a", "/x?;/a"), ("/" + "x" * 1030 + ";y/z", "/" + "x" * 1030 + ";y/z")])
def test_parameters_that_decide_nothing_go_on(one_server, target, forwarded):
    with one_server.client() as c:
        assert served(c.get(target))["target"] == forwarded


def test_parameters_within_an_api_go_on(one_server):
    key = one_server.create_key("parameters")["key"]
    with one_server.client() as c:
        assert served(c.get("/a/b;c=d/e;f", key))["target"] == "/a/b;c=d/e;f"


def test_an_open_api_needs_no_key_and_still_hides_one(servers, routed, its_key):
    for key in (None, its_key, "nonsense-nonsense-nonsense"):
        with routed.client() as c:
            fields = told_fields(served(c.get("/open/x", key, [("X-Consumer-Id", "evil")])))
            assert "x-api-key" not in fields and fields.get("x-consumer-id") != "evil"


def test_the_key_is_forwarded_only_where_the_api_says_so(servers, routed, its_key):
    _, told = reached(servers, routed, its_key, "/w/x", "one.example.com")
    assert told_fields(told).get("x-api-key") == its_key


def test_the_upstreams_own_host_where_the_api_says_so(servers, routed, its_key):
    _, told = reached(servers, routed, its_key, "/b/x")
    assert told_fields(told).get("host") == f"127.0.0.1:{servers['b'].port}"


def test_upstreams_are_taken_in_turn():
    two = [Upstream(), Upstream()]
    for gateway in run(Gateway(settings={"api": [{"name": "x", "upstreams": [u.url for u in two]}]}, workers=1)):
        own = gateway.create_key("turn")["key"]
        for _ in range(20):
            with gateway.client() as c:
                served(c.get("/x", own))
        assert all(len(u.requests) >= 5 for u in two), [len(u.requests) for u in two]
    for u in two:
        u.stop()
