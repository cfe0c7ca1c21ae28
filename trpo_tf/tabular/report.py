"""Output of the laboratory: a table for the terminal, and a figure."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from trpo_tf.tabular.lab import ALGORITHMS, ROUNDING, History

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_COLOURS = {name: f"C{index}" for index, name in enumerate(ALGORITHMS)}
_LEAST_GAIN = 1e-6
_LEAST_GAP = 1e-12
_WIDTH = 9


def table(histories: Sequence[History]) -> str:
    """Return a table for one MDP: eta and its bound at the iterations 0, 1, 2, 5, 10 ..., and the checks."""
    shown = _shown_iterations(len(histories[0].lower_bound))
    heads = "".join(f"{history.algorithm:>{2 * _WIDTH}}" for history in histories)
    lines = [
        f"{histories[0].mdp}: the best policy has eta = {histories[0].optimum:.4f}",
        f"{'':>9}{heads}",
        f"{'iteration':>9}" + f"{'eta':>{_WIDTH}}{'bound':>{_WIDTH}}" * len(histories),
    ]
    for iteration in shown:
        cells = (
            f"{history.eta[iteration]:>{_WIDTH}.4f}"
            + (f"{history.lower_bound[iteration - 1]:>{_WIDTH}.4f}" if iteration else f"{'-':>{_WIDTH}}")
            for history in histories
        )
        lines.append(f"{iteration:>9}" + "".join(cells))
    return "\n".join([*lines, *map(_verdict, histories)])


def draw(results: Sequence[Sequence[History]], path: Path) -> None:
    """Draw eta and its bound to a PNG: a row for each MDP, a column for each algorithm, two that compare all."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    columns = len(results[0]) + 2
    width, height = 2.7 * columns + 0.6, 2.3 * len(results) + 1.2
    figure = Figure(figsize=(width, height))
    FigureCanvasAgg(figure)
    # A fixed layout: finding one takes longer than everything else.
    figure.subplots_adjust(
        left=1.0 / width, right=1 - 0.2 / width, bottom=0.5 / height, top=1 - 0.7 / height, wspace=0.3, hspace=0.2
    )
    grid = figure.subplots(len(results), columns, squeeze=False)
    for row, histories in enumerate(results):
        limits = _limits(histories)
        for axes, history in zip(grid[row], histories, strict=False):
            _draw_history(axes, history, limits)
        _draw_gains(grid[row, -2], histories)
        _draw_gaps(grid[row, -1], histories)
        grid[row, 0].yaxis.set_label_coords(-0.22, 0.5)
        grid[row, 0].set_ylabel(f"{histories[0].mdp}\n$\\eta$", fontsize=11)
    for axes, history in zip(grid[0], results[0], strict=False):
        axes.set_title(history.algorithm + ("  (never falls)" if history.monotone else ""), fontsize=11)
    grid[0, -2].set_title("gain, and guaranteed gain", fontsize=11)
    grid[0, -1].set_title(r"optimum less $\eta$", fontsize=11)
    for axes in grid[-1]:
        axes.set_xlabel("iteration")
    handles, labels = grid[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="upper center", ncols=3, frameon=False)
    figure.savefig(path, dpi=110)


def _shown_iterations(last: int) -> list[int]:
    steps = (factor * 10**power for power in range(len(str(last))) for factor in (1, 2, 5))
    return [0, *(step for step in steps if step < last), last]


def _verdict(history: History) -> str:
    fell = f"fell by up to {history.largest_fall:.1e}" if history.largest_fall > ROUNDING else "never fell"
    claim = " (guaranteed)" if history.monotone else ""
    slack, gap = max(history.least_slack, 0.0), max(history.optimum - history.eta[-1], 0.0)
    return f"  {history.algorithm:<8}{fell}{claim}; at least {slack:.1e} above its bound; {gap:.1e} below the optimum"


def _limits(histories: Sequence[History]) -> tuple[float, float]:
    least, most = min(min(history.eta) for history in histories), histories[0].optimum
    margin = 0.08 * (most - least)
    return least - 2 * margin, most + margin


def _draw_history(axes: "Axes", history: History, limits: tuple[float, float]) -> None:
    iterations = np.arange(1, len(history.eta))
    axes.axhline(history.optimum, color="0.6", linewidth=0.8, label="optimum")
    axes.plot(iterations, history.eta[1:], color=_COLOURS[history.algorithm], linewidth=1.8, label=r"$\eta$")
    axes.plot(
        iterations, history.lower_bound, color="black", linewidth=1, linestyle="--", label="guaranteed lower bound"
    )
    axes.set(xscale="log", ylim=limits)
    axes.minorticks_off()


def _draw_gains(axes: "Axes", histories: Sequence[History]) -> None:
    for history in histories:
        iterations, before = np.arange(1, len(history.eta)), np.array(history.eta[:-1])
        for after, style in ((history.eta[1:], "-"), (history.lower_bound, "--")):
            gains = np.array(after) - before
            axes.plot(
                iterations,
                np.where(gains > _LEAST_GAIN, gains, np.nan),
                style,
                color=_COLOURS[history.algorithm],
                linewidth=1.2,
            )
    axes.set(xscale="log", yscale="log", ylim=(_LEAST_GAIN, None))
    axes.minorticks_off()


def _draw_gaps(axes: "Axes", histories: Sequence[History]) -> None:
    for history in histories:
        gaps = np.maximum(history.optimum - np.array(history.eta[1:]), _LEAST_GAP)
        axes.plot(
            np.arange(1, len(history.eta)),
            gaps,
            color=_COLOURS[history.algorithm],
            linewidth=1.5,
            label=history.algorithm,
        )
    axes.set(xscale="log", yscale="log")
    least, most = axes.get_ylim()
    axes.set_ylim(min(least, most / 1000), most)
    axes.minorticks_off()
    axes.legend(fontsize=7, loc="lower left")
