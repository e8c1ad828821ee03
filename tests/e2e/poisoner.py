#!/usr/bin/python3
"""Between a source and a destination that seems to go mad: hands on all connections to ADDRESS, but on the first N
of them on which pages are asked for (proto/PAGES.md, "Fetching"), nonsense follows what the destination says first.
poisoner.py ADDRESS N DIR: DIR/port has the port, DIR/pid the process, DIR/poisoned a line for each of them."""
import os
import socket
import sys
import threading

host, port = sys.argv[1].rsplit(":", 1)
left, where = int(sys.argv[2]), sys.argv[3]
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


def pump(a, b, may_poison):
    try:
        while data := a.recv(65536):
            b.sendall(data)
            if may_poison and b"LZY1" in data:
                may_poison = False
                if poison():
                    b.sendall(b"Z" * 65536 * 2)
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
    source = listener.accept()[0]
    destination = socket.create_connection((host, int(port)))
    for s in source, destination:
        s.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    threading.Thread(target=pump, args=(source, destination, False), daemon=True).start()
    threading.Thread(target=pump, args=(destination, source, True), daemon=True).start()
