"""An HTTP server that says what it was asked: the request line, the headers, the body.

usage: mirror.py serve PORT
"""
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
import socket


class Mirror(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def answer(self):
        body = self.rfile.read(int(self.headers.get("content-length", 0)))
        text = f"{self.requestline}\n"
        text += "".join(f"{name.lower()}: {value}\n" for name, value in self.headers.items())
        content = text.encode() + b"\n" + body
        self.send_response(200)
        self.send_header("content-length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    do_GET = do_POST = do_PUT = do_DELETE = answer

    def log_message(self, *_):
        pass


class Server(ThreadingHTTPServer):
    address_family = socket.AF_INET6


Server(("::", int(sys.argv[2])), Mirror).serve_forever()
