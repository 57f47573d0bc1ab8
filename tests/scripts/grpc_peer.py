"""gRPC with grpcio: unary calls, a stream each way, an error.

usage: grpc_peer.py serve PORT | call HOST PORT
"""
import sys
from concurrent import futures

import grpc


def identity(data):
    return data


class Echo(grpc.GenericRpcHandler):
    def service(self, details):
        if details.method == "/echo/Unary":
            return grpc.unary_unary_rpc_method_handler(lambda request, _: request)
        if details.method == "/echo/Stream":
            return grpc.stream_stream_rpc_method_handler(lambda requests, _: requests)
        return None


def serve(port):
    server = grpc.server(futures.ThreadPoolExecutor(16))
    server.add_generic_rpc_handlers((Echo(),))
    server.add_insecure_port(f"[::]:{port}")
    server.start()
    print("ready", flush=True)
    server.wait_for_termination()


def call(host, port):
    with grpc.insecure_channel(f"{host}:{port}") as channel:
        unary = channel.unary_unary("/echo/Unary")
        for number in range(300):
            message = f"message {number}".encode() * (number + 1)
            assert unary(message, timeout=10) == message
        stream = channel.stream_stream("/echo/Stream")
        messages = [bytes([number % 256]) * 4096 for number in range(1000)]
        assert list(stream(iter(messages), timeout=30)) == messages
        try:
            channel.unary_unary("/echo/Missing")(b"", timeout=10)
            sys.exit("a method that is not there answered")
        except grpc.RpcError as error:
            assert error.code() == grpc.StatusCode.UNIMPLEMENTED, error
    print("all answered")


if sys.argv[1] == "serve":
    serve(int(sys.argv[2]))
else:
    call(sys.argv[2], int(sys.argv[3]))
