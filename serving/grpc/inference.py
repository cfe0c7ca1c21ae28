"""Answers inference messages: finds the model, decodes the request, runs it and encodes the outputs."""

import asyncio
import time
from collections.abc import Callable
from typing import Any

from trpo_tf.serving.codecs.parameters import SequenceStep
from trpo_tf.serving.codecs.request_validation import InferRequest
from trpo_tf.serving.codecs.v2_grpc import Message, decode_infer, encode_infer, sequence_named
from trpo_tf.serving.grpc.call_counter import CallCounter, Progress
from trpo_tf.serving.grpc.statuses import CallError, unknown_model
from trpo_tf.serving.inference.endpoint import InferenceEndpoint
from trpo_tf.serving.inference.kept_state import SequenceRunner
from trpo_tf.serving.inference.runners import Outputs, Runner, Waiting
from trpo_tf.serving.inference.sequences import Step
from trpo_tf.serving.metrics.series import Metrics
from trpo_tf.serving.options import ServeOptions
from trpo_tf.serving.repository.catalog import Catalog, Model
from trpo_tf.serving.runtime.policy import Policy


class Inference:
    """The endpoints of the catalog that `current` returns, and the runs of their requests."""

    def __init__(
        self,
        current: Callable[[], Catalog],
        options: ServeOptions,
        metrics: Metrics,
        runner: Runner,
        sequences: SequenceRunner,
        calls: CallCounter,
    ) -> None:
        self._current, self._options, self._metrics = current, options, metrics
        self._runner, self._sequences, self._calls = runner, sequences, calls
        self._endpoints: dict[Policy, InferenceEndpoint] = {}  # of the catalog's policies
        self._catalog = Catalog()

    async def answer(self, message: Message, context: Any, progress: Progress) -> Message:
        """Return the response to an inference message; `progress` gets the endpoint.

        Raises `CallError`, and as decoding, admitting and running do.
        """
        try:
            endpoint = self.find_endpoint(message)
        except CallError:
            endpoint = self._endpoint_of_running(message, context)
        progress.endpoint = endpoint
        request = decode_infer(message, endpoint.policy.manifest, max_batch=self._options.max_batch)
        step = None
        if request.sequence is not None:
            step = self._step(request.sequence, message, context)
            endpoint, request = self._where_it_began(step, endpoint, message, request)
            progress.endpoint = endpoint
        outputs = await self._run(endpoint, request, step)
        return encode_infer(outputs, request, message.id, endpoint.model)

    def find_endpoint(self, message: Message) -> InferenceEndpoint:
        """Return the endpoint of the requested model. Raises `CallError`."""
        catalog = self._current()
        if catalog is not self._catalog:
            self._forget_endpoints(catalog)
        model = catalog.find(message.model_name, message.model_version or None)
        if model is None:
            raise unknown_model(message.model_name, message.model_version)
        return self._endpoint_of(model)

    def _step(self, named: SequenceStep, message: Message, context: Any) -> Step:
        return Step.of(("grpc", message.model_name, message.model_version), self._calls.key_of(context), named)

    def _endpoint_of_running(self, message: Message, context: Any) -> InferenceEndpoint:
        """Return the endpoint of a running sequence that names a version which is not loaded any more.

        Raises `CallError` if there is none, and `NoSequenceError` if it has expired.
        """
        sequences, named = self._sequences.sequences, sequence_named(message)
        if named is not None and not named.is_start:
            key = self._step(named, message, context).key
            if sequences.is_running(key):
                return sequences.find(key, time.monotonic()).endpoint
        raise unknown_model(message.model_name, message.model_version)

    def _forget_endpoints(self, catalog: Catalog) -> None:
        """Drop the endpoints of policies that a new catalog does not have, so that their memory is freed."""
        loaded = {model.policy for release in catalog.releases.values() for model in release.versions.values()}
        self._endpoints = {policy: endpoint for policy, endpoint in self._endpoints.items() if policy in loaded}
        self._catalog = catalog

    def _endpoint_of(self, model: Model) -> InferenceEndpoint:
        endpoint = self._endpoints.get(model.policy)
        if endpoint is None:
            endpoint = self._endpoints[model.policy] = InferenceEndpoint(model, self._options, self._metrics, "grpc")
        return endpoint

    def _where_it_began(
        self, step: Step, endpoint: InferenceEndpoint, message: Message, request: InferRequest
    ) -> tuple[InferenceEndpoint, InferRequest]:
        """Return the endpoint of a step's sequence, and the request as that version reads it.

        Raises `RequestError` and `NoSequenceError`.
        """

        def start() -> InferenceEndpoint:
            if message.model_version:
                return endpoint
            return self._endpoint_of(self._current().releases[message.model_name].choose_for_sequence())

        began_at = self._sequences.endpoint_of(step, endpoint, start)
        if began_at is not endpoint:
            request = decode_infer(message, began_at.policy.manifest, max_batch=self._options.max_batch)
        return began_at, request

    async def _run(self, endpoint: InferenceEndpoint, request: InferRequest, step: Step | None) -> Outputs:
        """Return the outputs of a request, which may be a step of a sequence."""
        admitted = endpoint.admit(request)
        if step is None:
            outputs = self._runner.run(endpoint.policy, admitted)
        else:
            outputs = self._sequences.run(step, endpoint, admitted)
        return await _outputs_of(outputs) if isinstance(outputs, Waiting) else outputs


async def _outputs_of(waiting: Waiting) -> Outputs:
    ran: asyncio.Future[Outputs | Exception] = asyncio.get_running_loop().create_future()
    waiting.done = lambda outputs: None if ran.done() else ran.set_result(outputs)
    if isinstance(outputs := await ran, Exception):
        raise outputs
    return outputs
