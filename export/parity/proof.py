"""Decide whether a target acts like the policy that it was made of."""

import functools
import math
import operator
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from trpo_tf.export.errors import ParityError
from trpo_tf.export.parity.compare import Agreement, Returns
from trpo_tf.export.parity.quantization_error import OutputError
from trpo_tf.export.parity.reference.episodes import repeats
from trpo_tf.export.parity.reference.reference_cases import ReferenceCases
from trpo_tf.export.parity.table import columns_of, proof_rows
from trpo_tf.export.support.text_table import text_table
from trpo_tf.serving.bundle.golden import STEPS

EXACT_LOSS, INT8_LOSS = 0.01, 0.05
"""Return that a target may lose, as a share of what training gained."""

LEAST_DECIDED = 0.5
"""Share of cases in which one action alone must be right, or they would show nothing."""


@dataclass(frozen=True)
class Proof:
    """The result of comparing one target with the reference.

    Attributes:
        exact: whether it computes in floats, so that nothing but rounding may differ.
        cases: on the golden cases, at several batch sizes.
        on_episodes: on every step of the reference's own episodes.
        returns: returns of episodes that it plays by itself, if there was an environment.
        decided: smallest share of rows with only one right action, among cases with noise, without noise, and episodes.
        errors: for a target in 8 bits, the error of each output on observations that the policy visits.
        on_sequences: on golden sequences, along which a policy with state carries its own; differences are the state's.
    """

    exact: bool
    cases: Agreement
    on_episodes: Agreement
    returns: Returns | None
    decided: float = 1.0
    errors: Mapping[str, OutputError] = field(default_factory=dict)
    on_sequences: Agreement = field(default_factory=Agreement)

    def failure(self, reference_cases: ReferenceCases) -> str | None:
        """Say why the target may not be shipped, or return None."""
        both = self.cases + self.on_episodes
        if self.exact and not both.complete:
            return (
                f"differs from the trained policy by {both.max_difference:.3g}; "
                "look for an operation in the network that the format computes otherwise"
            )
        if self.exact and not self.on_sequences.complete:
            return (
                f"drifts from the trained policy: along {STEPS} steps its state differs by "
                f"{self.on_sequences.max_difference:.3g}; look for an operation of the state that the format computes "
                "otherwise"
            )
        if self.decided < LEAST_DECIDED:
            return (
                f"can't be compared: in {1 - self.decided:.0%} of the cases several actions are as good but for "
                "rounding, so that each machine would choose another; train the policy on, or scale what it compares"
            )
        for name, error in sorted(self.errors.items(), key=lambda item: -item[1].overall):
            if fault := error.fault():
                return (
                    f"loses the policy in 8 bits: its {name!r} {fault}; scale inputs alike, and outputs, or ship floats"
                )
        if self.exact and reference_cases.reference.scores is not None and self.returns and self.returns.diverged:
            return f"plays another episode than the trained policy at seed {self.returns.diverged[0]}"
        return None if self.is_excused(reference_cases) else self.loss(reference_cases)

    def is_excused(self, reference_cases: ReferenceCases) -> bool:
        """Return whether a loss of return counts as chance.

        That is so for a target in floats if rounding alone changes returns by as much as may be lost.
        """
        if not self.exact or self.loss(reference_cases) is None:
            return False
        return reference_cases.rounding_of_returns >= self._allowed_loss(reference_cases)

    def loss(self, reference_cases: ReferenceCases) -> str | None:
        """Say how much return it loses, or return None if that may be chance or is little."""
        if self.returns is None:
            return None
        mean, _, highest = self.returns.gain()
        allowed = self._allowed_loss(reference_cases)
        if highest >= -allowed:
            return None
        return (
            f"loses {-mean:.3g} of the trained policy's return of {self._reference_return:.4g}; allowed are "
            f"{allowed:.3g}, {self._share:.0%} of what training gained"
        )

    def _allowed_loss(self, reference_cases: ReferenceCases) -> float:
        # Without the return before training, the whole return passes for what was gained.
        return self._share * abs(self._reference_return - (reference_cases.untrained_return or 0.0))

    @property
    def _share(self) -> float:
        return EXACT_LOSS if self.exact else INT8_LOSS

    @property
    def _reference_return(self) -> float:
        assert self.returns is not None
        return math.fsum(self.returns.reference) / len(self.returns.reference)

    @property
    def error(self) -> OutputError:
        """The largest of the outputs' errors."""
        return functools.reduce(operator.or_, self.errors.values(), OutputError())

    def to_dict(self) -> dict[str, Any]:
        """Return the figures that the manifest has in `parity`."""
        document: dict[str, Any] = {
            "exact": self.exact,
            "max_difference": (self.cases + self.on_episodes).max_difference,
            "cases": self.cases.compared,
            "cases_equal": self.cases.equal,
            "episode_steps": self.on_episodes.compared,
            "episode_steps_equal": self.on_episodes.equal,
            "episode_max_difference": self.on_episodes.max_difference,
            "decided": self.decided,
        }
        if not self.exact:
            document["error"] = self.error.overall
            if self.error.largest:
                document |= {"error_p99": self.error.p99, "error_largest": self.error.largest}
        if self.on_sequences.compared:
            document |= {
                "sequence_steps": self.on_sequences.compared,
                "sequence_steps_equal": self.on_sequences.equal,
                "state_max_difference": self.on_sequences.max_difference,
            }
        if self.returns is None:
            return document
        count = len(self.returns.target)
        mean, low, high = self.returns.gain()
        return document | {
            "episodes": count,
            "episodes_parted": len(self.returns.diverged),
            "return": math.fsum(self.returns.target) / count,
            "reference_return": math.fsum(self.returns.reference) / count,
            "gain": mean,
            "gain_interval": [low, high] if count > 1 else None,
        }


