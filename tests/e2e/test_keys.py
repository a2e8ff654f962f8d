"""Keys: who is refused and how, and that a change is in force when the command returns."""
import json
import re
import sqlite3
import time
import zlib
from random import Random

import pytest

from conftest import fixture_of, run
from harness import Gateway, describe, problem, request_bytes, served, told_fields, unique, wait_until

KNOWN_BODY = "qkJaB6MffYVzZXWqmcoF49yrUxP3wf"
bearer = fixture_of({"keys": {"bearer": True, "realm": "house", "prefix": "acme"}})


def status(client, key):
    """The status of one request on a kept connection."""
    r = client.get("/" + unique(), key)
    return r.status


# --- refusals

@pytest.mark.parametrize("key, code", [
    (None, "key_missing"), ("", ("key_missing", "key_invalid")), ("lk_" + KNOWN_BODY + "0LsakP", "key_invalid"),
    ("lk_" + KNOWN_BODY + "0LsakQ", "key_invalid"), ("short", "key_invalid"), ("x" * 256, "key_invalid"), ("x" * 255, "key_invalid"),
    ("lk_", "key_invalid"), ("LK_" + KNOWN_BODY + "0LsakP", "key_invalid"),
], ids=["none", "empty", "unknown", "checksum", "short", "256", "255", "prefix", "upper case"])
def test_a_bad_key_is_401_with_a_challenge_and_the_connection_stays(client, key, code):
    """RFC 9110 15.5.2"""
    codes = (code,) if isinstance(code, str) else code
    for _ in range(3):
        r = client.get("/x", key)
        problem(r, 401, list(codes))
        assert r.fields.get("www-authenticate") == 'ApiKey realm="latchkey"'


def test_two_keys_are_401_duplicate_key(client, key):
    client.request("GET", "/x", key, [("X-API-KEY", key)])
    problem(client.response(), 401, "duplicate_key")


def test_a_valid_key_with_one_character_changed_is_401(client, key):
    for at in (0, 3, 10, len(key) - 1):
        other = key[:at] + ("a" if key[at] != "a" else "b") + key[at + 1:]
        problem(client.get("/x", other), 401, "key_invalid")
    problem(client.get("/x", key.swapcase()), 401, "key_invalid")


def test_a_revoked_key_is_told_the_same_as_an_unknown_one(gateway, client):
    made = gateway.create_key()
    gateway.cli("keys", "revoke", made["id"], "--yes")
    revoked, unknown = client.get("/x", made["key"]), client.get("/x", "lk_" + KNOWN_BODY + "0LsakP")
    strip = [{k: v for k, v in json.loads(r.body).items() if k not in ("request_id", "instance")} for r in (revoked, unknown)]
    assert strip[0] == strip[1] and revoked.status == unknown.status == 401


def test_a_refused_body_is_not_taken_for_a_request(gateway, upstream):
    """RFC 9112 9.3"""
    inner = request_bytes("GET", "/smuggled", "x" * 20)
    with gateway.client() as c:
        c.send(request_bytes("POST", "/x", "x" * 20, body=inner))
        problem(c.response(), 401)
        c.half_close()
        c.end()
        assert c.leftover == b""


def test_a_refused_head_request_has_no_body(client):
    """RFC 9110 9.3.2"""
    client.request("HEAD", "/x", None)
    r = client.response("HEAD")
    assert r.status == 401 and int(r.fields.get("content-length")) > 0
    problem(client.get("/x"), 401)


def test_each_request_of_a_connection_counts_by_its_own_key(gateway):
    """Wherever the key stands, whatever stood there before, and in whatever parts it comes."""
    ours = [gateway.create_key() for _ in range(3)]
    gateway.cli("keys", "revoke", ours[2]["id"], "--yes")
    unknown = "lk_" + KNOWN_BODY + "0LsakP"
    assert {len(k["key"]) for k in ours} == {len(unknown)}
    random = Random(4)
    shapes = ["X-API-KEY: {key}", "x-api-key: {key}\r\nX-API-KEy: {other}", "X-Api-Kez: {other}\r\nX-API-KEY: {key}", "Accept: */*\r\nX-API-KEY:{key}",
              "X-API-KEY: {key}\r\nAccept: */*", "X-Api-Kez: {other}", "X-API-KEY: {key}\r\nX-API-KEY: {other}"]
    with gateway.client() as c:
        for _ in range(400):
            shape, target = random.choice(shapes), "/" + "t" * random.choice((1, 1, 1, 7))
            made, other = random.choice([*ours, None]), random.choice(ours)["key"]
            fields = shape.format(key=made["key"] if made else unknown, other=other)
            bytes_ = f"GET {target} HTTP/1.1\r\nHost: h\r\n{fields}\r\n\r\n".encode()
            if random.random() < 0.3:  # in two parts, the first of which may end anywhere about the key
                at = random.randrange(1, len(bytes_))
                c.send(bytes_[:at])
                time.sleep(0.002)
                bytes_ = bytes_[at:]
            c.send(bytes_)
            r = c.response()
            shown = fields.lower().count("x-api-key:")
            if shown != 1:
                problem(r, 401, "duplicate_key" if shown else "key_missing")
            elif made in ours[:2]:
                told = told_fields(served(r))
                assert (told.get("x-consumer-id"), told.get("x-credential-identifier")) == (made["application_id"], made["id"])
            else:
                problem(r, 401, "key_invalid")


