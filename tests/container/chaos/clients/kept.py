"""Good clients of sequences whose state the server keeps: each plays episodes, and checks every answer.

A server that is killed takes its sequences along. So a client goes on with the step whose answer it lost, must be told
that there is no such sequence, and begins one anew. No reload may end a sequence, or have another version answer it.
"""

import asyncio
import time
from dataclasses import dataclass
from multiprocessing.synchronize import Event

import grpc.aio
import numpy as np
import orjson
import uvloop

from tests.container.chaos.clients.grpc_clients import (
    ANSWER_SECONDS,
    REST_SECONDS,
    failed,
    metadata,
    numbers_of,
    open_channel,
)
from tests.container.chaos.clients.tally import Gap, Tally
from tests.container.chaos.faults.models import SEEN
from tests.container.chaos.target import KEPT, TOLERANCE, Target, parse_head, post
from tests.container.traffic import Asking
from trpo_tf.serving.codecs.grpc_messages import MODEL_INFER, MODEL_STREAM_INFER

HTTP, UNARY, STREAM = "kept, HTTP", "kept, gRPC", "kept, streams"
PACES = (0.0, 0.05)
"""Seconds between the steps of each kind's clients: the second's episodes outlive the version that began them."""

IDLE_SECONDS, MOST_SEQUENCES = 3.0, 40
ABANDONED, ABANDON_SECONDS = 60, 5.0
"""How many sequences a client that never ends one begins at once, and how often."""

_NONE, _EXPIRED, _FULL = "a server before this one had it", "it expired after", "too many sequences are running"


@dataclass
class Episode:
    """A client's place in its sequence: the next step, and when it asked for the latest answer.

    `version` is the one that answered the first step, and must answer all.
    """

    kind: str
    sequence_id: int | str
    answers: dict[str, list[tuple[float, ...]]]
    tally: Tally
    step: int = 0
    version: str = ""
    since: float = 0.0

    @property
    def observation(self) -> np.ndarray:
        """The next step's."""
        return SEEN[self.step : self.step + 1]

    @property
    def parameters(self) -> dict[str, bool | int | str]:
        """What names the step in a request."""
        last = self.step == len(SEEN) - 1
        return {"sequence_id": self.sequence_id, "sequence_start": self.step == 0, "sequence_end": last}

    def answered(self, version: str, action: float, began: float) -> None:
        """Check an answer, and go on."""
        step, expected_version = self.step, self.version or version
        self.step, self.version, self.since = (step + 1) % len(SEEN), expected_version, began
        if self.step == 0:
            self.version = ""
        expected = self.answers.get(version, [(float("nan"),)] * len(SEEN))[step][0]
        if version != expected_version or not abs(action - expected) <= TOLERANCE:
            what = f"step {step} of a sequence of version {expected_version} is answered {action} by {version}"
            self._is_wrong(f"{what}, not {expected}")
            return
        protocol = "grpc" if self.kind in (UNARY, STREAM) else "http"
        self.tally.answered(self.kind, int((time.monotonic() - began) * 1e6), protocol)

    def refused(self, said: str) -> None:
        """Check a refusal, and begin anew unless the server is busy."""
        if said.startswith("too many"):
            if _FULL in said and self.step:
                self._is_wrong(f"step {self.step} is refused: {said}")
            self.tally.count(self.kind, "busy")
            return
        idle = time.monotonic() - self.since
        if self.step and _NONE in said:
            self.tally.count(self.kind, "gone")
            self.tally.gone.append(Gap(self.since, time.monotonic(), f"{self.kind}: {said}"))
        elif self.step and _EXPIRED in said and idle > IDLE_SECONDS:
            self.tally.count(self.kind, "expired")
        else:
            self._is_wrong(f"step {self.step} after {idle:.2f} s: {said}")
        self._begin()

    def _is_wrong(self, message: str) -> None:
        self.tally.is_wrong(self.kind, message)
        self._begin()

    def _begin(self) -> None:
        self.step, self.version = 0, ""


class Client(Asking):
    """A connection over HTTP, of one request."""

    def __init__(self, target: Target, episode: Episode) -> None:
        super().__init__()
        self._target, self._episode = target, episode

    def request(self) -> bytes:
        self._began = time.monotonic()
        self._port = self.transport.get_extra_info("sockname")[1]
        self._late = asyncio.get_running_loop().call_later(ANSWER_SECONDS, self.transport.abort)
        seen = self._episode.observation
        tensor = {"name": "obs", "datatype": "FP32", "shape": seen.shape, "data": seen.ravel().tolist()}
        body = orjson.dumps({"inputs": [tensor], "parameters": self._episode.parameters})
        return post(f"/v2/models/{KEPT}/infer", body, self._target.key)

    def answered(self, head: bytes, body: bytes, microseconds: int) -> bool:
        self._late.cancel()
        status, _ = parse_head(head)
        answer = orjson.loads(body)
        if status == 200:
            self._episode.answered(answer["model_version"], answer["outputs"][0]["data"][0], self._began)
        else:
            self._episode.refused(answer["error"])
        return False

    def unanswered(self, error: Exception | None) -> None:
        self._late.cancel()
        self._episode.tally.is_lost(self._episode.kind, self._port, error)


