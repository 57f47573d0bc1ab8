"""Dials an echo server in the ways that applications do.

usage: dial.py echo HOST PORT            one connection, and what both ends see
       dial.py nobody HOST PORT          must end within two seconds
       dial.py udp HOST PORT             one datagram
       dial.py every-kind V4 V6 PORT     every kind of connect
"""
import errno
import os
import select
import socket
import struct
import sys
import time

SO_BINDTODEVICE = getattr(socket, "SO_BINDTODEVICE", 25)
TCP_FASTOPEN_CONNECT = 30
MSG_FASTOPEN = 0x20000000
# Seconds; longer on emulated processors.
LIMIT = 10 * int(os.environ.get("FAIRLEAD_PATIENCE", "1"))


def family(host):
    return socket.AF_INET6 if ":" in host else socket.AF_INET


def new(host):
    connection = socket.socket(family(host), socket.SOCK_STREAM)
    connection.settimeout(LIMIT)
    return connection


def line(connection):
    text = b""
    while not text.endswith(b"\n"):
        data = connection.recv(1)
        if not data:
            raise EOFError(f"the connection ended after {text!r}")
        text += data
    return text.decode().strip()


def plain(host):
    return host[7:] if host.startswith("::ffff:") else host


def verify(connection, host, port, sent=b""):
    """Both ends see the addresses that they would without a mesh."""
    peer = connection.getpeername()
    assert (peer[0], peer[1]) == (host, port), f"getpeername says {peer}, not {host}:{port}"
    seen = line(connection)
    own = plain(connection.getsockname()[0])
    assert seen == own, f"the server sees {seen}, the client is {own}"
    message = os.urandom(200000)
    left = memoryview(message)
    got = bytearray()
    connection.setblocking(False)
    deadline = time.monotonic() + 10
    while len(got) < len(sent) + len(message):
        assert time.monotonic() < deadline, "the echo takes too long"
        readable, writable, _ = select.select([connection], [connection] if left else [], [], 1)
        if writable:
            left = left[connection.send(left[:65536]):]
        if readable:
            data = connection.recv(65536)
            assert data, "the connection ended early"
            got += data
    assert bytes(got) == sent + message, "the echo is not what was sent"
    connection.close()


def blocking(host, port):
    connection = new(host)
    connection.connect((host, port))
    verify(connection, host, port)


def nonblocking(host, port):
    connection = new(host)
    connection.setblocking(False)
    code = connection.connect_ex((host, port))
    assert code in (0, errno.EINPROGRESS), errno.errorcode[code]
    _, writable, _ = select.select([], [connection], [], 10)
    assert writable, "never writable"
    assert connection.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0
    connection.setblocking(True)
    connection.settimeout(LIMIT)
    verify(connection, host, port)


def bound(host, port):
    probe = socket.socket(family(host), socket.SOCK_DGRAM)
    probe.connect((host, 9))
    own = probe.getsockname()[0]
    connection = new(host)
    connection.bind((own, 0))
    number = connection.getsockname()[1]
    connection.connect((host, port))
    assert connection.getsockname()[:2] == (own, number)
    verify(connection, host, port)


def bound_to_device(host, port):
    connection = new(host)
    connection.setsockopt(socket.SOL_SOCKET, SO_BINDTODEVICE, b"eth0\0")
    connection.connect((host, port))
    verify(connection, host, port)


def fast_open_connect(host, port):
    connection = new(host)
    connection.setsockopt(socket.IPPROTO_TCP, TCP_FASTOPEN_CONNECT, 1)
    connection.connect((host, port))
    connection.sendall(b"early")
    verify(connection, host, port, b"early")


def fast_open_send(host, port):
    connection = new(host)
    connection.settimeout(None)
    connection.sendto(b"early", MSG_FASTOPEN, (host, port))
    verify(connection, host, port, b"early")


def reused(host, port):
    connection = new(host)
    connection.connect((host, port))
    line(connection)
    unspec = struct.pack("=H14x", socket.AF_UNSPEC)
    # Python has no address of that family: the system call itself disconnects.
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)
    if libc.connect(connection.fileno(), unspec, len(unspec)) != 0:
        raise OSError(ctypes.get_errno(), "disconnect")
    connection.connect((host, port))
    verify(connection, host, port)


def mapped(host, port):
    connection = socket.socket(socket.AF_INET6, socket.SOCK_STREAM)
    connection.settimeout(LIMIT)
    connection.connect(("::ffff:" + host, port))
    verify(connection, "::ffff:" + host, port)


def multipath(host, port):
    # getpeername of MPTCP shows the subflow's address: a limit of the kernel.
    try:
        connection = socket.socket(family(host), socket.SOCK_STREAM, 262)
    except OSError:
        return
    connection.settimeout(LIMIT)
    connection.connect((host, port))
    line(connection)
    connection.sendall(b"x")
    assert connection.recv(1) == b"x"


def refused_then_connected(host, port):
    connection = new(host)
    connection.connect((host, port))
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()
    blocking(host, port)


def closed_early(host, port):
    for _ in range(50):
        connection = new(host)
        connection.setblocking(False)
        connection.connect_ex((host, port))
        connection.close()
    blocking(host, port)


KINDS = [
    blocking, nonblocking, bound, bound_to_device, fast_open_connect, fast_open_send,
    reused, multipath, refused_then_connected, closed_early,
]


def every_kind(v4, v6, port):
    wrong = []
    cases = [(kind, host) for kind in KINDS for host in (v4, v6)] + [(mapped, v4)]
    for kind, host in cases:
        try:
            kind(host, port)
            print(f"{kind.__name__} {host}: right")
        except Exception as error:
            wrong.append(f"{kind.__name__} {host}: {error!r}")
    if wrong:
        sys.exit("\n".join(wrong))
    print("all right")


def nobody(host, port):
    start = time.monotonic()
    connection = new(host)
    try:
        connection.connect((host, port))
        data = connection.recv(1)
        if data:
            sys.exit(f"somebody answered: {data!r}")
        ending = "end of stream"
    except TimeoutError:
        sys.exit("it hangs")
    except OSError as error:
        ending = repr(error)
    elapsed = time.monotonic() - start
    if elapsed > 2:
        sys.exit(f"{ending} after {elapsed:.1f} s")
    print("ended promptly")


def udp(host, port):
    connection = socket.socket(family(host), socket.SOCK_DGRAM)
    connection.settimeout(5)
    connection.connect((host, port))
    connection.send(b"hello")
    seen, data = connection.recv(2048).split(b"\n", 1)
    assert data == b"hello"
    assert seen.decode() == connection.getsockname()[0], seen
    assert connection.getpeername()[:2] == (host, port)
    print("right")


def echo(host, port):
    blocking(host, port)
    print("right")


mode, *rest = sys.argv[1:]
if mode == "every-kind":
    every_kind(rest[0], rest[1], int(rest[2]))
else:
    {"echo": echo, "nobody": nobody, "udp": udp}[mode](rest[0], int(rest[1]))
