"""Format how the targets of a bundle compare, as a table."""

from collections.abc import Iterable, Mapping
from typing import Any

from trpo_tf.export.parity.latency import BATCHES
from trpo_tf.export.support.text_table import text_table
from trpo_tf.export.targets.table import TARGETS

COLUMNS = (
    *("target", "bytes", "difference", "on episodes", "equal actions", "decided", "8-bit error"),
    *("return", "gain (95% interval)"),
)


_STATE = "state"
"""The column of the state's largest difference, where a policy has one."""

LATENCY_COLUMNS = tuple(f"us at {batch}, p50/p99" for batch in BATCHES)


def columns_of(parity: Mapping[str, Mapping[str, Any]]) -> tuple[str, ...]:
    """Return `COLUMNS`, with one for the state if the policy has state."""
    *columns, gain = COLUMNS
    return (*columns, *([_STATE] if _has_state(parity) else []), gain)


def _has_state(parity: Mapping[str, Mapping[str, Any]]) -> bool:
    return any("state_max_difference" in figures for figures in parity.values())


def proof_rows(parity: Mapping[str, Mapping[str, Any]], sizes: Mapping[str, int]) -> list[list[str]]:
    """Format the cells of `columns_of` for each target of a manifest's `parity`; `sizes` are bytes."""
    rows = [list(_row(name, parity[name], sizes.get(name))) for name in _in_order(parity)]
    if _has_state(parity):
        for row in rows:
            figures = parity[row[0]]
            row.insert(-1, f"{figures['state_max_difference']:.1e}" if "state_max_difference" in figures else "-")
    return rows


def full_table(parity: Mapping[str, Mapping[str, Any]], sizes: Mapping[str, int], latencies: Mapping[str, Any]) -> str:
    """Format the rows with latencies as text: two tables, since one is wider than a terminal."""
    measured = [
        [f"{at['p50']:,.0f}/{at['p99']:,.0f}" for at in (latencies[name][str(batch)] for batch in BATCHES)]
        for name in _in_order(parity)
    ]
    *columns, gain = columns_of(parity)
    rows = proof_rows(parity, sizes)
    second = [[row[0], row[-1], *more] for row, more in zip(rows, measured, strict=True)]
    return "\n\n".join(
        (text_table(columns, [row[:-1] for row in rows]), text_table((columns[0], gain, *LATENCY_COLUMNS), second))
    )


def _in_order(parity: Mapping[str, Any]) -> list[str]:
    # JSON keeps no order; targets of packages that are not installed come last.
    return [name for name in TARGETS if name in parity] + sorted(parity.keys() - TARGETS.keys())


def _row(name: str, figures: Mapping[str, Any], size: int | None) -> Iterable[str]:
    # The first bundles do not say how many were equal, nor how episodes compared.
    counted = [kind for kind in ("cases", "episode_steps") if f"{kind}_equal" in figures]
    compared = sum(figures[kind] for kind in counted)
    equal = sum(figures[f"{kind}_equal"] for kind in counted)
    played = figures["episode_steps"] and "episode_max_difference" in figures
    yield name
    yield "-" if size is None else f"{size:,}"
    yield f"{figures['max_difference']:.1e}"
    yield f"{figures['episode_max_difference']:.1e}" if played else "-"
    yield f"{equal / compared:.2%}" if compared else "-"
    yield f"{figures['decided']:.1%}" if "decided" in figures else "-"
    largest = f" ({figures['error_largest']:.2f})" if "error_largest" in figures else ""
    yield f"{figures['error']:.3f}{largest}" if "error" in figures else "-"
    if "return" not in figures:
        yield from ("-", "-")
        return
    yield f"{figures['return']:.5g}"
    interval = figures["gain_interval"]
    yield f"{figures['gain']:+.3g}" + (f" ({interval[0]:+.3g} to {interval[1]:+.3g})" if interval else "")
