"""websocket_peer.py DIR HOST PORT CONNECTIONS: keeps the digest that the server has to have of each socket's frames;
the times that it tells go on and never back."""
import base64
import hashlib
import os
import sys
import time
import peer


def read_frame(answers):
    head = answers.read(2)
    if len(head) < 2 or head[0] != 0x81 or head[1] > 125:
        raise ValueError("frame begins with %r" % head)
    return answers.read(head[1]).decode()


def send_frame(s, text):
    mask = os.urandom(4)
    s.sendall(bytes([0x81, 0x80 | len(text)]) + mask + bytes(c ^ mask[i & 3] for i, c in enumerate(text)))


def handshake(s, answers, host):
    key = base64.b64encode(os.urandom(16))
    s.sendall(b"GET /ws HTTP/1.1\r\nHost: %s\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
              b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: %s\r\n\r\n" % (host.encode(), key))
    want = base64.b64encode(hashlib.sha1(key + b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11").digest())
    lines = []
    while (line := answers.readline()) not in (b"\r\n", b""):
        lines.append(line)
    if not any(want in line for line in lines):
        raise ValueError("no handshake: %r" % lines)


def asker(run, host, port, who):
    s = peer.connect(host, port)
    answers = s.makefile("rb")
    handshake(s, answers, host)
    digest = hashlib.sha256()
    n = last = 0

    def ask():
        nonlocal n, last
        text = os.urandom(20).hex().encode()
        send_frame(s, text)
        digest.update(text)
        n += 1
        while (words := read_frame(answers).split())[0] == "time":
            if int(words[1]) < last:
                raise ValueError("time went from %d back to %s" % (last, words[1]))
            last = int(words[1])
        if words != ["echo", str(n), digest.hexdigest()]:
            raise ValueError("connection %d, frame %d: %r" % (who, n, words))
        run.right(who)
        time.sleep(0.005)

    return ask


def main(directory, host, port, connections):
    run = peer.Run(directory)
    peer.side_by_side(run, [lambda i=i: asker(run, host, port, i) for i in range(int(connections))])
    run.end()


main(*sys.argv[1:])
