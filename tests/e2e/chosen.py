#!/usr/bin/python3
"""Sockets that share a port, and a program that chooses among them by the TOS of what comes.

chosen.py serve DIR ADDRESS: three listeners and three UDP sockets, whose places in their group are not those of their
descriptors. Each answers with its place. The port is written to DIR/port, the pid to DIR/pid.
chosen.py part DIR ADDRESS: so does a child, and this one has one more of the UDP sockets. When it does, there is
DIR/outside.
chosen.py ask DIR ADDRESS PORT: for each line of its input, looks whether the right ones answer, and writes a line to
DIR/saidN.
"""
import ctypes, os, select, socket, struct, sys

from filtered import NET, say, tell_lines

ATTACH_REUSEPORT_CBPF = 51  # socket(7)
N = 3
LDB_ABS, RSH, RET_A = 0x30, 0x74, 0x16


def choose(s):
    code = struct.pack("HBBI" * 3, LDB_ABS, 0, 0, NET + 1, RSH, 0, 0, 2, RET_A, 0, 0, 0)
    held = ctypes.create_string_buffer(code)
    s.setsockopt(socket.SOL_SOCKET, ATTACH_REUSEPORT_CBPF, struct.pack("HxxxxxxQ", 3, ctypes.addressof(held)))


def group(kind, address):
    made = [socket.socket(socket.AF_INET, kind) for _ in range(N)]
    made = [made[i] for i in (2, 0, 1)]  # in the order of their places
    for s in made:
        s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        if kind == socket.SOCK_STREAM:  # connections in TIME_WAIT, when it comes back
            s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        s.bind(address)
        address = s.getsockname()
        if kind == socket.SOCK_STREAM:
            s.listen()
    choose(made[0])
    return made


def serve(directory, address, ready=lambda: None):
    tcp = group(socket.SOCK_STREAM, (address, 0))
    udp = group(socket.SOCK_DGRAM, tcp[0].getsockname())
    say(directory, "port", tcp[0].getsockname()[1])
    say(directory, "pid", os.getpid())
    ready()
    while True:
        for s in select.select(tcp + udp, [], [])[0]:
            if s in udp:
                s.sendto(b"%d" % udp.index(s), s.recvfrom(100)[1])
                continue
            with s.accept()[0] as conn:
                conn.sendall(b"%d" % tcp.index(s))


def part(directory, address):
    read, write = os.pipe()
    child = os.fork()
    if not child:
        os.close(read)
        serve(directory, address, lambda: os.close(write))
    os.close(write)
    os.read(read, 1)
    with open(f"{directory}/port") as f:
        port = int(f.read())
    s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    s.bind((address, port))
    say(directory, "outside", os.getpid())
    os.waitpid(child, 0)


def look(address):
    for kind in socket.SOCK_STREAM, socket.SOCK_DGRAM:
        for place in range(N):
            with socket.socket(socket.AF_INET, kind) as s:
                s.settimeout(20)
                s.setsockopt(socket.IPPROTO_IP, socket.IP_TOS, place << 2)
                s.connect(address)
                if kind == socket.SOCK_DGRAM:
                    s.send(b"?")
                got = s.recv(100)
                if got != b"%d" % place:
                    return f"{kind.name}: {got} answered instead of {place}"
    return "well"


def ask(directory, address, port):
    tell_lines(directory, lambda: look((address, int(port))))


if __name__ == "__main__":
    {"serve": serve, "part": part, "ask": ask}[sys.argv[1]](*sys.argv[2:])
