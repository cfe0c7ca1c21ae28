"""The server under test: where it is, and what it should answer."""

import http.client
import ssl
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import orjson

from tests.container.chaos.faults.models import OBSERVATIONS, Action

MODEL, GUEST, WIDE, RECURRENT, KEPT = "walk", "guest", "wide", "recurrent", "kept"
"""A model that can always act, one that comes and goes, that of the amplifying messages, and two with state.

Versions of `RECURRENT` have the same weights, those of `KEPT` have not.
"""

TOLERANCE = 1e-5
ROWS = (1, 16)
"""Observations in a request."""


class Wrong(Exception):
    """An answer that is not the right one."""


@dataclass(frozen=True)
class Target:
    """A running server. `answers` has the right actions by model, version and observation."""

    port: int
    grpc_port: int
    key: str
    authority: Path | None
    answers: dict[str, dict[str, list[Action]]]

    def context(self) -> ssl.SSLContext | None:
        """How a client speaks TLS, if the server does."""
        if self.authority is None:
            return None
        context = ssl.create_default_context(cafile=str(self.authority))
        context.check_hostname = False
        return context

    def connection(self, seconds: float) -> http.client.HTTPConnection:
        """A connection to be made, of a client with so much patience."""
        context = self.context()
        if context is None:
            return http.client.HTTPConnection("127.0.0.1", self.port, timeout=seconds)
        return http.client.HTTPSConnection("127.0.0.1", self.port, timeout=seconds, context=context)


@dataclass(frozen=True)
class Question:
    """A request for actions. `first` is the first of its observations, `way` how it is asked."""

    model: str
    way: str
    first: int
    rows: int
    content: bytes

    def check(self, target: Target, version: str, numbers: list[float]) -> None:
        """Raise `Wrong` unless these are the actions of the version that says it acted."""
        known = target.answers[self.model].get(version)
        if known is None:
            raise Wrong(f"{self.model} has no version {version!r}")
        expected = [number for action in known[self.first : self.first + self.rows] for number in action]
        if len(numbers) != len(expected) or any(abs(a - b) > TOLERANCE for a, b in zip(numbers, expected, strict=True)):
            raise Wrong(f"{self.model} version {version} answered {numbers} to {self.way}, not {expected}")


def observations(first: int, rows: int) -> np.ndarray:
    """The observations of a question."""
    return OBSERVATIONS[first : first + rows]


def post(path: str, body: bytes, key: str, *headers: str) -> bytes:
    """An HTTP request."""
    lines = [f"POST {path} HTTP/1.1", "Host: localhost", f"Content-Length: {len(body)}", *headers]
    lines += [f"Authorization: Bearer {key}"] if key else []
    return "\r\n".join([*lines, "\r\n"]).encode() + body


def http_question(target: Target, way: str, number: int, *headers: str, model: str = MODEL) -> Question:
    """A request by HTTP: `json`, `raw` or `predict`."""
    rows = ROWS[number % len(ROWS)]
    first = number % (len(OBSERVATIONS) - rows)
    values, infer = observations(first, rows), f"/v2/models/{model}/infer"
    if way == "raw":
        content = post(infer, values.tobytes(), target.key, "Inference-Header-Content-Length: 0", *headers)
    elif way == "predict":
        body = orjson.dumps({"instances": values.tolist()})
        content = post(f"/v1/models/{model}:predict", body, target.key, *headers)
    else:
        tensor = {"name": "obs", "datatype": "FP64", "shape": values.shape, "data": values.ravel().tolist()}
        content = post(infer, orjson.dumps({"inputs": [tensor]}), target.key, *headers)
    return Question(model, way, first, rows, content)


def check_http(target: Target, question: Question, head: bytes, body: bytes) -> str:
    """What an answer is: `right`, or a refusal that a client may meet. Raises `Wrong`."""
    status, headers = parse_head(head)
    if status == 503 and "retry-after" in headers:
        return "busy"
    if status == 404 and question.model == GUEST:
        return "absent"
    if status != 200:
        raise Wrong(f"status {status} for {question.way}: {body[:200].decode(errors='replace')}")
    question.check(target, *read_answer(headers, body))
    return "right"


def read_answer(headers: dict[str, str], body: bytes) -> tuple[str, list[float]]:
    """The version that acted, and its actions, whichever way it was asked."""
    if "inference-header-content-length" in headers:
        size = int(headers["inference-header-content-length"])
        return orjson.loads(body[:size])["model_version"], np.frombuffer(body[size:], "<f4").tolist()
    answer = orjson.loads(body)
    if "predictions" in answer:
        return headers["model-version"], np.ravel(answer["predictions"]).tolist()
    return answer["model_version"], answer["outputs"][0]["data"]


def parse_head(head: bytes) -> tuple[int, dict[str, str]]:
    """Status and headers, their names in lower case."""
    first, *lines = head.decode("latin-1").split("\r\n")
    pairs = (line.partition(":") for line in lines)
    return int(first.split()[1]), {name.lower(): value.strip() for name, _, value in pairs}
