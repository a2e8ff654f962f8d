#!/usr/bin/python3
"""Writes requests.json and responses.json beside this file. The data files are what tests run; this script only spares typing.

A request case:
  id, class, reason (what a reader could take differently, with its section)
  raw      what the client sends, latin-1; {{K}} stands for "X-API-KEY: <valid key>\\r\\n", {{KEY}} for the key alone; a list is
           joined, and ["text", n] in it means the text n times
  expect   verdict: refuse   one of `status`, the connection is closed (close null: or kept, close false: kept), the upstream gets nothing
                    forward  the upstream answers; upstream_method, upstream_target, upstream_fields, upstream_absent_fields,
                             upstream_body say what it must have got; `responses` (1) is how many answers come, `then_status`
                             what the one behind them may be
                    either   refuse with one of `status`, or forward
                    break    the fault lies in the body, whose head may have gone ahead: one of `status` or a closed connection,
                             and the upstream never gets a whole request
Every refused, broken or forwarded case is followed, in the raw bytes or by the runner, by requests that must not be executed or
answered wrongly; the path /smuggled is never to reach the upstream.

A response case:
  raw, method (GET), after: close, hold (the upstream keeps the connection) or reset
  expect   verdict: pass     status, body, absent_fields, trailers
                    bad      502 (or the statuses listed)
                    break    the head went out, then the client must see that the body broke: no clean end
                    pass_once  passed; what the upstream sent behind the message goes to nobody
                    bad_or_break, bad_or_pass, pass_or_break: one of the two
"""
import json
import pathlib

requests, responses = [], []
HERE = pathlib.Path(__file__).resolve().parent
BAD = [400]
BEHIND = "GET /smuggled HTTP/1.1\r\nHost: h\r\n{{K}}\r\n"


def add(group, name, raw, reason, verdict="refuse", status=None, **more):
    expect = {"verdict": verdict}
    if verdict in ("refuse", "either", "break"):
        expect["status"] = status or BAD
    expect.update(more)
    requests.append({"id": f"{group}-{name}", "class": group, "reason": reason, "raw": raw, "expect": expect})


def head(line="POST /c HTTP/1.1", *fields, host="Host: h\r\n", key="{{K}}"):
    return line + "\r\n" + host + key + "".join(f + "\r\n" for f in fields) + "\r\n"


def get(target, *fields, **more):
    return head(f"GET {target} HTTP/1.1", *fields, **more)


# --- two framings in one message, RFC 9112 6.1, 6.3
for name, fields, body in [
    ("cl-first", ["Content-Length: 6", "Transfer-Encoding: chunked"], "0\r\n\r\nG"),
    ("cl-covers-all", ["Content-Length: 4", "Transfer-Encoding: chunked"], "5c\r\n"),
    ("cl-zero", ["Content-Length: 0", "Transfer-Encoding: chunked"], "0\r\n\r\n"),
    ("cl-huge", ["Content-Length: 99999999", "Transfer-Encoding: chunked"], "0\r\n\r\n"),
    ("cl-lower-case", ["content-length: 3", "transfer-encoding: chunked"], "0\r\n\r\n"),
    ("cl-far-apart", ["Content-Length: 5"] + [f"X-{i}: y" for i in range(40)] + ["Transfer-Encoding: chunked"], "0\r\n\r\n"),
    ("cl-and-gzip", ["Content-Length: 5", "Transfer-Encoding: gzip"], "0\r\n\r\n"),
    ("cl-and-identity", ["Content-Length: 5", "Transfer-Encoding: identity"], "hello"),
    ("cl-and-empty-te", ["Content-Length: 5", "Transfer-Encoding:"], "hello"),
]:
    add("CL.TE", name, head("POST /c HTTP/1.1", *fields) + body + BEHIND, "RFC 9112 6.3 rule 3: both fields in one message",
        status=[400, 501] if "gzip" in name or "identity" in name else BAD)
for name, fields, body in [
    ("te-first", ["Transfer-Encoding: chunked", "Content-Length: 4"], "5c\r\nGET /smuggled HTTP/1.1\r\n"),
    ("te-first-zero", ["Transfer-Encoding: chunked", "Content-Length: 0"], "0\r\n\r\n"),
    ("gzip-first", ["Transfer-Encoding: gzip", "Content-Length: 5"], "hello"),
    ("xchunked-first", ["Transfer-Encoding: xchunked", "Content-Length: 5"], "hello"),
    ("upper-case", ["TRANSFER-ENCODING: CHUNKED", "CONTENT-LENGTH: 4"], "0\r\n\r\n"),
    ("two-lengths-between", ["Content-Length: 4", "Transfer-Encoding: chunked", "Content-Length: 4"], "0\r\n\r\n"),
    ("on-get", ["Transfer-Encoding: chunked", "Content-Length: 4"], "0\r\n\r\n"),
]:
    method = "GET" if name == "on-get" else "POST"
    add("TE.CL", name, head(method + " /c HTTP/1.1", *fields) + body + BEHIND, "RFC 9112 6.3 rule 3: both fields in one message",
        status=[400, 501] if "gzip" in name or "xchunked" in name else BAD)

# --- one coding, written so that readers disagree, RFC 9112 6.1, 7; RFC 9110 5.6
for name, fields, why, status in [
    ("space-before-colon", ["Transfer-Encoding : chunked"], "RFC 9112 5.1: no blank before the colon", [400]),
    ("tab-before-colon", ["Transfer-Encoding\t: chunked"], "RFC 9112 5.1: no blank before the colon", [400]),
    ("vertical-tab", ["Transfer-Encoding: \x0bchunked"], "RFC 9110 5.5: control byte in a value", [400, 501]),
    ("form-feed", ["Transfer-Encoding: chunked\x0c"], "RFC 9110 5.5: control byte in a value", [400, 501]),
    ("nul", ["Transfer-Encoding: chunked\x00"], "RFC 9110 5.5: NUL in a value", [400, 501]),
    ("nul-in-name", ["Transfer-\x00Encoding: chunked"], "RFC 9110 5.1: a name is a token", [400]),
    ("quoted", ['Transfer-Encoding: "chunked"'], "RFC 9112 7: a coding is a token", [400, 501]),
    ("single-quoted", ["Transfer-Encoding: 'chunked'"], "RFC 9112 7: an unknown coding", [400, 501]),
    ("xchunked", ["Transfer-Encoding: xchunked"], "RFC 9112 6.1: unknown coding is 501", [400, 501]),
    ("chunkedx", ["Transfer-Encoding: chunkedx"], "RFC 9112 6.1: unknown coding is 501", [400, 501]),
    ("chunk", ["Transfer-Encoding: chunk"], "RFC 9112 6.1: unknown coding is 501", [400, 501]),
    ("identity", ["Transfer-Encoding: identity"], "RFC 9112 7: identity is gone, an unknown coding", [400, 501]),
    ("gzip", ["Transfer-Encoding: gzip"], "RFC 9112 6.1, 6.3 rule 4: last coding is not chunked", [400, 501]),
    ("gzip-chunked", ["Transfer-Encoding: gzip, chunked"], "RFC 9112 6.1: a coding that is not understood is 501", [501]),
    ("deflate-chunked-fields", ["Transfer-Encoding: deflate", "Transfer-Encoding: chunked"], "RFC 9112 6.1: 501", [400, 501]),
    ("chunked-gzip", ["Transfer-Encoding: chunked, gzip"], "RFC 9112 6.3 rule 4: chunked must be last", [400, 501]),
    ("chunked-identity", ["Transfer-Encoding: chunked, identity"], "RFC 9112 6.3 rule 4: chunked must be last", [400, 501]),
    ("identity-chunked", ["Transfer-Encoding: identity, chunked"], "RFC 9112 7: identity is no coding", [400, 501]),
    ("chunked-twice", ["Transfer-Encoding: chunked, chunked"], "RFC 9112 7.1: chunked is never applied twice", [400]),
    ("chunked-two-fields", ["Transfer-Encoding: chunked", "Transfer-Encoding: chunked"], "RFC 9112 7.1: applied twice", [400]),
    ("chunked-then-unknown-field", ["Transfer-Encoding: chunked", "Transfer-Encoding: x"], "RFC 9112 6.3 rule 4", [400, 501]),
    ("unknown-then-chunked-field", ["Transfer-Encoding: x", "Transfer-Encoding: chunked"], "RFC 9112 6.1", [400, 501]),
    ("leading-comma", ["Transfer-Encoding: ,chunked"], "RFC 9110 5.6.1: empty elements disagree between readers", [400]),
    ("trailing-comma", ["Transfer-Encoding: chunked,"], "RFC 9110 5.6.1: empty elements disagree between readers", [400]),
    ("empty", ["Transfer-Encoding:"], "RFC 9112 6.1: no coding named", [400, 501]),
    ("empty-and-chunked", ["Transfer-Encoding:", "Transfer-Encoding: chunked"], "RFC 9112 6.1: two fields", [400, 501]),
    ("parameter", ["Transfer-Encoding: chunked;q=1"], "RFC 9112 7.1: chunked has no parameters", [400, 501]),
    ("semicolon", ["Transfer-Encoding: chunked;"], "RFC 9112 7: not a coding", [400, 501]),
    ("two-words", ["Transfer-Encoding: chunked foo"], "RFC 9112 7: not a coding", [400, 501]),
    ("nbsp", ["Transfer-Encoding: \xa0chunked"], "RFC 9112 7: a byte outside the token", [400, 501]),
    ("nbsp-behind", ["Transfer-Encoding: chunked\xa0"], "RFC 9112 7: a byte outside the token", [400, 501]),
    ("nel", ["Transfer-Encoding: chunked\x85"], "RFC 9112 7: a byte outside the token", [400, 501]),
    ("fold", ["Transfer-Encoding:\r\n chunked"], "RFC 9112 5.2: obs-fold", [400]),
    ("fold-behind", ["Transfer-Encoding: chunked\r\n , identity"], "RFC 9112 5.2: obs-fold", [400]),
    ("bare-lf-hides", ["X: y\nTransfer-Encoding: chunked"], "RFC 9112 2.2: bare LF as line end", [400]),
    ("bare-cr-hides", ["X: y\rTransfer-Encoding: chunked"], "RFC 9112 2.2: bare CR", [400]),
    ("colon-twice", ["Transfer-Encoding:: chunked"], "RFC 9112 7: ':' is no token character", [400, 501]),
    ("underscore", ["Transfer_Encoding: chunked", "Content-Length: 5"], "a name that servers map to the framing field", [400]),
    ("in-connection", ["Transfer-Encoding: chunked", "Connection: Transfer-Encoding"], "framing named as hop-by-hop", [400]),
]:
    add("TE.TE", name, head("POST /c HTTP/1.1", *fields) + "0\r\n\r\n" + BEHIND, why, status=status)
for name, value in [("mixed-case", "Chunked"), ("upper-case", "CHUNKED"), ("blanks", "   chunked"), ("tab", "\tchunked"),
                    ("blanks-behind", "chunked  \t ")]:
    add("TE.TE", "fine-" + name, head("POST /c HTTP/1.1", "Transfer-Encoding: " + value) + "5\r\nhello\r\n0\r\n\r\n",
        "RFC 9112 7: coding names have no case; RFC 9110 5.5: blanks around a value do not count", "forward", upstream_body="hello")
