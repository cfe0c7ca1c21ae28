"""Good clients over HTTP: each asks again as soon as it is answered, and checks every answer."""

import asyncio
import itertools
import ssl
from multiprocessing.synchronize import Event
from typing import NamedTuple

import uvloop

from tests.container.chaos.clients.tally import Tally
from tests.container.chaos.target import GUEST, MODEL, Question, Target, Wrong, check_http, http_question
from tests.container.traffic import Asking


class Kind(NamedTuple):
    """How a kind of client asks, which model, how many there are, and whether each request has its own connection."""

    way: str
    model: str
    clients: int
    is_fresh: bool = False


KINDS = {
    "JSON": Kind("json", MODEL, 6),
    "raw": Kind("raw", MODEL, 3),
    "predict": Kind("predict", MODEL, 2),
    "fresh": Kind("json", MODEL, 2, is_fresh=True),
    "guest": Kind("json", GUEST, 1),
}

QUESTIONS = 64
REST_SECONDS = 0.05
"""After a refusal, and before a connection is tried again."""

ANSWER_SECONDS = 30.0
"""After which a request is lost: longer than it takes to replace a worker that hangs."""


class Client(Asking):
    """A connection of one kind of client."""

    def __init__(self, kind: str, target: Target, questions: "itertools.cycle[Question]", tally: Tally) -> None:
        super().__init__()
        self._kind, self._target, self._questions, self._tally = kind, target, questions, tally
        self.is_refused = False

    def request(self) -> bytes:
        self._question = next(self._questions)
        self._port = self.transport.get_extra_info("sockname")[1]
        self._late = asyncio.get_running_loop().call_later(ANSWER_SECONDS, self.transport.abort)
        return self._question.content

    def answered(self, head: bytes, body: bytes, microseconds: int) -> bool:
        self._late.cancel()
        try:
            outcome = check_http(self._target, self._question, head, body)
        except Wrong as error:
            self._tally.is_wrong(self._kind, str(error))
            return False
        if outcome == "right":
            self._tally.answered(self._kind, microseconds, "http")
        else:
            self._tally.count(self._kind, outcome)
        self.is_refused = outcome != "right"
        return outcome == "right" and not KINDS[self._kind].is_fresh

    def unanswered(self, error: Exception | None) -> None:
        self._late.cancel()
        self._tally.is_lost(self._kind, self._port, error)


async def _keep_asking(kind: str, target: Target, tally: Tally, is_over: Event) -> None:
    loop, (way, model, _, is_fresh) = asyncio.get_running_loop(), KINDS[kind]
    headers = ("Connection: close",) if is_fresh else ()
    questions = itertools.cycle([http_question(target, way, i, *headers, model=model) for i in range(QUESTIONS)])
    while not is_over.is_set():
        try:
            _, client = await loop.create_connection(
                lambda: Client(kind, target, questions, tally),
                "127.0.0.1",
                target.port,
                ssl=target.context(),
                server_hostname="localhost" if target.authority else None,
            )
        except ssl.SSLCertVerificationError as error:
            tally.is_wrong(kind, str(error))
            await asyncio.sleep(REST_SECONDS)
            continue
        except OSError as error:
            tally.has_no_connection(kind, error)
            await asyncio.sleep(REST_SECONDS)
            continue
        await client.lost
        if client.is_refused:
            await asyncio.sleep(REST_SECONDS)


async def _ask(target: Target, is_over: Event, tally: Tally) -> None:
    await asyncio.gather(
        *(_keep_asking(name, target, tally, is_over) for name, kind in KINDS.items() for _ in range(kind.clients))
    )


def run(target: Target, is_over: Event) -> Tally:
    """Ask until it is over."""
    tally = Tally()
    uvloop.run(_ask(target, is_over, tally))
    return tally
