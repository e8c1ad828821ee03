"""asyncio_peer.py DIR HOST PORT CONNECTIONS: keeps the digest that the server has to have."""
import hashlib
import os
import sys
import time
import peer


def asker(run, host, port, who):
    s = peer.connect(host, port)
    answers = s.makefile("rb")
    digest = hashlib.sha256()
    n = 0

    def ask():
        nonlocal n
        line = os.urandom(os.urandom(1)[0] * 8 + 8).hex().encode() + b"\n"
        s.sendall(line)
        digest.update(line)
        n += 1
        want = b"%d %s\n" % (n, digest.hexdigest().encode())
        got = answers.readline()
        if got != want:
            raise ValueError("connection %d, answer %d: %r instead of %r" % (who, n, got, want))
        run.right(who)
        time.sleep(0.005)

    return ask


def main(directory, host, port, connections):
    run = peer.Run(directory)
    state = peer.connect(host, port)
    peer.side_by_side(run, [lambda i=i: asker(run, host, port, i) for i in range(int(connections))])
    state.sendall(b"state\n")
    ticks, lines = map(int, state.makefile("rb").readline().split())
    if lines != run.count and run.problem is None:
        run.wrong("the server counts %d lines, the client %d" % (lines, run.count))
    if ticks < 100:
        run.wrong("the server's timer stands still: %d ticks" % ticks)
    run.end()


main(*sys.argv[1:])