add("TE.TE", "te-chunked-1.0", "POST /c HTTP/1.0\r\nHost: h\r\n{{K}}Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n" + BEHIND,
    "RFC 9112 6.1: a 1.0 message with Transfer-Encoding has faulty framing", status=[400, 501])
add("TE.TE", "gzip-1.0", "POST /c HTTP/1.0\r\nHost: h\r\n{{K}}Transfer-Encoding: gzip\r\n\r\n", "RFC 9112 6.1", status=[400, 501])

# --- Content-Length, RFC 9110 8.6, RFC 9112 6.3 rule 5
for name, fields in [
    ("two-differ", ["Content-Length: 5", "Content-Length: 6"]),
    ("two-differ-zero", ["Content-Length: 0", "Content-Length: 5"]),
    ("list-differ", ["Content-Length: 5, 6"]),
    ("list-empty-element", ["Content-Length: 5,"]),
    ("list-leading-comma", ["Content-Length: ,5"]),
    ("plus", ["Content-Length: +5"]),
    ("minus", ["Content-Length: -5"]),
    ("minus-zero", ["Content-Length: -0"]),
    ("hex", ["Content-Length: 0x5"]),
    ("hex-letters", ["Content-Length: a"]),
    ("octal-like-underscore", ["Content-Length: 1_0"]),
    ("point", ["Content-Length: 5.0"]),
    ("exponent", ["Content-Length: 5e0"]),
    ("blank-inside", ["Content-Length: 5 5"]),
    ("trailing-text", ["Content-Length: 5x"]),
    ("trailing-semicolon", ["Content-Length: 5;"]),
    ("empty", ["Content-Length:"]),
    ("blank", ["Content-Length:  "]),
    ("empty-and-number", ["Content-Length:", "Content-Length: 5"]),
    ("two-to-64", ["Content-Length: 18446744073709551616"]),
    ("two-to-64-plus-5", ["Content-Length: 18446744073709551621"]),
    ("thirty-digits", ["Content-Length: " + "9" * 30]),
    ("quoted", ['Content-Length: "5"']),
    ("nul", ["Content-Length: 5\x00"]),
    ("vertical-tab", ["Content-Length: \x0b5"]),
    ("nbsp", ["Content-Length: \xa05"]),
    ("superscript", ["Content-Length: \xb2"]),
    ("fold", ["Content-Length:\r\n 5"]),
    ("space-before-colon", ["Content-Length : 5"]),
    ("in-connection", ["Content-Length: 5", "Connection: Content-Length"]),
    ("underscore", ["Content_Length: 5"]),
]:
    add("CL", name, head("POST /c HTTP/1.1", *fields) + "hello" + BEHIND,
        "RFC 9110 8.6: Content-Length = 1*DIGIT, once; anything else is faulty framing",
        status=[400, 413] if name in ("two-to-64", "two-to-64-plus-5", "thirty-digits") else BAD)
for name, fields in [("two-equal", ["Content-Length: 5", "Content-Length: 5"]), ("list-equal", ["Content-Length: 5, 5"]),
                     ("leading-zeros", ["Content-Length: 0005"])]:
    add("CL", name, head("POST /c HTTP/1.1", *fields) + "hello",
        "RFC 9112 6.3 rule 5: may be refused, or forwarded as one plain number", "either", upstream_body="hello",
        upstream_fields={"Content-Length": "5"})
add("CL", "fine", head("POST /c HTTP/1.1", "Content-Length: 5") + "hello", "RFC 9110 8.6", "forward", upstream_body="hello")
add("CL", "fine-blanks", head("POST /c HTTP/1.1", "Content-Length: \t 5 \t") + "hello", "RFC 9110 5.5", "forward", upstream_body="hello")
add("CL", "fine-zero", head("POST /c HTTP/1.1", "Content-Length: 0"), "RFC 9110 8.6", "forward", upstream_body="")
add("CL", "body-on-get", head("GET /c HTTP/1.1", "Content-Length: 5") + "hello" + get("/c"),
    "RFC 9110 9.3.1: a GET's content has a length like any other and is not the next request", "forward", upstream_body="hello", responses=2)
add("CL", "chunked-body-on-get", get("/c", "Transfer-Encoding: chunked") + "5\r\nhello\r\n0\r\n\r\n" + get("/c"),
    "RFC 9110 9.3.1", "forward", upstream_body="hello", responses=2)
add("CL", "body-on-delete", head("DELETE /c HTTP/1.1", "Content-Length: 5") + "hello", "RFC 9110 9.3.5", "forward", upstream_body="hello")
add("CL", "body-on-head", head("HEAD /c HTTP/1.1", "Content-Length: 5") + "hello", "RFC 9110 9.3.2", "forward", upstream_body="hello")
add("CL", "body-looks-like-request", head("POST /c HTTP/1.1", f"Content-Length: {len('GET /smuggled HTTP/1.1' + chr(13) + chr(10) * 2)}")
    + "GET /smuggled HTTP/1.1\r\n\n" + get("/c"), "RFC 9112 6.3: content is content", "forward", responses=2)
add("CL", "extra-crlf-behind-post", head("POST /c HTTP/1.1", "Content-Length: 5") + "hello\r\n" + get("/c"),
    "RFC 9112 2.2: one CRLF before a request line should be ignored; strictness is allowed", "forward", upstream_body="hello",
    then_status=[200, 400])

# --- chunked coding, RFC 9112 7.1
CH = "Transfer-Encoding: chunked"
for name, body, why in [
    ("plus", "+5\r\nhello\r\n0\r\n\r\n", "chunk-size = 1*HEXDIG"),
    ("minus", "-5\r\nhello\r\n0\r\n\r\n", "chunk-size = 1*HEXDIG"),
    ("minus-zero", "-0\r\n\r\n", "chunk-size = 1*HEXDIG"),
    ("0x", "0x5\r\nhello\r\n0\r\n\r\n", "chunk-size = 1*HEXDIG"),
    ("h-suffix", "5h\r\nhello\r\n0\r\n\r\n", "chunk-size = 1*HEXDIG"),
    ("underscore", "0_5\r\nhello\r\n0\r\n\r\n", "chunk-size = 1*HEXDIG"),
    ("empty-size", "\r\nhello\r\n0\r\n\r\n", "chunk-size = 1*HEXDIG"),
    ("only-extension", ";a=b\r\nhello\r\n0\r\n\r\n", "chunk-size = 1*HEXDIG"),
    ("leading-space", " 5\r\nhello\r\n0\r\n\r\n", "no blank before the size"),
    ("leading-tab", "\t5\r\nhello\r\n0\r\n\r\n", "no blank before the size"),
    ("letters", "g\r\nhello\r\n0\r\n\r\n", "chunk-size = 1*HEXDIG"),
    ("comma", "5,5\r\nhello\r\n0\r\n\r\n", "chunk-size = 1*HEXDIG"),
    ("overflow-64", "10000000000000005\r\nhello\r\n0\r\n\r\n", "7.1: large sizes must not wrap"),
    ("overflow-ffff", "ffffffffffffffff\r\nhello\r\n0\r\n\r\n", "7.1: large sizes must not wrap"),
    ("overflow-long", "f" * 40 + "\r\nhello\r\n0\r\n\r\n", "7.1: large sizes must not wrap"),
    ("bare-lf-after-size", "5\nhello\r\n0\r\n\r\n", "2.2: a bare LF ends no chunk line"),
    ("bare-lf-after-extension", "5;a\nhello\r\n0\r\n\r\n", "2.2: a bare LF ends no chunk line"),
    ("bare-lf-after-data", "5\r\nhello\n0\r\n\r\n", "7.1: chunk data ends with CRLF"),
    ("bare-cr-after-size", "5\rhello\r\n0\r\n\r\n", "2.2: bare CR"),
    ("cr-cr-lf", "5\r\r\nhello\r\n0\r\n\r\n", "2.2: bare CR"),
    ("bare-cr-in-extension", "5;a\rb\r\nhello\r\n0\r\n\r\n", "2.2: bare CR"),
    ("nul-in-size", "5\x00\r\nhello\r\n0\r\n\r\n", "7.1: NUL"),
    ("nul-in-extension", "5;a\x00\r\nhello\r\n0\r\n\r\n", "7.1.1: NUL"),
    ("missing-crlf", "5\r\nhello0\r\n\r\n", "7.1: chunk data ends with CRLF"),
    ("data-too-long", "5\r\nhelloo\r\n0\r\n\r\n", "7.1: chunk data ends with CRLF"),
    ("data-too-short", "7\r\nhello\r\n0\r\n\r\nGET / HTTP/1.1\r\n", "7.1: chunk data ends with CRLF"),
    ("two-crlf-after-data", "5\r\nhello\r\n\r\n0\r\n\r\n", "chunk-size = 1*HEXDIG"),
    ("last-bare-lf", "5\r\nhello\r\n0\n\n", "2.2: bare LF ends no message"),
    ("last-lf-after-crlf", "5\r\nhello\r\n0\r\n\n", "2.2: bare LF ends no message"),
    ("last-cr-only", "5\r\nhello\r\n0\r\n\rX", "2.2: bare CR"),
    ("trailer-without-colon", "5\r\nhello\r\n0\r\nnonsense\r\n\r\n", "7.1.2: trailer fields are field lines"),
    ("trailer-space-before-colon", "5\r\nhello\r\n0\r\nA : b\r\n\r\n", "5.1: no blank before the colon"),
    ("trailer-fold", "5\r\nhello\r\n0\r\nA: b\r\n c\r\n\r\n", "5.2: obs-fold"),
    ("trailer-nul", "5\r\nhello\r\n0\r\nA: b\x00\r\n\r\n", "RFC 9110 5.5: NUL"),
    ("trailer-bare-lf", "5\r\nhello\r\n0\r\nA: b\nB: c\r\n\r\n", "2.2: bare LF"),
    ("trailer-bare-cr", "5\r\nhello\r\n0\r\nA: b\rc\r\n\r\n", "2.2: bare CR"),
    ("trailer-empty-name", "5\r\nhello\r\n0\r\n: b\r\n\r\n", "RFC 9110 5.1: a name is a token"),
]:
    add("chunk", name, head("POST /c HTTP/1.1", CH) + body + BEHIND, "RFC 9112 " + why if why[0].isdigit() else "RFC 9112 7.1: " + why
        if not why.startswith("RFC") else why, "break")
for name, raw in [
    ("endless-zeros", [["0", 70000], "5\r\nhello\r\n0\r\n\r\n"]),
    ("endless-size", [["1", 70000]]),
    ("endless-extension", ["5;", ["x", 200000], "\r\nhello\r\n0\r\n\r\n"]),
    ("endless-extensions-many-chunks", [["1;" + "x" * 200 + "\r\na\r\n", 4000], "0\r\n\r\n"]),
    ("endless-trailer-value", ["5\r\nhello\r\n0\r\nA: ", ["x", 200000], "\r\n\r\n"]),
    ("endless-trailer-name", ["5\r\nhello\r\n0\r\n", ["x", 200000], ": a\r\n\r\n"]),
    ("endless-trailers", ["5\r\nhello\r\n0\r\n", ["A: b\r\n", 40000], "\r\n"]),
]:
    add("chunk", name, [head("POST /c HTTP/1.1", CH)] + raw, "RFC 9112 7.1.1, 7.1.2: limit what is not content", "break",
        status=[400, 413, 431])
