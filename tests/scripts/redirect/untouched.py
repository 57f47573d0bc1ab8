"""What the mesh leaves alone, and the agent's ports, which are refused.

Arguments: the agent's ports as JSON; an address that answers datagrams on 5353.
"""
import errno
import json
import socket
import sys

ports, far = json.loads(sys.argv[1]), sys.argv[2]
results = {}
for name, family, address in [
    ("loopback", socket.AF_INET, "127.0.0.1"),
    ("loopback v6", socket.AF_INET6, "::1"),
]:
    with socket.socket(family) as server, socket.socket(family) as client:
        server.bind((address, 0))
        server.listen()
        client.connect(server.getsockname())
        accepted, peer = server.accept()
        same = peer == client.getsockname() and client.getpeername() == server.getsockname()
        results[name] = "ok" if same else "another peer"
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
    client.settimeout(5)
    client.connect((far, 5353))
    client.send(b"ping")
    results["udp"] = "ok" if client.recv(9) == b"ping" else "no echo"
codes = []
for port in ports:
    for family, address in [
        (socket.AF_INET, "127.0.0.1"),
        (socket.AF_INET6, "::1"),
        (socket.AF_INET6, "::ffff:127.9.9.9"),
    ]:
        with socket.socket(family) as client:
            codes.append(errno.errorcode.get(client.connect_ex((address, port)), "connected"))
results["own ports"] = codes
print(json.dumps(results))
