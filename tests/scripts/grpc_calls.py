"""Every kind of call of gRPC with grpcio: streams, metadata, deadlines, errors with details.

usage: grpc_calls.py serve PORT NAME | call HOST PORT PART
"""
import collections
import sys
import threading
import time
from concurrent import futures

import grpc

DETAILS = "grpc-status-details-bin"


class Calls(grpc.GenericRpcHandler):
    def __init__(self, name):
        self.name = name
        self.seen = collections.Counter()
        self.lock = threading.Lock()

    def answer(self, context):
        sent = dict(context.invocation_metadata())
        context.send_initial_metadata((("x-server", self.name), ("x-sent", sent.get("x-sent", ""))))
        context.set_trailing_metadata((("x-end", "1"), ("x-end-bin", b"\0\1\xff")))

    def unary(self, request, context):
        self.answer(context)
        return request

    def upload(self, requests, context):
        self.answer(context)
        return str(sum(map(len, requests))).encode()

    def download(self, request, context):
        self.answer(context)
        for number in range(int(request)):
            yield b"%d" % number

    def both(self, requests, context):
        self.answer(context)
        yield from requests

    def early(self, requests, context):
        """Ends the call while its client still sends."""
        context.set_trailing_metadata((("x-end", "1"),))
        next(requests)
        return b"enough"

    def flaky(self, request, context):
        with self.lock:
            self.seen[request] += 1
            first = self.seen[request] == 1
        if first:
            context.abort(grpc.StatusCode.UNAVAILABLE, "not yet")
        return b"%d" % self.seen[request]

    def slow(self, request, context):
        left = context.time_remaining()
        time.sleep(float(request))
        return str(left).encode()

    def detailed(self, request, context):
        context.set_trailing_metadata(((DETAILS, request), ("x-why", "told")))
        context.abort(grpc.StatusCode.FAILED_PRECONDITION, "with ünïcode: 100 %")

    def service(self, details):
        unary = grpc.unary_unary_rpc_method_handler
        return {
            "/calls.Calls/Unary": unary(self.unary),
            "/calls.Calls/Upload": grpc.stream_unary_rpc_method_handler(self.upload),
            "/calls.Calls/Download": grpc.unary_stream_rpc_method_handler(self.download),
            "/calls.Calls/Both": grpc.stream_stream_rpc_method_handler(self.both),
            "/calls.Calls/Early": grpc.stream_unary_rpc_method_handler(self.early),
            "/calls.Calls/Flaky": unary(self.flaky),
            "/calls.Calls/Slow": unary(self.slow),
            "/calls.Calls/Detailed": unary(self.detailed),
        }.get(details.method)


def serve(port, name):
    server = grpc.server(futures.ThreadPoolExecutor(32))
    server.add_generic_rpc_handlers((Calls(name),))
    server.add_insecure_port(f"[::]:{port}")
    server.start()
    server.wait_for_termination()


def failure(call, *arguments, **named):
    try:
        call(*arguments, **named)
    except grpc.RpcError as error:
        return error
    sys.exit("the call was to fail")


def ends(call):
    """The trailers that the server sends with every answer."""
    end = dict(call.trailing_metadata())
    assert end["x-end"] == "1" and end["x-end-bin"] == b"\0\1\xff", end


def kinds(channel):
    """Streams of all kinds, with metadata both ways."""
    names = collections.Counter()
    unary = channel.unary_unary("/calls.Calls/Unary")
    for number in range(200):
        message = bytes([number]) * (number * 50)
        answer, call = unary.with_call(message, timeout=20, metadata=(("x-sent", str(number)),))
        begin = dict(call.initial_metadata())
        assert answer == message and begin["x-sent"] == str(number), begin
        names[begin["x-server"]] += 1
        ends(call)
    upload = channel.stream_unary("/calls.Calls/Upload")
    answer, call = upload.with_call(iter([b"x" * 10000] * 100), timeout=20)
    assert answer == b"1000000", answer
    ends(call)
    call = channel.unary_stream("/calls.Calls/Download")(b"500", timeout=20)
    assert list(call) == [b"%d" % number for number in range(500)]
    ends(call)
    call = channel.stream_stream("/calls.Calls/Both")(iter([b"a" * 5000] * 200), timeout=20)
    assert list(call) == [b"a" * 5000] * 200
    ends(call)
    assert names["first"] > 3 * names["second"] > 0, names


def early(channel):
    """The server answers before it has read all, and wants no more."""
    method = channel.stream_unary("/calls.Calls/Early")

    def one(number):
        messages = (b"y" * 2000 for _ in range(50))
        answer, call = method.with_call(messages, timeout=30)
        return answer == b"enough" and dict(call.trailing_metadata()).get("x-end") == "1"

    with futures.ThreadPoolExecutor(16) as pool:
        whole = sum(pool.map(one, range(2000)))
    assert whole == 2000, f"{2000 - whole} of 2000 calls have lost their end"


def errors(channel):
    """Errors arrive with their details; deadlines hold at both ends."""
    details = b"\x08\x09\x12\x04told"
    error = failure(channel.unary_unary("/calls.Calls/Detailed"), details, timeout=10)
    assert error.code() == grpc.StatusCode.FAILED_PRECONDITION, error
    assert error.details() == "with ünïcode: 100 %", error
    end = dict(error.trailing_metadata())
    assert end[DETAILS] == details and end["x-why"] == "told", end
    slow = channel.unary_unary("/calls.Calls/Slow")
    left = float(slow(b"0", timeout=7))
    # The library rounds what it reads by some milliseconds.
    assert 0 < left <= 7.1, left
    error = failure(slow, b"5", timeout=0.5)
    assert error.code() == grpc.StatusCode.DEADLINE_EXCEEDED, error
    error = failure(channel.unary_unary("/calls.Calls/Missing"), b"", timeout=10)
    assert error.code() == grpc.StatusCode.UNIMPLEMENTED, error


def told(error, code, word):
    """The mesh's own refusal, for people and for programs."""
    assert error.code() == code, error
    assert error.details().startswith(word), error
    metadata = dict(error.trailing_metadata()) | dict(error.initial_metadata() or ())
    assert word.upper().encode() in metadata[DETAILS], metadata
    assert b"fairlead.dev" in metadata[DETAILS], metadata


def retried(channel):
    """A status that the policy names is tried again."""
    flaky = channel.unary_unary("/calls.Calls/Flaky")
    for number in range(20):
        answer, call = flaky.with_call(b"call %d" % number, timeout=20)
        begin = dict(call.initial_metadata())
        assert begin.get("fairlead-retries") == "1", begin


def timed(channel):
    """The policy's timeout is a deadline."""
    error = failure(channel.unary_unary("/calls.Calls/Slow"), b"5", timeout=20)
    told(error, grpc.StatusCode.DEADLINE_EXCEEDED, "timed_out")


def limited(channel):
    """Who calls too often is told so."""
    unary = channel.unary_unary("/calls.Calls/Unary")
    for _ in range(10):
        try:
            unary(b"x", timeout=20)
        except grpc.RpcError as error:
            return told(error, grpc.StatusCode.RESOURCE_EXHAUSTED, "rate_limited")
    sys.exit("no limit holds")


if sys.argv[1] == "serve":
    serve(int(sys.argv[2]), sys.argv[3])
else:
    with grpc.insecure_channel(f"{sys.argv[2]}:{sys.argv[3]}") as channel:
        {part.__name__: part for part in (kinds, early, errors, retried, timed, limited)}[
            sys.argv[4]
        ](channel)
    print("all answered")
