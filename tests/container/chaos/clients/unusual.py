"""Clients over HTTP that do what HTTP allows and few do: all must be answered, and rightly."""

import asyncio
import gzip
import random
from collections.abc import Awaitable, Callable

from tests.container.chaos.clients.tally import Tally
from tests.container.chaos.target import Question, Target, Wrong, check_http, http_question, parse_head

ANSWER_SECONDS = 30.0
H2C = ("Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AAMAAABkAAQCAAAAAAIAAAAA")
WEBSOCKET = ("Connection: Upgrade", "Upgrade: websocket", "Sec-WebSocket-Version: 13")

Conversation = Callable[["Line"], Awaitable[None]]


class Busy(Exception):
    """The server refuses for now."""


class Line:
    """One connection of a client that checks what it is answered."""

    def __init__(self, target: Target, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.target, self.reader, self.writer = target, reader, writer
        self.has_asked = False
        self._numbers = iter(random.sample(range(64), 64))

    def question(self, *headers: str, way: str = "json") -> Question:
        """A request that is right."""
        return http_question(self.target, way, next(self._numbers), *headers)

    async def send(self, content: bytes) -> None:
        """Send, and wait until most of it is on its way."""
        self.has_asked = True
        self.writer.write(content)
        await self.writer.drain()

    async def receive(self, *, has_body: bool = True) -> tuple[bytes, bytes]:
        """Head and body of the next answer."""
        head = (await self.reader.readuntil(b"\r\n\r\n")).removesuffix(b"\r\n\r\n")
        if not head.startswith(b"HTTP/1.1 "):
            raise Wrong(f"an answer begins with {head[:60]!r}")
        status, headers = parse_head(head)
        if status == 503:
            raise Busy
        has_body = has_body and status >= 200
        return head, await self.reader.readexactly(int(headers["content-length"]) if has_body else 0)

    async def expect(self, question: Question) -> None:
        """Read an answer. Raises `Wrong` unless it is the right one."""
        check_http(self.target, question, *await self.receive())


async def _half_closed(line: Line) -> None:
    question = line.question()
    await line.send(question.content)
    if line.writer.can_write_eof():
        line.writer.write_eof()
    await line.expect(question)


def _upgrading(*headers: str) -> Conversation:
    async def upgrade(line: Line) -> None:
        """The offer is declined in silence, and the connection goes on."""
        for question in (line.question(*headers), line.question(way="predict")):
            await line.send(question.content)
            await line.expect(question)

    return upgrade


async def _after_head(line: Line) -> None:
    """No answer to HEAD has a body, and so the next answer begins where it should."""
    model = "HEAD /v2/models/walk/infer HTTP/1.1\r\nHost: x\r\n{}\r\n"
    for more in ("", "Authorization: Bearer wrong\r\n", f"Authorization: Bearer {line.target.key}\r\n"):
        await line.send(model.format(more).encode())
        status, _ = parse_head((await line.receive(has_body=False))[0])
        if status not in (401, 405):
            raise Wrong(f"HEAD is answered with {status}")
    question = line.question()
    await line.send(question.content)
    await line.expect(question)


async def _pipelined(line: Line) -> None:
    questions = [line.question(way=way) for way in ("json", "raw", "predict", "json", "raw")]
    await line.send(b"".join(question.content for question in questions))
    for question in questions:
        await line.expect(question)


async def _chunked(line: Line) -> None:
    question = line.question("Transfer-Encoding: chunked")
    head, _, body = question.content.partition(b"\r\n\r\n")
    kept = [header for header in head.split(b"\r\n") if not header.startswith(b"Content-Length")]
    chunks = [body[start : start + 29] for start in range(0, len(body), 29)]
    encoded = b"".join(b"%x\r\n%b\r\n" % (len(chunk), chunk) for chunk in chunks)
    await line.send(b"\r\n".join(kept) + b"\r\n\r\n" + encoded + b"0\r\n\r\n")
    await line.expect(question)


async def _expecting(line: Line) -> None:
    question = line.question("Expect: 100-continue")
    head, _, body = question.content.partition(b"\r\n\r\n")
    await line.send(head + b"\r\n\r\n")
    status, _ = parse_head((await line.receive())[0])
    if status != 100:
        raise Wrong(f"`Expect: 100-continue` is answered with {status}")
    await line.send(body)
    await line.expect(question)


async def _in_pieces(line: Line) -> None:
    question = line.question(way="predict")
    for start in range(0, len(question.content), 97):
        await line.send(question.content[start : start + 97])
        await asyncio.sleep(0.02)
    await line.expect(question)


async def _compressed(line: Line) -> None:
    question = line.question("Content-Encoding: gzip")
    head, _, body = question.content.partition(b"\r\n\r\n")
    packed = gzip.compress(body)
    head = head.replace(b"Content-Length: %d" % len(body), b"Content-Length: %d" % len(packed))
    await line.send(head + b"\r\n\r\n" + packed)
    await line.expect(question)


CONVERSATIONS: dict[str, Conversation] = {
    "half-closed": _half_closed,
    "Upgrade: h2c": _upgrading(*H2C),
    "Upgrade: websocket": _upgrading(*WEBSOCKET),
    "after HEAD": _after_head,
    "pipelined": _pipelined,
    "chunked": _chunked,
    "Expect": _expecting,
    "in pieces": _in_pieces,
    "compressed": _compressed,
}


async def converse(target: Target, kind: str, tally: Tally) -> None:
    """Connect, and have one conversation."""
    context = target.context()
    try:
        async with asyncio.timeout(ANSWER_SECONDS):
            reader, writer = await asyncio.open_connection(
                "127.0.0.1", target.port, ssl=context, server_hostname="localhost" if context else None
            )
    except OSError as error:  # a TimeoutError is one
        tally.has_no_connection(kind, error)
        return
    line, port = Line(target, reader, writer), writer.get_extra_info("sockname")[1]
    try:
        async with asyncio.timeout(ANSWER_SECONDS):
            await CONVERSATIONS[kind](line)
        tally.count(kind, "right")
    except Busy:
        tally.count(kind, "busy")
    except Wrong as error:
        tally.is_wrong(kind, str(error))
    except (OSError, asyncio.IncompleteReadError) as error:
        tally.is_lost(kind, port, repr(error))
    finally:
        writer.transport.abort()
