#!/usr/bin/python3
"""Listens with a full queue, so that whoever connects gets no answer; from DIR/accept on it takes connections
and sends back what they say. dialled.py ADDRESS DIR"""
import os
import select
import socket
import sys
import time

address, where = sys.argv[1:]
family = socket.AF_INET6 if ":" in address else socket.AF_INET
listener = socket.socket(family, socket.SOCK_STREAM)
listener.bind((address, 0))
listener.listen(0)
port = listener.getsockname()[1]
filler = socket.create_connection((address, port))
with open(where + "/port.new", "w") as f:
    f.write(str(port))
os.rename(where + "/port.new", where + "/port")
while not os.path.exists(where + "/accept"):
    time.sleep(0.01)
conns = []
while True:
    for s in select.select([listener] + conns, [], [])[0]:
        if s is listener:
            conns.append(s.accept()[0])
            continue
        data = s.recv(4096)
        if data:
            s.sendall(data)
        else:
            conns.remove(s)
            s.close()
