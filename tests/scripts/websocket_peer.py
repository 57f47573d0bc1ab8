"""WebSocket with the package websockets: upgrade, echo, big frames, close codes.

usage: websocket_peer.py serve PORT | call HOST PORT
"""
import sys

from websockets.sync.client import connect
from websockets.sync.server import serve


def echo(connection):
    connection.send("welcome")
    for message in connection:
        if message == "bye":
            connection.close(4001, "as you wish")
            return
        connection.send(message)


if sys.argv[1] == "serve":
    with serve(echo, "", int(sys.argv[2]), max_size=1 << 24) as server:
        print("ready", flush=True)
        server.serve_forever()
else:
    url = f"ws://{sys.argv[2]}:{sys.argv[3]}/"
    with connect(url, max_size=1 << 24, open_timeout=10, compression=None) as connection:
        assert connection.recv(10) == "welcome"
        for number in range(500):
            message = f"message {number}"
            connection.send(message)
            assert connection.recv(10) == message
        big = bytes(range(256)) * 16384
        connection.send(big)
        assert connection.recv(30) == big
        connection.send("bye")
        try:
            connection.recv(10)
            sys.exit("it was to be closed")
        except Exception:
            assert connection.close_code == 4001, connection.close_code
    print("all answered")
