"""Envoy's external authorization and global rate limit with grpcio, and the few messages
of protobuf that they need written out by hand.

usage: judge.py serve PORT

Authorization: denies with 401 what has the header x-judge: deny, answers nothing for 30 s
where it is slow, and else permits and tells the application by x-judged who asked.
Rate limit: the second and all further hits on the same descriptor are over the limit.
"""
import sys
import threading
import time
from concurrent import futures

import grpc


def fields(data):
    """The fields of a message: number, and what it is."""
    at = 0

    def varint():
        nonlocal at
        value, shift = 0, 0
        while True:
            byte = data[at]
            at += 1
            value |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                return value

    while at < len(data):
        key = varint()
        if key & 7 == 0:
            yield key >> 3, varint()
        elif key & 7 == 2:
            size = varint()
            yield key >> 3, data[at : at + size]
            at += size
        else:
            raise ValueError(f"wire type {key & 7}")


def inner(data, *path):
    """The message, or text, at a path of field numbers."""
    for number in path:
        data = next((value for key, value in fields(data) if key == number), b"")
    return data


def number(value):
    out = b""
    while value >= 0x80:
        out += bytes([value & 0x7F | 0x80])
        value >>= 7
    return out + bytes([value])


def field(key, value):
    if isinstance(value, int):
        return number(key << 3) + number(value)
    value = value.encode() if isinstance(value, str) else value
    return number(key << 3 | 2) + number(len(value)) + value


def header(key, value):
    return field(1, field(1, key) + field(2, value))


def check(request, _context):
    attributes = inner(request, 1)
    http = inner(attributes, 4, 2)
    headers = {}
    for key, value in fields(http):
        if key == 3:
            headers[inner(value, 1).decode()] = inner(value, 2).decode()
    principal = inner(attributes, 1, 4).decode()
    asked = headers.get("x-judge")
    if asked == "slow":
        time.sleep(30)
    if asked == "deny":
        denied = field(1, field(1, 401)) + field(2, header("x-why", "judged")) + field(3, "no\n")
        return field(1, field(1, 16)) + field(2, denied)
    judged = f"{inner(http, 2).decode()} {inner(http, 4).decode()} {principal}"
    return field(1, b"") + field(3, field(2, header("x-judged", judged)))


hits = {}
lock = threading.Lock()


def limit(request, _context):
    with lock:
        hits[request] = hits.get(request, 0) + 1
        over = hits[request] > 1
    code = 2 if over else 1
    return field(1, code) + field(2, field(1, code))


class Judge(grpc.GenericRpcHandler):
    def service(self, details):
        if details.method == "/envoy.service.auth.v3.Authorization/Check":
            return grpc.unary_unary_rpc_method_handler(check)
        if details.method == "/envoy.service.ratelimit.v3.RateLimitService/ShouldRateLimit":
            return grpc.unary_unary_rpc_method_handler(limit)
        return None


server = grpc.server(futures.ThreadPoolExecutor(8))
server.add_generic_rpc_handlers((Judge(),))
server.add_insecure_port(f"[::]:{sys.argv[2]}")
server.start()
print("ready", flush=True)
server.wait_for_termination()
