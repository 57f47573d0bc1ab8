"""One big transfer over a plain socket, with half-close and a checksum.

usage: transfer.py serve PORT | send HOST PORT MIB | receive HOST PORT MIB

The server answers "send" by the SHA-256 of all that came before the end of the
stream, and "receive MIB" by that many MiB. Each MiB begins with its number, so
that blocks that change places change the checksum.
"""
import hashlib
import socket
import sys
import threading

MIB = 1 << 20
BODY = bytes((i * 7 + (i >> 8)) & 0xFF for i in range(MIB - 8))


def block(number):
    return number.to_bytes(8, "big") + BODY


def drain(connection, digest):
    size = 0
    while data := connection.recv(MIB):
        digest.update(data)
        size += len(data)
    return size


def send_blocks(connection, count, digest=None):
    for number in range(count):
        data = block(number)
        if digest:
            digest.update(data)
        connection.sendall(data)


def serve_one(connection):
    with connection:
        command = b""
        while not command.endswith(b"\n"):
            byte = connection.recv(1)
            if not byte:
                return
            command += byte
        words = command.split()
        if words[0] == b"send":
            digest = hashlib.sha256()
            size = drain(connection, digest)
            connection.sendall(f"{size} {digest.hexdigest()}\n".encode())
        else:
            send_blocks(connection, int(words[1]))


def serve(port):
    listener = socket.create_server(("::", port), family=socket.AF_INET6, dualstack_ipv6=True, backlog=1024)
    while True:
        connection, _ = listener.accept()
        threading.Thread(target=serve_one, args=(connection,), daemon=True).start()


def expected(count):
    digest = hashlib.sha256()
    for number in range(count):
        digest.update(block(number))
    return f"{count * MIB} {digest.hexdigest()}"


def send(host, port, count):
    connection = socket.create_connection((host, port), timeout=120)
    connection.sendall(b"send\n")
    send_blocks(connection, count)
    connection.shutdown(socket.SHUT_WR)
    return connection.makefile().read().strip()


def receive(host, port, count):
    connection = socket.create_connection((host, port), timeout=120)
    connection.sendall(f"receive {count}\n".encode())
    connection.shutdown(socket.SHUT_WR)
    digest = hashlib.sha256()
    size = drain(connection, digest)
    return f"{size} {digest.hexdigest()}"


if sys.argv[1] == "serve":
    serve(int(sys.argv[2]))
else:
    action = {"send": send, "receive": receive}[sys.argv[1]]
    count = int(sys.argv[4])
    got = action(sys.argv[2], int(sys.argv[3]), count)
    if got != expected(count):
        sys.exit(f"got {got}, expected {expected(count)}")
    print("intact")
