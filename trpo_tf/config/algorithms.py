"""The table of policy updates. It needs no TensorFlow, so that settings are checked at once."""

from collections.abc import Callable
from dataclasses import dataclass
from pkgutil import resolve_name
from typing import TYPE_CHECKING, Any

from trpo_tf.errors import UserError
from trpo_tf.serving.support.entry_points import find_value

if TYPE_CHECKING:
    from trpo_tf.config.settings import Config
    from trpo_tf.updates.local_problem import LocalProblem
    from trpo_tf.updates.result import Update

    UpdateRule = Callable[[LocalProblem, Config, Any, Any], Update]

ENTRY_POINTS = "trpo_tf.algorithms"
"""The group in which an installed package names an `Algorithm` of its own."""


def _max_kl(config: "Config") -> float:
    return config.trust_region.max_kl


@dataclass(frozen=True)
class Algorithm:
    """A policy update, and which settings apply to it.

    Attributes:
        rule: computes the update of a problem, from settings, radius or KL coefficient (a scalar), and minibatches
            int32 [steps, rows].
        adapts: metric that `Update.adapted` is reported as, `radius` (of the trust region) or `kl_coefficient`; None if
            the update uses neither.
        initial: settings -> radius or coefficient of the first update.
        can_anneal: whether `anneal` makes its steps shorter. Its radius is `max_kl` otherwise, and is not adapted.
        has_entropy_term: whether it maximises the surrogate with the entropy term added.
        uses_minibatches: whether it goes through minibatches. The vine's rows can't be split into them.
    """

    rule: "UpdateRule"
    adapts: str | None = None
    initial: Callable[["Config"], float] = _max_kl
    can_anneal: bool = False
    has_entropy_term: bool = False
    uses_minibatches: bool = False


def _imported(path: str) -> "UpdateRule":
    """Return the rule at `module:function`, which is imported when the rule is first used."""

    def rule(problem: "LocalProblem", config: "Config", adapted: Any, minibatches: Any) -> "Update":
        found: UpdateRule = resolve_name(path)
        return found(problem, config, adapted, minibatches)

    return rule


_COMPOSED = "trpo_tf.updates.composed"

ALGORITHMS = {
    "trpo": Algorithm(_imported(f"{_COMPOSED}:trpo"), "radius", can_anneal=True, has_entropy_term=True),
    "trpo-adaptive": Algorithm(_imported(f"{_COMPOSED}:trpo_adaptive"), "radius", has_entropy_term=True),
    "npg": Algorithm(_imported(f"{_COMPOSED}:npg"), "radius", can_anneal=True, has_entropy_term=True),
    "nac": Algorithm(_imported(f"{_COMPOSED}:nac"), "radius", can_anneal=True),
    "vpg": Algorithm(_imported(f"{_COMPOSED}:vpg"), has_entropy_term=True),
    "kl-penalty": Algorithm(
        _imported("trpo_tf.updates.kl_penalty:kl_penalty"),
        "kl_coefficient",
        lambda config: config.inner.kl_coefficient,
        has_entropy_term=True,
        uses_minibatches=True,
    ),
    "ppo": Algorithm(_imported("trpo_tf.updates.ppo:ppo"), uses_minibatches=True),
}


def find_algorithm(name: str) -> Algorithm:
    """Return an algorithm of the table, or one that an installed package adds. Raises `UserError`."""
    return find_value(name, ALGORITHMS, ENTRY_POINTS, Algorithm, UserError, "algo")
