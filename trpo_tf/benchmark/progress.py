"""Progress of a benchmark: a line for each run that has ended, and on a terminal a live line below them."""

import contextlib
import json
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Column

from trpo_tf.benchmark.results import RUN_FOLDER, Result

_SECONDS_BETWEEN_LOOKS = 1.0
_METRICS_FILE = "metrics.jsonl"
_LONGEST_LINE = 4096


class BenchmarkProgress:
    """Shows on standard error how far the runs are.

    Attributes:
        bar: the live line, shown while its context is entered; None without a terminal.
    """

    def __init__(self, total_steps: Mapping[Path, int]) -> None:
        """Prepare for runs with these `total_steps`, by folder."""
        self._total_steps = total_steps
        self._ended: dict[Path, int] = {}
        self._last_look = 0.0
        self._console = Console(stderr=True, highlight=False, soft_wrap=True)
        self.bar: Progress | None = None
        if sys.stderr.isatty():
            self.bar = Progress(
                BarColumn(20),
                TextColumn("{task.description}", table_column=Column(no_wrap=True)),
                TimeRemainingColumn(),
                console=self._console,
                transient=True,
            )
            self._task = self.bar.add_task("", total=sum(total_steps.values()))

    def finished(self, folder: Path, result: Result, *, before: bool = False) -> None:
        """Print that a run is done; with `before`, in an earlier call of the benchmark."""
        mean, std = result.score, result.evaluation["std_return"]
        speed = "done before" if before else f"{result.seconds:,.0f} s, {result.steps_per_second:,.0f} steps/s"
        self._end(folder, f"return {mean:,.1f} +- {std:,.1f}  {result.steps:,} steps  {speed}")

    def failed(self, folder: Path, reason: str) -> None:
        """Print that a run ended without a result."""
        self._end(folder, f"failed: {reason}")

    def running(self, folders: Sequence[Path]) -> None:
        """Show the progress of the runs in these folders, at most once a second."""
        now = time.monotonic()
        if self.bar is None or now - self._last_look < _SECONDS_BETWEEN_LOOKS:
            return
        self._last_look = now
        steps = {folder: steps_so_far(folder / RUN_FOLDER) for folder in folders}
        shares = (f"{folder.name} {100 * done // self._total_steps[folder]}%" for folder, done in steps.items())
        self.bar.update(
            self._task,
            completed=sum(self._ended.values()) + sum(steps.values()),
            description=f"{len(self._ended)} of {len(self._total_steps)} runs  {'  '.join(shares)}",
        )

    def _end(self, folder: Path, outcome: str) -> None:
        self._ended[folder] = self._total_steps[folder]
        place = f"{len(self._ended):>{len(str(len(self._total_steps)))}}/{len(self._total_steps)}"
        self._console.print(f"{place}  {folder.name:<32} {outcome}", markup=False)


@contextlib.contextmanager
def benchmark_progress(total_steps: Mapping[Path, int]) -> Iterator[BenchmarkProgress]:
    """Show the progress of runs with these `total_steps`, by folder, until the context ends."""
    progress = BenchmarkProgress(total_steps)
    with progress.bar or contextlib.nullcontext():
        yield progress


def steps_so_far(run: Path) -> int:
    """Return the environment steps of a run that another process trains, 0 before its first iteration."""
    try:
        with (run / _METRICS_FILE).open("rb") as file:
            file.seek(max(0, file.seek(0, 2) - _LONGEST_LINE))
            last: Any = json.loads(file.read().split(b"\n")[-2])
            return int(last["steps"])
    except (OSError, ValueError, IndexError, KeyError):
        return 0  # not there yet, or just being written