def test_bearer_is_taken_where_it_is_on(bearer):
    made = bearer.create_key()
    assert made["key"].startswith("acme_")
    with bearer.client() as c:
        served(c.get("/x", None, [("Authorization", "Bearer " + made["key"])]))
        served(c.get("/x", None, [("authorization", "bEARER " + made["key"])]))
        problem(c.get("/x", made["key"], [("Authorization", "Bearer " + made["key"])]), 401, "duplicate_key")
        r = c.get("/x", None, [("Authorization", "Bearer nonsense-nonsense")])
        problem(r, 401, "key_invalid")
        assert r.fields.get("www-authenticate") == 'ApiKey realm="house", Bearer realm="house"'


def test_a_bearer_key_never_reaches_the_upstream(bearer, upstream):
    made, path = bearer.create_key(), "/" + unique()
    with bearer.client() as c:
        served(c.get(path, None, [("Authorization", "Bearer " + made["key"])]))
    assert "authorization" not in upstream.only(path).fields


def test_other_credentials_pass_to_the_upstream(client, upstream, key):
    path = "/" + unique()
    served(client.get(path, key, [("Authorization", "Basic eDp5")]))
    assert upstream.only(path).fields.get("authorization") == "Basic eDp5"


# --- in force when the command returns

def test_create_and_revoke_are_in_force_when_the_command_returns(gateway):
    """On live kept connections, spread over the workers. 30 rounds."""
    clients = [gateway.client() for _ in range(6)]
    for c in clients:
        assert status(c, None) == 401
    for n in range(30):
        made = gateway.create_key(f"round {n}")
        assert [status(c, made["key"]) for c in clients] == [200] * 6, f"round {n}: not in force after create"
        gateway.cli("keys", "revoke", made["id"], "--yes")
        assert [status(c, made["key"]) for c in clients] == [401] * 6, f"round {n}: still good after revoke"
    for c in clients:
        c.close()


def test_delete_is_in_force_when_the_command_returns(gateway, client):
    made = gateway.create_key()
    assert status(client, made["key"]) == 200
    gateway.cli("keys", "delete", made["id"], "--yes")
    assert status(client, made["key"]) == 401
    assert gateway.cli("keys", "revoke", made["id"], "--yes", check=False).returncode == 3


def test_revoking_one_key_leaves_the_others(gateway, client):
    one, two = gateway.create_key(), gateway.create_key()
    gateway.cli("keys", "revoke", one["id"], "--yes")
    assert (status(client, one["key"]), status(client, two["key"])) == (401, 200)


def test_revoking_twice_is_fine_and_an_unknown_id_is_exit_code_3(gateway):
    made = gateway.create_key()
    for _ in range(2):
        gateway.cli("keys", "revoke", made["id"], "--yes")
    assert gateway.cli("keys", "revoke", "key_doesnotexist0000", "--yes", check=False).returncode == 3


def test_destroying_without_yes_and_without_a_terminal_does_nothing(gateway, client):
    made = gateway.create_key()
    for word in ("revoke", "delete"):
        assert gateway.cli("keys", word, made["id"], check=False).returncode != 0
    assert status(client, made["key"]) == 200


def test_imported_keys_work_when_the_command_returns(gateway, client, tmp_path):
    foreign = [f"{unique('imported')}-0123456789-{n}" for n in range(3)]
    file = tmp_path / "keys.csv"
    file.write_text("name,key\n" + "".join(f'"App, {n}",{k}\n' for n, k in enumerate(foreign)))
    gateway.cli("keys", "import", str(file))
    assert [status(client, k) for k in foreign] == [200] * 3
    gateway.cli("keys", "import", str(file))
    assert [status(client, k) for k in foreign] == [200] * 3


@pytest.mark.parametrize("row", ["x,short", "x,has blank inside it 123", "x,lk_" + KNOWN_BODY + "0LsakQ", "x", '"x,unclosed-quote-0123456789',
                                 ",nameless-0123456789"])
