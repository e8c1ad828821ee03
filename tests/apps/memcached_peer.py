"""memcached_peer.py DIR HOST PORT CONNECTIONS: sets, gets and counts; in the end all that was acknowledged is there."""
import os
import sys
import time
import peer


def expect(got, want):
    if got != want:
        raise ValueError("%r instead of %r" % (got[:60], want[:60]))


def asker(run, host, port, who, stored):
    s = peer.connect(host, port)
    answers = s.makefile("rb")
    n = 0

    def ask():
        nonlocal n
        n += 1
        key, value = b"k-%d-%d" % (who, n % 500), os.urandom(30).hex().encode() + b"-%d" % n
        s.sendall(b"set %s 0 0 %d\r\n%s\r\n" % (key, len(value), value))
        expect(answers.readline(), b"STORED\r\n")
        stored[key] = value
        s.sendall(b"get %s\r\nincr total 1\r\n" % key)
        expect(answers.readline(), b"VALUE %s 0 %d\r\n" % (key, len(value)))
        expect(answers.readline(), value + b"\r\n")
        expect(answers.readline(), b"END\r\n")
        if not answers.readline().strip().isdigit():
            raise ValueError("no number")
        run.right(who)
        time.sleep(0.005)

    return ask


def check_all(s, run, stored):
    answers = s.makefile("rb")
    for key, value in stored.items():
        s.sendall(b"get %s\r\n" % key)
        expect(answers.readline(), b"VALUE %s 0 %d\r\n" % (key, len(value)))
        expect(answers.readline(), value + b"\r\n")
        expect(answers.readline(), b"END\r\n")
    s.sendall(b"get total\r\n")
    answers.readline()
    expect(answers.readline(), b"%d\r\n" % run.count)


def main(directory, host, port, connections):
    run = peer.Run(directory)
    stored = {}
    s = peer.connect(host, port)
    s.sendall(b"set total 0 0 1\r\n0\r\n")
    expect(s.recv(100), b"STORED\r\n")
    peer.side_by_side(run, [lambda i=i: asker(run, host, port, i, stored) for i in range(int(connections))])
    try:
        check_all(s, run, stored)
    except Exception as e:
        run.wrong("%s: %s" % (type(e).__name__, e))
    run.end()


main(*sys.argv[1:])
