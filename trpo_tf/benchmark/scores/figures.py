"""The benchmark's figure: learning curves, a panel for each environment, with the peer's final score as a line."""

import io
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import matplotlib as mpl
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, MaxNLocator

from trpo_tf.benchmark.results import Result
from trpo_tf.benchmark.scores.statistics import Estimate
from trpo_tf.benchmark.scores.summary import PeerSummary, Summary, common_curve

if TYPE_CHECKING:
    from matplotlib.axes import Axes

OURS, PEERS, INK = "#1d5fbf", "#d9622b", "#3b4252"

_MOST_COLUMNS = 4
_STYLE: Any = {
    "font.size": 9,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": "#b8bec9",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e8ebf0",
    "axes.axisbelow": True,
    "xtick.color": INK,
    "ytick.color": INK,
    "svg.hashsalt": "trpo-tf",
}


def draw(summaries: Sequence[Summary], results: Sequence[Result], peer: str | None, kind: str) -> bytes:
    """Draw the figure, and return it as a file of this kind, `png` or `svg`."""
    with mpl.rc_context(_STYLE):
        columns = _columns(len(summaries))
        rows = math.ceil(len(summaries) / columns)
        figure = Figure(figsize=(max(3.0 * columns, 6.4), 2.4 * rows + 0.5), layout="constrained")
        figure.get_layout_engine().set(h_pad=0.09, w_pad=0.06)  # type: ignore[union-attr, call-arg]
        FigureCanvasAgg(figure)
        grid = figure.subplots(rows, columns, squeeze=False)
        panels = grid.ravel().tolist()
        for panel, summary in zip(panels, summaries, strict=False):
            _draw_panel(panel, summary, [r for r in results if r.environment == summary.environment])
        for panel in panels[len(summaries) :]:
            panel.set_axis_off()
        for row in grid:
            row[0].set_ylabel("return")
        _add_legend(figure, panels[: len(summaries)], peer)
        file = io.BytesIO()
        figure.savefig(file, format=kind, dpi=150, metadata={"Date": None} if kind == "svg" else None)
    return file.getvalue()


def _columns(panels: int) -> int:
    rows = math.ceil(panels / _MOST_COLUMNS)
    return math.ceil(panels / rows)


def _draw_panel(axes: "Axes", summary: Summary, results: Sequence[Result]) -> None:
    for result in results:
        if result.curve:
            axes.plot(*zip(*result.curve, strict=True), color=OURS, alpha=0.22, linewidth=0.7)
    curve = common_curve(results)
    if curve is not None:
        steps, returns = curve
        axes.fill_between(steps, returns.low, returns.high, color=OURS, alpha=0.18, linewidth=0)
        axes.plot(steps, returns.value, color=OURS, linewidth=1.8, label="training, IQM of seeds and 95% band")
    if summary.peer is not None:
        _draw_peer(axes, summary.peer)
    _draw_final(axes, summary)
    axes.set_title(summary.name, fontsize=10, fontweight="bold")
    axes.set_xlim(0, 1.04 * summary.total_steps)
    axes.xaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 2.5, 5, 10]))
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.yaxis.set_major_locator(MaxNLocator(5))
    axes.set_xlabel("environment steps")


def _draw_peer(axes: "Axes", peer: PeerSummary) -> None:
    axes.axhspan(peer.iqm.low, peer.iqm.high, color=PEERS, alpha=0.1, linewidth=0)
    axes.axhline(peer.iqm.value, color=PEERS, linewidth=1.4, linestyle=(0, (5, 2)), label="peer")


def _draw_final(axes: "Axes", summary: Summary) -> None:
    axes.errorbar(
        [summary.total_steps],
        [summary.iqm.value],
        yerr=_lengths(summary.iqm),
        color=OURS,
        marker="o",
        markersize=5,
        markeredgecolor="white",
        capsize=2.5,
        clip_on=False,
        zorder=5,
        linestyle="none",
        label="exported policy, IQM and 95% interval",
    )


def _lengths(estimate: Estimate) -> list[list[float]]:
    # Never below 0, which the interval of a bootstrap may be by rounding.
    return [[max(0.0, estimate.value - estimate.low)], [max(0.0, estimate.high - estimate.value)]]


def _add_legend(figure: Figure, panels: Sequence["Axes"], peer: str | None) -> None:
    found = {}
    for panel in panels:
        for handle, label in zip(*panel.get_legend_handles_labels(), strict=True):
            found[f"{peer}, final: IQM and 95% interval" if label == "peer" else label] = handle
    figure.legend(found.values(), found.keys(), loc="outside lower center", ncols=3, frameon=False, fontsize=9)
