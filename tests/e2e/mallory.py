"""A peer of page-servers that means no good: what it needs to be taken for an agent (proto/PROTOCOL.md).
For the hostile programs of limits.t and serve.t, which import it."""
import os
import random
import socket
import struct
import time

NO_TOKEN = b"cr-migrate: no token was given  "


class Target:
    def __init__(self, address, timeout):
        self.host, self.port = address.rsplit(":", 1)
        self.timeout = timeout

    def connect(self):
        s = socket.create_connection((self.host, int(self.port)), 5)
        s.settimeout(self.timeout)
        return s


def length(v):
    out = b""
    while v > 127:
        out += bytes([v & 127 | 128])
        v >>= 7
    return out + bytes([v])


def put(n, b):
    """A field of bytes, as protobuf has it."""
    return length(n << 3 | 2) + length(len(b)) + b


def frame(b):
    return struct.pack("<I", len(b)) + b


def hello(token, ident):
    return frame(put(1, put(1, b"cr-migrate") + b"\x10\x01\x18\x02" + put(4, ident) + put(5, token) + put(6, b"mallory")))


def noise():
    return os.urandom(random.choice([1, 4, 100, 70000]))


def attack(seconds, everything):
    """One of them after the other, at random. Returns how often each was."""
    counts = {f.__name__: 0 for f in everything}
    end = time.time() + seconds
    while time.time() < end:
        f = random.choice(everything)
        counts[f.__name__] += 1
        try:
            f()
        except OSError:
            pass
    return counts