async def _over_http(target: Target, episode: Episode, pace: float, is_over: Event) -> None:
    while not is_over.is_set():
        await _once(target, episode)
        await asyncio.sleep(pace)


async def _once(target: Target, episode: Episode) -> None:
    """Ask one step on a connection of its own: a sequence is no connection's."""
    try:
        _, client = await asyncio.get_running_loop().create_connection(
            lambda: Client(target, episode),
            "127.0.0.1",
            target.port,
            ssl=target.context(),
            server_hostname="localhost" if target.authority else None,
        )
    except OSError as error:
        episode.tally.has_no_connection(episode.kind, error)
        await asyncio.sleep(REST_SECONDS)
    else:
        await client.lost


def _message(episode: Episode) -> bytes:
    message = MODEL_INFER.request(model_name=KEPT)
    seen = episode.observation
    message.inputs.add(name="obs", datatype="FP32", shape=seen.shape)
    message.raw_input_contents.append(seen.tobytes())
    for name, value in episode.parameters.items():
        kind = {bool: "bool_param", int: "int64_param", str: "string_param"}[type(value)]
        setattr(message.parameters[name], kind, value)
    return bytes(message.SerializeToString())


async def _over_grpc(target: Target, episode: Episode, number: int, pace: float, is_over: Event) -> None:
    async with open_channel(target, number, ("grpc.max_reconnect_backoff_ms", 200)) as channel:
        infer = channel.unary_unary(MODEL_INFER.path)
        while not is_over.is_set():
            began = time.monotonic()
            try:
                content = await infer(_message(episode), metadata=metadata(target.key), timeout=ANSWER_SECONDS)
            except grpc.aio.AioRpcError as error:
                said = error.details() or ""
                if error.code() in (grpc.StatusCode.FAILED_PRECONDITION, grpc.StatusCode.RESOURCE_EXHAUSTED):
                    episode.refused(said)
                else:
                    failed(UNARY, error.code(), said, number, episode.tally)
                await asyncio.sleep(REST_SECONDS)
            else:
                answer = MODEL_INFER.response.FromString(content)
                episode.answered(answer.model_version, numbers_of(answer)[0], began)
            await asyncio.sleep(pace)


async def _over_streams(target: Target, episode: Episode, number: int, pace: float, is_over: Event) -> None:
    async with open_channel(target, number, ("grpc.max_reconnect_backoff_ms", 200)) as channel:
        while not is_over.is_set():
            call = channel.stream_stream(MODEL_STREAM_INFER.path)(metadata=metadata(target.key))
            try:
                await _play(call, episode, pace, is_over)
                raise grpc.aio.AioRpcError(await call.code(), None, None, await call.details())
            except (grpc.aio.AioRpcError, asyncio.InvalidStateError, TimeoutError):
                call.cancel()
                said = await call.details() or ""
                if said.startswith("the server stops") or is_over.is_set():
                    episode.tally.count(STREAM, "stopped")
                else:
                    failed(STREAM, await call.code(), said, number, episode.tally)
            await asyncio.sleep(REST_SECONDS)


async def _play(call: grpc.aio.StreamStreamCall, episode: Episode, pace: float, is_over: Event) -> None:
    while not is_over.is_set():
        began = time.monotonic()
        await call.write(_message(episode))
        content = await asyncio.wait_for(call.read(), ANSWER_SECONDS)
        if content is grpc.aio.EOF:
            return
        answer = MODEL_STREAM_INFER.response.FromString(content)
        if answer.error_message:
            episode.refused(answer.error_message)
        else:
            found = answer.infer_response
            episode.answered(found.model_version, numbers_of(found)[0], began)
        await asyncio.sleep(pace)


async def _abandon(target: Target, tally: Tally, is_over: Event) -> None:
    """Begin more sequences than the server keeps, and end none. Running ones must not suffer."""
    turn = 0
    while not is_over.is_set():
        turn += 1
        for number in range(ABANDONED):
            episode = Episode("abandoned", f"{turn}-{number}", target.answers[KEPT], tally)
            await _once(target, episode)
        for _ in range(int(ABANDON_SECONDS / REST_SECONDS)):
            if not is_over.is_set():
                await asyncio.sleep(REST_SECONDS)


async def _ask(target: Target, is_over: Event, tally: Tally) -> None:
    clients = []
    for number, pace in enumerate(PACES):
        # The same ids over HTTP and gRPC: they are other sequences.
        plain, named = number + 1, f"stream {number + 1}"
        made = [Episode(kind, plain, target.answers[KEPT], tally) for kind in (HTTP, UNARY)]
        streamed = Episode(STREAM, named, target.answers[KEPT], tally)
        clients += [
            _over_http(target, made[0], pace, is_over),
            _over_grpc(target, made[1], 500 + number, pace, is_over),
            _over_streams(target, streamed, 510 + number, pace, is_over),
        ]
    await asyncio.gather(*clients, _abandon(target, tally, is_over))


def run(target: Target, is_over: Event) -> Tally:
    """Ask until it is over."""
    tally = Tally()
    uvloop.run(_ask(target, is_over, tally))
    return tally
