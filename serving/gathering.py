"""HTTP connections whose requests are run together: what `--batching` puts in place of `serving.http.Connection`.

A connection has one request waiting at most. When anything else happens on it first, such as a further request or its
end, what has been gathered is run at once; so answers keep their order.
"""

from functools import partial
from time import perf_counter

from serving.batching import Answers, Gatherer
from serving.codec import InferRequest
from serving.http import MAX_UNREAD, Connection
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
        if self._closing or not choose or (self._paused and self.unread > MAX_UNREAD):
            super().on_message_complete()
            return
        self._was_whole = perf_counter()
        steps, keep = choose(), self._parser.should_keep_alive()
        try:
            request = steps.decode(self._head, self._body)
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
        if not (self._closing or self._paused):
            self.idle_since = self._now()
            self.deadline = self.idle_since + self._site.options.keep_alive

    def _flush(self) -> None:
        if self._is_waiting:
            self._gatherer.run()

    def on_message_begin(self) -> None:
        """Answer what waits before a further request begins."""
        self._flush()
        super().on_message_begin()

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

    def _refuse(self, error: HttpError) -> None:
        self._flush()
        if not self._closing:
            super()._refuse(error)

    def _end(self) -> None:
        self._flush()
        super()._end()
