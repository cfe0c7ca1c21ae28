"""Messages of the largest size that is allowed, of shapes that take much more memory or time than their size."""

import asyncio
import itertools
import time
from collections.abc import Awaitable
from multiprocessing.synchronize import Event

import grpc
import grpc.aio
import numpy as np

from benchmarks.serving.amplifying import MODEL_INFER, Request, grpc_requests, http_requests
from tests.container.chaos.clients.grpc_clients import metadata, numbers_of, open_channel
from tests.container.chaos.clients.tally import Tally
from tests.container.chaos.target import Target, Wrong, parse_head, post, read_answer
from tests.container.traffic import Asking
from trpo_tf.serving.codecs.grpc_messages import MODEL_INFER as INFER

SIZE = 4 * 2**20 - 2**16
"""Of a message in bytes: about what `--max-body` allows by default."""

REST_SECONDS = 0.1
PATIENCE_SECONDS = 30.0
CHANNEL = 300

REFUSALS = {400, 404, 413, 415, 503}
FAULTS = {"INTERNAL", "UNKNOWN", "DATA_LOSS"}
BUSY = {"RESOURCE_EXHAUSTED", "UNAVAILABLE", "DEADLINE_EXCEEDED", "CANCELLED"}


class _Post(Asking):
    """One request and its answer, which is empty if there is none."""

    def __init__(self, content: bytes) -> None:
        super().__init__()
        self._content, self.answer = content, (b"", b"")

    def request(self) -> bytes:
        return self._content

    def answered(self, head: bytes, body: bytes, microseconds: int) -> bool:
        self.answer = head, body
        return False

    def unanswered(self, error: Exception | None) -> None:
        pass


async def _by_http(target: Target, sent: Request) -> str:
    """What came of a request. Raises `Wrong`."""
    context = target.context()
    headers = ("Connection: close", *(f"{name}: {value}" for name, value in sent.headers.items()))
    transport, client = await asyncio.get_running_loop().create_connection(
        lambda: _Post(post(sent.path, sent.body, target.key, *headers)),
        "127.0.0.1",
        target.port,
        ssl=context,
        server_hostname="localhost" if context else None,
    )
    try:
        await client.lost
    except asyncio.CancelledError:  # it took too long
        transport.abort()
        raise
    head, body = client.answer
    if not head:
        return "no answer"
    status, answered = parse_head(head)
    if sent.sums is not None and status == 200:
        _compare(sent, read_answer(answered, body)[1])
    elif status not in REFUSALS or (sent.sums is not None and status != 503):
        raise Wrong(f"{sent.path} is answered with {status}: {body[:200].decode(errors='replace')}")
    return str(status)


async def _by_grpc(channel: grpc.aio.Channel, target: Target, sent: Request) -> str:
    """What came of a call. Raises `Wrong`."""
    try:
        content = await channel.unary_unary(sent.path)(
            sent.body, metadata=metadata(target.key), timeout=PATIENCE_SECONDS
        )
    except grpc.aio.AioRpcError as error:
        status = error.code().name
        if status in FAULTS or (sent.sums is not None and status not in BUSY):
            raise Wrong(f"{sent.path} is answered with {status}: {error.details()}") from None
        return status
    if sent.sums is not None:
        _compare(sent, numbers_of(INFER.response.FromString(content)))
    elif sent.path == MODEL_INFER:
        raise Wrong(f"{sent.path} is answered with an action")
    return "OK"


def _compare(sent: Request, actions: list[float]) -> None:
    """Raise `Wrong` unless the actions are half the sums."""
    expected = np.array(sent.sums) / 2
    if len(actions) != len(expected) or not np.allclose(actions, expected, rtol=1e-3, atol=1e-2):
        raise Wrong(f"{len(expected)} rows are answered with {actions[:3]}..., not {expected[:3]}...")


async def _note(tally: Tally, kind: str, outcome: Awaitable[str]) -> None:
    began = time.perf_counter()
    try:
        async with asyncio.timeout(PATIENCE_SECONDS):
            tally.count(kind, await outcome)
            tally.took(kind, int((time.perf_counter() - began) * 1e6))
    except OSError as error:
        tally.count(kind, type(error).__name__)
    except Wrong as error:
        tally.is_wrong(kind, str(error))


async def _send_http(target: Target, is_over: Event, tally: Tally) -> None:
    for sent in itertools.chain.from_iterable(http_requests(SIZE) for _ in itertools.count()):
        if is_over.is_set():
            return
        await _note(tally, "amplifying, HTTP", _by_http(target, sent))
        await asyncio.sleep(REST_SECONDS)


async def _send_grpc(target: Target, is_over: Event, tally: Tally) -> None:
    async with open_channel(target, CHANNEL) as channel:
        for sent in itertools.chain.from_iterable(grpc_requests(SIZE) for _ in itertools.count()):
            if is_over.is_set():
                return
            await _note(tally, "amplifying, gRPC", _by_grpc(channel, target, sent))
            await asyncio.sleep(REST_SECONDS)


async def _all(target: Target, is_over: Event, tally: Tally) -> None:
    await asyncio.gather(_send_http(target, is_over, tally), _send_grpc(target, is_over, tally))


def run(target: Target, is_over: Event) -> Tally:
    """Send one after the other until it is over."""
    tally = Tally()
    asyncio.run(_all(target, is_over, tally))
    return tally