def test_an_import_is_all_or_nothing_and_names_the_line(gateway, client, tmp_path, row):
    good = unique("good") + "-0123456789"
    file = tmp_path / "keys.csv"
    file.write_text(f"name,key\nfirst,{good}\n{row}\n")
    done = gateway.cli("keys", "import", str(file), check=False)
    assert done.returncode != 0 and "3" in done.stderr, done
    assert status(client, good) == 401


def test_a_key_imported_under_another_name_is_a_conflict_and_is_not_shown(gateway, tmp_path):
    key = unique("conflict") + "-0123456789"
    file = tmp_path / "keys.csv"
    file.write_text(f"name,key\none,{key}\n")
    gateway.cli("keys", "import", str(file))
    file.write_text(f"name,key\ntwo,{key}\n")
    done = gateway.cli("keys", "import", str(file), check=False)
    assert done.returncode == 5 and key not in done.stderr + done.stdout


@pytest.mark.parametrize("name", ["", "a" * 201, "line\nbreak", "bell\a"], ids=["empty", "too long", "line break", "bell"])
def test_a_bad_name_is_refused(gateway, name):
    assert gateway.cli("keys", "create", "--name", name, check=False).returncode in (1, 2)


def test_keys_differ_and_have_the_documented_form(gateway):
    alphabet = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
    made = [gateway.create_key()["key"] for _ in range(5)]
    assert len(set(made)) == 5
    for key in made:
        body, check = re.fullmatch(r"lk_([0-9A-Za-z]{30})([0-9A-Za-z]{6})", key).groups()
        crc, text = zlib.crc32(body.encode()), ""
        for _ in range(6):
            crc, digit = divmod(crc, 62)
            text = alphabet[digit] + text
        assert text == check


# --- behind the gateway's back, and without it

def database(gateway):
    return sqlite3.connect(gateway.data / "keys.db", timeout=10, isolation_level=None)


def revoked_column(connection):
    """The table that has the keys: the one with a `revoked_ms`."""
    for (table,) in connection.execute("select name from sqlite_master where type = 'table'").fetchall():
        columns = [c[1] for c in connection.execute(f"pragma table_info({table})")]
        if "revoked_ms" in columns:
            return table
    raise AssertionError("no table has revoked_ms")


@pytest.mark.parametrize("sql", ["update {t} set revoked_ms = 1 where id = ?", "delete from {t} where id = ?"])
def test_a_row_changed_behind_the_gateways_back_is_found(gateway, client, sql):
    """Within 250 ms, and slack for a busy machine."""
    made = gateway.create_key()
    assert status(client, made["key"]) == 200
    connection = database(gateway)
    changed = connection.execute(sql.format(t=revoked_column(connection)), (made["id"],)).rowcount
    connection.close()
    assert changed == 1
    wait_until(lambda: status(client, made["key"]) == 401, 0.25 + 0.75, "the end of a key that was changed in the file", 0.02)


def test_keys_are_kept_while_the_gateway_is_down(upstream):
    """The command line works on the store itself, and the next start knows."""
    g = Gateway(upstream).start()
    try:
        kept, gone = g.create_key("kept"), g.create_key("gone")
        assert g.stop() == 0
        made = g.create_key("made while down")
        g.cli("keys", "revoke", gone["id"], "--yes")
        g.start()
        with g.client() as c:
            assert [status(c, k["key"]) for k in (kept, gone, made)] == [200, 401, 200]
        g.kill()
        late = g.create_key("made after a kill")
        g.start()
        with g.client() as c:
            assert [status(c, k["key"]) for k in (kept, gone, made, late)] == [200, 401, 200, 200]
    finally:
        g.kill()


def test_a_second_gateway_on_the_same_data_directory_is_refused(gateway, upstream, client, key):
    assert str(gateway.data) in Gateway(upstream, data=gateway.data).refuse_to_start()
    assert status(client, key) == 200
    assert gateway.create_key()["key"], "the admin socket still belongs to the first"


# --- CORS preflights

PREFLIGHT = [("Origin", "https://app.example"), ("Access-Control-Request-Method", "PUT"), ("Access-Control-Request-Headers", "x-api-key")]
ALLOWED = [("Access-Control-Allow-Origin", "https://app.example"), ("Access-Control-Allow-Methods", "PUT"),
           ("Access-Control-Allow-Headers", "x-api-key")]


@pytest.fixture(scope="module")
def cors(upstream):
    apis = [{"name": f"{what}s", "path_prefixes": ["/" + what], "upstreams": [upstream.url], "preflight": what, "deadlines": {"idle": "1s"}}
            for what in ("forward", "refuse")]
    yield from run(Gateway(settings={"api": apis, "usage": {"flush_interval": "50ms"}}, workers=1))


