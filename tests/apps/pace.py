"""pace.py SECONDS: how many turns a second two processes take that wake each other. It falls with the load of the
machine as the rate of a server and its clients does."""
import os
import sys
import time

there, back = os.pipe(), os.pipe()
if os.fork() == 0:
    os.close(there[1])
    while os.read(there[0], 1):
        os.write(back[1], b".")
    os._exit(0)
os.close(there[0])
turns, begin = 0, time.monotonic()
while (took := time.monotonic() - begin) < float(sys.argv[1]):
    os.write(there[1], b".")
    os.read(back[0], 1)
    turns += 1
print(int(turns / took))