for name, body in [("upper-hex", "A\r\n0123456789\r\n0\r\n\r\n"), ("lower-hex", "a\r\n0123456789\r\n0\r\n\r\n"),
                   ("extension", "a;n=v\r\n0123456789\r\n0\r\n\r\n"), ("quoted-extension", 'a;n="v;w"\r\n0123456789\r\n0\r\n\r\n'),
                   ("some-zeros", "000a\r\n0123456789\r\n000\r\n\r\n"), ("one-byte-chunks", "".join(f"1\r\n{i}\r\n" for i in range(10)) + "0\r\n\r\n"),
                   ("trailer", "a\r\n0123456789\r\n0\r\nX-Sum: 1\r\n\r\n"), ("last-extension", "a\r\n0123456789\r\n0;n=v\r\n\r\n")]:
    add("chunk", "fine-" + name, head("POST /c HTTP/1.1", CH) + body + get("/c"), "RFC 9112 7.1", "forward", upstream_body="0123456789", responses=2)
add("chunk", "fine-empty", head("POST /c HTTP/1.1", CH) + "0\r\n\r\n" + get("/c"), "RFC 9112 7.1", "forward", upstream_body="", responses=2)

# --- trailers that would change what the head said, RFC 9110 6.5.1
for name in ["Content-Length: 9", "Transfer-Encoding: chunked", "Host: evil", "X-API-KEY: {{KEY}}", "X-Consumer-Id: evil",
             "X-Consumer-Username: root", "X-Credential-Identifier: key_x", "X-Forwarded-For: 1.2.3.4", "Connection: close",
             "Authorization: Bearer x", "X-Request-Id: evil", "Forwarded: for=1.2.3.4", "Upgrade: h2c", "Trailer: x"]:
    add("trailer", name.split(":")[0].lower(), head("POST /c HTTP/1.1", CH) + "5\r\nhello\r\n0\r\n" + name + "\r\nX-Fine: 1\r\n\r\n" + get("/c"),
        "RFC 9110 6.5.1: such a field has no place in trailers: dropped, or the request refused", "either",
        responses=2, upstream_body="hello", upstream_absent_trailers=[name.split(":")[0]])
add("trailer", "key-only-in-trailer", head("POST /c HTTP/1.1", CH, key="") + "5\r\nhello\r\n0\r\n{{K}}\r\n",
    "a trailer authenticates nobody, and a credential has no place there", status=[400, 401], close=None)

# --- lines, RFC 9112 2.2, 5; RFC 9110 5
LINE = "POST /c HTTP/1.1\r\nHost: h\r\n{{K}}"
for name, raw, why in [
    ("lf-request-line", "GET /c HTTP/1.1\nHost: h\r\n{{K}}\r\n", "2.2: bare LF"),
    ("lf-field", "GET /c HTTP/1.1\r\nHost: h\n{{K}}\r\n", "2.2: bare LF"),
    ("lf-everywhere", "GET /c HTTP/1.1\nHost: h\nX-API-KEY: {{KEY}}\n\n", "2.2: bare LF"),
    ("lf-ends-head", "GET /c HTTP/1.1\r\nHost: h\r\n{{K}}\n", "2.2: bare LF"),
    ("cr-request-line", "GET /c HTTP/1.1\rHost: h\r\n{{K}}\r\n", "2.2: bare CR"),
    ("cr-in-value", "GET /c HTTP/1.1\r\nHost: h\r\n{{K}}X: a\rb\r\n\r\n", "2.2: bare CR"),
    ("cr-ends-value", "GET /c HTTP/1.1\r\nHost: h\r\n{{K}}X: a\r\r\n\r\n", "2.2: bare CR"),
    ("cr-in-name", "GET /c HTTP/1.1\r\nHost: h\r\n{{K}}X\r: a\r\n\r\n", "2.2: bare CR"),
    ("cr-ends-head", "GET /c HTTP/1.1\r\nHost: h\r\n{{K}}\r\rGET", "2.2: bare CR"),
    ("cr-starts-line", "GET /c HTTP/1.1\r\n\rHost: h\r\n{{K}}\r\n", "2.2: bare CR"),
    ("fold-space", "GET /c HTTP/1.1\r\nHost: h\r\n{{K}}X: a\r\n b\r\n\r\n", "5.2: obs-fold"),
    ("fold-tab", "GET /c HTTP/1.1\r\nHost: h\r\n{{K}}X: a\r\n\tb\r\n\r\n", "5.2: obs-fold"),
    ("fold-empty", "GET /c HTTP/1.1\r\nHost: h\r\n{{K}}X: a\r\n \r\n\r\n", "5.2: obs-fold"),
    ("fold-first-line", "GET /c HTTP/1.1\r\n X: a\r\nHost: h\r\n{{K}}\r\n", "2.2: blank before the first field"),
    ("fold-key", "GET /c HTTP/1.1\r\nHost: h\r\nX-API-KEY:\r\n {{KEY}}\r\n\r\n", "5.2: obs-fold"),
    ("fold-after-nothing", "GET /c HTTP/1.1\r\nHost: h\r\n{{K}}X:\r\n\ta\r\n\r\n", "5.2: obs-fold"),
    ("fold-host", "GET /c HTTP/1.1\r\nHost:\r\n h\r\n{{K}}\r\n", "5.2: obs-fold"),
    ("nul-in-value", "GET /c HTTP/1.1\r\nHost: h\r\n{{K}}X: a\x00b\r\n\r\n", "RFC 9110 5.5: NUL"),
    ("ctl-01-in-value", "GET /c HTTP/1.1\r\nHost: h\r\n{{K}}X: a\x01b\r\n\r\n", "RFC 9110 5.5: control byte"),
    ("ctl-08-in-value", "GET /c HTTP/1.1\r\nHost: h\r\n{{K}}X: a\x08b\r\n\r\n", "RFC 9110 5.5: control byte"),
    ("esc-in-value", "GET /c HTTP/1.1\r\nHost: h\r\n{{K}}X: a\x1b[0m\r\n\r\n", "RFC 9110 5.5: control byte"),
    ("del-in-value", "GET /c HTTP/1.1\r\nHost: h\r\n{{K}}X: a\x7f\r\n\r\n", "RFC 9110 5.5: control byte"),
    ("vt-in-value", "GET /c HTTP/1.1\r\nHost: h\r\n{{K}}X: a\x0bb\r\n\r\n", "RFC 9110 5.5: control byte"),
    ("nul-in-name", "GET /c HTTP/1.1\r\nHost: h\r\n{{K}}X\x00Y: a\r\n\r\n", "RFC 9110 5.1: a name is a token"),
    ("ctl-in-name", "GET /c HTTP/1.1\r\nHost: h\r\n{{K}}X\x07Y: a\r\n\r\n", "RFC 9110 5.1: a name is a token"),
    ("high-byte-in-name", "GET /c HTTP/1.1\r\nHost: h\r\n{{K}}X\xe9: a\r\n\r\n", "RFC 9110 5.1: a name is a token"),
    ("blank-in-name", "GET /c HTTP/1.1\r\nHost: h\r\n{{K}}X Y: a\r\n\r\n", "RFC 9110 5.1: a name is a token"),
    ("paren-in-name", "GET /c HTTP/1.1\r\nHost: h\r\n{{K}}X(Y): a\r\n\r\n", "RFC 9110 5.1: a name is a token"),
    ("at-in-name", "GET /c HTTP/1.1\r\nHost: h\r\n{{K}}X@Y: a\r\n\r\n", "RFC 9110 5.1: a name is a token"),
    ("quote-in-name", 'GET /c HTTP/1.1\r\nHost: h\r\n{{K}}"X": a\r\n\r\n', "RFC 9110 5.1: a name is a token"),
    ("space-before-colon", "GET /c HTTP/1.1\r\nHost: h\r\n{{K}}X : a\r\n\r\n", "5.1: no blank before the colon"),
    ("tab-before-colon", "GET /c HTTP/1.1\r\nHost: h\r\n{{K}}X\t: a\r\n\r\n", "5.1: no blank before the colon"),
    ("space-before-colon-key", "GET /c HTTP/1.1\r\nHost: h\r\nX-API-KEY : {{KEY}}\r\n\r\n", "5.1: no blank before the colon"),
    ("empty-name", "GET /c HTTP/1.1\r\nHost: h\r\n{{K}}: a\r\n\r\n", "RFC 9110 5.1: a name is a token"),
    ("only-colon", "GET /c HTTP/1.1\r\nHost: h\r\n{{K}}:\r\n\r\n", "RFC 9110 5.1: a name is a token"),
    ("no-colon", "GET /c HTTP/1.1\r\nHost: h\r\n{{K}}nonsense\r\n\r\n", "5: field-line has a colon"),
    ("second-line-is-a-request", "GET /c HTTP/1.1\r\nGET /smuggled HTTP/1.1\r\nHost: h\r\n{{K}}\r\n", "5: field-line has a colon"),
]:
    add("line", name, raw + BEHIND, why if why.startswith("RFC") else "RFC 9112 " + why,
        status=[400, 505] if "request-line" in name or name == "lf-everywhere" else BAD)
add("line", "high-bytes-in-value", get("/c", "X-Name: J\xfcrgen"), "RFC 9110 5.5: obs-text is opaque", "forward",
    upstream_fields={"X-Name": "J\xfcrgen"})
add("line", "tab-in-value", get("/c", "X-Tab: a\tb"), "RFC 9110 5.5: HTAB is allowed inside", "forward", upstream_fields={"X-Tab": "a\tb"})
add("line", "empty-value", get("/c", "X-Empty:"), "RFC 9110 5.5: a value may be empty", "forward", upstream_fields={"X-Empty": ""})
add("line", "no-blank-after-colon", get("/c", "X-Tight:a"), "RFC 9112 5: OWS is optional", "forward", upstream_fields={"X-Tight": "a"})
add("line", "odd-token-name", get("/c", "x!#$%&'*+-.^`|~9: a"), "RFC 9110 5.6.2: every token character", "forward")
add("line", "leading-crlf", "\r\n" + get("/c"), "RFC 9112 2.2: should be ignored; strictness is allowed", "either")
add("line", "leading-crlf-8-times", "\r\n" * 8 + get("/c"), "RFC 9112 2.2: at least one should be ignored", "forward")
add("line", "leading-crlf-9-times", "\r\n" * 9 + get("/c"), "RFC 9112 2.2: a server may tire of them")
add("line", "crlf-without-end", "\r\n" * 1000, "RFC 9112 2.2: no request comes of them")
add("line", "leading-lf", "\n" + get("/c"), "RFC 9112 2.2", "either")
add("line", "leading-blank", " " + get("/c"), "RFC 9112 3: a request line starts with a method")
add("line", "endless-leading-crlf", [["\r\n", 50000], get("/c")], "RFC 9112 2.2: at least one; not endlessly many", "either", status=[400, 431, 414])

