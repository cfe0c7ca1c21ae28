"""Progress of a run: a bar on a terminal, plain lines elsewhere."""

import sys
import time
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from trpo_tf.config.settings import Config

if TYPE_CHECKING:
    from rich.progress import Progress as Bar

_SECONDS_BETWEEN_LINES = 2.0
_SECONDS_BETWEEN_UPDATES = 0.1


class SlowLine:
    """Prints texts on standard error, at most one in two seconds, and none in the first two."""

    def __init__(self, before: Callable[[], None] = lambda: None) -> None:
        """Start the first two seconds; `before` is called before each text that is printed."""
        self._last, self._before = time.monotonic(), before

    def __call__(self, text: str) -> None:
        """Print the text, or drop it if the last one is too recent."""
        now = time.monotonic()
        if now - self._last >= _SECONDS_BETWEEN_LINES:
            self._last = now
            self._before()
            print(text, file=sys.stderr, flush=True)  # noqa: T201


def watch(show: Callable[[str], None], what: str, episodes: int) -> Callable[[int, int], None]:
    """Return a function of ended episodes and steps so far, which shows an evaluation's progress by `show`."""
    shown = time.monotonic()

    def on_step(over: int, steps: int) -> None:
        nonlocal shown
        now = time.monotonic()
        if now - shown >= _SECONDS_BETWEEN_UPDATES:
            shown = now
            show(f"{what}: {over} of {episodes} episodes, {steps:,} steps")

    return on_step


class Progress:
    """Shows each iteration's metrics on standard error, and the stages before and after."""

    def __init__(self, config: Config, *, shown: bool = True) -> None:
        """Prepare for a run with `config`; the environments' backend is printed after the first iteration."""
        self._shown = shown
        self._total, sampling = config.total_steps, config.sampling
        self._begun = f"{sampling.num_envs} environments by {sampling.env_backend}"
        self._last_line = 0.0
        self._slow_line = SlowLine(self._print_pending)
        self._pending = self._latest = ""
        self._started: tuple[float, int] | None = None
        self._bar: Bar | None = None
        if shown and sys.stderr.isatty():
            self._bar = _make_bar()
            self._task = self._bar.add_task("starting", total=config.total_steps)

    def show(self, metrics: Mapping[str, Any]) -> None:
        """Show the metrics of one iteration."""
        if not self._shown:
            return
        now, steps = time.monotonic(), metrics["steps"]
        text = self._latest = _described(metrics)
        if self._started is None:
            self._started = now, steps
            self._print_above(self._begun)
        if self._bar is not None:
            self._bar.update(self._task, completed=steps, description=text)
            return
        self._pending = f"{steps:>9,} of {self._total:,} steps  {text}{self._left(now, steps)}"
        if now - self._last_line >= _SECONDS_BETWEEN_LINES:
            self._last_line = now
            self._print_pending()

    def stage(self, text: str) -> None:
        """Show the present stage outside of iterations; without a terminal only if it takes long."""
        if self._bar is not None:
            self._bar.update(self._task, description=text)
        elif self._shown:
            self._slow_line(text)

    def _print_above(self, text: str) -> None:
        if self._bar is not None:
            self._bar.console.print(text, highlight=False)
        else:
            print(text, file=sys.stderr, flush=True)  # noqa: T201

    def _print_pending(self) -> None:
        if self._pending:
            print(self._pending, file=sys.stderr, flush=True)  # noqa: T201
            self._pending = ""

    def _left(self, now: float, steps: int) -> str:
        then, steps_then = self._started or (now, steps)
        if steps == steps_then:
            return ""
        seconds = (now - then) / max(steps - steps_then, 1) * max(self._total - steps, 0)
        return f"  {seconds:.0f} s left"

    def __enter__(self) -> Self:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            if kind is None:
                # Training may end short of the total, since no iteration begins that could exceed it.
                done = self._bar.tasks[self._task].completed
                self._bar.update(self._task, total=done, description=self._latest)
            self._bar.stop()
        self._print_pending()


def _make_bar() -> "Bar":
    # Imported here: without a terminal there is no bar.
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    return Progress(
        BarColumn(20),
        MofNCompleteColumn(),
        TextColumn("{task.description}"),
        TimeRemainingColumn(),
        console=Console(stderr=True),
    )


def _described(metrics: Mapping[str, Any]) -> str:
    mean_return = metrics["mean_return"]
    shown = "-" if mean_return is None else f"{mean_return:.1f}"
    rejected = "" if metrics["update_status"] == "accepted" else f"  update {metrics['update_status']}"
    return f"return {shown}  KL {metrics['mean_kl']:.4f}  {metrics['steps_per_second']:,.0f} steps/s{rejected}"
