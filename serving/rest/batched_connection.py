"""HTTP connections whose requests are run as one batch: `--batching` uses them instead of plain ones.

A connection has at most one request waiting. If anything else happens on it first, such as a further request or its
end, the batch is run at once; so answers keep their order.
"""

from functools import partial

from trpo_tf.serving.codecs.v2_json import InferRequest
from trpo_tf.serving.inference.batching import Answers, Batcher
from trpo_tf.serving.rest.connection import Connection, Decoded
from trpo_tf.serving.rest.responses import HttpError
from trpo_tf.serving.rest.routes import InferenceEndpoint
from trpo_tf.serving.rest.state import ServerState


class BatchedConnection(Connection):
    """One client."""

    acts_later = True

    def __init__(self, state: ServerState, batcher: Batcher) -> None:
        super().__init__(state)
        self._batcher = batcher

    def _act(self, endpoint: InferenceEndpoint, decoded: Decoded, *, keep: bool) -> None:
        try:
            if isinstance(decoded, HttpError):
                raise decoded
            request = endpoint.admit(decoded)
        except Exception as error:  # noqa: BLE001 (each has its answer)
            self._finish(self._failed(endpoint.failure(error)), keep=keep)
            return
        self._is_pending = True
        self._batcher.add(endpoint.policy, request, partial(self._on_answers, endpoint, request, keep))

    def _on_answers(
        self, endpoint: InferenceEndpoint, request: InferRequest, keep: bool, answers: Answers | Exception
    ) -> None:
        self._is_pending = False
        if self._closing:
            return
        try:
            if isinstance(answers, Exception):
                raise answers
            response = endpoint.encode(request, answers)
        except Exception as error:  # noqa: BLE001 (each has its answer, and others wait for theirs)
            response = self._failed(endpoint.failure(error))
        self._finish(response, keep=keep)
        self._rest()

    def _flush(self) -> None:
        super()._flush()
        if self._is_pending:
            self._batcher.run()
            self._read_on()
