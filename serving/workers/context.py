"""What a worker process knows of its place among the others, and the line that says what is served."""

import socket
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from trpo_tf.serving.support.logs import emit

MOST_NAMES = 10
"""Models whose names are announced at the start, if there are no more; of more than these, the first few."""


class WorkerContext(NamedTuple):
    """What a worker process inherits from its parent.

    Attributes:
        worker_index: from 0; a worker that is started for one that died has the same.
        channel: to the parent, if there is one.
        settled: what the first worker has found out about what is served, for those that come later.
        unloaded: models that clients have unloaded.
        acted: version and interface, as `serving.bundle.interface.to_json` makes it, that answered last for each model.
    """

    worker_index: int
    channel: socket.socket | None = None
    source: Any = None
    unloaded: tuple[str, ...] = ()
    acted: Mapping[str, Any] = {}


def announce(names: Sequence[str], count: int, urls: Sequence[str]) -> None:
    """Say on stderr what is served, and where: `count` models, of which `names` has the first `MOST_NAMES`."""
    shown = ", ".join(names) or "nothing yet"
    if count > len(names):
        shown = f"{count} models ({', '.join(names[:3])}, ...)"
    message = f"serving {shown} on {' and '.join(urls)}"
    emit("start", message, models=list(names), count=count, listening=list(urls))
