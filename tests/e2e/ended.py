#!/usr/bin/python3
"""Sockets in states that programs seldom keep them in: connections that are over, with bytes that nobody has read
or an error that nobody has asked for; reading that was shut down; keys, addresses and errors that go with a socket.
It looks at them once for every DIR/look.N that comes, and says what it found in DIR/found.N; after the last look,
which takes everything out of them, it ends. ended.py DIR ADDRESS LOOKS"""
import errno
import os
import select
import socket
import struct
import sys
import time

where, address, looks = sys.argv[1], sys.argv[2], int(sys.argv[3])
TCP_FASTOPEN_KEY, TCP_INFO, MULTICAST_IF = 33, 11, socket.IP_MULTICAST_IF
RESET = struct.pack("ii", 1, 0)
CLOSE = 7
LEFT = bytes(i * 7 % 251 for i in range(300000))


def say(name, text):
    with open(where + "/." + name, "w") as f:
        f.write(text)
    os.rename(where + "/." + name, where + "/" + name)


def until(true):
    while not true():
        time.sleep(0.005)


def state(s):
    return s.getsockopt(socket.IPPROTO_TCP, TCP_INFO, 104)[0]


def pair(host="127.0.0.1"):
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as listener:
        listener.bind((host, 0))
        listener.listen(1)
        a = socket.socket(family)
        a.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 * len(LEFT))
        a.connect(listener.getsockname())
        return a, listener.accept()[0]


def ended(how, host, left=b""):
    s, other = pair(host)
    other.sendall(left)
    until(lambda: len(s.recv(len(left), socket.MSG_PEEK)) == len(left) if left else True)
    if how == "reset":
        other.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
    else:
        s.shutdown(socket.SHUT_WR)
    other.close()
    until(lambda: state(s) == CLOSE)
    return s


def refused(host):
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as nobody:
        nobody.bind((host, 0))
        s = socket.socket(nobody.family)
        s.setblocking(False)
        s.connect_ex(nobody.getsockname())
        until(lambda: state(s) == CLOSE)
        return s


hosts = ("127.0.0.1", "::1")
clean = [ended("clean", h, LEFT) for h in hosts]
reset = [ended("reset", h) for h in hosts]
reset_left = [ended("reset", h, LEFT) for h in hosts]
nobody = [refused(h) for h in hosts]
asked = [ended("reset", h) for h in hosts]
for s in asked:
    s.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
deaf = [pair(h) for h in hosts]
for s, _ in deaf:
    s.shutdown(socket.SHUT_RD)
half = [pair(h) for h in hosts]  # which will not go on: nobody has the other end
for s, other in half:
    other.sendall(LEFT)
    until(lambda: len(s.recv(len(LEFT), socket.MSG_PEEK)) == len(LEFT))
    other.close()
watched = select.epoll()
for s in clean + reset + reset_left + nobody + asked + [s for s, _ in deaf]:
    watched.register(s, select.EPOLLIN | select.EPOLLOUT | select.EPOLLRDHUP)
events = sorted(watched.poll(0))
keyed = socket.create_server((address, 0))
keyed.setsockopt(socket.IPPROTO_TCP, TCP_FASTOPEN_KEY, b"0123456789abcdef")
caster = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
caster.setsockopt(socket.IPPROTO_IP, MULTICAST_IF, socket.inet_aton(address))
told = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as gone:
    gone.bind(("127.0.0.1", 0))
    told.connect(gone.getsockname())
told.send(b"to nobody")  # the kernel answers by an error, which nobody asks for
found = []


def expect(got, wanted, what):
    if got != wanted:
        found.append("%s: %.60r, expected %.60r" % (what, got, wanted))


def read_out(s, first, last, what):
    s.setblocking(False)
    got = b""
    try:
        while True:
            data = s.recv(65536)
            if not data:
                end = 0
                break
            got += data
    except OSError as e:
        end = e.errno
    expect(got, first, what)
    expect(end, last, what + ", its end")


def look():
    expect(sorted(watched.poll(0)), events, "events")
    for s in clean + reset + reset_left + nobody + asked:
        expect(state(s), CLOSE, "state")
    expect(keyed.getsockopt(socket.IPPROTO_TCP, TCP_FASTOPEN_KEY, 16), b"0123456789abcdef", "key")
    expect(caster.getsockopt(socket.IPPROTO_IP, MULTICAST_IF, 4), socket.inet_aton(address), "interface")
    for s, other in deaf:
        s.setblocking(False)
        try:
            expect(s.recv(1), b"", "reading was shut down")
        except BlockingIOError:
            found.append("reading was shut down, and is not any more")
        s.sendall(b"x")
        expect(other.recv(1), b"x", "the other way")


def take_out():
    for s in clean:
        read_out(s, LEFT, 0, "ended")
    for s, _ in half:
        read_out(s, LEFT, 0, "closed at the other end")
    for s in reset:
        read_out(s, b"", errno.ECONNRESET, "reset")
    for s in reset_left:
        read_out(s, LEFT, errno.ECONNRESET, "reset with bytes left")
    for s in nobody:
        read_out(s, b"", errno.ECONNREFUSED, "refused")
    for s in asked:
        read_out(s, b"", 0, "reset, and asked for it")


say("pid", str(os.getpid()))
for n in range(1, looks + 1):
    while not os.path.exists(where + "/look.%d" % n):
        time.sleep(0.005)
    look()
    if n == looks:
        take_out()
    say("found.%d" % n, "; ".join(found) or "OK")
