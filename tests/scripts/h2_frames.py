"""Raw frames against an HTTP/2 server: what RFC 9113 says of errors, in the order of its
sections (numbered as in RFC 7540, by which h2spec names its cases), and floods.

usage: h2_frames.py HOST PORT PATH

The path is answered by a POST of gRPC. Prints a JSON object: how many cases there were,
and what went wrong in each that failed.

A connection error may always be PROTOCOL_ERROR: the library says so where RFC 9113 has a
narrower code (COMPRESSION_ERROR, FRAME_SIZE_ERROR, FLOW_CONTROL_ERROR, STREAM_CLOSED). A
pseudo-header among trailers is dropped by it, rather than the stream reset.
"""
import json
import socket
import struct
import sys
import time

DATA, HEADERS, PRIORITY, RST, SETTINGS, PUSH, PING, GOAWAY, WINDOW, CONTINUATION = range(10)
END_STREAM, ACK, END_HEADERS, PADDED = 1, 1, 4, 8
NO_ERROR, PROTOCOL, INTERNAL, FLOW, TIMEOUT, CLOSED, SIZE, REFUSED, CANCEL, COMPRESSION = range(10)
CALM = 11
PATIENCE = 5


def literal(name, value):
    """Not indexed, no Huffman code, lengths below 127 or with one more byte."""
    def text(data):
        data = data if isinstance(data, bytes) else data.encode()
        if len(data) < 127:
            return bytes([len(data)]) + data
        rest, out = len(data) - 127, [127]
        while rest >= 128:
            out.append(rest % 128 + 128)
            rest //= 128
        return bytes(out + [rest]) + data
    return b"\0" + text(name) + text(value)


def block(*headers):
    return b"".join(literal(name, value) for name, value in headers)


PSEUDO = [(":method", "POST"), (":scheme", "http"), (":path", sys.argv[3]),
          (":authority", "echo")]
FIELDS = [("content-type", "application/grpc"), ("te", "trailers")]
REQUEST = block(*PSEUDO, *FIELDS)
MESSAGE = b"\0\0\0\0\0"


class Ended(Exception):
    pass


