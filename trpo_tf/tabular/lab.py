"""The laboratory: algorithms on known MDPs, with eta and its guaranteed lower bound in each iteration."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import numpy as np

from trpo_tf.errors import UserError
from trpo_tf.tabular.bounds import divergence_bound, kl_divergence
from trpo_tf.tabular.cpi import conservative_step
from trpo_tf.tabular.exact import Evaluation, evaluate, optimal_policy
from trpo_tf.tabular.gradients import natural_step, plain_step
from trpo_tf.tabular.mdps import NAMED, Array, FiniteMDP
from trpo_tf.tabular.mm import maximise_minorant

ROUNDING = 1e-12
"""Decrease of eta that is taken for rounding, where eta does not fall by theory."""

_STEP = 0.1
"""Step size of the gradient algorithms that have a fixed one."""


class Move(NamedTuple):
    """A new policy, and a lower bound on its eta from the evaluation of the old one."""

    policy: Array
    lower_bound: float


Step = Callable[[FiniteMDP, Evaluation, Array], Move]
"""Function from an MDP, the evaluation of a policy, and the policy to a move."""


class Algorithm(NamedTuple):
    """An algorithm: what makes its step, once a run, and whether eta never falls by theory."""

    make_step: Callable[[], Step]
    monotone: bool


@dataclass(frozen=True)
class History:
    """A run of N iterations from the uniform policy."""

    mdp: str
    algorithm: str
    monotone: bool
    """eta never falls, by theory; checked"""
    optimum: float
    """the largest eta of any policy"""
    eta: tuple[float, ...]
    """eta of the first policy and of each new one, N + 1"""
    lower_bound: tuple[float, ...]
    """guaranteed lower bound of eta for each new policy, N"""
    max_kl: tuple[float, ...]
    """largest KL(old || new) over states in each iteration, N"""

    @property
    def largest_fall(self) -> float:
        """Largest decrease of eta in one iteration, 0 if there was none."""
        return max(0.0, -float(np.diff(self.eta).min()))

    @property
    def least_slack(self) -> float:
        """Least excess of eta over its bound: below 0 by rounding only."""
        return float(np.subtract(self.eta[1:], self.lower_bound).min())

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain values, for JSON."""
        return {**asdict(self), "largest_fall": self.largest_fall, "least_slack": self.least_slack}


def run(mdp: FiniteMDP, algorithm: str, iterations: int, *, name: str = "") -> History:
    """Run the algorithm of that name from the uniform policy; `name` is the MDP's in the history.

    Raises `UserError` for an unknown algorithm or too few iterations. Raises `RuntimeError`, a defect of this program,
    if eta is below a guaranteed bound, or falls under a monotone algorithm, by more than `ROUNDING`.
    """
    _require(iterations, algorithms=[algorithm])
    make_step, monotone = ALGORITHMS[algorithm]
    step = make_step()
    pi = np.full(mdp.reward.shape, 1 / mdp.actions)
    old = evaluate(mdp, pi)
    eta, bounds, divergences = [old.eta], [], []
    for _ in range(iterations):
        move = step(mdp, old, pi)
        new = evaluate(mdp, move.policy)
        floor = max(move.lower_bound, old.eta) if monotone else move.lower_bound
        if new.eta < floor - ROUNDING * max(1.0, abs(floor)):
            raise RuntimeError(f"{algorithm}: eta is {new.eta}, below what is guaranteed by {floor - new.eta:.3g}")
        eta.append(new.eta)
        bounds.append(move.lower_bound)
        divergences.append(float(kl_divergence(old=pi, new=move.policy).max()))
        pi, old = move.policy, new
    optimum = evaluate(mdp, optimal_policy(mdp)).eta
    return History(name, algorithm, monotone, optimum, tuple(eta), tuple(bounds), tuple(divergences))


def laboratory(mdps: Sequence[str], algorithms: Sequence[str], iterations: int) -> Iterator[list[History]]:
    """Run every algorithm on every MDP, and yield the histories of one MDP after the other.

    Raises as `run` does, but `UserError` before anything runs.
    """
    _require(iterations, mdps=mdps, algorithms=algorithms)
    return ([run(NAMED[name](), algorithm, iterations, name=name) for algorithm in algorithms] for name in mdps)


def _require(iterations: int, *, mdps: Sequence[str] = (), algorithms: Sequence[str]) -> None:
    for option, names, known in (("mdp", mdps, list(NAMED)), ("algo", algorithms, list(ALGORITHMS))):
        for name in names:
            if name not in known:
                raise UserError(f"{option} {name!r} is unknown; choose from {', '.join(known)}")
    if iterations < 1:
        raise UserError(f"iterations must be at least 1, not {iterations}")


def _conservative(mdp: FiniteMDP, old: Evaluation, pi: Array) -> Move:
    mixing = conservative_step(mdp, old, pi)
    return Move(mixing.policy, mixing.lower_bound)


def _minorise_maximise(mdp: FiniteMDP, old: Evaluation, pi: Array) -> Move:
    maximum = maximise_minorant(mdp, old, pi)
    return Move(maximum.policy, maximum.lower_bound)


def _bounded(update: Callable[[Array, Evaluation], Array]) -> Step:
    """Return a step from an update without a bound of its own, with that of equation 38.

    Equation numbers are those of docs/explanation/equations.md.
    """

    def step(mdp: FiniteMDP, old: Evaluation, pi: Array) -> Move:
        new = update(pi, old)
        return Move(new, divergence_bound(mdp, old, pi, new))

    return step


def _trainers_update(*, search: bool) -> Callable[[Array, Evaluation], Array]:
    # Only these need TensorFlow.
    from trpo_tf.config.settings import TrustRegionConfig
    from trpo_tf.tabular.problem import exact_update
    from trpo_tf.updates.directions import natural_gradient
    from trpo_tf.updates.trust_region_steps import kl_bounded_backtracking, kl_sphere

    config = TrustRegionConfig(max_kl=0.01, damping=1e-8, cg_iterations=200, cg_tolerance=1e-8, max_backtracks=30)
    return exact_update(natural_gradient, kl_bounded_backtracking if search else kl_sphere, config)


ALGORITHMS = {
    "cpi": Algorithm(lambda: _conservative, monotone=True),
    "mm": Algorithm(lambda: _minorise_maximise, monotone=True),
    "pg": Algorithm(lambda: _bounded(lambda pi, old: plain_step(pi, old, _STEP)), monotone=False),
    "npg": Algorithm(lambda: _bounded(lambda pi, old: natural_step(pi, old, _STEP)), monotone=False),
    "npg-kl": Algorithm(lambda: _bounded(_trainers_update(search=False)), monotone=False),
    "trpo": Algorithm(lambda: _bounded(_trainers_update(search=True)), monotone=False),
}
"""Algorithms by name; docs/explanation/laboratory.md explains each."""
