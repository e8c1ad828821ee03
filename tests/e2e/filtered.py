#!/usr/bin/python3
"""Sockets with filters, and a peer that finds out what they let through.

filtered.py serve DIR ADDRESS: a TCP connection, a UDP socket of the same port, and a pair of unix sockets. The filters drop
what has a certain TOS, the pair's what begins with an x; they are locked. The port is written to DIR/port, the pid to
DIR/pid.
filtered.py ebpf DIR ADDRESS: the same by eBPF programs, also on the listener; ebpf-locked: which are locked; ebpf-map: which
have a map.
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


# ---- eBPF: linux/bpf.h ----

SYS_BPF, MAP_CREATE, PROG_LOAD, SOCKET_FILTER, MAP_ARRAY, ATTACH_BPF, GET_FILTER = 321, 0, 5, 1, 2, 50, 26
KTIME_GET_NS, SKB_LOAD_BYTES = 5, 26
LEN, MARK, PROTOCOL, IFINDEX, PRIORITY = 0, 8, 16, 40, 32  # in struct __sk_buff
libc = ctypes.CDLL(None, use_errno=True)


def bpf(command, attr):
    held = ctypes.create_string_buffer(attr, 128)
    fd = libc.syscall(SYS_BPF, command, held, 128)
    if fd < 0:
        raise OSError(ctypes.get_errno(), "bpf")
    return fd


def insn(code, dst=0, src=0, off=0, imm=0):
    return struct.pack("<BBhi", code, dst | src << 4, off, imm - (1 << 32) if imm >= 1 << 31 else imm)


def program(offset, value, map_fd):
    """Drops what has that value there; by the way it uses what the verifier rewrites in all ways."""
    mov, ldx, exits = 0xBF, 0x61, insn(0x95)
    body = [
        insn(mov, 6, 1),
        insn(ldx, 7, 6, LEN),
        insn(ldx, 8, 1, PROTOCOL),
        insn(ldx, 9, 1, IFINDEX),
        insn(ldx, 2, 1, MARK),
        insn(ldx, 1, 1, PRIORITY),
        insn(0x0F, 7, 8),  # add
        insn(0x0F, 7, 9),
        insn(0x0F, 7, 2),
        insn(0x0F, 7, 1),
        insn(0x85, imm=KTIME_GET_NS),
        insn(mov, 1, 6),
        insn(0xB7, 2),
        insn(mov, 3, 10),
        insn(0x07, 3, imm=-8),
        insn(0xB7, 4, imm=2),
        insn(0x85, imm=SKB_LOAD_BYTES),
        insn(0x28, imm=offset),  # half a word
        insn(0xB7, 7, imm=offset - (1 << 32) if offset >= 1 << 31 else offset),
        insn(0x50, src=7),  # a byte, indirect
        insn(0x30, imm=offset),  # a byte
    ]
    if map_fd is not None:
        body += [insn(0x18, 2, 1, imm=map_fd), insn(0)]
    body += [
        insn(0x15, 0, 0, 2, value),  # equal
        insn(0xB7, 0, imm=0x7FFFFFFF),
        exits,
        insn(0xB7, 0),
        exits,
    ]
    return b"".join(body)


def attach_program(s, offset, value, kind):
    map_fd = bpf(MAP_CREATE, struct.pack("IIIII", MAP_ARRAY, 4, 4, 1, 0)) if kind == "ebpf-map" else None
    code = program(offset, value, map_fd)
    insns, licence = ctypes.create_string_buffer(code), ctypes.create_string_buffer(b"GPL")
    attr = struct.pack("IIQQIIQII16s", SOCKET_FILTER, len(code) // 8, ctypes.addressof(insns), ctypes.addressof(licence),
                       0, 0, 0, 0, 0, b"no_tos")
    fd = bpf(PROG_LOAD, attr)
    s.setsockopt(socket.SOL_SOCKET, ATTACH_BPF, fd)
    os.close(fd)
    if map_fd is not None:
        os.close(map_fd)
    if kind == "ebpf-locked":
        s.setsockopt(socket.SOL_SOCKET, LOCK_FILTER, 1)


def has_program(s):
    try:
        s.getsockopt(socket.SOL_SOCKET, GET_FILTER, 0)
    except PermissionError:
        return True
    return False


def trouble(kind, filtered, pair):
    for what, s in filtered:
        if kind.startswith("ebpf") and not has_program(s):
            return f"{what}: it has no eBPF filter"
    for what, s in filtered if kind in ("serve", "ebpf-locked") else ():
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


def serve(directory, address, kind="serve"):
    def put(s, offset, value):
        if kind == "serve":
            lock(s, offset, value)
        else:
            attach_program(s, offset, value, kind)

    tcp = socket.create_server((address, 0))
    udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    udp.bind(tcp.getsockname())
    pair = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    put(udp, NET + 1, HIDDEN_TOS)
    put(pair[1], 0, ord("x"))
    if kind != "serve":
        put(tcp, NET + 1, HIDDEN_TOS)
    say(directory, "port", tcp.getsockname()[1])
    say(directory, "pid", os.getpid())
    conn = tcp.accept()[0]
    if kind != "ebpf-locked":  # where it has its listener's
        put(conn, NET + 1, HIDDEN_TOS)
    filtered = [("TCP", conn), ("UDP", udp), ("unix", pair[1])]
    if kind != "serve":
        filtered.append(("TCP listener", tcp))
    while True:
        for s in select.select([conn, udp], [], [])[0]:
            if s is udp:
                data, peer = udp.recvfrom(100)
                udp.sendto(data, peer)
                continue
            data = conn.recv(100)
            if not data:
                return
            conn.sendall(data if data != b"check\n" else (trouble(kind, filtered, pair) or "well").encode())


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
    if sys.argv[1] == "ask":
        ask(*sys.argv[2:])
    else:
        serve(*sys.argv[2:], kind=sys.argv[1])
