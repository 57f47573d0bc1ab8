"""Attaches a program to connect() of a cgroup that suffers no other, until it is told to
end (SIGTERM).

exclusive.py CGROUP
"""

import ctypes
import os
import platform
import signal
import struct
import sys

PROG_LOAD, PROG_ATTACH, PROG_DETACH = 5, 8, 9
CGROUP_SOCK_ADDR, INET4_CONNECT = 18, 10
NUMBER = {"x86_64": 321, "aarch64": 280}[platform.machine()]
libc = ctypes.CDLL(None, use_errno=True)


def bpf(command, attribute):
    buffer = ctypes.create_string_buffer(attribute, len(attribute))
    result = libc.syscall(NUMBER, command, buffer, len(attribute))
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result


# r0 = 1; exit: lets every call through.
code = ctypes.create_string_buffer(struct.pack("<BBhiBBhi", 0xB7, 0, 0, 1, 0x95, 0, 0, 0))
licence = ctypes.create_string_buffer(b"GPL")
load = struct.pack(
    "<IIQQIIQII16sII",
    CGROUP_SOCK_ADDR,
    2,
    ctypes.addressof(code),
    ctypes.addressof(licence),
    0,
    0,
    0,
    0,
    0,
    b"exclusive",
    0,
    INET4_CONNECT,
)
program = bpf(PROG_LOAD, load)
cgroup = os.open(sys.argv[1], os.O_RDONLY)
# No flag: neither another program beside it, nor one below.
target = struct.pack("<IIII", cgroup, program, INET4_CONNECT, 0)
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
bpf(PROG_ATTACH, target)
print("attached", flush=True)
signal.sigwait([signal.SIGTERM])
bpf(PROG_DETACH, target)
