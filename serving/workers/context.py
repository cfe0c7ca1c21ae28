"""Context that a worker process inherits from its parent, and the start message."""

import socket
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from trpo_tf.serving.support.logs import emit

MOST_NAMES = 10
"""The start message names up to so many models; of more it names the first three."""


class WorkerContext(NamedTuple):
    """Context that a worker process inherits from its parent.

    Attributes:
        worker_index: from 0; a worker that replaces another has the same.
        channel: socket to the parent, if there is one.
        source: what to serve, as the first worker resolved the path, for workers that start later.
        unloaded: models that clients have unloaded.
        interfaces: version and interface (of `serving.bundle.interface.to_json`) that answered last, for each model.
    """

    worker_index: int
    channel: socket.socket | None = None
    source: Any = None
    unloaded: tuple[str, ...] = ()
    interfaces: Mapping[str, Any] = {}


def announce(names: Sequence[str], count: int, urls: Sequence[str]) -> None:
    """Log what is served, and where: `count` models, of which `names` has the first `MOST_NAMES`."""
    shown = ", ".join(names) or "nothing yet"
    if count > len(names):
        shown = f"{count} models ({', '.join(names[:3])}, ...)"
    message = f"serving {shown} on {' and '.join(urls)}"
    emit("start", message, models=list(names), count=count, listening=list(urls))
