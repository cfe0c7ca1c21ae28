"""HTTP connections whose requests are run together: what `--batching` puts in place of `serving.http.Connection`.

A connection has one request waiting at most. When anything else happens on it first, such as a further request or its
end, what has been gathered is run at once; so answers keep their order.
"""

from functools import partial

from trpo_tf.serving.batching import Answers, Gatherer
from trpo_tf.serving.codec import InferRequest
from trpo_tf.serving.http import Connection, Decoded
from trpo_tf.serving.routes import HttpError, Steps
from trpo_tf.serving.site import Site


class GatheringConnection(Connection):
    """One client."""

    acts_later = True

    def __init__(self, site: Site, gatherer: Gatherer) -> None:
        super().__init__(site)
        self._gatherer = gatherer

    def _act(self, steps: Steps, decoded: Decoded, *, keep: bool) -> None:
        try:
            if isinstance(decoded, HttpError):
                raise decoded
            request = steps.admit(decoded)
        except Exception as error:  # noqa: BLE001 (each has its answer)
            self._finish(self._failed(steps.failure(error)), keep=keep)
            return
        self._is_pending = True
        self._gatherer.add(steps.policy, request, partial(self._on_answers, steps, request, keep))

    def _on_answers(self, steps: Steps, request: InferRequest, keep: bool, answers: Answers | Exception) -> None:
        self._is_pending = False
        if self._closing:
            return
        try:
            if isinstance(answers, Exception):
                raise answers
            response = steps.encode(request, answers)
        except Exception as error:  # noqa: BLE001 (each has its answer, and others wait for theirs)
            response = self._failed(steps.failure(error))
        self._finish(response, keep=keep)
        self._rest()

    def _flush(self) -> None:
        super()._flush()
        if self._is_pending:
            self._gatherer.run()
            self._read_on()
