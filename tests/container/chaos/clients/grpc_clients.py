"""Good clients over gRPC: each asks again as soon as it is answered, and checks every answer."""

import asyncio
import time
from multiprocessing.synchronize import Event
from typing import Any

import grpc
import grpc.aio
import numpy as np

from tests.container.chaos.clients.tally import Tally
from tests.container.chaos.target import MODEL, ROWS, Question, Target, Wrong, observations
from trpo_tf.serving.codecs.grpc_messages import MODEL_INFER

CHANNELS = 6
ANSWER_SECONDS = 30.0
REST_SECONDS = 0.05
BUSY = {grpc.StatusCode.RESOURCE_EXHAUSTED}
_ENDED_WHILE_WRITING = "Internal error from Core"
"""What grpc's own client says if a stream ended while it was writing to it; no server sends these words."""
LOST = {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.CANCELLED}
KIND = "gRPC"

_NO_CONNECTION = ("failed to connect", "Connection refused", "connections to all backends failing")
"""What gRPC says of a call that never was sent."""


def open_channel(target: Target, number: int, *options: tuple[str, Any]) -> grpc.aio.Channel:
    """A connection to an address of this machine that no other channel has, so that it is known by it."""
    address = f"{address_of(number)}:{target.grpc_port}"
    shared = (("grpc.use_local_subchannel_pool", 1), ("grpc.ssl_target_name_override", "localhost"), *options)
    if target.authority is None:
        return grpc.aio.insecure_channel(address, shared)
    credentials = grpc.ssl_channel_credentials(target.authority.read_bytes())
    return grpc.aio.secure_channel(address, credentials, shared)


def address_of(number: int) -> str:
    """Every address that begins with 127 is this machine's."""
    return f"127.0.{1 + number // 250}.{1 + number % 250}"


def question(number: int) -> Question:
    """A message: raw and typed in turns."""
    rows = ROWS[number % len(ROWS)]
    first = number % (64 - rows)
    values, is_raw = observations(first, rows), number % 4 < 2
    message = MODEL_INFER.request(model_name=MODEL)
    tensor = message.inputs.add(name="obs", datatype="FP64", shape=values.shape)
    if is_raw:
        message.raw_input_contents.append(values.tobytes())
    else:
        tensor.contents.fp64_contents.extend(values.ravel())
    return Question(MODEL, "raw" if is_raw else "typed", first, rows, message.SerializeToString())


def numbers_of(answer: Any) -> list[float]:
    """The actions of an answer, raw or typed."""
    if answer.raw_output_contents:
        return np.frombuffer(answer.raw_output_contents[0], "<f4").tolist()
    return list(answer.outputs[0].contents.fp32_contents)


def check(target: Target, asked: Question, content: bytes) -> None:
    """Raise `Wrong` unless the answer is right."""
    answer = MODEL_INFER.response.FromString(content)
    asked.check(target, answer.model_version, numbers_of(answer))


def metadata(key: str) -> tuple[tuple[str, str], ...]:
    """What shows a key."""
    return (("authorization", f"Bearer {key}"),)


async def _keep_asking(target: Target, number: int, tally: Tally, is_over: Event) -> None:
    questions = [question(i) for i in range(64)]
    async with open_channel(target, number) as channel:
        infer = channel.unary_unary(MODEL_INFER.path)
        count = 0
        while not is_over.is_set():
            asked, began = questions[count % len(questions)], time.perf_counter()
            count += 1
            try:
                check(target, asked, await infer(asked.content, metadata=metadata(target.key), timeout=ANSWER_SECONDS))
            except grpc.aio.AioRpcError as error:
                failed(KIND, error.code(), error.details() or "", number, tally)
                await asyncio.sleep(REST_SECONDS)
            except Wrong as error:
                tally.is_wrong(KIND, str(error))
            else:
                tally.answered(KIND, int((time.perf_counter() - began) * 1e6), "grpc")


def failed(kind: str, code: grpc.StatusCode, said: str, number: int, tally: Tally) -> None:
    """Count a call that ended with an error."""
    if code in BUSY:
        tally.count(kind, "busy")
    elif any(words in said for words in _NO_CONNECTION):
        tally.has_no_connection(kind, ConnectionRefusedError() if "refused" in said else OSError())
    elif code in LOST or said == _ENDED_WHILE_WRITING:
        tally.is_lost(kind, address_of(number), f"{code.name} {said}")
    else:
        tally.is_wrong(kind, f"{code.name} {said}")


async def _ask(target: Target, is_over: Event, tally: Tally) -> None:
    await asyncio.gather(*(_keep_asking(target, number, tally, is_over) for number in range(CHANNELS)))


def run(target: Target, is_over: Event) -> Tally:
    """Ask until it is over."""
    tally = Tally()
    asyncio.run(_ask(target, is_over, tally))
    return tally