class Connection:
    def __init__(self, preface=b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", settings=b"", shake=True):
        self.socket = socket.create_connection(sys.argv[1:3], PATIENCE)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.settings = {}
        self.raw(preface)
        if shake:
            self.send(SETTINGS, 0, 0, settings)
            while not self.settings:
                self.frame()

    def raw(self, data):
        try:
            self.socket.sendall(data)
        except OSError:
            # What the server had to say before is still to be read.
            pass

    def send(self, kind, flags, stream, payload=b"", length=None):
        length = len(payload) if length is None else length
        self.raw(struct.pack(">I", length)[1:] + struct.pack(">BBI", kind, flags, stream) + payload)

    def request(self, stream=1, headers=REQUEST, end=False):
        self.send(HEADERS, END_HEADERS | (END_STREAM if end else 0), stream, headers)

    def exactly(self, count):
        data = b""
        while len(data) < count:
            try:
                more = self.socket.recv(count - len(data))
            except socket.timeout:
                raise
            except OSError:
                more = b""
            if not more:
                raise Ended
            data += more
        return data

    def frame(self):
        head = self.exactly(9)
        length = struct.unpack(">I", b"\0" + head[:3])[0]
        kind, flags, stream = struct.unpack(">BBI", head[3:])
        payload = self.exactly(length)
        if kind == SETTINGS and not flags & ACK:
            self.settings = {0: 0}
            for at in range(0, length, 6):
                name, value = struct.unpack(">HI", payload[at:at + 6])
                self.settings[name] = value
            self.send(SETTINGS, ACK, 0)
        return kind, flags, stream, payload

    def until(self, wanted):
        end = time.monotonic() + PATIENCE
        while time.monotonic() < end:
            frame = self.frame()
            if wanted(*frame):
                return frame
        raise socket.timeout

    def connection_error(self, *codes):
        """GOAWAY with one of the codes, or the end."""
        try:
            _, _, _, payload = self.until(lambda kind, *_: kind == GOAWAY)
        except Ended:
            return
        code = struct.unpack(">I", payload[4:8])[0]
        assert code in (*codes, PROTOCOL), f"GOAWAY with {code} instead of {codes}"

    def stream_error(self, *codes):
        """RST_STREAM or GOAWAY with one of the codes, or the end."""
        try:
            kind, _, _, payload = self.until(lambda kind, *_: kind in (GOAWAY, RST))
        except Ended:
            return
        if kind == GOAWAY:
            code, codes = struct.unpack(">I", payload[4:8])[0], (*codes, PROTOCOL)
        else:
            code = struct.unpack(">I", payload[:4])[0]
        assert code in codes, f"frame {kind} with {code} instead of {codes}"

    def lives(self):
        """A PING comes back as it was."""
        self.send(PING, 0, 0, b"livesyet")
        try:
            frame = self.until(
                lambda kind, flags, _, payload: kind == PING and flags & ACK and payload == b"livesyet"
                or kind == GOAWAY)
        except Ended:
            raise AssertionError("the connection ended")
        assert frame[0] == PING, f"{frame}"

    def answered(self, stream):
        try:
            kind, _, _, payload = self.until(
                lambda kind, _flags, of, _payload: of == stream and kind in (HEADERS, RST) or kind == GOAWAY)
        except Ended:
            raise AssertionError("the connection ended")
        assert kind == HEADERS, f"frame {kind} {payload!r} instead of an answer"


CASES = []


def case(function):
    CASES.append(function)
    return function


def connection_case(name, codes, *frames, **options):
    def run():
        connection = Connection(**options)
        for frame in frames:
            frame(connection)
        connection.connection_error(*codes)
    run.__name__ = name
    CASES.append(run)


def stream_case(name, codes, *frames):
    def run():
        connection = Connection()
        for frame in frames:
            frame(connection)
        connection.stream_error(*codes)
    run.__name__ = name
    CASES.append(run)


def harmless_case(name, *frames):
    def run():
        connection = Connection()
        for frame in frames:
            frame(connection)
        connection.lives()
    run.__name__ = name
    CASES.append(run)


def frame(*arguments, **options):
    return lambda connection: connection.send(*arguments, **options)


def opened(connection):
    connection.request()


def finished(connection):
    connection.request(end=True)


def with_headers(headers, end=True):
    return lambda connection: connection.request(headers=headers, end=end)


def without(name):
    return block(*[field for field in PSEUDO if field[0] != name], *FIELDS)


def also(*fields):
    return block(*PSEUDO, *FIELDS, *fields)


@case
def a_request_is_answered():
    connection = Connection()
    connection.request()
    connection.send(DATA, END_STREAM, 1, MESSAGE)
    connection.answered(1)


@case
def section_3_5_settings_are_the_first_frame():
    connection = Connection()
    assert connection.settings


@case
def section_3_5_an_invalid_preface_ends_it():
    connection = Connection(preface=b"PRI * HTTP/2.1\r\n\r\nSM\r\n\r\n", shake=False)
    connection.send(SETTINGS, 0, 0)
    while True:
        try:
            connection.exactly(1)
        except Ended:
            return


harmless_case("4.1 frames of unknown types are ignored", frame(0x16, 0, 0, b"12345678"))
harmless_case("4.1 undefined flags are ignored", frame(PING, 0x16, 0, b"12345678"))
harmless_case("4.1 the reserved bit is ignored", frame(PING, 0, 1 << 31, b"12345678"))


@case
def section_4_2_data_up_to_the_maximal_size_is_taken():
    connection = Connection()
    connection.request()
    size = connection.settings.get(5, 16384)
    connection.send(DATA, 0, 1, bytes(min(size, connection.settings.get(4, 65535), 65535)))
    connection.lives()


@case
def section_4_2_longer_frames_are_an_error():
    connection = Connection()
    connection.request()
    connection.send(DATA, 0, 1, bytes(connection.settings.get(5, 16384) + 1))
    connection.stream_error(SIZE)


@case
def section_4_2_longer_frames_of_headers_are_an_error():
    connection = Connection()
    headers = REQUEST + literal("x-dummy", bytes(120)) * (connection.settings.get(5, 16384) // 129 + 1)
    connection.send(HEADERS, END_HEADERS | END_STREAM, 1, headers)
    connection.connection_error(SIZE)


connection_case("4.3 an invalid index", [COMPRESSION], with_headers(b"\xff\xff\xff\x7f"))
connection_case("4.3 a size update in the middle", [COMPRESSION], with_headers(REQUEST + b"\x3f\xe1\x7f"))
connection_case("4.3 PRIORITY within a header block", [PROTOCOL],
                frame(HEADERS, 0, 1, REQUEST), frame(PRIORITY, 0, 1, bytes(5)))
connection_case("4.3 HEADERS of another stream within a header block", [PROTOCOL],
                frame(HEADERS, 0, 1, REQUEST), frame(HEADERS, END_HEADERS, 3, REQUEST))
connection_case("5.1 idle: DATA", [PROTOCOL], frame(DATA, END_STREAM, 1, b"test"))
connection_case("5.1 idle: RST_STREAM", [PROTOCOL], frame(RST, 0, 1, bytes(4)))
connection_case("5.1 idle: WINDOW_UPDATE", [PROTOCOL], frame(WINDOW, 0, 1, struct.pack(">I", 100)))
connection_case("5.1 idle: CONTINUATION", [PROTOCOL], frame(CONTINUATION, END_HEADERS, 1, REQUEST))
stream_case("5.1 half closed: DATA", [CLOSED], finished, frame(DATA, END_STREAM, 1, b"test"))
stream_case("5.1 half closed: HEADERS", [CLOSED, PROTOCOL], finished,
            frame(HEADERS, END_HEADERS | END_STREAM, 1, REQUEST))
stream_case("5.1 half closed: CONTINUATION", [CLOSED, PROTOCOL], finished,
            frame(CONTINUATION, END_HEADERS, 1, REQUEST))
connection_case("5.1 closed: CONTINUATION", [CLOSED, PROTOCOL], opened, frame(RST, 0, 1, struct.pack(">I", CANCEL)),
                frame(CONTINUATION, END_HEADERS, 1, REQUEST))
connection_case("5.1.1 a stream with an even number", [PROTOCOL], lambda it: it.request(2, end=True))
connection_case("5.1.1 a stream with a smaller number", [PROTOCOL, CLOSED],
                lambda it: it.request(5), lambda it: it.request(3, end=True))


@case
def section_5_1_2_too_many_streams_are_refused():
    connection = Connection()
    limit = connection.settings.get(3)
    assert limit and limit <= 10000, f"the limit is {limit}"
    for number in range(limit + 1):
        connection.request(2 * number + 1)
    connection.stream_error(REFUSED, PROTOCOL)


connection_case("5.5 unknown frames within a header block", [PROTOCOL],
                frame(HEADERS, 0, 1, REQUEST), frame(0x16, 0, 0, bytes(8)))
connection_case("6.1 DATA of stream 0", [PROTOCOL], opened, frame(DATA, END_STREAM, 0, b"test"))
connection_case("6.1 DATA padded beyond its end", [PROTOCOL], opened, frame(DATA, END_STREAM | PADDED, 1, b"\x06test"))
connection_case("6.2 HEADERS of stream 0", [PROTOCOL], frame(HEADERS, END_HEADERS | END_STREAM, 0, REQUEST))
connection_case("6.2 HEADERS padded beyond their end", [PROTOCOL],
                frame(HEADERS, END_HEADERS | END_STREAM | PADDED, 1, bytes([255]) + b"test"))
connection_case("6.3 PRIORITY of stream 0", [PROTOCOL], frame(PRIORITY, 0, 0, bytes(5)))
stream_case("6.3 PRIORITY of 4 bytes", [SIZE], opened, frame(PRIORITY, 0, 1, bytes(4)))
connection_case("6.4 RST_STREAM of stream 0", [PROTOCOL], frame(RST, 0, 0, bytes(4)))
connection_case("6.4 RST_STREAM of 3 bytes", [SIZE], opened, frame(RST, 0, 1, bytes(3)))
connection_case("6.5 SETTINGS acknowledged with contents", [SIZE], frame(SETTINGS, ACK, 0, bytes(6)))
connection_case("6.5 SETTINGS of a stream", [PROTOCOL], frame(SETTINGS, 0, 1, struct.pack(">HI", 3, 100)))
connection_case("6.5 SETTINGS of 3 bytes", [SIZE], frame(SETTINGS, 0, 0, bytes(3)))
for name, code, setting, value in [
    ("ENABLE_PUSH of 2", PROTOCOL, 2, 2),
    ("INITIAL_WINDOW_SIZE beyond the maximum", FLOW, 4, 1 << 31),
    ("MAX_FRAME_SIZE below the minimum", PROTOCOL, 5, 16383),
    ("MAX_FRAME_SIZE beyond the maximum", PROTOCOL, 5, 1 << 24),
]:
    connection_case(f"6.5.2 {name}", [code], frame(SETTINGS, 0, 0, struct.pack(">HI", setting, value)))
harmless_case("6.5.2 unknown settings are ignored", frame(SETTINGS, 0, 0, struct.pack(">HI", 255, 1)))


@case
def section_6_5_3_settings_are_acknowledged():
    connection = Connection()
    connection.send(SETTINGS, 0, 0, struct.pack(">HI", 3, 100))
    connection.until(lambda kind, flags, *_: kind == SETTINGS and flags & ACK)


harmless_case("6.7 a PING that is an answer is ignored", frame(PING, ACK, 0, b"nobodyas"))
connection_case("6.7 PING of a stream", [PROTOCOL], frame(PING, 0, 1, bytes(8)))
connection_case("6.7 PING of 6 bytes", [SIZE], frame(PING, 0, 0, bytes(6)))
connection_case("6.8 GOAWAY of a stream", [PROTOCOL], frame(GOAWAY, 0, 1, bytes(8)))
connection_case("6.9 WINDOW_UPDATE by nothing", [PROTOCOL], frame(WINDOW, 0, 0, bytes(4)))
stream_case("6.9 WINDOW_UPDATE of a stream by nothing", [PROTOCOL], opened, frame(WINDOW, 0, 1, bytes(4)))
connection_case("6.9 WINDOW_UPDATE of 3 bytes", [SIZE], frame(WINDOW, 0, 0, bytes(3)))
connection_case("6.9.1 a window beyond the maximum", [FLOW], *[frame(WINDOW, 0, 0, struct.pack(">I", (1 << 31) - 1))] * 2)
stream_case("6.9.1 a stream's window beyond the maximum", [FLOW], opened,
            *[frame(WINDOW, 0, 1, struct.pack(">I", (1 << 31) - 1))] * 2)


@case
def section_6_9_1_windows_hold_the_answer_back():
    connection = Connection(settings=struct.pack(">HI", 4, 1))
    connection.request()
    connection.send(DATA, END_STREAM, 1, b"\0\0\0\0\0")
    connection.answered(1)
    _, _, _, data = connection.until(lambda kind, _, of, payload: kind == DATA and of == 1 and payload)
    assert len(data) == 1, f"{len(data)} bytes into a window of 1"


connection_case("6.10 CONTINUATION of stream 0", [PROTOCOL],
                frame(HEADERS, 0, 1, REQUEST), frame(CONTINUATION, END_HEADERS, 0, b""))
connection_case("6.10 CONTINUATION after the end of headers", [PROTOCOL, CLOSED],
                opened, frame(CONTINUATION, END_HEADERS, 1, literal("x-dummy", "a")))
connection_case("6.10 CONTINUATION after DATA", [PROTOCOL, CLOSED],
                opened, frame(DATA, 0, 1, b"test"), frame(CONTINUATION, END_HEADERS, 1, literal("x-dummy", "a")))
stream_case("8.1 second HEADERS that do not end the stream", [PROTOCOL],
            opened, frame(HEADERS, END_HEADERS, 1, literal("x-dummy", "a")))
for name, headers in [
    ("8.1.2 a name in upper case", also(("X-DUMMY", "a"))),
    ("8.1.2.1 an unknown pseudo-header", block(*PSEUDO, (":test", "a"), *FIELDS)),
    ("8.1.2.1 the pseudo-header of answers", block(*PSEUDO, (":status", "200"), *FIELDS)),
    ("8.1.2.1 a pseudo-header after others", block(*FIELDS, *PSEUDO)),
    ("8.1.2.2 connection", also(("connection", "keep-alive"))),
    ("8.1.2.2 te other than trailers", block(*PSEUDO, ("te", "trailers, deflate"))),
    ("8.1.2.3 an empty path", block(PSEUDO[0], PSEUDO[1], (":path", ""), PSEUDO[3])),
    ("8.1.2.3 no method", without(":method")),
    ("8.1.2.3 no scheme", without(":scheme")),
    ("8.1.2.3 no path", without(":path")),
    ("8.1.2.3 two methods", block(PSEUDO[0], *PSEUDO)),
    ("8.1.2.3 two schemes", block(PSEUDO[1], *PSEUDO)),
    ("8.1.2.3 two paths", block(PSEUDO[2], *PSEUDO)),
]:
    stream_case(name, [PROTOCOL], with_headers(headers))
harmless_case("8.1.2.1 a pseudo-header as trailer", opened, frame(DATA, 0, 1, MESSAGE),
              frame(HEADERS, END_HEADERS | END_STREAM, 1, literal(":method", "POST")),
              lambda connection: connection.answered(1))
stream_case("8.1.2.6 less than the length says", [PROTOCOL],
            with_headers(also(("content-length", "1")), end=False), frame(DATA, END_STREAM, 1, b"test"))
stream_case("8.1.2.6 less than the length says, in two", [PROTOCOL],
            with_headers(also(("content-length", "1")), end=False),
            frame(DATA, 0, 1, b"test"), frame(DATA, END_STREAM, 1, b"test"))
connection_case("8.2 PUSH_PROMISE", [PROTOCOL], frame(PUSH, END_HEADERS, 1, struct.pack(">I", 3) + REQUEST))


def flood(name, codes, send, count=100_000):
    """Ends by itself, long before all was sent."""
    def run():
        connection = Connection()
        connection.socket.settimeout(PATIENCE)
        for number in range(count):
            try:
                connection.socket.sendall(b"".join(send(number)))
            except OSError:
                return
            if number % 100 == 99 and ended(connection, codes):
                return
        raise AssertionError(f"took {count} of them")
    run.__name__ = name
    CASES.append(run)


def ended(connection, codes):
    connection.socket.settimeout(0.001)
    try:
        while True:
            kind, _, _, payload = connection.frame()
            if kind == GOAWAY:
                code = struct.unpack(">I", payload[4:8])[0]
                assert code in codes, f"GOAWAY with {code}"
                return True
    except socket.timeout:
        return False
    except Ended:
        return True
    finally:
        connection.socket.settimeout(PATIENCE)


def encoded(kind, flags, stream, payload=b""):
    return struct.pack(">I", len(payload))[1:] + struct.pack(">BBI", kind, flags, stream) + payload


flood("rapid reset ends the connection", [CALM], lambda number: [
    encoded(HEADERS, END_HEADERS, 2 * number + 1, REQUEST),
    encoded(RST, 0, 2 * number + 1, struct.pack(">I", CANCEL))])
flood("continuations without end", [CALM, PROTOCOL, COMPRESSION], lambda number: [
    encoded(HEADERS, 0, 1, REQUEST) if number == 0
    else encoded(CONTINUATION, 0, 1, literal("x-dummy", bytes(8000)))], 20_000)
flood("empty continuations without end", [CALM, PROTOCOL], lambda number: [
    encoded(HEADERS, 0, 1, REQUEST) if number == 0 else encoded(CONTINUATION, 0, 1)])


def main():
    failed = {}
    for run in CASES:
        try:
            run()
        except socket.timeout:
            failed[run.__name__] = "nothing came"
        except Exception as error:
            failed[run.__name__] = f"{type(error).__name__}: {error}"
    print(json.dumps({"cases": len(CASES), "failed": failed}))


main()
