#!/usr/bin/python3
"""Between a source and a destination that seems to go mad: hands on all connections to ADDRESS, but on the first N
of them on which pages are asked for (proto/PAGES.md, "Fetching"), nonsense follows what the destination says first.
With "pushed" (else: "asked"): in the middle of the first pages that the source pushes, on the first N connections for that.
poisoner.py ADDRESS N DIR asked|pushed: DIR/port has the port, DIR/pid the process, DIR/poisoned a line for each of them."""
import os
import socket
import sys
import threading

host, port = sys.argv[1].rsplit(":", 1)
left, where = int(sys.argv[2]), sys.argv[3]
pushed = sys.argv[4:] == ["pushed"]
lock = threading.Lock()


def poison():
    global left
    with lock:
        if not left:
            return False
        left -= 1
        with open(where + "/poisoned", "a") as f:
            f.write("x\n")
        return True


class Pair:
    """A connection in two halves. Requests: the destination has said frames, so pages on it are answers."""

    def __init__(self, source, destination):
        self.requests = False
        self.poisoned = False
        threading.Thread(target=self.pump, args=(source, destination, self.from_source), daemon=True).start()
        threading.Thread(target=self.pump, args=(destination, source, self.from_destination), daemon=True).start()

    def from_source(self, data):
        if pushed and not self.requests and not self.poisoned and b"LZY1\x05" in data:
            self.poisoned = True
            if poison():
                return data[:-1] + b"Z" * 65537
        return data

    def from_destination(self, data):
        first = not self.requests and b"LZY1" in data
        self.requests |= first
        if first and not pushed and poison():
            return data + b"Z" * 65536 * 2
        return data

    def pump(self, a, b, change):
        try:
            while data := a.recv(65536):
                b.sendall(change(data))
        except OSError:
            pass
        for s in a, b:
            try:
                s.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass


listener = socket.create_server(("", 0))
for name, what in ("pid", os.getpid()), ("port", listener.getsockname()[1]):
    with open(where + "/new", "w") as f:
        f.write(str(what))
    os.rename(where + "/new", where + "/" + name)
while True:
    ends = [listener.accept()[0], socket.create_connection((host, int(port)))]
    for s in ends:
        s.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    Pair(*ends)
