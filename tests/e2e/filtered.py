#!/usr/bin/python3
"""Sockets with filters that their program has locked, and a peer that finds out what they let through.

filtered.py serve DIR ADDRESS: a TCP connection, a UDP socket of the same port, and a pair of unix sockets. The filters drop
what has a certain TOS, the pair's what begins with an x. The port is written to DIR/port, the pid to DIR/pid.
filtered.py ask DIR ADDRESS PORT: for each line of its input, looks whether they still do, and writes a line to
DIR/saidN.
"""
import ctypes, errno, os, select, socket, struct, sys

ATTACH_FILTER, DETACH_FILTER, LOCK_FILTER = 26, 27, 44  # socket(7)
HIDDEN_TOS = 0xB8
LDB_ABS, JEQ, RET = 0x30, 0x15, 0x06
NET = 0xFFF00000  # SKF_NET_OFF


def say(directory, name, text):
    with open(f"{directory}/.{name}", "w") as f:
        f.write(f"{text}\n")
    os.rename(f"{directory}/.{name}", f"{directory}/{name}")


def tell_lines(directory, look):
    for n, _ in enumerate(sys.stdin):
        try:
            text = look()
        except OSError as e:
            text = f"{e}"
        say(directory, f"said{n}", text)


def lock(s, offset, value):
    code = struct.pack("HBBI" * 4, LDB_ABS, 0, 0, offset, JEQ, 0, 1, value, RET, 0, 0, 0, RET, 0, 0, 0xFFFFFFFF)
    held = ctypes.create_string_buffer(code)
    s.setsockopt(socket.SOL_SOCKET, ATTACH_FILTER, struct.pack("HxxxxxxQ", 4, ctypes.addressof(held)))
    s.setsockopt(socket.SOL_SOCKET, LOCK_FILTER, 1)


def trouble(locked, pair):
    for what, s in locked:
        try:
            s.setsockopt(socket.SOL_SOCKET, DETACH_FILTER, 0)
            return f"{what}: its filter can be detached"
        except OSError as e:
            if e.errno != errno.EPERM:
                return f"{what}: detaching its filter: {e}"
    for text in b"xyz", b"abc":
        pair[0].send(text)
    got = pair[1].recv(10)
    return None if got == b"abc" else f"unix: {got} came"


def serve(directory, address):
    tcp = socket.create_server((address, 0))
    udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    udp.bind(tcp.getsockname())
    pair = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    lock(udp, NET + 1, HIDDEN_TOS)
    lock(pair[1], 0, ord("x"))
    say(directory, "port", tcp.getsockname()[1])
    say(directory, "pid", os.getpid())
    conn = tcp.accept()[0]
    lock(conn, NET + 1, HIDDEN_TOS)
    locked = ("TCP", conn), ("UDP", udp), ("unix", pair[1])
    while True:
        for s in select.select([conn, udp], [], [])[0]:
            if s is udp:
                data, peer = udp.recvfrom(100)
                udp.sendto(data, peer)
                continue
            data = conn.recv(100)
            if not data:
                return
            conn.sendall(data if data != b"check\n" else (trouble(locked, pair) or "well").encode())


def retransmissions(s):
    return struct.unpack_from("I", s.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 104), 100)[0]


def look(tcp, udp):
    tcp.sendall(b"check\n")
    said = tcp.recv(100)
    if said != b"well":
        return said.decode()
    # those that are dropped would have come first
    udp.setsockopt(socket.IPPROTO_IP, socket.IP_TOS, HIDDEN_TOS)
    udp.send(b"hidden")
    udp.setsockopt(socket.IPPROTO_IP, socket.IP_TOS, 0)
    udp.send(b"seen")
    got = udp.recv(100)
    if got != b"seen":
        return f"UDP: {got} came through"
    before = retransmissions(tcp)
    tcp.setsockopt(socket.IPPROTO_IP, socket.IP_TOS, HIDDEN_TOS)
    tcp.sendall(b"hidden\n")
    while retransmissions(tcp) < before + 2:
        if select.select([tcp], [], [], 0.01)[0]:
            return f"TCP: {tcp.recv(100)} came through"
    tcp.setsockopt(socket.IPPROTO_IP, socket.IP_TOS, 0)
    got = tcp.recv(100)
    return "well" if got == b"hidden\n" else f"TCP: {got} came"


def ask(directory, address, port):
    tcp = socket.create_connection((address, int(port)))
    udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    udp.connect((address, int(port)))
    for s in tcp, udp:
        s.settimeout(20)
    tell_lines(directory, lambda: look(tcp, udp))


if __name__ == "__main__":
    {"serve": serve, "ask": ask}[sys.argv[1]](*sys.argv[2:])
