#!/usr/bin/env python3
"""Writes the fuzzers' first inputs from the corpus of raw messages.

    seed.py tests/corpus BUILD/corpus

One folder per fuzzer, one small file per input, named by its content so that a second run changes nothing.
"""

import hashlib
import json
import pathlib
import sys

KEY = "lk_qkJaB6MffYVzZXWqmcoF49yrUxP3wf0LsakP"
INPUT_BYTES_MAX = 8192


def messages(path):
    """The raw messages of one corpus file; tests/corpus/make.py says what their parts mean."""
    for case in json.loads(path.read_text(encoding="utf-8")):
        parts = case["raw"] if isinstance(case["raw"], list) else [case["raw"]]
        raw = "".join(part if isinstance(part, str) else part[0] * part[1] for part in parts)
        yield raw.replace("{{K}}", f"X-API-KEY: {KEY}\r\n").replace("{{KEY}}", KEY).encode("latin-1")


def put(folder, data):
    folder.mkdir(parents=True, exist_ok=True)
    if 0 < len(data) <= INPUT_BYTES_MAX:
        (folder / hashlib.sha256(data).hexdigest()[:16]).write_bytes(data)


def target_of(head):
    words = head.split(b"\r\n", 1)[0].split(b" ")
    return words[1] if len(words) > 2 else b""


def main():
    corpus, out = (pathlib.Path(argument) for argument in sys.argv[1:])
    for raw in messages(corpus / "requests.json"):
        head, _, body = raw.partition(b"\r\n\r\n")
        put(out / "head", b"\x00" + raw)  # see head_fuzz.cpp: the first byte chooses the side and the split
        put(out / "rewrite", b"\x00" + raw)  # the first byte chooses the settings
        put(out / "target", target_of(head))
        put(out / "chunk", b"\x00\x03" + body)  # whether forbidden trailers are dropped, and a seed for splits
    for raw in messages(corpus / "responses.json"):
        put(out / "head", b"\x01" + raw)
        put(out / "rewrite", b"\x40" + raw)
        put(out / "chunk", b"\x01\x05" + raw.partition(b"\r\n\r\n")[2])


if __name__ == "__main__":
    main()
