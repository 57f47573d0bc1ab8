"""An echo over TCP and UDP that first says who it sees.

usage: echo.py serve PORT
"""
import socket
import sys
import threading

port = int(sys.argv[2])


def plain(address):
    host = address[0]
    return host[7:] if host.startswith("::ffff:") else host


def serve(connection, accepted):
    with connection:
        seen = plain(connection.getpeername())
        if seen != plain(accepted):
            seen = f"accept said {accepted}, getpeername {seen}"
        connection.sendall(f"{seen}\n".encode())
        try:
            while data := connection.recv(65536):
                connection.sendall(data)
        except ConnectionError:
            pass


def datagrams():
    with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as server:
        server.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        server.bind(("::", port))
        while True:
            data, sender = server.recvfrom(2048)
            server.sendto(f"{plain(sender)}\n".encode() + data, sender)


threading.Thread(target=datagrams, daemon=True).start()
listener = socket.create_server(("::", port), family=socket.AF_INET6, dualstack_ipv6=True, backlog=512)
while True:
    connection, accepted = listener.accept()
    threading.Thread(target=serve, args=(connection, accepted), daemon=True).start()
