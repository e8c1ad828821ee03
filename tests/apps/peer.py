"""What the clients of the servers share. A client connects once, at its start; whatever breaks is a failure.

It runs until DIR/stop is there, and leaves in DIR: ready (it is connected, and was answered), count (answers
that were right, longest time without one in us), result (OK or what was wrong)."""
import os
import socket
import sys
import threading
import time


class Run:
    def __init__(self, directory):
        self.dir = directory
        self.lock = threading.Lock()
        self.count = 0
        self.longest = 0.0
        self.last = {}
        self.written = 0.0
        self.problem = None
        self.file = os.open(self.path("count"), os.O_CREAT | os.O_WRONLY, 0o644)

    def path(self, name):
        return os.path.join(self.dir, name)

    def right(self, who=None):
        """One more answer that was as it has to be; who: which connection got it."""
        with self.lock:
            now = time.monotonic()
            self.count += 1
            self.longest = max(self.longest, now - self.last.get(who, now))
            self.last[who] = now
            if now - self.written > 0.02:
                self._write(now)

    def _write(self, now):
        self.written = now
        os.pwrite(self.file, b"%020d %012d\n" % (self.count, int(self.longest * 1e6)), 0)

    def ready(self):
        open(self.path("ready"), "w").close()

    def wrong(self, problem):
        with self.lock:
            self.problem = self.problem or str(problem)

    def stopping(self):
        return self.problem is not None or os.path.exists(self.path("stop"))

    def end(self):
        self._write(time.monotonic())
        with open(self.path("result.new"), "w") as f:
            f.write((self.problem or "OK") + "\n")
        os.rename(self.path("result.new"), self.path("result"))
        sys.exit(0 if self.problem is None else 1)


def connect(host, port, timeout=30):
    """A connection on which an answer that does not come is an error."""
    s = socket.create_connection((host, int(port)), timeout=timeout)
    s.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return s


def side_by_side(run, makers):
    """Calls each maker, which connects and returns what asks once; all of those over and over, each in a thread
    of its own, until the end. Ready once each was answered."""
    asks = [make() for make in makers]
    for ask in asks:
        ask()
    run.ready()

    def go_on(ask):
        try:
            while not run.stopping():
                ask()
        except Exception as e:  # whatever it is, it is what was wrong
            run.wrong("%s: %s" % (type(e).__name__, e))

    threads = [threading.Thread(target=go_on, args=(ask,)) for ask in asks]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
