"""Runs the steps of sequences: the state goes in from the store, and comes back to it with the outputs."""

import time
from collections.abc import Callable
from typing import TypeVar, cast

from trpo_tf.serving.codecs.request_validation import InferRequest
from trpo_tf.serving.errors import RequestError
from trpo_tf.serving.inference.endpoint import InferenceEndpoint
from trpo_tf.serving.inference.runners import Outputs, Runner, Waiting
from trpo_tf.serving.inference.sequences import Sequences, Step
from trpo_tf.serving.options import ServeOptions
from trpo_tf.serving.runtime.observations import batch_size, by_name

E = TypeVar("E", bound=InferenceEndpoint)


class SequenceRunner:
    """Runs one step of each sequence at a time, in the order in which they arrive, in the event loop's thread.

    Attributes:
        sequences: the running sequences.
    """

    def __init__(self, options: ServeOptions, runner: Runner) -> None:
        """Keep the sequences that the options allow, and have `runner` run their steps."""
        self.sequences, self._runner = Sequences(options.kept_sequences, options.sequence_idle), runner
        self._refusal = _why_not(options)

    def endpoint_of(self, step: Step, endpoint: E, start: Callable[[], E] | None = None) -> E:
        """Return the sequence's endpoint. A new sequence begins at that of `start`, by default at `endpoint`.

        Raises `RequestError` if the server keeps no sequences, and `NoSequenceError`.
        """
        if self._refusal:
            raise RequestError(self._refusal)
        if self.sequences.is_stepping(step.key):
            self._runner.flush()
        if not step.is_start:
            return cast("E", self.sequences.find(step.key, time.monotonic()).endpoint)
        return endpoint if start is None else start()

    def run(self, step: Step, endpoint: InferenceEndpoint, request: InferRequest) -> Outputs | Waiting:
        """Run an admitted step, or queue it, as `Runner.run` does. Raises as that and as `Sequences.begin_step` do."""
        policy, rows = endpoint.policy, batch_size(request.observations)
        names = {spec.name: spec.next_name for spec in policy.manifest.state}
        sequence = self.sequences.begin_step(step, endpoint, rows, time.monotonic())

        def keep(outputs: Outputs) -> Outputs:
            # Copies, since a row of a batch would keep the whole batch in memory.
            following = {name: outputs[next_name].copy() for name, next_name in names.items()}
            self.sequences.end_step(step, sequence, following)
            return {name: outputs[name] for name in request.outputs}

        def finish(outputs: Outputs | Exception) -> Outputs | Exception:
            if isinstance(outputs, Exception):
                self.sequences.end_step(step, sequence, None)
                return outputs
            return keep(outputs)

        whole = request._replace(
            observations={**by_name(request.observations, ""), **sequence.state},
            outputs={**request.outputs, **dict.fromkeys(names.values(), False)},
        )
        try:
            outputs = self._runner.run(policy, whole)
        except Exception as error:
            finish(error)
            raise
        return _finished_later(outputs, finish) if isinstance(outputs, Waiting) else keep(outputs)


def _finished_later(waiting: Waiting, finish: Callable[[Outputs | Exception], Outputs | Exception]) -> Waiting:
    """Return a queued request whose outputs are those of `waiting`, finished even if its client has left."""
    outer = Waiting(waiting.request)

    def done(outputs: Outputs | Exception) -> None:
        finished = finish(outputs)
        if outer.done is not None:
            outer.done(finished)

    waiting.done = done
    return outer


def _why_not(options: ServeOptions) -> str:
    """Return why the server keeps no sequences; empty if it does."""
    if options.kept_sequences:
        return ""
    why = f"has {options.workers} workers" if options.workers > 1 else "has --max-sequences 0"
    return f"sequence_id is not served: the server {why} and keeps no state; send the state with each request"
