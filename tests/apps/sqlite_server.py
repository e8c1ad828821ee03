"""sqlite_server.py HOST PORT FILE: each connection is standard input and output of a sqlite3 of its own on FILE."""
import os
import signal
import socket
import sys

host, port, file = sys.argv[1:]
signal.signal(signal.SIGCHLD, signal.SIG_IGN)
listener = socket.create_server((host, int(port)))
while True:
    s, _ = listener.accept()
    if os.fork() == 0:
        os.dup2(s.fileno(), 0)
        os.dup2(s.fileno(), 1)
        os.execvp("stdbuf", ["stdbuf", "-oL", "sqlite3", "-batch", file])
    s.close()
