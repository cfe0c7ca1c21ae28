"""Small charts as inline SVG, coloured by their page's style, in light and dark.

Matplotlib, which draws the benchmark's figure, has fixed colours. It takes 0.7 s to import, and 50 ms and 15 kB for
a curve that takes 0.2 ms and 2 kB here.
"""

import math
from collections.abc import Mapping, Sequence
from html import escape
from statistics import fmean

Values = Sequence[float | None]
"""Numbers, with None for missing values."""

_WIDTH, _HEIGHT = 360, 190
_LEFT, _RIGHT, _TOP, _BOTTOM = 44, 8, 12, 24
_MOST_POINTS = 240
_SHADES = (1.0, 0.78, 0.6, 0.44, 0.3, 0.18)


def line_chart(title: str, steps: Sequence[float], values: Values, *, limit: Values = (), log: bool = False) -> str:
    """Draw values over environment steps as a curve, and `limit` as a dashed one.

    `log` has a logarithmic axis, and leaves out values that are not positive.
    """
    shown = [_transformed(value, log) for value in values]
    bound = [_transformed(value, log) for value in limit]
    finite = [value for value in (*shown, *bound) if value is not None]
    last = next((value for value in reversed(values) if value is not None), None)
    latest = "" if last is None else f" <small>{_number(last)} at last</small>"
    if not finite:
        return f"<figure><figcaption>{escape(title)}</figcaption><small>nothing yet</small></figure>"
    ticks = _ticks(min(finite), max(finite), least_step=1.0 if log else 0.0)
    low, high = min(ticks[0], min(finite)), max(ticks[-1], max(finite))
    most = max(steps[-1], 1)

    def x(step: float) -> float:
        return _LEFT + step / most * (_WIDTH - _LEFT - _RIGHT)

    def y(value: float) -> float:
        return _TOP + (high - value) / (high - low) * (_HEIGHT - _TOP - _BOTTOM)

    parts = [
        f'<line class="grid" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y(tick):.1f}" y2="{y(tick):.1f}"/>'
        f'<text x="{_LEFT - 6}" y="{y(tick) + 3.5:.1f}" text-anchor="end">{_number(10**tick if log else tick)}</text>'
        for tick in ticks
    ]
    parts += [
        f'<text x="{x(step):.1f}" y="{_HEIGHT - 8}" text-anchor="{"end" if step > 0.9 * most else "middle"}">'
        f"{_number(step)}</text>"
        for step in _ticks(0, most)
        if step <= most
    ]
    for kind, series in (("limit", bound), ("line", shown)):
        parts += [
            f'<polyline class="{kind}" points="{" ".join(f"{x(step):.1f},{y(value):.1f}" for step, value in run)}"/>'
            for run in _runs(*_thinned(steps, series))
        ]
    label = escape(f"{title} over environment steps")
    return (
        f"<figure><figcaption>{escape(title)}{latest}</figcaption>"
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{label}">{"".join(parts)}</svg></figure>'
    )


def share_bar(shares: Mapping[str, float]) -> str:
    """Draw parts of a whole in one bar, with a legend of their percentages."""
    whole = sum(shares.values()) or 1.0
    pieces, legend = [], []
    for (name, value), shade in zip(shares.items(), _SHADES, strict=True):
        colour = f"background: var(--ours); opacity: {shade}"
        tooltip = f"{name}: {100 * value / whole:.1f} %"
        pieces.append(f'<div title="{escape(tooltip)}" style="width: {100 * value / whole:.2f}%; {colour}"></div>')
        legend.append(f'<dt><span class="swatch" style="{colour}"></span>{escape(name)}</dt>')
        legend.append(f"<dd>{1000 * value:,.1f} ms, {100 * value / whole:.1f} %</dd>")
    return f'<div class="shares">{"".join(pieces)}</div><dl>{"".join(legend)}</dl>'


def _transformed(value: float | None, log: bool) -> float | None:
    if value is None or not math.isfinite(value):
        return None
    if log:
        return math.log10(value) if value > 0 else None
    return value


def _thinned(steps: Sequence[float], values: Values) -> tuple[list[float], list[float | None]]:
    """Return means of neighbouring points, if there are more points than can be drawn."""
    size = math.ceil(len(values) / _MOST_POINTS) or 1
    if size == 1:
        return list(steps), list(values)
    groups = [values[start : start + size] for start in range(0, len(values), size)]
    known = [[value for value in group if value is not None] for group in groups]
    ends = [steps[min(start + size, len(values)) - 1] for start in range(0, len(values), size)]
    return ends, [fmean(group) if group else None for group in known]


def _runs(steps: Sequence[float], values: Values) -> list[list[tuple[float, float]]]:
    """Split a curve at its gaps."""
    runs: list[list[tuple[float, float]]] = [[]]
    for step, value in zip(steps, values, strict=False):
        if value is None:
            runs.append([])
        else:
            runs[-1].append((step, value))
    return [run for run in runs if run]


def _ticks(low: float, high: float, least_step: float = 0.0) -> list[float]:
    """Return some three to six round numbers, the outer ones at or beyond the limits."""
    if high - low < 1e-12 * max(1.0, abs(high)):
        low, high = low - (abs(low) or 1.0) / 2, high + (abs(high) or 1.0) / 2
    rough = (high - low) / 4
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= rough * (1 - 1e-9))
    step = max(step, least_step)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [place * step for place in range(first, last + 1)]


def _number(value: float) -> str:
    """Format a number with three digits, with k and M for thousands and millions."""
    for size, suffix in ((1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:.3g}{suffix}"
    return f"{0.0 if abs(value) < 1e-12 else value:.3g}"
