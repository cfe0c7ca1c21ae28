"""Clients that keep connections and say nothing, say it slowly, or don't listen."""

import asyncio
import resource
import socket
from collections.abc import Awaitable, Callable
from multiprocessing.synchronize import Event

from tests.container.chaos.clients.tally import Tally
from tests.container.chaos.target import Target, http_question, post

COUNTS = {"silent": 600, "silent on gRPC": 600, "slow head": 60, "slow body": 12, "deaf": 24}
"""How many of each kind there are at a time."""

CONNECT_SECONDS = 5.0
REST_SECONDS = 1.0
SLOW_BODY = 3 * 2**20
PIPELINED = 2000


async def _silent(target: Target, port: int) -> None:
    """Not even a handshake of TLS."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        await reader.read()
    finally:
        writer.transport.abort()


async def _open(target: Target, sock: socket.socket | None = None) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    context = target.context()
    where = {"sock": sock} if sock else {"host": "127.0.0.1", "port": target.port}
    return await asyncio.open_connection(**where, ssl=context, server_hostname="localhost" if context else None)


async def _drip(writer: asyncio.StreamWriter, reader: asyncio.StreamReader, content: bytes) -> None:
    """A byte a second, until the server has had enough."""
    answer = asyncio.ensure_future(reader.read())
    try:
        for byte in content:
            writer.write(bytes([byte]))
            await asyncio.wait({answer}, timeout=1.0)
            if answer.done():
                return
    finally:
        answer.cancel()


async def _slow_head(target: Target) -> None:
    reader, writer = await _open(target)
    try:
        await _drip(writer, reader, http_question(target, "json", 0).content)
    finally:
        writer.transport.abort()


async def _slow_body(target: Target) -> None:
    """Most of a large body at once, and then hardly anything."""
    reader, writer = await _open(target)
    try:
        content = post("/v2/models/walk/infer", bytes(SLOW_BODY + 600), target.key)
        writer.write(content[:-600])
        await writer.drain()
        await _drip(writer, reader, content[-600:])
    finally:
        writer.transport.abort()


async def _deaf(target: Target) -> None:
    """Ask a lot, and take no answer, until the server gives up."""
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    sock.setblocking(False)
    await asyncio.get_running_loop().sock_connect(sock, ("127.0.0.1", target.port))
    _, writer = await _open(target, sock)
    try:
        writer.transport.pause_reading()  # type: ignore[attr-defined]
        ask = f"GET /openapi.json HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {target.key}\r\n\r\n".encode()
        writer.write(ask * PIPELINED)
        await writer.drain()
        while not writer.is_closing():
            writer.write(b" ")  # a reset is only seen by who writes
            await asyncio.sleep(1)
    finally:
        writer.transport.abort()


async def _again_and_again(kind: str, act: Callable[[], Awaitable[None]], is_over: Event, tally: Tally) -> None:
    while not is_over.is_set():
        try:
            await act()
        except OSError as error:
            tally.count(kind, type(error).__name__)
        else:
            tally.count(kind, "closed by the server")
        await asyncio.sleep(REST_SECONDS)


async def _all(target: Target, is_over: Event, tally: Tally) -> None:
    acts: dict[str, Callable[[], Awaitable[None]]] = {
        "silent": lambda: _silent(target, target.port),
        "silent on gRPC": lambda: _silent(target, target.grpc_port),
        "slow head": lambda: _slow_head(target),
        "slow body": lambda: _slow_body(target),
        "deaf": lambda: _deaf(target),
    }
    tasks = [
        asyncio.ensure_future(_again_and_again(kind, acts[kind], is_over, tally))
        for kind, count in COUNTS.items()
        for _ in range(count)
    ]
    while not is_over.is_set():
        await asyncio.sleep(0.1)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


def run(target: Target, is_over: Event) -> Tally:
    """Be there until it is over."""
    resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)
    tally = Tally()
    asyncio.run(_all(target, is_over, tally))
    return tally
