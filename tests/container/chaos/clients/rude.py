"""Rude clients over HTTP, and beside them those of `unusual`. What rude ones are answered must be a refusal."""

import asyncio
import itertools
import random
import re
import socket
import struct
from collections.abc import Callable
from multiprocessing.synchronize import Event

from tests.container.chaos.clients.tally import Tally
from tests.container.chaos.clients.unusual import CONVERSATIONS, converse
from tests.container.chaos.target import MODEL, Target, http_question, post

AT_ONCE = 24
REST_SECONDS = 0.03
PATIENCE_SECONDS = 5.0
INFER = f"/v2/models/{MODEL}/infer"
TENSOR = '{"name": "obs", "datatype": "FP64", "shape": [1, 3], "data": [0.1, 0.2, 0.3]}'

Manner = tuple[Callable[[Target], bytes], set[int]]


def _get(path: str, *headers: str) -> bytes:
    return "\r\n".join([f"GET {path} HTTP/1.1", "Host: x", "Connection: close", *headers, "\r\n"]).encode()


def _body(text: str, *headers: str, path: str = INFER) -> Callable[[Target], bytes]:
    return lambda target: post(path, text.encode(), target.key, "Connection: close", *headers)


def _question(*changes: tuple[bytes, bytes]) -> Callable[[Target], bytes]:
    def make(target: Target) -> bytes:
        content = http_question(target, "json", 0, "Connection: close").content
        for old, new in changes:
            content = content.replace(old, new)
        return content

    return make


MANNERS: dict[str, Manner] = {
    "garbage": (lambda _: random.randbytes(random.randrange(1, 3000)), {400, 431, 501}),
    "zeros": (lambda _: bytes(20_000), {400, 431}),
    "other protocol": (lambda _: b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(9), {400, 505}),
    "no key": (lambda _: post(INFER, b"{}", "", "Connection: close"), {401}),
    "wrong key": (lambda _: post(INFER, b"{}", "wrong", "Connection: close"), {401}),
    "no Host": (_question((b"Host: localhost\r\n", b"")), {400}),
    "foreign Host": (_question((b"Host: localhost", b"Host: evil.example")), {200, 403, 421}),
    "large head": (lambda _: _get("/v2", f"X: {'x' * 100_000}"), {431, 400}),
    "large body": (_question((b"Content-Length: ", b"Content-Length: 99999")), {413, 400, 408}),
    "two lengths": (_question((b"Content-Length: ", b"Content-Length: 1\r\nContent-Length: ")), {400}),
    "two framings": (_question((b"Host: ", b"Transfer-Encoding: chunked\r\nHost: ")), {400}),
    "no JSON": (_body("{"), {400}),
    "deep JSON": (_body("[" * 100_000), {400}),
    "NaN": (_body(f'{{"inputs": [{TENSOR.replace("0.2", "NaN")}]}}'), {400}),
    "infinite": (_body(f'{{"inputs": [{TENSOR.replace("0.2", "1e999")}]}}'), {400}),
    "sequence": (_body(f'{{"parameters": {{"sequence_id": 1}}, "inputs": [{TENSOR}]}}'), {400}),
    "other model": (_body("{}", path="/v2/models/other/infer"), {404}),
    "long name": (_body("{}", path=f"/v2/models/{'x' * 20_000}/infer"), {404, 414, 431}),
    "other method": (_question((b"POST", b"DELETE")), {405, 501}),
    "OPTIONS": (_question((b"POST", b"OPTIONS")), {200, 204, 400, 403, 405}),
    "no coding": (_body("{}", "Content-Encoding: br"), {415}),
    "no gzip": (_body("{}", "Content-Encoding: gzip"), {400}),
}
"""What is sent, and the statuses that it deserves; 503 is always one of them, and no answer is none of them."""

ABRUPT = {
    "leaves at once": 0.0,
    "resets in the head": 0.1,
    "resets in the body": 0.8,
    "resets when it has asked": 1.0,
}
"""What share of a good request is sent before the connection is reset."""

UNANSWERED = {"garbage", "zeros", "other protocol"}
"""Those who may be left without a word."""


async def _be_rude(target: Target, kind: str, tally: Tally) -> None:
    make, deserved = MANNERS[kind]
    port = 0
    try:
        async with asyncio.timeout(PATIENCE_SECONDS):
            context = target.context()
            reader, writer = await asyncio.open_connection(
                "127.0.0.1", target.port, ssl=context, server_hostname="localhost" if context else None
            )
            port = writer.get_extra_info("sockname")[1]
            try:
                writer.write(make(target))
                received = await reader.read(65536)
            finally:
                writer.transport.abort()
    except OSError as error:
        tally.count(kind, type(error).__name__ if port else "no connection")
        return
    statuses = [int(status) for status in re.findall(rb"HTTP/1\.1 (\d+) ", received)]
    wrong = [status for status in statuses if status not in deserved | {503}]
    if wrong:
        tally.is_wrong(kind, f"is answered with {received[:300].decode(errors='replace')!r}")
    else:
        tally.count(kind, str(statuses[0]) if statuses else "no answer")


async def _reset(target: Target, kind: str, tally: Tally) -> None:
    """Send a part of a request, and let go with a reset."""
    content = http_question(target, "json", 1).content
    loop = asyncio.get_running_loop()
    with socket.socket() as connection:
        connection.setblocking(False)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        try:
            async with asyncio.timeout(PATIENCE_SECONDS):
                await loop.sock_connect(connection, ("127.0.0.1", target.port))
                await loop.sock_sendall(connection, content[: int(ABRUPT[kind] * len(content))])
        except OSError:
            tally.count(kind, "no connection")
        else:
            tally.count(kind, "done")


async def _go_on(target: Target, is_over: Event, tally: Tally, first: int) -> None:
    kinds = [*MANNERS, *ABRUPT, *CONVERSATIONS]
    for kind in itertools.islice(itertools.cycle(kinds), first * len(kinds) // AT_ONCE, None):
        if is_over.is_set():
            return
        act = _be_rude if kind in MANNERS else _reset if kind in ABRUPT else converse
        await act(target, kind, tally)
        await asyncio.sleep(REST_SECONDS)


async def _all(target: Target, is_over: Event, tally: Tally) -> None:
    await asyncio.gather(*(_go_on(target, is_over, tally, first) for first in range(AT_ONCE)))


def run(target: Target, is_over: Event) -> Tally:
    """Be rude until it is over."""
    tally = Tally()
    asyncio.run(_all(target, is_over, tally))
    return tally
