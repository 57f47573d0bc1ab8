"""Dials ADDRESS PORT, sends `ping`, prints as JSON what it saw."""
import errno
import json
import socket
import sys
import time

started = time.monotonic()
result = {}
try:
    with socket.create_connection((sys.argv[1], int(sys.argv[2])), timeout=5) as sock:
        result["local"] = "%s %d" % sock.getsockname()[:2]
        stream = sock.makefile("rb")
        sock.sendall(b"ping")
        result["banner"] = stream.readline().decode().strip()
        if result["banner"] and not result["banner"].startswith("tunnel"):
            result["echo"] = stream.read(4).decode()
except OSError as error:
    result["error"] = errno.errorcode.get(error.errno, str(error))
result["seconds"] = time.monotonic() - started
print(json.dumps(result))
