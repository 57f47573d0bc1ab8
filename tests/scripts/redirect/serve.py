"""Answers each connection with what accept and getpeername say, then echoes.

Arguments: ADDRESS PORT. `::` is dual-stack.
"""
import socket
import sys
import threading

address, port = sys.argv[1], int(sys.argv[2])
family = socket.AF_INET6 if ":" in address else socket.AF_INET
server = socket.socket(family, socket.SOCK_STREAM)
server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
if address == "::":
    server.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
server.bind((address, port))
server.listen(128)
print("listening", flush=True)


def serve(sock, accepted):
    named = sock.getpeername()
    sock.sendall(("%s %d %s %d\n" % (accepted[0], accepted[1], named[0], named[1])).encode())
    while data := sock.recv(65536):
        sock.sendall(data)
    sock.close()


while True:
    connection = server.accept()
    threading.Thread(target=serve, args=connection, daemon=True).start()
