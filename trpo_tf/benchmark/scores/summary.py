"""Summary of a benchmark in each environment, with a peer's scores to compare."""

import math
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from trpo_tf.benchmark.results import Result
from trpo_tf.benchmark.scores.peers import PeerRun, runs_in
from trpo_tf.benchmark.scores.statistics import (
    Estimate,
    Scores,
    interquartile_curve,
    interquartile_mean,
    mean_improvement,
    probability_of_improvement,
)

_CURVE_POINTS = 100
_SMALL_SCORE = 10.0


@dataclass(frozen=True)
class PeerSummary:
    """A peer's scores in an environment, and our probability of improvement over them."""

    scores: tuple[float, ...]
    mean: float
    iqm: Estimate
    spread: float
    untrained: float | None
    improvement: Estimate
    """probability that one of our runs scores above one of the peer's"""


@dataclass(frozen=True)
class Summary:
    """Our scores in an environment."""

    environment: str
    total_steps: int
    """steps that were asked for"""
    scores: tuple[float, ...]
    """one score for each seed: the mean return of its exported policy"""
    mean: float
    iqm: Estimate
    spread: float
    """standard deviation over seeds, with n - 1 in the denominator; 0 of one seed"""
    untrained: float | None
    """mean return of the new policies, their actions sampled; None if it was not measured"""
    steps_per_second: float
    """mean over seeds"""
    peer: PeerSummary | None
    """None without a peer, or if it has no runs of as many steps"""

    @property
    def name(self) -> str:
        """The environment's id without the module that registers it."""
        return self.environment.rpartition(":")[2]

    @property
    def digits(self) -> int:
        """Decimals to show of scores: more where all are small."""
        known = [self.iqm.value, *([self.peer.iqm.value] if self.peer else [])]
        return 3 if max(map(abs, known)) < _SMALL_SCORE else 1

    def to_dict(self) -> dict[str, Any]:
        """Return the summary as plain values."""
        return asdict(self)


def summarize(
    results: Sequence[Result], peer: Sequence[PeerRun], untuned: Collection[str] = frozenset()
) -> list[Summary]:
    """Summarize each environment, in the order in which they first occur in `results`.

    For `untuned` environments, with default settings, the peer's runs are those with its own defaults.
    """
    return [
        _summary(environment, results, peer, "default" if environment in untuned else "zoo")
        for environment in dict.fromkeys(r.environment for r in results)
    ]


def overall_improvement(summaries: Sequence[Summary]) -> Estimate | None:
    """Return the mean probability of improvement over environments where the peer has runs; None without any."""
    pairs = [(np.array(summary.scores), np.array(summary.peer.scores)) for summary in summaries if summary.peer]
    return _plain(mean_improvement(pairs)) if pairs else None


def shortfalls(summaries: Sequence[Summary], peer: str | None) -> list[str]:
    """Return a line for each environment where training did harm, or the peer leads by more than its spread."""
    lines = []
    for summary in summaries:
        ours, digits = summary.iqm.value, summary.digits
        if summary.untrained is not None and _is_below(ours, summary.untrained):
            lines.append(
                f"{summary.name}: {ours:,.{digits}f} after training is below {summary.untrained:,.{digits}f} before"
            )
        theirs = summary.peer
        if theirs and _is_below(ours, theirs.iqm.value - theirs.spread):
            lines.append(
                f"{summary.name}: {ours:,.{digits}f} is below {peer}'s {theirs.iqm.value:,.{digits}f} by more than the "
                f"spread of its seeds, {theirs.spread:,.{digits}f}"
            )
    return lines


def common_curve(results: Sequence[Result]) -> tuple[list[float], Estimate] | None:
    """Return steps [points] that all seeds' learning curves cover, and their interquartile mean; None without any."""
    curves = [np.array(result.curve).T for result in results if result.curve]
    if not curves:
        return None
    first, last = max(steps[0] for steps, _ in curves), min(steps[-1] for steps, _ in curves)
    if last <= first:
        return None
    grid = np.linspace(first, last, _CURVE_POINTS)
    return grid.tolist(), interquartile_curve(np.stack([np.interp(grid, steps, returns) for steps, returns in curves]))


def _summary(environment: str, results: Sequence[Result], peer: Sequence[PeerRun], settings: str) -> Summary:
    runs = [result for result in results if result.environment == environment]
    scores = np.array([run.score for run in runs])
    total_steps = runs[0].config["total_steps"]
    theirs = runs_in(peer, environment, total_steps, settings)
    return Summary(
        environment=environment,
        total_steps=total_steps,
        scores=tuple(scores.tolist()),
        mean=float(scores.mean()),
        iqm=_plain(interquartile_mean(scores)),
        spread=_spread(scores),
        untrained=_mean([run.untrained_return for run in runs]),
        steps_per_second=float(np.mean([run.steps_per_second for run in runs])),
        peer=_peer_summary(scores, theirs) if theirs else None,
    )


def _peer_summary(ours: Scores, runs: Sequence[PeerRun]) -> PeerSummary:
    scores = np.array([run.mean_return for run in runs])
    return PeerSummary(
        scores=tuple(scores.tolist()),
        mean=float(scores.mean()),
        iqm=_plain(interquartile_mean(scores)),
        spread=_spread(scores),
        untrained=_mean([run.untrained_return for run in runs]),
        improvement=_plain(probability_of_improvement(ours, scores)),
    )


def _is_below(value: float, bound: float) -> bool:
    # Means of equal returns differ by rounding.
    return value < bound and not math.isclose(value, bound, rel_tol=1e-9)


def _spread(scores: Scores) -> float:
    return float(scores.std(ddof=1)) if len(scores) > 1 else 0.0


def _mean(returns: Sequence[float | None]) -> float | None:
    known = [value for value in returns if value is not None]
    return float(np.mean(known)) if known else None


def _plain(estimate: Estimate) -> Estimate:
    return Estimate(*map(float, estimate))
