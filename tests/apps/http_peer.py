"""http_peer.py DIR HOST PORT CONNECTIONS ROOT: keep-alive requests. ROOT is a directory whose files the server serves,
or `digest`: /digest/TEXT is answered with the SHA-256 of TEXT, /total with how many of these there were."""
import hashlib
import http.client
import os
import random
import sys
import time
import peer


def open_connection(host, port):
    c = http.client.HTTPConnection(host, int(port), timeout=30)
    c.connect()
    c.auto_open = 0  # never again
    return c


def get(c, path):
    c.request("GET", path)
    answer = c.getresponse()
    body = answer.read()
    if answer.status != 200:
        raise ValueError("GET %s: status %d" % (path, answer.status))
    return body


def choose_file(root, names):
    name = random.choice(names)
    with open(os.path.join(root, name), "rb") as f:
        return "/" + name, f.read()


def choose_digest():
    text = os.urandom(20).hex()
    return "/digest/" + text, hashlib.sha256(text.encode()).hexdigest().encode()


def asker(run, host, port, who, choose):
    c = open_connection(host, port)

    def ask():
        path, want = choose()
        got = get(c, path)
        if got != want:
            raise ValueError("GET %s: %d bytes, %r... instead of %d, %r..." % (path, len(got), got[:40], len(want), want[:40]))
        run.right(who)
        time.sleep(0.005)

    return ask


def main(directory, host, port, connections, root):
    run = peer.Run(directory)
    if root == "digest":
        choose = choose_digest
    else:
        names = os.listdir(root)
        choose = lambda: choose_file(root, names)
    total = open_connection(host, port)
    peer.side_by_side(run, [lambda i=i: asker(run, host, port, i, choose) for i in range(int(connections))])
    if root == "digest" and run.problem is None:
        n = int(get(total, "/total"))
        if n != run.count:
            run.wrong("the server counts %d requests, the client %d" % (n, run.count))
    run.end()


main(*sys.argv[1:])