@pytest.fixture(scope="module")
def cors_key(cors):
    return cors.create_key("page")["key"]


def test_a_preflight_goes_on_without_a_key_and_is_on_record_without_an_application(cors, cors_key, upstream):
    path, rid = "/forward/" + unique(), unique()
    upstream.on(path, lambda x: x.answer(204, ALLOWED, framing="none"))
    dropped = [("Cookie", "session=1"), ("X-HTTP-Method-Override", "DELETE"), ("X-Other", "1"), ("X-Consumer-Id", "me")]
    with cors.client() as c:
        c.request("OPTIONS", path, None, PREFLIGHT + dropped + [("X-Request-Id", rid)])
        r = c.response()
        assert r.status == 204 and all(r.fields.get(n) == v for n, v in ALLOWED), r
        upstream.on(path, describe)
        problem(c.get(path), 401, "key_missing")
        c.request("PUT", path, cors_key, body=b"x")
        served(c.response())
    seen = upstream.seen(path)
    assert [s.method for s in seen] == ["OPTIONS", "PUT"], "the call itself needs its key"
    assert all(seen[0].fields.get(n) == v for n, v in PREFLIGHT)
    assert not [n for n, _ in dropped if n in seen[0].fields]
    row = cors.record(rid)
    assert [row[n] for n in ("api", "method", "status", "outcome", "application", "application_id", "key_id")] == [
        "forwards", "OPTIONS", "204", "served", "", "", ""]


def test_a_preflight_with_a_key_is_a_request_with_a_key(cors, cors_key, upstream):
    path, rid = "/forward/" + unique(), unique()
    with cors.client() as c:
        c.request("OPTIONS", path, cors_key, PREFLIGHT + [("X-Request-Id", rid), ("X-Other", "1")])
        served(c.response())
        c.request("OPTIONS", path, "lk_" + KNOWN_BODY + "0LsakP", PREFLIGHT)
        problem(c.response(), 401, "key_invalid")
    assert upstream.only(path).fields.get("x-other") == "1"
    assert cors.record(rid)["application"] == "page"


@pytest.mark.parametrize("what, method, path, fields, body", [
    ("an api that refuses", "OPTIONS", "/refuse/", PREFLIGHT, None),
    ("no Origin", "OPTIONS", "/forward/", PREFLIGHT[1:], None),
    ("no method asked for", "OPTIONS", "/forward/", PREFLIGHT[:1], None),
    ("an empty method", "OPTIONS", "/forward/", PREFLIGHT[:1] + [("Access-Control-Request-Method", "")], None),
    ("two methods", "OPTIONS", "/forward/", PREFLIGHT + PREFLIGHT[1:2], None),
    ("a list of methods", "OPTIONS", "/forward/", PREFLIGHT[:1] + [("Access-Control-Request-Method", "GET, PUT")], None),
    ("two origins", "OPTIONS", "/forward/", PREFLIGHT + PREFLIGHT[:1], None),
    ("an alias", "OPTIONS", "/forward/", PREFLIGHT[:1] + [("Access_Control_Request_Method", "PUT")], None),
    ("a body", "OPTIONS", "/forward/", PREFLIGHT, b"x"),
    ("chunks", "OPTIONS", "/forward/", PREFLIGHT + [("Transfer-Encoding", "chunked")], b"0\r\n\r\n"),
    ("an empty key", "OPTIONS", "/forward/", PREFLIGHT + [("X-API-KEY", "")], None),
    ("credentials", "OPTIONS", "/forward/", PREFLIGHT + [("Authorization", "Basic eDp5")], None),
    ("its Origin nominated", "OPTIONS", "/forward/", PREFLIGHT + [("Connection", "Origin")], None),
    ("lower case", "options", "/forward/", PREFLIGHT, None),
    *[(m, m, "/forward/", PREFLIGHT, None) for m in ("GET", "HEAD", "PUT", "POST", "DELETE", "PATCH")],
], ids=lambda v: v if isinstance(v, str) and not v.startswith("/") else "")
def test_nothing_but_exactly_a_preflight_goes_on_without_a_key(cors, upstream, what, method, path, fields, body):
    path += unique()
    with cors.client() as c:
        c.request(method, path, None, fields, body=body)
        r = c.response(method)
        assert r.status == 401, r
    assert not upstream.seen(path)


def test_the_whole_server_is_no_preflights_business(upstream):
    for g in run(Gateway(settings={"api": [{"name": "all", "upstreams": [upstream.url], "preflight": "forward"}]}, workers=1)):
        with g.client() as c:
            c.request("OPTIONS", "*", None, PREFLIGHT)
            problem(c.response(), 401, "key_missing")
