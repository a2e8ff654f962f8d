#!/usr/bin/python3
"""no_io_uring.py PROGRAM [WORDS...]: runs it where io_uring_setup(2) says EPERM, as in most containers, by a seccomp(2) filter."""
import ctypes
import errno
import os
import struct
import sys

PR_SET_NO_NEW_PRIVS, PR_SET_SECCOMP, SECCOMP_MODE_FILTER = 38, 22, 2
LOAD_WORD, JUMP_IF_EQUAL, RETURN = 0x20, 0x15, 0x06  # of classic BPF
ALLOW, ERRNO = 0x7FFF0000, 0x00050000
IO_URING_SETUP = 425  # on every architecture but alpha


def forbid():
    steps = ((LOAD_WORD, 0, 0, 0), (JUMP_IF_EQUAL, 0, 1, IO_URING_SETUP), (RETURN, 0, 0, ERRNO | errno.EPERM), (RETURN, 0, 0, ALLOW))
    program = b"".join(struct.pack("HBBI", *step) for step in steps)
    text = ctypes.create_string_buffer(program, len(program))
    filter_ = ctypes.create_string_buffer(struct.pack("HP", len(steps), ctypes.addressof(text)))
    prctl = ctypes.CDLL(None, use_errno=True).prctl
    for words in ((PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), (PR_SET_SECCOMP, SECCOMP_MODE_FILTER, filter_, 0, 0)):
        if prctl(*words) != 0:
            sys.exit(f"no_io_uring.py: prctl: {os.strerror(ctypes.get_errno())}")


if __name__ == "__main__":
    forbid()
    os.execvp(sys.argv[1], sys.argv[1:])