# --- the request line, RFC 9112 3
for name, raw, status, why in [
    ("no-version", "GET /c\r\nHost: h\r\n{{K}}\r\n", [400, 505], "HTTP/0.9 is not spoken"),
    ("0.9-short", "GET /c\r\n", [400, 408, 505], "HTTP/0.9 is not spoken"),
    ("version-0.9", "GET /c HTTP/0.9\r\nHost: h\r\n{{K}}\r\n", [400, 505], "unknown major version"),
    ("version-2.0", "GET /c HTTP/2.0\r\nHost: h\r\n{{K}}\r\n", [400, 505], "unknown major version"),
    ("version-3", "GET /c HTTP/3\r\nHost: h\r\n{{K}}\r\n", [400, 505], "2.3: DIGIT . DIGIT"),
    ("version-10.1", "GET /c HTTP/10.1\r\nHost: h\r\n{{K}}\r\n", [400, 505], "2.3: DIGIT . DIGIT"),
    ("version-1.10", "GET /c HTTP/1.10\r\nHost: h\r\n{{K}}\r\n", [400, 505], "2.3: DIGIT . DIGIT"),
    ("version-lower-case", "GET /c http/1.1\r\nHost: h\r\n{{K}}\r\n", [400, 505], "2.3: HTTP-name has case"),
    ("version-comma", "GET /c HTTP/1,1\r\nHost: h\r\n{{K}}\r\n", [400, 505], "2.3"),
    ("version-blank", "GET /c HTTP/ 1.1\r\nHost: h\r\n{{K}}\r\n", [400, 505], "2.3"),
    ("version-plus", "GET /c HTTP/+1.1\r\nHost: h\r\n{{K}}\r\n", [400, 505], "2.3"),
    ("version-other", "GET /c RTSP/1.0\r\nHost: h\r\n{{K}}\r\n", [400, 505], "2.3"),
    ("version-trailing", "GET /c HTTP/1.1x\r\nHost: h\r\n{{K}}\r\n", [400, 505], "2.3"),
    ("version-trailing-blank", "GET /c HTTP/1.1 \r\nHost: h\r\n{{K}}\r\n", [400, 505], "2.3"),
    ("two-blanks-before-target", "GET  /c HTTP/1.1\r\nHost: h\r\n{{K}}\r\n", [400], "single SP"),
    ("two-blanks-before-version", "GET /c  HTTP/1.1\r\nHost: h\r\n{{K}}\r\n", [400, 505], "single SP"),
    ("tab", "GET\t/c\tHTTP/1.1\r\nHost: h\r\n{{K}}\r\n", [400], "single SP"),
    ("blank-in-target", "GET /c d HTTP/1.1\r\nHost: h\r\n{{K}}\r\n", [400, 505], "3.2: no blank in a target"),
    ("version-in-target", "GET /c HTTP/1.1 HTTP/1.1\r\nHost: h\r\n{{K}}\r\n", [400, 505], "3.2: no blank in a target"),
    ("vt-in-target", "GET /c\x0bd HTTP/1.1\r\nHost: h\r\n{{K}}\r\n", [400], "3.2: control byte"),
    ("nul-in-target", "GET /c\x00d HTTP/1.1\r\nHost: h\r\n{{K}}\r\n", [400], "3.2: control byte"),
    ("del-in-target", "GET /c\x7f HTTP/1.1\r\nHost: h\r\n{{K}}\r\n", [400], "3.2: control byte"),
    ("high-byte-in-target", "GET /c\xe9 HTTP/1.1\r\nHost: h\r\n{{K}}\r\n", [400], "3.2: a target is ASCII"),
    ("fragment", "GET /c#d HTTP/1.1\r\nHost: h\r\n{{K}}\r\n", [400], "3.2: no fragment in a target"),
    ("fragment-in-query", "GET /c?a#d HTTP/1.1\r\nHost: h\r\n{{K}}\r\n", [400], "3.2: no fragment in a target"),
    ("no-slash", "GET c HTTP/1.1\r\nHost: h\r\n{{K}}\r\n", [400], "3.2.1: origin-form starts with '/'"),
    ("question-only", "GET ?a HTTP/1.1\r\nHost: h\r\n{{K}}\r\n", [400], "3.2.1: origin-form starts with '/'"),
    ("empty-target", "GET  HTTP/1.1\r\nHost: h\r\n{{K}}\r\n", [400, 505], "3.2"),
    ("empty-method", " /c HTTP/1.1\r\nHost: h\r\n{{K}}\r\n", [400], "3.1: a method is a token"),
    ("method-brace", "GE{T /c HTTP/1.1\r\nHost: h\r\n{{K}}\r\n", [400], "3.1: a method is a token"),
    ("method-nul", "GET\x00 /c HTTP/1.1\r\nHost: h\r\n{{K}}\r\n", [400], "3.1: a method is a token"),
    ("method-colon", "GET: /c HTTP/1.1\r\nHost: h\r\n{{K}}\r\n", [400], "3.1: a method is a token"),
    ("authority-form-get", "GET h:80 HTTP/1.1\r\nHost: h\r\n{{K}}\r\n", [400], "3.2.3: only for CONNECT"),
    ("asterisk-get", "GET * HTTP/1.1\r\nHost: h\r\n{{K}}\r\n", [400], "3.2.4: only for OPTIONS"),
    ("asterisk-path", "OPTIONS *x HTTP/1.1\r\nHost: h\r\n{{K}}\r\n", [400], "3.2.4"),
    ("http2-preface", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", [400, 505], "RFC 9113 3.4: no HTTP/2 here"),
    ("tls-hello", "\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + "a" * 60 + "\r\n\r\n", [400], "TLS on a plain port"),
    ("garbage", "\x00\x01\x02\x03\r\n\r\n", [400], "not HTTP"),
    ("response", "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", [400, 505], "a response is no request"),
]:
    add("request-line", name, raw + ("" if name == "0.9-short" else BEHIND), "RFC 9112 3 " + why, status=status)
add("request-line", "version-1.2", "GET /c HTTP/1.2\r\nHost: h\r\n{{K}}\r\n", "RFC 9110 2.5: a higher minor is 1.1 to us", "either", status=[400, 505])
add("request-line", "trace", head("TRACE /c HTTP/1.1"), "RFC 9110 9.3.8: TRACE reflects credentials", status=[405], close=None)
add("request-line", "trace-lower-case", head("trace /c HTTP/1.1"), "RFC 9110 9.1: methods have case; an unknown one", "either", status=[405, 400, 501], close=None)
add("request-line", "connect", "CONNECT h:443 HTTP/1.1\r\nHost: h:443\r\n{{K}}\r\n" + BEHIND, "RFC 9110 9.3.6: no tunnels", status=[405, 400])
add("request-line", "connect-path", "CONNECT /c HTTP/1.1\r\nHost: h\r\n{{K}}\r\n" + BEHIND, "RFC 9112 3.2.3", status=[405, 400])
add("request-line", "options-asterisk", "OPTIONS * HTTP/1.1\r\nHost: h\r\n{{K}}\r\n", "RFC 9112 3.2.4", "either", status=[400, 404, 405, 204, 200], close=None)
for method in ["PATCH", "PUT", "DELETE", "OPTIONS", "PROPFIND", "M-SEARCH", "X", "get", "A" * 30]:
    add("request-line", "method-" + (method if method.isupper() and len(method) < 20 else "lower-get" if method == "get" else "long"),
        head(f"{method} /c HTTP/1.1"), "RFC 9110 9.1: methods are extensible and have case", "forward", upstream_method=method)
add("request-line", "http-1.0", "GET /c HTTP/1.0\r\nHost: h\r\n{{K}}\r\n", "RFC 9112 9.3: 1.0 closes by default", "forward", ends=True)
add("request-line", "http-1.0-keep-alive", "GET /c HTTP/1.0\r\nHost: h\r\n{{K}}Connection: keep-alive\r\n\r\n", "RFC 9112 9.3", "forward")

# --- Host, RFC 9112 3.2, RFC 9110 7.2
for name, host in [
    ("missing", ""), ("twice", "Host: h\r\nHost: h\r\n"), ("twice-differ", "Host: h\r\nHost: g\r\n"),
    ("twice-one-empty", "Host: h\r\nHost:\r\n"), ("list", "Host: h, g\r\n"), ("blank-inside", "Host: h g\r\n"),
    ("slash", "Host: h/admin\r\n"), ("user-info", "Host: u@h\r\n"), ("scheme", "Host: http://h\r\n"), ("query", "Host: h?x\r\n"),
    ("hash", "Host: h#x\r\n"), ("port-letters", "Host: h:8o\r\n"), ("port-minus", "Host: h:-1\r\n"), ("port-huge", "Host: h:99999999\r\n"),
    ("two-ports", "Host: h:80:80\r\n"), ("only-port", "Host: :80\r\n"), ("open-bracket", "Host: [::1\r\n"), ("nul", "Host: h\x00g\r\n"),
    ("high-byte", "Host: h\xe9\r\n"), ("tab-inside", "Host: h\tg\r\n"), ("backslash", "Host: h\\g\r\n"), ("quote", 'Host: "h"\r\n'),
    ("space-before-colon", "Host : h\r\n"), ("angle", "Host: <h>\r\n"), ("bad-percent", "Host: h%zz\r\n"),
    ("in-connection", "Host: h\r\nConnection: Host\r\n"),
]:
    add("host", name, "GET /c HTTP/1.1\r\n" + host + "{{K}}\r\n" + BEHIND, "RFC 9112 3.2: exactly one valid Host, else 400")
add("host", "empty", "GET /c HTTP/1.1\r\nHost:\r\n{{K}}\r\n", "RFC 9112 3.2: empty only where the target has no authority", "either", status=[400, 404])
add("host", "missing-1.0", "GET /c HTTP/1.0\r\n{{K}}\r\n", "RFC 9112 3.2: 1.0 may leave it out; the upstream gets one all the same", "either")
for name, host in [("port", "h:8080"), ("upper-case", "EXAMPLE.test"), ("trailing-dot", "example.test."), ("ipv4", "127.0.0.1"),
                   ("ipv6", "[::1]:80"), ("underscore", "a_b.test")]:
    add("host", "fine-" + name, f"GET /c HTTP/1.1\r\nHost: {host}\r\n{{{{K}}}}\r\n", "RFC 9110 7.2, RFC 3986 3.2.2", "forward")
add("host", "absolute-form", "GET http://h/c HTTP/1.1\r\nHost: h\r\n{{K}}\r\n", "RFC 9112 3.2.2: a server must accept it", "forward", upstream_target="/c")
add("host", "absolute-form-query", "GET http://h/c?a=b HTTP/1.1\r\nHost: h\r\n{{K}}\r\n", "RFC 9112 3.2.2", "forward", upstream_target="/c?a=b")
add("host", "absolute-form-case", "GET HTTP://H/c HTTP/1.1\r\nHost: h\r\n{{K}}\r\n", "RFC 3986 6.2.2.1: scheme and host have no case", "forward", upstream_target="/c")
add("host", "absolute-form-no-path", "GET http://h HTTP/1.1\r\nHost: h\r\n{{K}}\r\n", "RFC 9112 3.2.1: an empty path is '/'", "either", upstream_target="/")
add("host", "absolute-form-differs", "GET http://g/c HTTP/1.1\r\nHost: h\r\n{{K}}\r\n" + BEHIND, "authority and Host disagree")
add("host", "absolute-form-port-differs", "GET http://h:81/c HTTP/1.1\r\nHost: h\r\n{{K}}\r\n" + BEHIND, "authority and Host disagree")
add("host", "absolute-form-user-info", "GET http://u:p@h/c HTTP/1.1\r\nHost: h\r\n{{K}}\r\n" + BEHIND, "RFC 9110 4.2.4: user information")
add("host", "absolute-form-ftp", "GET ftp://h/c HTTP/1.1\r\nHost: h\r\n{{K}}\r\n" + BEHIND, "RFC 9112 3.2.2: not an http URI", status=[400, 421])
add("host", "absolute-form-no-host", "GET http:///c HTTP/1.1\r\nHost: h\r\n{{K}}\r\n" + BEHIND, "RFC 9110 4.2.1: empty host")
add("host", "absolute-form-missing-host", "GET http://h/c HTTP/1.1\r\n{{K}}\r\n" + BEHIND, "RFC 9112 3.2: Host all the same")

# --- keys
for name, fields, status in [
    ("missing", [], [401]), ("empty", ["X-API-KEY:"], [401]), ("blank", ["X-API-KEY:   "], [401]),
    ("unknown", ["X-API-KEY: lk_qkJaB6MffYVzZXWqmcoF49yrUxP3wf0LsakP"], [401]),
    ("wrong-checksum", ["X-API-KEY: lk_qkJaB6MffYVzZXWqmcoF49yrUxP3wf0LsakQ"], [401]),
    ("twice", ["X-API-KEY: {{KEY}}", "X-API-KEY: {{KEY}}"], [401]),
    ("twice-one-bad", ["X-API-KEY: {{KEY}}", "X-API-KEY: x"], [401]),
    ("twice-one-empty", ["X-API-KEY: {{KEY}}", "X-API-KEY:"], [401]),
    ("twice-case", ["X-API-KEY: {{KEY}}", "x-api-key: {{KEY}}"], [401]),
    ("list", ["X-API-KEY: {{KEY}}, {{KEY}}"], [401]), ("quoted", ['X-API-KEY: "{{KEY}}"'], [401]),
    ("blank-inside", ["X-API-KEY: {{KEY}} x"], [401]), ("trailing-byte", ["X-API-KEY: {{KEY}}x"], [401]),
    ("prefix-only", ["X-API-KEY: lk_"], [401]), ("huge", ["X-API-KEY: " + "a" * 8000], [401]),
    ("long-256", ["X-API-KEY: " + "a" * 256], [401]), ("high-bytes", ["X-API-KEY: \xe9" + "a" * 20], [401]),
    ("sql", ["X-API-KEY: ' OR 1=1 -- aaaaaaaaaa"], [401]), ("percent", ["X-API-KEY: %00aaaaaaaaaaaaaaaaaaaa"], [401]),
    ("as-cookie", ["Cookie: X-API-KEY={{KEY}}"], [401]), ("as-bearer", ["Authorization: Bearer {{KEY}}"], [401]),
    ("as-basic", ["Authorization: Basic {{KEY}}"], [401]),
]:
    add("key", name, get("/c", *fields, key=""), "RFC 9110 15.5.2: no valid credential, 401 with a challenge", status=status, close=None)
add("key", "in-query", get("/c?X-API-KEY={{KEY}}", key=""), "the query is no place for a key", status=[401], close=None)
add("key", "underscore-spelling", get("/c", "X_API_KEY: {{KEY}}", key=""), "'_' is not '-'", status=[400, 401], close=None)
add("key", "underscore-beside", get("/c", "X_API_KEY: spoof"), "an alias of a controlled field never reaches the upstream", "either",
    status=[400, 401], close=None, upstream_absent_fields=["X_API_KEY", "X-API-KEY"])
add("key", "named-by-connection", get("/c", "Connection: X-API-KEY"), "RFC 9110 7.6.1: hop-by-hop does not take the key away before it was read",
    "either", status=[400, 401], close=None, upstream_absent_fields=["X-API-KEY"])
for name, field in [("upper-case", "X-API-KEY: {{KEY}}"), ("lower-case", "x-api-key: {{KEY}}"), ("mixed-case", "X-Api-Key: {{KEY}}"),
                    ("tight", "X-API-KEY:{{KEY}}"), ("blanks", "X-API-KEY: \t {{KEY}} \t")]:
    add("key", "fine-" + name, get("/c", field, key=""), "RFC 9110 5.1, 5.5: names have no case, blanks around values do not count",
        "forward", upstream_absent_fields=["X-API-KEY"])

# --- identity and forwarding fields
for spelled in ["X-Consumer-Id", "x-consumer-id", "X-Consumer-Username", "X-Credential-Identifier"]:
    add("identity", "spoof-" + spelled, get("/c", spelled + ": evil"), "sent copies are removed, ours is set", "forward", upstream_not_value={spelled: "evil"})
for spelled in ["x_consumer_id", "X_Consumer_Username", "X-Consumer_Id", "X_Credential-Identifier", "X_Forwarded_For", "X_Request_Id", "Content_Length", "Ho_st"]:
    add("identity", "alias-" + spelled, get("/c", spelled + ": evil"), "CGI-like servers read '_' as '-'", "either",
        upstream_absent_fields=[] if spelled == "Ho_st" else [spelled], status=[400])
for spelled in ["X.Consumer.Id", "X!Consumer-Id", "x-consumer~username", "X`Credential`Identifier", "X.API.KEY", "Transfer.Encoding", "X.Forwarded.For"]:
    add("identity", "alias-" + spelled, get("/c", spelled + ": evil"), "lighttpd makes a variable of a name with '_' for all that is no letter or digit",
        status=[400], close=None)
for named in ["X-Consumer-Id", "X-Consumer-Username, X-Credential-Identifier", "close, X-Consumer-Id", "X-Forwarded-For", "X-Request-Id"]:
    add("identity", "connection-names-" + named.replace(", ", "+"), get("/c", "Connection: " + named),
        "RFC 9110 7.6.1: nomination cannot remove what the gateway adds", "either", upstream_present_fields=["X-Consumer-Id", "X-Credential-Identifier", "X-Request-Id"])
for field in ["X-Forwarded-For: 1.2.3.4", "X-Forwarded-Host: evil", "X-Forwarded-Proto: https", "X-Forwarded-Port: 99999", "Forwarded: for=1.2.3.4;host=evil"]:
    name, value = field.split(": ")
    add("identity", "untrusted-" + name, get("/c", field), "RFC 7239 8.1: an untrusted peer's word is replaced", "forward", upstream_not_in_value={name: value.split(";")[0]})

# --- connection fields and expectations, RFC 9110 7.6.1, 7.8, 10.1.1
for field, gone in [("Connection: X-Drop\r\nX-Drop: 1", "X-Drop"), ("Connection: x-drop , keep-alive\r\nX-Drop: 1", "X-Drop"),
                    ("Keep-Alive: timeout=5", "Keep-Alive"), ("Proxy-Connection: keep-alive", "Proxy-Connection"),
                    ("Proxy-Authorization: Basic eA==", "Proxy-Authorization"), ("TE: trailers", "TE"), ("Upgrade: h2c", "Upgrade"),
                    ("Connection: Upgrade\r\nUpgrade: websocket", "Upgrade"),
                    ("Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQCAAAAAAIAAAAA", "HTTP2-Settings"),
                    ("Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQCAAAAAAIAAAAA", "Upgrade")]:
    add("hop", f"{gone.lower()}-{len(requests)}", get("/c", *field.split("\r\n")), "RFC 9110 7.6.1, 7.8: not for the next hop", "forward", upstream_absent_fields=[gone])
add("hop", "connection-names-te", head("POST /c HTTP/1.1", "Connection: Transfer-Encoding", "Content-Length: 5") + "hello", "framing is not to be nominated", "either", upstream_body="hello")
add("hop", "connection-garbage", get("/c", "Connection: a b"), "RFC 9110 7.6.1: a list of tokens", "either")
add("hop", "connection-close-pipelined", get("/c", "Connection: close") + BEHIND, "RFC 9112 9.6: nothing after close is executed", "forward", ends=True)
for value, verdict in [("100-continue", "forward"), ("100-Continue", "forward"), ("200-ok", "refuse"), ("100-continue, x", "refuse"), ("x", "refuse")]:
    add("expect", value, get("/c", "Expect: " + value), "RFC 9110 10.1.1: unknown expectations are 417", verdict, status=[417, 400], close=None)

# --- paths: what is routed is what is forwarded, RFC 3986 5.2.4, 6.2.2
for name, target, forwarded in [
    ("dot", "/./c", "/c"), ("dot-inside", "/a/./c", "/a/c"), ("dotdot", "/a/../c", "/c"), ("dotdot-deep", "/a/b/../../c", "/c"),
    ("encoded-dot", "/a/%2e%2e/c", "/c"), ("encoded-dot-upper", "/a/%2E%2E/c", "/c"), ("half-encoded", "/a/.%2e/c", "/c"),
    ("encoded-single", "/%2e/c", "/c"), ("trailing-dotdot", "/a/b/..", "/a/"), ("double-slash", "/a//c", "/a/c"),
    ("double-slash-first", "//c", "/c"), ("many-slashes", "/a////c", "/a/c"), ("three-dots", "/.../c", "/.../c"),
    ("params", "/a;v=1/c", "/a;v=1/c"), ("params-last", "/c;v=1", "/c;v=1"), ("query-untouched", "/c?a=/../b//", "/c?a=/../b//"),
    ("query-encoded", "/c?a=%2f%00%zz", None), ("query-question", "/c?a?b", "/c?a?b"), ("empty-query", "/c?", None), ("plus", "/a+b", "/a+b"),
    ("encoded-blank", "/a%20b", "/a%20b"), ("encoded-percent", "/a%25b", "/a%25b"), ("encoded-twice", "/a/%252e%252e/c", "/a/%252e%252e/c"),
    ("utf8", "/%C3%BC", "/%C3%BC"), ("sub-delims", "/a!$&'()*+,=:@b", "/a!$&'()*+,=:@b"), ("colon-first", "/:c", "/:c"), ("tilde", "/~c", "/~c"),
]:
    more = {"upstream_target": forwarded} if forwarded else {}
    add("path", name, get(target), "RFC 3986 5.2.4, 6.2.2: routed and forwarded in one form", "either" if name == "query-encoded" else "forward", **more)
for name, target in [
    ("above-root", "/../c"), ("above-root-encoded", "/%2e%2e/c"), ("above-root-deep", "/a/../../c"), ("encoded-slash", "/a%2fc"),
    ("encoded-slash-upper", "/a%2Fc"), ("encoded-slash-dots", "/a/..%2fc"), ("backslash", "/a\\c"), ("backslash-dots", "/a/..\\c"),
    ("encoded-backslash", "/a%5cc"), ("encoded-backslash-upper", "/a%5Cc"), ("encoded-nul", "/a%00c"), ("encoded-nul-end", "/c%00.png"),
    ("dots-with-params", "/a/..;/c"), ("dots-with-params-value", "/a/..;x=1/c"), ("dot-with-params", "/a/.;/c"), ("encoded-dots-params", "/a/%2e%2e;/c"),
    ("overlong-slash", "/a%c0%afc"), ("overlong-dot", "/%c0%ae%c0%ae/c"), ("overlong-three", "/a%e0%80%afc"), ("bad-percent", "/a%zzc"),
    ("percent-end", "/a%"), ("percent-one-digit", "/a%2"), ("encoded-cr", "/a%0dc"), ("encoded-lf", "/a%0ac"), ("encoded-semicolon-dots", "/a/..%3b/c"),
]:
    verdict = "either" if name in ("encoded-cr", "encoded-lf", "bad-percent", "percent-end", "percent-one-digit") else "refuse"
    if name in ("bad-percent", "percent-end", "percent-one-digit"):
        verdict = "refuse"
    add("path", name, get(target), "RFC 3986 2.1, 5.2.4: readers resolve this differently", verdict, close=None)

# --- sizes: 16 KiB head, 8 KiB target, 100 fields
add("size", "target", ["GET /", ["a", 9000], " HTTP/1.1\r\nHost: h\r\n{{K}}\r\n"], "RFC 9110 15.5.15", status=[414])
add("size", "target-endless", ["GET /", ["a", 300000]], "RFC 9110 15.5.15: without ever ending", status=[414])
add("size", "query", ["GET /c?", ["a", 9000], " HTTP/1.1\r\nHost: h\r\n{{K}}\r\n"], "RFC 9110 15.5.15", status=[414])
add("size", "value", ["GET /c HTTP/1.1\r\nHost: h\r\n{{K}}X: ", ["a", 17000], "\r\n\r\n"], "RFC 6585 5", status=[431])
add("size", "value-endless", ["GET /c HTTP/1.1\r\nHost: h\r\n{{K}}X: ", ["a", 300000]], "RFC 6585 5: without ever ending", status=[431])
add("size", "name", ["GET /c HTTP/1.1\r\nHost: h\r\n{{K}}", ["a", 17000], ": x\r\n\r\n"], "RFC 6585 5", status=[431, 400])
add("size", "fields", ["GET /c HTTP/1.1\r\nHost: h\r\n{{K}}", ["a: b\r\n", 101], "\r\n"], "RFC 6585 5", status=[431])
add("size", "fields-endless", ["GET /c HTTP/1.1\r\nHost: h\r\n{{K}}", ["a: b\r\n", 60000]], "RFC 6585 5: without ever ending", status=[431])
add("size", "method", [["A", 20000], " /c HTTP/1.1\r\nHost: h\r\n{{K}}\r\n"], "RFC 9112 3.1", status=[400, 414, 431, 501])
add("size", "fine-target", ["GET /", ["a", 8000], " HTTP/1.1\r\nHost: h\r\n{{K}}\r\n"], "RFC 9112 3: 8000 octets are to be supported", "forward")
add("size", "fine-fields", ["GET /c HTTP/1.1\r\nHost: h\r\n{{K}}", ["a: b\r\n", 90], "\r\n"], "within the limit", "forward")
add("size", "fine-value", ["GET /c HTTP/1.1\r\nHost: h\r\n{{K}}X: ", ["a", 12000], "\r\n\r\n"], "within the limit", "forward")

# --- pipelining, RFC 9112 9.3.2
add("pipeline", "two", get("/c") + get("/c"), "RFC 9112 9.3.2", "forward", responses=2)
add("pipeline", "post-get", head("POST /c HTTP/1.1", "Content-Length: 5") + "hello" + get("/c"), "RFC 9112 9.3.2", "forward", responses=2)
add("pipeline", "bad-then-good", get("/c", "X : y") + BEHIND, "what follows faulty framing is never executed")
add("pipeline", "good-then-bad", get("/c") + get("/c", "X : y") + BEHIND, "the first is answered, the second refused, the third never read",
    "forward", responses=1, then_status=[400], ends=True)
add("pipeline", "unauthorised-with-body", head("POST /c HTTP/1.1", "Content-Length: %d" % len("GET /smuggled HTTP/1.1\r\n\r\n"), key="")
    + "GET /smuggled HTTP/1.1\r\n\r\n", "RFC 9112 9.3: the unread body of a refused request is not a request", status=[401], close=None)
add("pipeline", "unauthorised-with-chunks", head("POST /c HTTP/1.1", CH, key="") + "1a\r\nGET /smuggled HTTP/1.1\r\n\r\n\r\n0\r\n\r\n",
    "RFC 9112 9.3: the unread body of a refused request is not a request", status=[401], close=None)
add("pipeline", "trace-with-body", head("TRACE /c HTTP/1.1", "Content-Length: 5") + "hello", "RFC 9110 9.3.8: no content in TRACE", status=[405, 400], close=None)
for name, first, why in [
    ("cl-te", head("POST /c HTTP/1.1", "Content-Length: 5", CH) + "0\r\n\r\n", "RFC 9112 6.3 rule 3"),
    ("te-nul", head("POST /c HTTP/1.1", "Transfer-Encoding: chunked\x00") + "0\r\n\r\n", "RFC 9110 5.5"),
    ("two-lengths", head("POST /c HTTP/1.1", "Content-Length: 5", "Content-Length: 0") + "hello", "RFC 9112 6.3 rule 5"),
    ("no-host", head("GET /c HTTP/1.1", host=""), "RFC 9112 3.2"), ("http-0.9", "GET /c\r\n", "RFC 9112 2.3"),
    ("bare-lf", get("/c", "X: y\nZ: w"), "RFC 9112 2.2"), ("bare-cr", get("/c", "X: y\rZ: w"), "RFC 9112 2.2"),
    ("fold", get("/c", "X: y\r\n z"), "RFC 9112 5.2"), ("http2-preface", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", "RFC 9113 3.4"),
    ("upper-te-1.0", head("POST /c HTTP/1.0", CH) + "0\r\n\r\n", "RFC 9112 6.1"), ("expect", get("/c", "Expect: later"), "RFC 9110 10.1.1"),
    ("encoded-slash", get("/c%2f..%2fd"), "RFC 3986 2.2"), ("connect", "CONNECT h:80 HTTP/1.1\r\nHost: h:80\r\n{{K}}\r\n", "RFC 9110 9.3.6"),
]:
    add("pipeline", f"bad-{name}-then-good", first + BEHIND, f"{why}: what stands behind a refused message is never executed",
        status=[400, 405, 417, 505], close=True)
    add("pipeline", f"good-then-bad-{name}", get("/c") + first + BEHIND, f"{why}: the first is answered, the second refused, the third never read",
        "forward", responses=1, then_status=[400, 405, 417, 505], ends=True)
add("pipeline", "bad-chunk-then-good", head("POST /c HTTP/1.1", CH) + "5\r\nhelloX" + BEHIND, "RFC 9112 7.1: where the body ends is not known", "break",
    status=[400])
add("pipeline", "ten", get("/c") * 10, "RFC 9112 9.3.2", "forward", responses=10)
add("pipeline", "chunked-then-get", head("POST /c HTTP/1.1", CH) + "5\r\nhello\r\n0\r\n\r\n" + get("/c"), "RFC 9112 9.3.2", "forward", responses=2)
add("pipeline", "body-like-a-request", head("POST /c HTTP/1.1", "Content-Length: %d" % len("GET /smuggled HTTP/1.1\r\nHost: h\r\n\r\n"))
    + "GET /smuggled HTTP/1.1\r\nHost: h\r\n\r\n" + get("/c"), "RFC 9112 6.3 rule 6: the length says what is body", "forward", responses=2)
add("pipeline", "1.0-closes", head("GET /c HTTP/1.0") + BEHIND, "RFC 9112 9.3: 1.0 without keep-alive ends", "forward", ends=True)

# --- more of what each class has: an h2c upgrade with a body, Expect and framing, endless and borderline sizes
for name, fields, body in [
    ("length", ["Content-Length: 5", "Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AAMAAABk"], "hello"),
    ("chunked", [CH, "Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AAMAAABk"], "5\r\nhello\r\n0\r\n\r\n"),
    ("twice", ["Content-Length: 5", "Connection: Upgrade", "Upgrade: h2c", "Upgrade: websocket"], "hello"),
    ("unnamed", ["Content-Length: 5", "Upgrade: h2c"], "hello"), ("upper-case", ["Content-Length: 5", "Connection: UPGRADE", "Upgrade: H2C"], "hello"),
]:
    add("hop", "h2c-" + name, head("POST /c HTTP/1.1", *fields) + body, "RFC 9113 3.1, RFC 9110 7.8: an upgrade is not passed on", "forward",
        upstream_absent_fields=["Upgrade", "HTTP2-Settings"], upstream_body="hello")
for name, value in [("length", "Content-Length"), ("host", "Host"), ("te-lower", "transfer-encoding"), ("length-among", "close, content-length, x")]:
    add("hop", "connection-names-" + name, head("POST /c HTTP/1.1", "Connection: " + value, "Content-Length: 5") + "hello",
        "RFC 9110 7.6.1: nomination would take the framing away")
for name, option in [("options", "x,"), ("empty-options", ","), ("blank-options", " ,"), ("one-option", "close,")]:
    add("hop", "connection-many-" + name, ["GET /c HTTP/1.1\r\nHost: h\r\n{{K}}Connection: ", [option, 4000], "x\r\n\r\n"],
        "each field is held against each option: how many is not the client's to choose", status=[431])
add("hop", "connection-many-fields", ["GET /c HTTP/1.1\r\nHost: h\r\n{{K}}", ["Connection: a, b, c\r\n", 90], "\r\n"],
    "the options of all Connection fields count together", status=[431])
add("hop", "connection-long-option", ["GET /c HTTP/1.1\r\nHost: h\r\n{{K}}Connection: ", ["a", 2000], "\r\n\r\n"], "no field's name is that long",
    status=[431])
add("hop", "connection-fine-sixteen", get("/c", "Connection: " + ", ".join(f"x-{i}" for i in range(16)), "X-3: y"), "within the limit", "forward",
    upstream_absent_fields=["X-3"])
for name, fields, body, status in [
    ("twice", ["Expect: 100-continue", "Expect: 100-continue", "Content-Length: 5"], "hello", [400, 417]),
    ("empty", ["Expect:", "Content-Length: 5"], "hello", [417, 400]), ("parameter", ["Expect: 100-continue;q=1", "Content-Length: 5"], "hello", [417, 400]),
    ("quoted", ['Expect: "100-continue"', "Content-Length: 5"], "hello", [417, 400]), ("nul", ["Expect: 100-continue\x00", "Content-Length: 5"], "hello", [400]),
    ("vertical-tab", ["Expect: \x0b100-continue", "Content-Length: 5"], "hello", [400]), ("number", ["Expect: 100", "Content-Length: 5"], "hello", [417, 400]),
]:
    add("expect", name, head("POST /c HTTP/1.1", *fields) + body, "RFC 9110 10.1.1: the body may follow or not: nobody can tell", status=status)
for name, fields, body in [("length", ["Expect: 100-continue", "Content-Length: 5"], "hello"),
                           ("chunked", ["Expect: 100-Continue", CH], "5\r\nhello\r\n0\r\n\r\n")]:
    add("expect", "fine-" + name, head("POST /c HTTP/1.1", *fields) + body, "RFC 9110 10.1.1: who does not wait is served too", "forward", upstream_body="hello")
add("expect", "refused-key", head("POST /c HTTP/1.1", "Expect: 100-continue", "Content-Length: %d" % len(BEHIND), key="") + BEHIND,
    "RFC 9110 10.1.1: a body that was not asked for is no request", status=[401], close=None)
add("key", "1-mb", ["GET /c HTTP/1.1\r\nHost: h\r\nX-API-KEY: ", ["a", 1000000], "\r\n\r\n"], "RFC 6585 5: no key is that long", status=[431])
add("key", "alias-only", get("/c", "x_api_key: {{KEY}}", key=""), "'_' is not '-'", status=[400, 401], close=None)
add("key", "folded", get("/c", "X-API-KEY:\r\n {{KEY}}", key=""), "RFC 9112 5.2")
add("key", "in-trailer-beside", head("POST /c HTTP/1.1", CH) + "5\r\nhello\r\n0\r\nX-API-KEY: other\r\n\r\n", "RFC 9110 6.5.1: trailers do not authenticate",
    "break", status=[400])
for name, raw, verdict, status in [
    ("fine-head-at-limit", ["GET /c HTTP/1.1\r\nHost: h\r\n{{K}}X: ", ["a", 16000], "\r\n\r\n"], "forward", None),
    ("cookies", ["GET /c HTTP/1.1\r\nHost: h\r\n{{K}}", ["Cookie: a=b; c=d\r\n", 2000], "\r\n"], "refuse", [431]),
    ("fields-without-values", ["GET /c HTTP/1.1\r\nHost: h\r\n{{K}}", ["a:\r\n", 200], "\r\n"], "refuse", [431]),
    ("blanks-endless", ["GET /c HTTP/1.1\r\nHost: h\r\n{{K}}X:", [" ", 300000]], "refuse", [431]),
    ("query-endless", ["GET /c?", ["a=b&", 100000]], "refuse", [414]),
]:
    add("size", name, raw, "RFC 6585 5, RFC 9110 15.5.15", verdict, **({"status": status} if status else {}))
for name, fields, body in [
    ("te-tab-colon", ["Content-Length: 5", "Transfer-Encoding\t: chunked"], "0\r\n\r\n"), ("te-folded", ["Content-Length: 5", "Transfer-Encoding:\r\n chunked"], "0\r\n\r\n"),
    ("te-quoted", ["Content-Length: 5", 'Transfer-Encoding: "chunked"'], "0\r\n\r\n"), ("te-alias", ["Content-Length: 5", "Transfer_Encoding: chunked"], "0\r\n\r\n"),
    ("cl-alias", ["Content_Length: 5", "Transfer-Encoding: chunked"], "0\r\n\r\n"), ("on-delete", ["Content-Length: 5", CH], "0\r\n\r\n"),
]:
    add("CL.TE", name, head("DELETE /c HTTP/1.1" if name == "on-delete" else "POST /c HTTP/1.1", *fields) + body,
        "RFC 9112 6.3 rule 3: one reader may go by the length, one by the coding")


# === responses of the upstream
def answer(group, name, raw, reason, verdict, method="GET", after="hold", **more):
    responses.append({"id": f"{group}-{name}", "class": group, "reason": reason, "raw": raw, "method": method, "after": after,
                      "expect": {"verdict": verdict, **more}})


OK = "HTTP/1.1 200 OK\r\n"
for name, fields, why in [
    ("two-lengths-differ", "Content-Length: 5\r\nContent-Length: 6\r\n", "RFC 9112 6.3 rule 5"),
    ("list-differ", "Content-Length: 5, 6\r\n", "RFC 9112 6.3 rule 5"), ("length-plus", "Content-Length: +5\r\n", "RFC 9110 8.6"),
    ("length-minus", "Content-Length: -5\r\n", "RFC 9110 8.6"), ("length-hex", "Content-Length: 0x5\r\n", "RFC 9110 8.6"),
    ("length-empty", "Content-Length:\r\n", "RFC 9110 8.6"), ("length-overflow", "Content-Length: 18446744073709551621\r\n", "RFC 9110 8.6"),
    ("length-text", "Content-Length: five\r\n", "RFC 9110 8.6"), ("te-and-cl", "Transfer-Encoding: chunked\r\nContent-Length: 5\r\n", "RFC 9112 6.3 rule 3"),
    ("cl-and-te", "Content-Length: 5\r\nTransfer-Encoding: chunked\r\n", "RFC 9112 6.3 rule 3"),
    ("te-gzip", "Transfer-Encoding: gzip\r\n", "RFC 9112 6.1"), ("te-identity", "Transfer-Encoding: identity\r\n", "RFC 9112 7"),
    ("te-twice", "Transfer-Encoding: chunked, chunked\r\n", "RFC 9112 7.1"), ("te-not-last", "Transfer-Encoding: chunked, gzip\r\n", "RFC 9112 6.3 rule 4"),
    ("te-vt", "Transfer-Encoding: \x0bchunked\r\n", "RFC 9110 5.5"), ("te-space-colon", "Transfer-Encoding : chunked\r\n", "RFC 9112 5.1"),
    ("te-two-fields", "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n", "RFC 9112 7.1"),
    ("nul-in-value", "X: a\x00b\r\nContent-Length: 5\r\n", "RFC 9110 5.5"), ("bare-cr", "X: a\rSet-Cookie: b\r\nContent-Length: 5\r\n", "RFC 9112 2.2"),
    ("bare-lf", "X: a\nSet-Cookie: b\r\nContent-Length: 5\r\n", "RFC 9112 2.2"), ("ctl", "X: a\x07\r\nContent-Length: 5\r\n", "RFC 9110 5.5"),
    ("space-in-name", "X Y: a\r\nContent-Length: 5\r\n", "RFC 9110 5.1"), ("empty-name", ": a\r\nContent-Length: 5\r\n", "RFC 9110 5.1"),
    ("no-colon", "nonsense\r\nContent-Length: 5\r\n", "RFC 9112 5"), ("space-before-colon", "X : a\r\nContent-Length: 5\r\n", "RFC 9112 5.1"),
    ("nul-in-name", "X\x00: a\r\nContent-Length: 5\r\n", "RFC 9110 5.1"),
]:
    answer("head", name, OK + fields + "\r\nhello", why + ": two readers could differ", "bad", after="close")
answer("head", "obs-fold", OK + "X: a\r\n b\r\nContent-Length: 5\r\n\r\nhello", "RFC 9112 5.2: refused, or joined by blanks", "bad_or_pass", body="hello")
answer("head", "te-1.0", "HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n", "RFC 9112 6.1", "bad_or_pass", after="close", body="hello")
for name, line in [("status-two-digits", "HTTP/1.1 20 OK"), ("status-four-digits", "HTTP/1.1 2000 OK"), ("status-letters", "HTTP/1.1 2x0 OK"),
                   ("status-missing", "HTTP/1.1"), ("status-000", "HTTP/1.1 000 X"), ("status-099", "HTTP/1.1 099 X"),
                   ("version-2", "HTTP/2.0 200 OK"), ("version-letters", "HTTP/x.1 200 OK"), ("version-lower-case", "http/1.1 200 OK"), ("icy", "ICY 200 OK"),
                   ("two-blanks", "HTTP/1.1  200 OK"), ("nul-in-reason", "HTTP/1.1 200 O\x00K"), ("cr-in-reason", "HTTP/1.1 200 O\rK"), ("garbage", "\x00\x01\x02"),
                   ("html", "<html>hello</html>"), ("smtp", "220 mail.test ESMTP"), ("leading-blank", " HTTP/1.1 200 OK")]:
    answer("status-line", name, line + "\r\nContent-Length: 5\r\n\r\nhello", "RFC 9112 4: not a status line", "bad", after="close")
answer("status-line", "tls-alert", "\x15\x03\x01\x00\x02\x02\x46", "TLS where plain HTTP is expected", "bad", after="close")
answer("status-line", "nothing", "", "the upstream closes without a word", "bad", after="close")
answer("status-line", "cut-line", "HTTP/1.1 20", "RFC 9112 8: incomplete head", "bad", after="close")
answer("status-line", "cut-head", OK + "Content-Le", "RFC 9112 8: incomplete head", "bad", after="close")
answer("status-line", "cut-head-reset", OK + "Content-Le", "RFC 9112 8: incomplete head", "bad", after="reset")
answer("status-line", "no-reason", "HTTP/1.1 200 \r\nContent-Length: 5\r\n\r\nhello", "RFC 9112 4: the reason may be empty", "pass", body="hello")
answer("status-line", "no-reason-no-blank", "HTTP/1.1 200\r\nContent-Length: 5\r\n\r\nhello", "RFC 9112 4: seen in the wild", "bad_or_pass", body="hello")
answer("status-line", "status-600", "HTTP/1.1 600 X\r\nContent-Length: 5\r\n\r\nhello", "RFC 9110 15: outside 100..599", "bad_or_pass", status=600, body="hello")
answer("status-line", "1.0", "HTTP/1.0 200 OK\r\nContent-Length: 5\r\n\r\nhello", "RFC 9112 9.3", "pass", body="hello", after="close")
answer("status-line", "leading-crlf", "\r\n" + OK + "Content-Length: 5\r\n\r\nhello", "RFC 9112 2.2 speaks of requests only", "bad_or_pass", body="hello")
answer("size", "head", ["HTTP/1.1 200 OK\r\nX: ", ["a", 70000], "\r\nContent-Length: 0\r\n\r\n"], "response_head_bytes", "bad", after="close")
answer("size", "head-endless", ["HTTP/1.1 200 OK\r\nX: ", ["a", 300000]], "response_head_bytes", "bad", after="hold")
answer("size", "fields", ["HTTP/1.1 200 OK\r\n", ["a: b\r\n", 1001], "Content-Length: 0\r\n\r\n"], "fields", "bad", after="close")
answer("size", "reason", ["HTTP/1.1 200 ", ["a", 70000], "\r\nContent-Length: 0\r\n\r\n"], "response_head_bytes", "bad", after="close")

TC = OK + "Transfer-Encoding: chunked\r\n\r\n"
for name, raw in [
    ("size-text", "xyz\r\nhello\r\n0\r\n\r\n"), ("size-minus", "5\r\nhello\r\n-1\r\nhello\r\n0\r\n\r\n"), ("size-0x", "5\r\nhello\r\n0x5\r\nhello\r\n0\r\n\r\n"),
    ("size-overflow", "5\r\nhello\r\nfffffffffffffffff\r\nhello\r\n0\r\n\r\n"), ("bare-lf", "5\r\nhello\r\n5\nhello\r\n0\r\n\r\n"),
    ("missing-crlf", "5\r\nhello5\r\nhello\r\n0\r\n\r\n"), ("too-long", "5\r\nhelloo\r\n0\r\n\r\n"), ("leading-blank", "5\r\nhello\r\n 5\r\nhello\r\n0\r\n\r\n"),
    ("nul", "5\r\nhello\r\n5\x00\r\nhello\r\n0\r\n\r\n"), ("last-bare-lf", "5\r\nhello\r\n0\n\n"), ("trailer-no-colon", "5\r\nhello\r\n0\r\nnonsense\r\n\r\n"),
    ("trailer-nul", "5\r\nhello\r\n0\r\nA: \x00\r\n\r\n"), ("trailer-fold", "5\r\nhello\r\n0\r\nA: b\r\n c\r\n\r\n"), ("trailer-bare-cr", "5\r\nhello\r\n0\r\nA: b\rc: d\r\n\r\n"),
]:
    answer("chunk", name, TC + raw, "RFC 9112 7.1: the coding breaks inside the body", "bad_or_break", after="hold")
answer("chunk", "endless-extension", [TC + "5\r\nhello\r\n5;", ["x", 300000]], "RFC 9112 7.1.1: limits", "bad_or_break")
answer("chunk", "endless-trailers", [TC + "5\r\nhello\r\n0\r\n", ["A: b\r\n", 60000]], "RFC 9112 7.1.2: limits", "bad_or_break")
for after in ("close", "reset"):
    answer("cut", f"length-{after}", OK + "Content-Length: 10\r\n\r\nhello", "RFC 9112 8: shorter than said", "break", after=after)
    answer("cut", f"chunk-{after}", TC + "5\r\nhello\r\n", "RFC 9112 8: no last chunk", "break", after=after)
    answer("cut", f"inside-chunk-{after}", TC + "a\r\nhello", "RFC 9112 8: no last chunk", "break", after=after)
    answer("cut", f"before-final-crlf-{after}", TC + "5\r\nhello\r\n0\r\n", "RFC 9112 8: the trailer section is open", "break", after=after)
answer("cut", "until-close-reset", OK + "\r\nhello", "RFC 9112 6.3 rule 8: a reset is no end", "break", after="reset")
answer("cut", "until-close", OK + "\r\nhello", "RFC 9112 6.3 rule 8: ends with the connection", "pass", after="close", body="hello")
answer("cut", "until-close-empty", OK + "\r\n", "RFC 9112 6.3 rule 8", "pass", after="close", body="")

EVIL = "HTTP/1.1 200 OK\r\nContent-Length: 4\r\nX-Evil: 1\r\n\r\nevil"
for name, raw, method, status in [
    ("length", OK + "Content-Length: 5\r\n\r\nhello" + EVIL, "GET", 200), ("length-junk", OK + "Content-Length: 5\r\n\r\nhellojunk", "GET", 200),
    ("length-zero", OK + "Content-Length: 0\r\n\r\n" + EVIL, "GET", 200), ("chunked", TC + "5\r\nhello\r\n0\r\n\r\n" + EVIL, "GET", 200),
    ("204", "HTTP/1.1 204 No Content\r\n\r\n" + EVIL, "GET", 204), ("204-length", "HTTP/1.1 204 No Content\r\nContent-Length: 5\r\n\r\nhello", "GET", 204),
    ("204-chunked", "HTTP/1.1 204 No Content\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n", "GET", 204),
    ("304-body", "HTTP/1.1 304 Not Modified\r\nContent-Length: 5\r\n\r\nhello", "GET", 304), ("304", "HTTP/1.1 304 Not Modified\r\n\r\n" + EVIL, "GET", 304),
    ("head-body", OK + "Content-Length: 5\r\n\r\nhello", "HEAD", 200), ("head-chunked-body", TC + "5\r\nhello\r\n0\r\n\r\n", "HEAD", 200),
    ("head-second", OK + "Content-Length: 5\r\n\r\n" + EVIL, "HEAD", 200),
]:
    answer("extra", name, raw, "RFC 9112 6.3, 9.2: bytes behind the message belong to nobody", "bad_or_pass" if name.startswith("204-") else "pass_once", method=method, status=status)
for name, raw in [("100", "HTTP/1.1 100 Continue\r\n\r\n"), ("103", "HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n"), ("199", "HTTP/1.1 199 X\r\n\r\n"),
                  ("three", "HTTP/1.1 103 Early Hints\r\n\r\n" * 3)]:
    answer("1xx", name, raw + OK + "Content-Length: 5\r\n\r\nhello", "RFC 9110 15.2: interim heads come first, relayed or dropped", "pass", body="hello")
answer("1xx", "flood", [["HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n", 20000]], "RFC 9110 15.2: interim heads need a cap", "bad_or_break", after="hold")
answer("1xx", "flood-then-final", [["HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n", 2000], OK + "Content-Length: 5\r\n\r\nhello"], "RFC 9110 15.2: cap", "bad_or_pass", body="hello")
answer("1xx", "only", "HTTP/1.1 100 Continue\r\n\r\n", "RFC 9110 15.2: no final response", "bad_or_break", after="close")
answer("1xx", "with-length", "HTTP/1.1 103 Early Hints\r\nContent-Length: 5\r\n\r\n" + OK + "Content-Length: 5\r\n\r\nhello", "RFC 9110 8.6: no Content-Length in 1xx", "bad_or_pass", body="hello")
answer("1xx", "with-bare-cr", "HTTP/1.1 103 Early Hints\r\nX: a\rb\r\n\r\n" + OK + "Content-Length: 5\r\n\r\nhello", "RFC 9112 2.2", "bad")
answer("1xx", "101", "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\nraw", "RFC 9110 15.2.2: nobody asked for it", "bad")
answer("1xx", "101-h2c", "HTTP/1.1 101 Switching Protocols\r\nUpgrade: h2c\r\nConnection: Upgrade\r\n\r\n", "RFC 9110 15.2.2: nobody asked for it", "bad")

for name, raw, more in [
    ("hop-fields", OK + "Connection: X-Hop, close\r\nX-Hop: 1\r\nKeep-Alive: x\r\nContent-Length: 5\r\n\r\nhello", {"absent_fields": ["X-Hop", "Keep-Alive"]}),
    ("proxy-fields", OK + "Proxy-Connection: x\r\nUpgrade: h2c\r\nContent-Length: 5\r\n\r\nhello", {"absent_fields": ["Proxy-Connection", "Upgrade"]}),
    ("chunked", TC + "5\r\nhello\r\n0\r\n\r\n", {}), ("chunk-extension", TC + "5;a=b\r\nhello\r\n0\r\n\r\n", {}),
    ("trailer", TC + "5\r\nhello\r\n0\r\nX-T: 1\r\n\r\n", {}), ("chunked-case", OK + "transfer-encoding: CHUNKED\r\n\r\n5\r\nhello\r\n0\r\n\r\n", {}),
    ("set-cookies", OK + "Set-Cookie: a=1\r\nSet-Cookie: b=2\r\nContent-Length: 5\r\n\r\nhello", {"repeated_fields": {"Set-Cookie": ["a=1", "b=2"]}}),
    ("high-bytes", OK + "X-N: J\xfcrgen\r\nContent-Length: 5\r\n\r\nhello", {}), ("empty-value", OK + "X-E:\r\nContent-Length: 5\r\n\r\nhello", {}),
    ("404", "HTTP/1.1 404 Not Found\r\nContent-Length: 5\r\n\r\nhello", {"status": 404}), ("500", "HTTP/1.1 500 X\r\nContent-Length: 5\r\n\r\nhello", {"status": 500}),
    ("401", "HTTP/1.1 401 X\r\nWWW-Authenticate: Basic\r\nContent-Length: 5\r\n\r\nhello", {"status": 401}),
    ("206", "HTTP/1.1 206 Partial Content\r\nContent-Range: bytes 0-4/9\r\nContent-Length: 5\r\n\r\nhello", {"status": 206}),
]:
    answer("fine", name, raw, "RFC 9112 6: passed on", "pass", body="hello", **more)
answer("fine", "lengths-equal", OK + "Content-Length: 5\r\nContent-Length: 5\r\n\r\nhello", "RFC 9112 6.3 rule 5: refused, or one number", "bad_or_pass", body="hello")
answer("fine", "trailer-framing", TC + "5\r\nhello\r\n0\r\nContent-Length: 9\r\nTransfer-Encoding: x\r\n\r\n", "RFC 9110 6.5.1: dropped or broken off", "pass_or_break",
       body="hello", absent_trailers=["Content-Length", "Transfer-Encoding"])

for name, raw, why, verdict, more in [
    ("205-body", "HTTP/1.1 205 Reset Content\r\nContent-Length: 5\r\n\r\nhello", "RFC 9110 15.3.6", "bad_or_pass", {"status": 205}),
    ("te-on-304", "HTTP/1.1 304 Not Modified\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n", "RFC 9112 6.3 rule 1", "pass_once", {"status": 304}),
    ("close-and-more", OK + "Connection: close\r\nContent-Length: 5\r\n\r\nhello" + EVIL, "RFC 9112 9.6", "pass_once", {"status": 200}),
    ("chunked-extra-chunk", TC + "5\r\nhello\r\n0\r\n\r\n5\r\nhello\r\n0\r\n\r\n", "RFC 9112 7.1", "pass_once", {"status": 200}),
]:
    answer("extra", name, raw, why + ": bytes behind the message belong to nobody", verdict, **more)
for name, fields, verdict in [
    ("connection-names-length", "Connection: Content-Length\r\nContent-Length: 5\r\n", "bad"),
    ("connection-names-coding", "Connection: Transfer-Encoding\r\nContent-Length: 5\r\n", "bad"),
    ("connection-many-options", "Connection: " + "x, " * 400 + "close\r\nContent-Length: 5\r\n", "bad"),
    ("length-list-equal", "Content-Length: 5, 5\r\n", "bad_or_pass"), ("length-zeros", "Content-Length: 0000000005\r\n", "bad_or_pass"),
    ("length-blank", "Content-Length: 5 5\r\n", "bad"), ("length-nul", "Content-Length: 5\x00\r\n", "bad"), ("length-vt", "Content-Length: \x0b5\r\n", "bad"),
    ("te-quoted", 'Transfer-Encoding: "chunked"\r\n', "bad"), ("te-empty", "Transfer-Encoding:\r\n", "bad"), ("te-nul", "Transfer-Encoding: chunked\x00\r\n", "bad"),
    ("te-fold", "Transfer-Encoding:\r\n chunked\r\n", "bad"), ("te-parameter", "Transfer-Encoding: chunked;a=b\r\n", "bad"),
    ("cookie-cr", "Set-Cookie: a=b\rSet-Cookie: c=d\r\nContent-Length: 5\r\n", "bad"), ("location-lf", "Location: /a\nX-Evil: 1\r\nContent-Length: 5\r\n", "bad"),
    ("del", "X: a\x7fb\r\nContent-Length: 5\r\n", "bad"), ("esc", "X: \x1b[31m\r\nContent-Length: 5\r\n", "bad"),
]:
    answer("head", name, OK + fields + "\r\nhello", "RFC 9112 5, 6.3; RFC 9110 5.5, 7.6.1: two readers could differ", verdict, after="close",
           **({"body": "hello"} if verdict != "bad" else {}))
answer("1xx", "101-to-an-upgrade-that-was-removed", "HTTP/1.1 101 Switching Protocols\r\n\r\n" + EVIL, "RFC 9110 15.2.2: nobody asked for it", "bad")
answer("1xx", "with-coding", "HTTP/1.1 103 Early Hints\r\nTransfer-Encoding: chunked\r\n\r\n" + OK + "Content-Length: 5\r\n\r\nhello", "RFC 9112 6.1: no coding in 1xx",
       "bad_or_pass", body="hello")
answer("1xx", "behind-the-final", OK + "Content-Length: 5\r\n\r\nhelloHTTP/1.1 100 Continue\r\n\r\n", "RFC 9110 15.2: it belongs to no request", "pass_once", status=200)


def write(name, cases):
    ids = [c["id"] for c in cases]
    assert len(ids) == len(set(ids)), sorted(i for i in ids if ids.count(i) > 1)
    lines = ",\n".join(json.dumps(c) for c in cases)
    (HERE / name).write_text(f"[\n{lines}\n]\n")
    print(f"{name}: {len(cases)} cases")


if __name__ == "__main__":
    write("requests.json", requests)
    write("responses.json", responses)
