"""Log of a run's metrics: one line of JSON per iteration, and the same for TensorBoard."""

import contextlib
import json
import math
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from trpo_tf.export.support.new_folder import named_when_full
from trpo_tf.runs.event_file import EventFile
from trpo_tf.runs.layout import METRICS_FILE, TENSORBOARD_FOLDER
from trpo_tf.support.atomic_write import write_atomically


class MetricsLog:
    """Drops the logged iterations after `iteration` from a run's metrics, then appends to them."""

    def __init__(self, folder: Path, iteration: int) -> None:
        """Open the log; `iteration` is the last one saved, since a killed run may have logged more than it saved."""
        self._folder, path = folder, folder / METRICS_FILE
        if path.exists():
            kept = [line for line in path.read_text(errors="replace").splitlines() if _iteration(line) <= iteration]
            write_atomically(path, "".join(f"{line}\n" for line in kept).encode())
        self._lines = path.open("a", encoding="utf-8")
        self._events = EventFile(folder / TENSORBOARD_FOLDER)

    def write(self, metrics: Mapping[str, Any]) -> None:
        """Log one iteration; numbers that are not finite become null in JSON. Raises `OSError` if the disk is full."""
        finite = {
            name: None if isinstance(value, float) and not math.isfinite(value) else value
            for name, value in metrics.items()
        }
        with named_when_full(self._folder / METRICS_FILE):
            self._lines.write(json.dumps(finite) + "\n")
            self._lines.flush()
        with named_when_full(self._folder / TENSORBOARD_FOLDER):
            for name, value in finite.items():
                if isinstance(value, int | float):
                    self._events.add_scalar(name, value, step=metrics["steps"])
            self._events.flush()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # On a full disk closing fails as well; the first error says it all.
        with contextlib.suppress(OSError) if kind is not None else contextlib.nullcontext():
            self._lines.close()
        with contextlib.suppress(OSError) if kind is not None else contextlib.nullcontext():
            self._events.close()


def _iteration(line: str) -> float:
    try:
        return float(json.loads(line)["iteration"])
    except (ValueError, KeyError, TypeError):
        return math.inf  # the last line of a killed run may be cut off
