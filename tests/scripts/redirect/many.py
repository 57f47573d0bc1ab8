"""Opens many connections at once, each to a destination of its own, and checks that
the agent was asked for that one.

Arguments: a number that makes destinations differ between runs, how many in all, how
many at a time.
"""
import selectors
import socket
import sys

number, total, at_once = map(int, sys.argv[1:4])
selector = selectors.DefaultSelector()
started = right = open_now = 0


def destination(index):
    return "198.%d.%d.%d" % (18 + number % 2, index // 250, index % 250 + 1), 1000 + index % 7000


def start(index):
    sock = socket.socket()
    sock.setblocking(False)
    sock.connect_ex(destination(index))
    selector.register(sock, selectors.EVENT_READ, (index, bytearray()))


held = []
while right < total:
    while started < total and open_now < at_once:
        start(started)
        started += 1
        open_now += 1
    ready = selector.select(20)
    if not ready:
        sys.exit("%d of %d, then nothing" % (right, total))
    for key, _ in ready:
        index, seen = key.data
        data = key.fileobj.recv(200)
        seen.extend(data)
        if data and not seen.endswith(b"\n"):
            continue
        asked = seen.decode().split(" ")[0]
        if asked != "%s:%d" % destination(index):
            sys.exit("%d was asked for %r" % (index, seen))
        if "%s:%d" % key.fileobj.getpeername() != asked:
            sys.exit("%d shows another peer" % index)
        right += 1
        selector.unregister(key.fileobj)
        # Kept until all of them are open where all are to be open at once.
        held.append(key.fileobj)
        if at_once < total:
            open_now -= 1
            held.pop().close()
print("%d of %d" % (right, total))
