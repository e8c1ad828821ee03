"""download_peer.py DIR HOST PORT PATH FILE RATE: one GET of what is in FILE, at RATE bytes a second so that it is still
under way when the server moves; once told to stop, the rest at once. Counts KiB."""
import hashlib
import os
import sys
import time
import peer

PIECE = 65536


def main(directory, host, port, path, file, rate):
    run = peer.Run(directory)
    want = hashlib.sha256()
    with open(file, "rb") as f:
        while block := f.read(1 << 20):
            want.update(block)
    size = os.path.getsize(file)
    s = peer.connect(host, port)
    s.sendall(b"GET %s HTTP/1.1\r\nHost: %s\r\n\r\n" % (path.encode(), host.encode()))
    body = s.makefile("rb", buffering=PIECE)
    length = None
    if b" 200 " not in body.readline():
        raise ValueError("no answer to the GET")
    while (line := body.readline()) != b"\r\n":
        if line.lower().startswith(b"content-length:"):
            length = int(line.split(b":")[1])
    run.ready()
    digest, got, begin = hashlib.sha256(), 0, time.monotonic()
    try:
        while got < size:
            block = body.read(min(PIECE, size - got))
            if not block:
                raise ValueError("the connection ended after %d of %d bytes" % (got, size))
            digest.update(block)
            got += len(block)
            for _ in range(len(block) // 1024):
                run.count += 1
            run.right()
            if not run.stopping():
                time.sleep(max(0, begin + got / int(rate) - time.monotonic()))
                if got == size:
                    run.wrong("the download was too short to be under way all the time")
        if length != size or digest.digest() != want.digest():
            run.wrong("%s bytes announced, %d got; digest right: %s" % (length, got, digest.digest() == want.digest()))
    except Exception as e:
        run.wrong("%s: %s" % (type(e).__name__, e))
    run.end()


main(*sys.argv[1:])
