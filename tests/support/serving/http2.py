"""Clients of HTTP/2 that send what gRPC's own would not: half of a message, any bytes as a path."""

import socket
import struct
from contextlib import suppress

WINDOW, MOST_OF_FRAME = 65535, 16384
DATA, HEADERS, SETTINGS, PING, WINDOW_UPDATE, CONTINUATION = 0, 1, 4, 6, 8, 9
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    return struct.pack("!I", len(payload))[1:] + bytes((kind, flags)) + struct.pack("!I", stream) + payload


def header(name: bytes, value: bytes) -> bytes:
    """As HPACK has a literal that isn't indexed; both are shorter than 127 bytes."""
    return b"\0" + b"".join(bytes((len(part),)) + part for part in (name, value))


def call_to(path: bytes) -> bytes:
    given = {b":method": b"POST", b":scheme": b"http", b":path": path, b":authority": b"x", b"te": b"trailers"}
    given[b"content-type"] = b"application/grpc"
    return b"".join(header(*pair) for pair in given.items())


class Call:
    """A call with an empty message."""

    def __init__(self, port: int, path: bytes, metadata: dict[bytes, bytes] | None = None) -> None:
        self.connection = socket.create_connection(("127.0.0.1", port), 10)
        head = call_to(path) + b"".join(header(*pair) for pair in (metadata or {}).items())
        parts = [head[begin : begin + 16000] for begin in range(0, len(head), 16000)]
        self.connection.sendall(PREFACE + frame(SETTINGS, 0, 0))
        for number, part in enumerate(parts):
            kind, is_last = CONTINUATION if number else HEADERS, number == len(parts) - 1
            self.connection.sendall(frame(kind, 4 * is_last, 1, part))
        self.connection.sendall(frame(DATA, 1, 1, bytes(5)))

    def answer(self) -> bytes:
        """All that the server sends until the call has ended."""
        received = b""
        while b"grpc-status" not in received and (more := self.connection.recv(65536)):
            received += more
        return received

    def close(self) -> None:
        self.connection.close()


class Unfinished:
    """A connection whose calls each send a message but for its last byte, as fast as the server lets them."""

    def __init__(self, port: int, path: str, calls: int, size: int) -> None:
        self.connection = socket.create_connection(("127.0.0.1", port), 10)
        self.connection.settimeout(0.05)
        self.connection.sendall(PREFACE + frame(SETTINGS, 0, 0))
        self.left = {}
        self.window = {0: WINDOW}
        self.sent = 0
        prefix = b"\0" + struct.pack("!I", size)
        for stream in range(1, 2 * calls, 2):
            self.connection.sendall(frame(HEADERS, 4, stream, call_to(path.encode())) + frame(DATA, 0, stream, prefix))
            self.left[stream], self.window[stream] = size - 1, WINDOW - len(prefix)
            self.window[0] -= len(prefix)
        self.received = b""

    def go_on(self) -> None:
        """Send what the windows allow, and hear what the server says."""
        with suppress(OSError):
            for stream in list(self.left):
                while size := min(self.left[stream], self.window[stream], self.window[0], MOST_OF_FRAME):
                    self.connection.sendall(frame(DATA, 0, stream, bytes(size)))
                    self.left[stream] -= size
                    self.window[stream] -= size
                    self.window[0] -= size
                    self.sent += size
            self.received += self.connection.recv(65536)
        while len(self.received) >= 9:
            end = 9 + int.from_bytes(self.received[:3], "big")
            if len(self.received) < end:
                return
            kind, flags, stream = self.received[3], self.received[4], int.from_bytes(self.received[5:9], "big")
            self._hear(kind, flags, stream, self.received[9:end])
            self.received = self.received[end:]

    def _hear(self, kind: int, flags: int, stream: int, payload: bytes) -> None:
        if kind in (SETTINGS, PING) and not flags & 1:
            with suppress(OSError):
                self.connection.sendall(frame(kind, 1, 0, payload if kind == PING else b""))
        elif kind == WINDOW_UPDATE and stream in self.window:
            self.window[stream] += int.from_bytes(payload, "big")
        elif kind == HEADERS and flags & 1:
            self.left.pop(stream, None)

    def close(self) -> None:
        self.connection.close()
