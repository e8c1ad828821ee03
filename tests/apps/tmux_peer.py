"""tmux_peer.py DIR HOST PORT: types into a shell in tmux and reads the screen; looks at top in another window; in the
end the shell still knows what it was told at the beginning, and its job."""
import re
import sys
import time
import peer


class Screen:
    def __init__(self, host, port):
        self.s = peer.connect(host, port)
        self.seen = b""

    def type(self, text):
        self.s.sendall(text.encode())

    def wait(self, pattern):
        """Until that shows, on what came since the last that was waited for."""
        while not (m := re.search(pattern, self.seen)):
            data = self.s.recv(4096)
            if not data:
                raise ValueError("the connection ended")
            self.seen = (self.seen + data)[-20000:]
        self.seen = self.seen[m.end():]
        return m


def main(directory, host, port):
    run = peer.Run(directory)
    screen = Screen(host, port)
    screen.wait(rb"[#$] ")
    screen.type("PS1='> '; remembered=$((6 * 7)); sleep 10000 & clear\r")
    n = 0

    def ask():
        nonlocal n
        n += 1
        if n % 10 == 0:
            screen.type("\x021")  # top's window
            screen.wait(rb"load average")
            screen.wait(rb"top - \d\d:\d\d:\d\d|\d\d:\d\d:\d\d|\d+\.\d+ us")  # and once more of it
            screen.type("\x020")
        screen.type("echo [$((%d * 7))]\r" % n)
        screen.wait(rb"\[%d\]" % (n * 7))
        run.right()
        time.sleep(0.02)

    peer.side_by_side(run, [lambda: ask])
    if run.problem is None:
        try:
            screen.type("clear; echo [$remembered-$(jobs | grep -c Running)]\r")
            screen.wait(rb"\[42-1\]")
            screen.type("kill %1; wait; exit\r")
            screen.wait(rb"load average|\[exited\]")
        except Exception as e:
            run.wrong("%s: %s" % (type(e).__name__, e))
    run.end()


main(*sys.argv[1:])
