"""Good clients of a policy with state: each plays episodes, sends the state that it got, and checks every answer.

Any worker may answer a step. So an episode goes on where a worker was killed, and across reloads of its model.
"""

import asyncio
import time
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing.synchronize import Event

import grpc.aio
import numpy as np
import orjson
import uvloop

from tests.container.chaos.clients.grpc_clients import REST_SECONDS, failed, metadata, open_channel
from tests.container.chaos.clients.http_clients import ANSWER_SECONDS
from tests.container.chaos.clients.tally import Tally
from tests.container.chaos.faults.models import BUNDLES, SEEN
from tests.container.chaos.target import RECURRENT, TOLERANCE, Target, Wrong, parse_head, post
from tests.container.traffic import Asking
from trpo_tf import serving
from trpo_tf.serving.codecs.grpc_messages import MODEL_STREAM_INFER

HTTP, STREAM = "episodes", "gRPC streams"
CLIENTS = 2
FIRST_CHANNEL = 120
"""Numbers of channels that no other client has."""

STOPPING = "the server stops"


def actions() -> list[float]:
    """The actions of an episode, from a session in this process."""
    session = serving.load(BUNDLES / RECURRENT).start()
    return [float(session.act(observation)[0]) for observation in SEEN]


@dataclass
class Episode:
    """Where a client is in its episode: the next step, and the state after the last one."""

    expected: list[float]
    step: int = 0
    hidden: np.ndarray = field(default_factory=lambda: np.zeros((1, 8), np.float32))

    def inputs(self) -> dict[str, np.ndarray]:
        """The inputs of the next step."""
        reset = np.array([self.step == 0])
        return {"obs": SEEN[self.step : self.step + 1], "hidden": self.hidden, "reset": reset}

    def go_on(self, action: float, hidden: np.ndarray) -> None:
        """Take an answer. Raises `Wrong`, and then begins anew."""
        step, expected = self.step, self.expected[self.step]
        self.step, self.hidden = (step + 1) % len(SEEN), hidden.reshape(1, 8)
        if abs(action - expected) > TOLERANCE:
            self.step = 0
            raise Wrong(f"step {step} of an episode is answered {action}, not {expected}")


class Client(Asking):
    """A connection of a client over HTTP."""

    def __init__(self, target: Target, episode: Episode, tally: Tally) -> None:
        super().__init__()
        self._target, self._episode, self._tally = target, episode, tally

    def request(self) -> bytes:
        self._port = self.transport.get_extra_info("sockname")[1]
        self._late = asyncio.get_running_loop().call_later(ANSWER_SECONDS, self.transport.abort)
        datatypes = {"float32": "FP32", "bool": "BOOL"}
        tensors = [
            {"name": name, "datatype": datatypes[str(array.dtype)], "shape": array.shape, "data": array.ravel()}
            for name, array in self._episode.inputs().items()
        ]
        body = orjson.dumps({"inputs": tensors}, option=orjson.OPT_SERIALIZE_NUMPY)
        return post(f"/v2/models/{RECURRENT}/infer", body, self._target.key)

    def answered(self, head: bytes, body: bytes, microseconds: int) -> bool:
        self._late.cancel()
        status, _ = parse_head(head)
        if status == 503:
            self._tally.count(HTTP, "busy")
            return False
        try:
            if status != 200:
                raise Wrong(f"status {status}: {body[:200].decode(errors='replace')}")
            action, hidden = (output["data"] for output in orjson.loads(body)["outputs"])
            self._episode.go_on(action[0], np.float32(hidden))
        except Wrong as error:
            self._tally.is_wrong(HTTP, str(error))
        else:
            self._tally.answered(HTTP, microseconds, "http")
        return True

    def unanswered(self, error: Exception | None) -> None:
        self._late.cancel()
        self._tally.is_lost(HTTP, self._port, error)


async def _over_http(target: Target, expected: list[float], tally: Tally, is_over: Event) -> None:
    episode, loop = Episode(expected), asyncio.get_running_loop()
    while not is_over.is_set():
        try:
            _, client = await loop.create_connection(
                lambda: Client(target, episode, tally),
                "127.0.0.1",
                target.port,
                ssl=target.context(),
                server_hostname="localhost" if target.authority else None,
            )
        except OSError as error:
            tally.has_no_connection(HTTP, error)
        else:
            await client.lost
        await asyncio.sleep(REST_SECONDS)


def _message(episode: Episode) -> bytes:
    message = MODEL_STREAM_INFER.request(model_name=RECURRENT)
    for name, array in episode.inputs().items():
        message.inputs.add(name=name, datatype="BOOL" if name == "reset" else "FP32", shape=array.shape)
        message.raw_input_contents.append(array.tobytes())
    return bytes(message.SerializeToString())


async def _play(call: grpc.aio.StreamStreamCall, episode: Episode, tally: Tally, is_over: Event) -> None:
    while not is_over.is_set():
        began = time.perf_counter()
        await call.write(_message(episode))
        content = await asyncio.wait_for(call.read(), ANSWER_SECONDS)
        if content is grpc.aio.EOF:
            return
        answer = MODEL_STREAM_INFER.response.FromString(content)
        if answer.error_message.startswith("too many calls"):
            tally.count(STREAM, "busy")
            continue
        if answer.error_message:
            tally.is_wrong(STREAM, answer.error_message)
            continue
        action, hidden = (np.frombuffer(raw, "<f4") for raw in answer.infer_response.raw_output_contents)
        try:
            episode.go_on(float(action[0]), hidden)
        except Wrong as error:
            tally.is_wrong(STREAM, str(error))
        else:
            tally.answered(STREAM, int((time.perf_counter() - began) * 1e6), "grpc")


async def _over_grpc(target: Target, expected: list[float], number: int, tally: Tally, is_over: Event) -> None:
    episode = Episode(expected)
    async with open_channel(target, number) as channel:
        while not is_over.is_set():
            call = channel.stream_stream(MODEL_STREAM_INFER.path)(metadata=metadata(target.key))
            try:
                await _play(call, episode, tally, is_over)
                with suppress(asyncio.InvalidStateError):
                    await call.done_writing()
                if await call.code() is not grpc.StatusCode.OK:
                    raise grpc.aio.AioRpcError(await call.code(), None, None, await call.details())
            except (grpc.aio.AioRpcError, asyncio.InvalidStateError, TimeoutError):
                call.cancel()
                said = await call.details() or ""
                if said.startswith(STOPPING):
                    tally.count(STREAM, "stopped")
                else:
                    failed(STREAM, await call.code(), said, number, tally)
            await asyncio.sleep(REST_SECONDS)


async def _ask(target: Target, is_over: Event, tally: Tally) -> None:
    expected = actions()
    await asyncio.gather(
        *(_over_http(target, expected, tally, is_over) for _ in range(CLIENTS)),
        *(_over_grpc(target, expected, FIRST_CHANNEL + number, tally, is_over) for number in range(CLIENTS)),
    )


def run(target: Target, is_over: Event) -> Tally:
    """Ask until it is over."""
    tally = Tally()
    uvloop.run(_ask(target, is_over, tally))
    return tally
