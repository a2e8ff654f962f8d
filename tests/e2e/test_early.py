"""C3: what can never become a request is refused when that is seen, not when the head's deadline ends."""
import time

import pytest

from harness import problem

EARLY = {
    "a line that ends in a bare LF": b"GET / HTTP/1.1\n", "a NUL in the method": b"GE\0T / HTTP", "a method that is none": b"G@T / HTTP/1.1\r\n",
    "a blank first": b" GET / HTTP/1.1\r\n", "a bare CR in the target": b"GET /a\rb", "no version": b"GET /\r\n",
    "an unknown version": b"GET / HTTP/3.0\r\n", "a control byte in the target": b"GET /\x01", "the HTTP/2 preface": b"PRI * HTTP/2.0\r\n",
    "a blank before the colon": b"GET / HTTP/1.1\r\nHost : a\r\n", "a folded field": b"GET / HTTP/1.1\r\nHost: a\r\nX: y\r\n z\r\n",
    "a field without a colon": b"GET / HTTP/1.1\r\nHost\r\n", "a NUL in a value": b"GET / HTTP/1.1\r\nHost: a\0b\r\n",
    "a bare LF behind a field": b"GET / HTTP/1.1\r\nHost: a\nX: y",
}


@pytest.mark.parametrize("pieces", [1, 2], ids=["at once", "in two packets"])
@pytest.mark.parametrize("what", EARLY)
def test_C3_a_bad_start_is_refused_at_once_and_not_at_the_head_deadline(gateway, what, pieces):
    """The deadline is 10 s, the wait here 3 s: who sends what can never become a request holds a buffer for no longer."""
    raw = EARLY[what]
    with gateway.client() as c:
        if pieces == 2:
            c.send(raw[:2])
            time.sleep(0.05)  # makes two packets
            c.send(raw[2:])
        else:
            c.send(raw)
        r = c.response(timeout=3)
        problem(r, [400, 505, 405])
        assert c.end() == "fin" and c.leftover == b""
