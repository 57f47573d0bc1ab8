"""Connects in every way and prints as JSON what each one saw.

Arguments: the pod's IPv4 and IPv6 address. Nobody has the destinations; the agent
answers for them with one line.
"""
import ctypes
import errno
import json
import os
import select
import socket
import struct
import sys

POD4, POD6 = sys.argv[1:3]
FAR4, FAR6 = "192.0.2.1", "2001:db8::1"
MAPPED = "::ffff:192.0.2.1"
IO_URING_CONNECT = 16
results = {}


def saw(name, sock):
    sock.settimeout(5)
    banner = sock.makefile().readline().strip()
    results[name] = {
        "banner": banner,
        "peer": "%s %d" % sock.getpeername()[:2],
        "local": sock.getsockname()[0],
    }


def tcp(family):
    return socket.socket(family, socket.SOCK_STREAM)


def blocking(name, family, to, prepare=lambda sock: None):
    with tcp(family) as sock:
        prepare(sock)
        sock.connect(to)
        saw(name, sock)


def nonblocking(name, family, to):
    with tcp(family) as sock:
        sock.setblocking(False)
        code = sock.connect_ex(to)
        assert code in (0, errno.EINPROGRESS), code
        select.select([], [sock], [], 5)
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0
        sock.setblocking(True)
        saw(name, sock)


def fast_open_connect(sock):
    sock.setsockopt(socket.IPPROTO_TCP, 30, 1)


def fast_open_message(name, family, to):
    with tcp(family) as sock:
        assert sock.sendto(b"early", socket.MSG_FASTOPEN, to) == 5
        sock.settimeout(5)
        stream = sock.makefile("rb")
        banner = stream.readline().decode().strip()
        assert stream.read(5) == b"early"
        results[name] = {
            "banner": banner,
            "peer": "%s %d" % sock.getpeername()[:2],
            "local": sock.getsockname()[0],
        }


def reused(name):
    """Connects, disconnects with AF_UNSPEC, connects the same socket elsewhere."""
    with tcp(socket.AF_INET) as sock:
        sock.connect((FAR4, 81))
        sock.recv(1)
        libc = ctypes.CDLL(None, use_errno=True)
        assert libc.connect(sock.fileno(), b"\0" * 16, 16) == 0, ctypes.get_errno()
        sock.connect((FAR4, 82))
        saw(name, sock)
    # Redirected first, then to loopback: nothing of the first may be shown.
    with tcp(socket.AF_INET) as server, tcp(socket.AF_INET) as sock:
        server.bind(("127.0.0.1", 0))
        server.listen()
        sock.connect((FAR4, 83))
        libc.connect(sock.fileno(), b"\0" * 16, 16)
        sock.connect(server.getsockname())
        results["reused for loopback"] = {"peer_is_server": sock.getpeername() == server.getsockname()}


def io_uring(name, to):
    """One IORING_OP_CONNECT, by hand."""
    libc = ctypes.CDLL(None, use_errno=True)
    params = ctypes.create_string_buffer(120)
    ring = libc.syscall(425, 4, params)
    if ring < 0:
        results[name] = {"skipped": os.strerror(ctypes.get_errno())}
        return
    sq_entries, cq_entries = struct.unpack_from("<II", params, 0)
    sq = struct.unpack_from("<10I", params, 40)
    cq = struct.unpack_from("<10I", params, 80)
    import mmap

    sq_ring = mmap.mmap(ring, sq[6] + sq_entries * 4, offset=0)
    cq_ring = mmap.mmap(ring, cq[5] + cq_entries * 16, offset=0x8000000)
    sqes = mmap.mmap(ring, sq_entries * 64, offset=0x10000000)
    with tcp(socket.AF_INET) as sock:
        address = struct.pack("<H", socket.AF_INET) + struct.pack(">H", to[1])
        address = ctypes.create_string_buffer(address + socket.inet_aton(to[0]) + b"\0" * 8, 16)
        sqe = struct.pack(
            "<BBHiQQIIQ", IO_URING_CONNECT, 0, 0, sock.fileno(), 16, ctypes.addressof(address), 0, 0, 7
        )
        sqes[0 : len(sqe)] = sqe
        struct.pack_into("<I", sq_ring, sq[6], 0)
        struct.pack_into("<I", sq_ring, sq[1], 1)
        assert libc.syscall(426, ring, 1, 1, 1, None, 0) == 1, ctypes.get_errno()
        _, code = struct.unpack_from("<Qi", cq_ring, cq[5])
        assert code == 0, os.strerror(-code)
        saw(name, sock)


blocking("blocking", socket.AF_INET, (FAR4, 80))
blocking("blocking v6", socket.AF_INET6, (FAR6, 80))
blocking("mapped", socket.AF_INET6, (MAPPED, 80))
nonblocking("nonblocking", socket.AF_INET, (FAR4, 80))
nonblocking("nonblocking v6", socket.AF_INET6, (FAR6, 80))
blocking("bound", socket.AF_INET, (FAR4, 80), lambda sock: sock.bind((POD4, 0)))
blocking("bound to port", socket.AF_INET, (FAR4, 80), lambda sock: sock.bind((POD4, 33333)))
blocking("bound v6", socket.AF_INET6, (FAR6, 80), lambda sock: sock.bind((POD6, 0)))
blocking("own address", socket.AF_INET, (POD4, 80))
blocking("own address v6", socket.AF_INET6, (POD6, 80))
device = lambda sock: sock.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b"eth0\0")
blocking("bound to device", socket.AF_INET, (FAR4, 80), device)
blocking("bound to device v6", socket.AF_INET6, (FAR6, 80), device)
blocking("fast open connect", socket.AF_INET, (FAR4, 80), fast_open_connect)
fast_open_message("fast open message", socket.AF_INET, (FAR4, 80))
fast_open_message("fast open message v6", socket.AF_INET6, (FAR6, 80))
reused("reused")
io_uring("io_uring", (FAR4, 80))
try:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM, 262) as sock:
        sock.connect((FAR4, 80))
        saw("multipath", sock)
except OSError as error:
    results["multipath"] = {"skipped": str(error)}
print(json.dumps(results))
