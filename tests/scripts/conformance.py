"""The echo server of the Gateway API's conformance tests, as far as a mesh needs it, and
its client for gRPC.

usage: conformance.py serve NAMESPACE POD
       conformance.py call HOST PORT SERVICE METHOD COUNT [NAME=VALUE]...

HTTP on 8080, gRPC on 7070, lines on 9090. What was asked comes back as JSON; `delay` in
the query, in seconds, holds the answer up. The client prints how many calls which pod
has answered, and which ended with which status.
"""
import collections
import http.server
import json
import socketserver
import sys
import threading
import time
import urllib.parse
from concurrent import futures

import grpc

SERVICE = "gateway_api_conformance.echo_basic.grpcecho.GrpcEcho"


class Http(http.server.ThreadingHTTPServer):
    request_queue_size = 512


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def answer(self):
        length = int(self.headers.get("Content-Length") or 0)
        if length:
            self.rfile.read(length)
        print(f"request {self.command} {self.path}", flush=True)
        query = urllib.parse.parse_qs(urllib.parse.urlsplit(self.path).query)
        time.sleep(float(query.get("delay", ["0"])[0]))
        headers = collections.defaultdict(list)
        for name, value in self.headers.items():
            headers["-".join(part.capitalize() for part in name.split("-"))].append(value)
        body = json.dumps({
            "path": self.path,
            "host": self.headers.get("Host", ""),
            "method": self.command,
            "proto": self.request_version,
            "headers": headers,
            "namespace": NAMESPACE,
            "pod": POD,
        }).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.send_header("X-Echo-Set", "by-the-server")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    do_GET = do_HEAD = do_POST = do_PUT = do_PATCH = do_DELETE = do_OPTIONS = answer

    def log_message(self, *arguments):
        pass


class Lines(socketserver.StreamRequestHandler):
    def handle(self):
        for line in self.rfile:
            self.wfile.write(POD.encode() + b" " + line)


class Threaded(socketserver.ThreadingTCPServer):
    allow_reuse_address = True
    daemon_threads = True


class Calls(grpc.GenericRpcHandler):
    def service(self, details):
        if not details.method.startswith(f"/{SERVICE}/"):
            return None
        return grpc.unary_unary_rpc_method_handler(lambda *_: POD.encode())


def serve():
    for server in Http(("", 8080), Handler), Threaded(("", 9090), Lines):
        threading.Thread(target=server.serve_forever, daemon=True).start()
    server = grpc.server(futures.ThreadPoolExecutor(16))
    server.add_generic_rpc_handlers((Calls(),))
    server.add_insecure_port("0.0.0.0:7070")
    server.start()
    print("ready", flush=True)
    server.wait_for_termination()


def call(host, port, service, method, count, *headers):
    answers = collections.Counter()
    metadata = [tuple(header.split("=", 1)) for header in headers]
    with grpc.insecure_channel(f"{host}:{port}") as channel:
        ask = channel.unary_unary(f"/{service}/{method}")
        for _ in range(int(count)):
            try:
                answers[ask(b"", timeout=5, metadata=metadata).decode()] += 1
            except grpc.RpcError as error:
                answers[error.code().name] += 1
    print(json.dumps(answers))


if sys.argv[1] == "serve":
    NAMESPACE, POD = sys.argv[2:4]
    serve()
else:
    call(*sys.argv[2:])
