"""Rude clients over gRPC: calls that are cancelled, wrong keys, and streams that use up every place."""

import asyncio
import itertools
import random
from multiprocessing.synchronize import Event

import grpc
import grpc.aio

from tests.container.chaos.clients.grpc_clients import metadata, open_channel, question
from tests.container.chaos.clients.tally import Tally
from tests.container.chaos.target import Target
from trpo_tf.serving.codecs.grpc_messages import HEALTH_WATCH, MODEL_INFER, MODEL_METADATA

FIRST_CHANNEL = 200
"""Numbers of channels that no good client has."""

STREAMS, WATCH_SECONDS = 512, 8.0
REST_SECONDS = 0.05
PATIENCE_SECONDS = 5.0

DESERVED = {
    "wrong key": {"UNAUTHENTICATED"},
    "other model": {"NOT_FOUND"},
    "long name": {"NOT_FOUND", "INVALID_ARGUMENT"},
    "no message": {"INVALID_ARGUMENT", "INTERNAL"},
    "other method": {"UNIMPLEMENTED", "UNAUTHENTICATED"},
}
"""Statuses of calls that are wrong, beside those of a server that is busy, or a worker that is gone."""

EXCUSED = {"UNAVAILABLE", "RESOURCE_EXHAUSTED", "DEADLINE_EXCEEDED", "CANCELLED"}


async def _ask_wrongly(target: Target, channel: grpc.aio.Channel, kind: str, tally: Tally) -> None:
    path, content, key = MODEL_INFER.path, question(0).content, target.key
    if kind == "wrong key":
        key = "wrong"
    elif kind in ("other model", "long name"):
        name = "other" if kind == "other model" else "x" * 20_000
        path, content = MODEL_METADATA.path, MODEL_METADATA.request(name=name).SerializeToString()
    elif kind == "no message":
        content = b"\xff" * 100
    else:
        path = "/inference.GRPCInferenceService/Other"
    try:
        await channel.unary_unary(path)(content, metadata=metadata(key), timeout=PATIENCE_SECONDS)
        status = "OK"
    except grpc.aio.AioRpcError as error:
        status = error.code().name
    if status in DESERVED[kind] | EXCUSED:
        tally.count(f"gRPC {kind}", status)
    else:
        tally.is_wrong(f"gRPC {kind}", f"is answered with {status}")


async def _cancel(target: Target, channel: grpc.aio.Channel, tally: Tally) -> None:
    call = channel.unary_unary(MODEL_INFER.path)(question(1).content, metadata=metadata(target.key))
    await asyncio.sleep(random.choice((0, 0.001, 0.003, 0.01)))
    call.cancel()
    try:
        await call
        tally.count("gRPC cancelled", "too late")
    except asyncio.CancelledError:
        tally.count("gRPC cancelled", "cancelled")
    except grpc.aio.AioRpcError as error:
        tally.count("gRPC cancelled", error.code().name)


async def _pester(target: Target, is_over: Event, tally: Tally, number: int) -> None:
    kinds = itertools.cycle([*DESERVED, *["cancel"] * len(DESERVED)])
    while not is_over.is_set():
        async with open_channel(target, number) as channel:
            for kind in itertools.islice(kinds, 50):
                if is_over.is_set():
                    return
                if kind == "cancel":
                    await _cancel(target, channel, tally)
                else:
                    await _ask_wrongly(target, channel, kind, tally)
                await asyncio.sleep(REST_SECONDS)


async def _watch(target: Target, is_over: Event, tally: Tally) -> None:
    """Streams without a key, all at once, for a while; then again."""
    content = HEALTH_WATCH.request().SerializeToString()

    async def listen(channel: grpc.aio.Channel) -> None:
        try:
            async for _ in channel.unary_stream(HEALTH_WATCH.path)(content, timeout=WATCH_SECONDS):
                tally.count("gRPC watch", "told")
        except grpc.aio.AioRpcError as error:
            tally.count("gRPC watch", error.code().name)

    while not is_over.is_set():
        async with open_channel(target, FIRST_CHANNEL) as channel:
            streams = [asyncio.ensure_future(listen(channel)) for _ in range(STREAMS)]
            while not is_over.is_set() and not all(stream.done() for stream in streams):
                await asyncio.sleep(0.1)
            for stream in streams:
                stream.cancel()
            await asyncio.gather(*streams, return_exceptions=True)
        await asyncio.sleep(1)


async def _all(target: Target, is_over: Event, tally: Tally) -> None:
    await asyncio.gather(
        _watch(target, is_over, tally),
        *(_pester(target, is_over, tally, FIRST_CHANNEL + number) for number in (1, 2)),
    )


def run(target: Target, is_over: Event) -> Tally:
    """Be rude until it is over."""
    tally = Tally()
    asyncio.run(_all(target, is_over, tally))
    return tally
