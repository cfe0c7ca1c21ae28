"""What a benchmark found in each environment, beside a peer."""

from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from trpo_tf.benchmark.peers import PeerRun, runs_in
from trpo_tf.benchmark.results import Result
from trpo_tf.benchmark.statistics import (
    Estimate,
    interquartile_curve,
    interquartile_mean,
    probability_of_improvement,
)

_CURVE_POINTS = 100


@dataclass(frozen=True)
class PeerSummary:
    """A peer's scores in an environment, and ours against them."""

    scores: tuple[float, ...]
    mean: float
    iqm: Estimate
    improvement: Estimate
    """probability that one of our runs scores above one of the peer's"""


@dataclass(frozen=True)
class Summary:
    """Our scores in an environment."""

    environment: str
    total_steps: int
    """steps that were asked for"""
    scores: tuple[float, ...]
    """a score a seed: the mean return of its exported policy"""
    mean: float
    iqm: Estimate
    steps_per_second: float
    """mean over seeds"""
    peer: PeerSummary | None
    """None without a peer, or without runs of it that are as long"""

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


def summarize(
    results: Sequence[Result], peer: Sequence[PeerRun], untuned: Collection[str] = frozenset()
) -> list[Summary]:
    """A summary for each environment, in the order in which they first occur.

    Where our runs are `untuned`, of the default settings, the peer's are those of its own defaults.
    """
    return [
        _summary(environment, results, peer, "default" if environment in untuned else "zoo")
        for environment in dict.fromkeys(r.environment for r in results)
    ]


def mean_improvement(summaries: Sequence[Summary]) -> float | None:
    """Mean over environments of the probability of improvement, where the peer has runs; None if nowhere."""
    found = [summary.peer.improvement.value for summary in summaries if summary.peer]
    return float(np.mean(found)) if found else None


def common_curve(results: Sequence[Result]) -> tuple[list[float], Estimate] | None:
    """Steps [points] and the seeds' learning curves there, as far as all have one; None if they share nothing."""
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
    theirs = np.array([run.mean_return for run in runs_in(peer, environment, total_steps, settings)])
    return Summary(
        environment=environment,
        total_steps=total_steps,
        scores=tuple(scores.tolist()),
        mean=float(scores.mean()),
        iqm=_plain(interquartile_mean(scores)),
        steps_per_second=float(np.mean([run.steps_per_second for run in runs])),
        peer=PeerSummary(
            scores=tuple(theirs.tolist()),
            mean=float(theirs.mean()),
            iqm=_plain(interquartile_mean(theirs)),
            improvement=_plain(probability_of_improvement(scores, theirs)),
        )
        if len(theirs)
        else None,
    )


def _plain(estimate: Estimate) -> Estimate:
    return Estimate(*map(float, estimate))
