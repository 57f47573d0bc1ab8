"""Dials a port on and on, as kubelet does, and says what it was told each time.

probe.py ADDRESS PORT [USER]
"""

import os
import socket
import sys
import time

address, port = sys.argv[1], int(sys.argv[2])
if len(sys.argv) > 3:
    os.setuid(int(sys.argv[3]))
while True:
    try:
        with socket.create_connection((address, port), timeout=5) as connection:
            print("told", connection.makefile().readline().strip(), flush=True)
    except OSError as error:
        print("failed", error, flush=True)
    time.sleep(0.2)
