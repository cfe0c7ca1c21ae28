"""Batching: requests that wait at the same time run as one batch.

Requests that the event loop reads in one turn are collected and run at its end. No request waits for others that may
not come, and batches grow with the number of clients that ask at once.
"""

import asyncio
import logging
from collections import defaultdict
from collections.abc import Mapping

import numpy as np

from trpo_tf.serving.codecs.request_validation import InferRequest
from trpo_tf.serving.inference.runners import Outputs, Waiting
from trpo_tf.serving.runtime.not_finite import NotFiniteError, check_finite
from trpo_tf.serving.runtime.observations import Array, Observation, batch_size, by_name, structured
from trpo_tf.serving.runtime.policy import Policy
from trpo_tf.serving.support.logs import emit


class Batcher:
    """Collects requests and runs them as batches. Use it in the event loop's thread only."""

    def __init__(self, max_batch: int) -> None:
        """Limit batches to `max_batch` rows, or to the graph's batch size where that is fixed."""
        self._max_batch = max_batch
        self._waiting: defaultdict[Policy, list[Waiting]] = defaultdict(list)

    def run(self, policy: Policy, request: InferRequest) -> Waiting:
        """Queue the request; `flush` runs it at the end of this turn of the event loop."""
        if not self._waiting:
            asyncio.get_running_loop().call_soon(self.flush)
        waiting = Waiting(request)
        self._waiting[policy].append(waiting)
        return waiting

    def flush(self) -> None:
        """Run all queued requests as batches."""
        waiting, self._waiting = self._waiting, defaultdict(list)
        for policy, requests in waiting.items():
            for batch in batches(requests, policy.manifest.graph.batch or self._max_batch):
                for one, answers in zip(batch, run_together(policy, [one.request for one in batch]), strict=True):
                    if one.done is not None:
                        one.done(answers)


def batches(waiting: list[Waiting], most: int) -> list[list[Waiting]]:
    """Split the requests, in order, into lists of at most `most` rows. A larger request gets a list of its own."""
    made: list[list[Waiting]] = []
    rows = most
    for one in waiting:
        size = batch_size(one.request.observations)
        if rows + size > most:
            made.append([])
            rows = 0
        made[-1].append(one)
        rows += size
    return made


def run_together(policy: Policy, requests: list[InferRequest]) -> list[Outputs | Exception]:
    """Run the requests as one batch; return the outputs or the exception of each.

    If the batch fails, each request is run alone.
    """
    if len(requests) > 1:
        try:
            return [*_as_one(policy, requests)]
        except Exception as fault:  # noqa: BLE001 (those of them that fail alone say why)
            alone = [answers for request in requests for answers in run_together(policy, [request])]
            if not any(isinstance(answers, Exception) for answers in alone):
                emit("fault", "a batch failed whose requests do not", level=logging.ERROR, fault=fault)
            return alone
    (request,) = requests
    try:
        return [policy.infer(request.observations, request.noise, [*request.outputs])]
    except Exception as error:  # noqa: BLE001 (whose request it is raises it)
        return [error]


def _as_one(policy: Policy, requests: list[InferRequest]) -> list[Outputs | Exception]:
    names = list(dict.fromkeys(name for request in requests for name in request.outputs))
    observations = _joined([request.observations for request in requests], policy.manifest.observation[0].name)
    is_finite = True
    try:
        answers: Mapping[str, Array] = policy.infer(observations, _joined_noise(policy, requests), names)
    except NotFiniteError as error:  # which requests asked for such an output is checked below
        answers, is_finite = error.answers, False
    ends = np.cumsum([batch_size(request.observations) for request in requests]).tolist()
    rows = [slice(start, end) for start, end in zip([0, *ends[:-1]], ends, strict=True)]
    each: list[Outputs] = [
        {name: answers[name][part] for name in request.outputs} for request, part in zip(requests, rows, strict=True)
    ]
    if is_finite:
        return [*each]
    return [_checked(policy, *one) for one in zip(requests, each, strict=True)]


def _checked(policy: Policy, request: InferRequest, answers: Outputs) -> Outputs | Exception:
    """Return the request's outputs, or the error if they are not finite."""
    feeds = by_name(request.observations, policy.manifest.observation[0].name)
    if request.noise is not None:
        feeds[policy.manifest.noise.name] = request.noise
    try:
        check_finite(answers, feeds, policy.manifest)
    except NotFiniteError as error:
        return error
    return answers


def _joined(observations: list[Observation], only: str) -> Observation:
    named = [by_name(observation, only) for observation in observations]
    return structured({name: np.concatenate([parts[name] for parts in named]) for name in named[0]})


def _joined_noise(policy: Policy, requests: list[InferRequest]) -> Array | None:
    """Return the noise of all requests, zero where a request has none; None if no request has any."""
    if all(request.noise is None for request in requests):
        return None
    spec = policy.manifest.noise
    return np.concatenate(
        [
            np.zeros((batch_size(request.observations), *spec.shape), spec.dtype)
            if request.noise is None
            else request.noise
            for request in requests
        ]
    )
