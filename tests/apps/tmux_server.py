"""tmux_server.py HOST PORT DIR: a tmux server, and a terminal for whoever connects, in which a client of it runs."""
import fcntl
import os
import pty
import selectors
import socket
import struct
import subprocess
import sys
import termios

host, port, directory = sys.argv[1:]
path = os.path.join(directory, "tmux.sock")
os.environ.update(TERM="xterm", SHELL="/bin/bash", LANG="C.UTF-8")
os.environ.pop("TMUX", None)
# without -D it would leave the tree
server = subprocess.Popen(["tmux", "-D", "-S", path, "-f", "/dev/null"], start_new_session=True)
listener = socket.create_server((host, int(port)))
s, _ = listener.accept()
pid, terminal = pty.fork()
if pid == 0:
    os.execvp("tmux", ["tmux", "-S", path, "new-session", "bash --norc", ";", "new-window", "top -d 0.5", ";", "select-window", "-t", "0"])
fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 30, 120, 0, 0))
both = selectors.DefaultSelector()
both.register(s, selectors.EVENT_READ)
both.register(terminal, selectors.EVENT_READ)
while True:
    for key, _ in both.select():
        data = s.recv(4096) if key.fileobj is s else os.read(terminal, 4096)
        if not data:
            sys.exit(0)
        if key.fileobj is s:
            os.write(terminal, data)
        else:
            s.sendall(data)