def without_returns(proofs: Mapping[str, Proof]) -> dict[str, Proof]:
    """Drop the returns from the proofs."""
    return {name: replace(proof, returns=None) for name, proof in proofs.items()}


def is_repeatable(proofs: Mapping[str, Proof], reference_cases: ReferenceCases) -> bool:
    """Return whether the environment repeats the episodes that targets failed on; if not, it may explain why."""
    environment = reference_cases.environment
    if environment is None:
        return reference_cases.repeatable
    seeds = {
        seed
        for proof in proofs.values()
        if proof.returns is not None and proof.failure(reference_cases)
        for seed in proof.returns.diverged
    }
    episodes = {seed: reference_cases.episodes[seed] for seed in sorted(seeds)}
    return repeats(reference_cases.reference, environment, episodes, reference_cases.zero_noise[:1])


def manifest_parity(
    proofs: Mapping[str, Proof], reference_cases: ReferenceCases, *, accept_loss: bool
) -> dict[str, Any]:
    """Return the manifest's `parity`.

    Raises `ParityError` for a target that may not be shipped, unless losses are accepted.
    """
    failures = {name: proof.failure(reference_cases) for name, proof in proofs.items()}
    parity = {
        name: proof.to_dict()
        | ({} if reference_cases.repeatable else {"repeatable": False})
        | ({"amplifies_rounding": True} if proof.is_excused(reference_cases) else {})
        | ({"accepted": reason} if (reason := failures[name]) else {})
        for name, proof in proofs.items()
    }
    for name, reason in failures.items():
        if reason and not accept_loss:
            raise ParityError(f"{name} {reason}", proof_table(proofs))
    return parity


def proof_table(proofs: Mapping[str, Proof]) -> str:
    """Format how targets compare, without their sizes and latencies."""
    figures = {name: proof.to_dict() for name, proof in proofs.items()}
    return text_table(columns_of(figures), proof_rows(figures, {}))
