"""A small HTTP server for both families.

usage: web.py serve PORT
"""
import http.server
import socket
import sys


class Dual(http.server.ThreadingHTTPServer):
    address_family = socket.AF_INET6
    request_queue_size = 512


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        self.send_response(200)
        self.send_header("Content-Length", "3")
        self.end_headers()
        self.wfile.write(b"ok\n")

    def log_message(self, *arguments):
        pass


Dual(("::", int(sys.argv[2])), Handler).serve_forever()
