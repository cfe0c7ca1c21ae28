"""What runs rollout workers: the interface of the two engines, processes on this machine and Ray's actors."""

from collections.abc import Sequence
from typing import Any, Protocol

from trpo_tf.sampling.engines.worker import Answer


class WorkerLost(Exception):
    """A worker has ended, or can't be reached; the message is what follows its name in a sentence."""


class RemoteWorker(Protocol):
    """A worker elsewhere, which answers calls one after the other.

    Attributes:
        name: its name in messages.
    """

    name: str

    def send(self, message: Any) -> None:
        """Send a message of the engine's `message`; the worker must have answered the one before."""

    def receive(self) -> Answer:
        """Return the answer, once `Engine.wait` has returned the worker. Raises `WorkerLost`."""

    def seconds_in_step(self) -> float:
        """Return for how long the call has been running, or its latest step; 0 if the worker has not yet started."""

    def kill(self) -> None:
        """End the worker at once."""


class Engine(Protocol):
    """Starts workers, and waits for those that it has started."""

    def start(self, shards: range) -> RemoteWorker:
        """Start a worker for these shards."""

    def message(self, call: bytes) -> Any:
        """Return a pickled call in the form that `send` takes; it may be sent to several workers."""

    def wait(self, workers: Sequence[Any], seconds: float) -> Sequence[RemoteWorker]:
        """Return the workers that have answered or are lost, after `seconds` at most."""

    def close(self, workers: Sequence[Any]) -> None:
        """Close the workers' environments, and end the workers."""
