"""HTTP connections whose requests are run together: what `--batching` puts in place of `serving.http.Connection`.

A connection has one request waiting at most. When anything else happens on it first, such as a further request or its
end, what has been gathered is run at once; so answers keep their order.
"""

from functools import partial
from time import perf_counter

from serving.batching import Answers, Gatherer
from serving.codec import InferRequest
from serving.http import MAX_UNREAD, Connection, Decoded
from serving.routes import HttpError, Steps
from serving.site import Site


class GatheringConnection(Connection):
    """One client."""

    def __init__(self, site: Site, gatherer: Gatherer) -> None:
        super().__init__(site)
        self._gatherer, self._is_waiting = gatherer, False

    def on_message_complete(self) -> None:
        """Let the request wait for the others of this round; one that no policy answers is answered at once."""
        choose = self._route and self._route.choose
        if self._closing or not choose or self._is_large() or (self._paused and self.unread > MAX_UNREAD):
            super().on_message_complete()
            return
        self._was_whole = perf_counter()
        steps = choose()
        keep = self._parser.should_keep_alive()
        self._act(steps, steps.decode_safely(self._head, self._body), keep=keep)

    def _act(self, steps: Steps, decoded: Decoded, *, keep: bool) -> None:
        try:
            if isinstance(decoded, HttpError):
                raise decoded
            request = steps.admit(decoded)
        except Exception as error:  # noqa: BLE001 (each has its answer)
            self._finish(self._failed(steps.failure(error)), keep=keep)
            return
        self._is_waiting = True
        self._gatherer.add(steps.policy, request, partial(self._on_answers, steps, request, keep))

    def _on_answers(self, steps: Steps, request: InferRequest, keep: bool, answers: Answers | Exception) -> None:
        self._is_waiting = False
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
        if self._is_waiting:
            self._gatherer.run()

    def eof_received(self) -> bool:
        """Answer what waits before the connection is closed."""
        self._flush()
        return super().eof_received()

    def expire(self) -> None:
        """Answer what waits, which is whole and on time; end anything else."""
        if self._is_waiting:
            self._flush()
        else:
            super().expire()

    def _bound(self) -> None:
        if not self._is_waiting:
            super()._bound()

    def _end(self) -> None:
        self._flush()
        super()._end()
