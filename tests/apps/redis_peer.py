"""redis_peer.py DIR HOST PORT CONNECTIONS: writes and reads keys; a publisher and a subscriber, who misses nothing; in
the end every acknowledged key is there."""
import os
import sys
import time
import peer


class Redis:
    def __init__(self, host, port):
        self.s = peer.connect(host, port)
        self.answers = self.s.makefile("rb")

    def send(self, *words):
        self.s.sendall(b"*%d\r\n" % len(words) + b"".join(b"$%d\r\n%s\r\n" % (len(w), w) for w in words))

    def read(self):
        line = self.answers.readline()
        kind, rest = line[:1], line[1:-2]
        if kind == b"*":
            return [self.read() for _ in range(int(rest))]
        if kind == b"$":
            return None if rest == b"-1" else self.answers.read(int(rest) + 2)[:-2]
        if kind == b":":
            return int(rest)
        if kind == b"+":
            return rest
        raise ValueError("answer %r" % line)

    def __call__(self, *words):
        self.send(*words)
        return self.read()


def expect(got, want):
    if got != want:
        raise ValueError("%r instead of %r" % (got, want))


def writer(run, host, port, who, stored):
    r = Redis(host, port)
    n = 0

    def ask():
        nonlocal n
        n += 1
        key, value = b"k-%d-%d" % (who, n), os.urandom(20).hex().encode()
        expect(r(b"SET", key, value), b"OK")
        stored[key] = value
        expect(r(b"GET", key), value)
        run.right(who)
        time.sleep(0.005)

    return ask


def publisher(run, host, port):
    r = Redis(host, port)
    n = 0

    def ask():
        nonlocal n
        n += 1
        expect(r(b"PUBLISH", b"news", b"%d" % n), 1)
        run.right("publisher")
        time.sleep(0.005)

    return ask


def subscriber(run, host, port):
    r = Redis(host, port)
    expect(r(b"SUBSCRIBE", b"news"), [b"subscribe", b"news", 1])
    n = 0

    def ask():
        nonlocal n
        n += 1
        # answers come one after the other from the same thread: what is published here is here
        expect(r.read(), [b"message", b"news", b"%d" % n])
        run.right("subscriber")

    return ask


def main(directory, host, port, connections):
    run = peer.Run(directory)
    stored = {}
    check = Redis(host, port)
    subscribed = subscriber(run, host, port)
    published = publisher(run, host, port)

    def news():
        published()
        subscribed()

    peer.side_by_side(run, [lambda: news] + [lambda i=i: writer(run, host, port, i, stored) for i in range(int(connections))])
    try:
        for key, value in stored.items():
            expect(check(b"GET", key), value)
    except Exception as e:
        run.wrong("%s: %s" % (type(e).__name__, e))
    run.end()


main(*sys.argv[1:])
