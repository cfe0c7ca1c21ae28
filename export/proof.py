"""The proof that a target acts like the policy it was made of, what it must show, and the table of it."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from export.latency import BATCHES
from export.onnx_graph import ExportError
from export.parity import (
    Actor,
    Agreement,
    Answered,
    Environment,
    Episode,
    Reference,
    Returns,
    compare_along,
    compare_cases,
    compare_returns,
    in_batches,
    repeats,
)
from export.targets import TARGETS
from serving.observations import Array, Observation

EXACT_LOSS, INT8_LOSS = 0.01, 0.05
"""Return that a target may lose, as a share of what training gained."""

COLUMNS = ("target", "bytes", "difference", "on episodes", "equal actions", "return", "gain (95% interval)")
LATENCY_COLUMNS = tuple(f"us at {batch}, p50/p99" for batch in BATCHES)


class ParityError(ExportError):
    """A target that differs from the policy or loses return; `table` shows how all of them compare."""

    def __init__(self, message: str, table: str) -> None:
        super().__init__(message)
        self.table = table


@dataclass(frozen=True)
class Standard:
    """What targets are held against.

    Attributes:
        reference: the policy as it was trained.
        observations: golden cases [case, ...].
        noise: beside them [case, k].
        visited: observations [n, ...] that the policy visits, where known.
        environment: where episodes are played.
        episodes: the reference's own, by seed.
        untrained_return: mean return before training, where known.
        repeatable: whether the environment plays the same episode again from the same seed. Where it does not, returns
            of two policies can't be compared, and what proves a target are cases: those that the policy visits too.
    """

    reference: Reference
    observations: Observation
    noise: Array
    visited: Observation | None
    environment: Environment | None
    episodes: Mapping[int, Episode]
    untrained_return: float | None
    repeatable: bool = True

    @cached_property
    def still(self) -> Array:
        """The noise of deterministic actions, for every case."""
        return np.zeros_like(self.noise)

    @cached_property
    def cases(self) -> list[Answered]:
        """Golden cases without noise; answered once for all targets."""
        return in_batches(self.reference, self.observations, self.still)

    @cached_property
    def noisy_cases(self) -> list[Answered]:
        """The same with noise."""
        return in_batches(self.reference, self.observations, self.noise)


@dataclass(frozen=True)
class Proof:
    """How one target compares with the reference.

    Attributes:
        exact: whether it computes in floats, so that nothing but rounding may differ.
        cases: on the golden cases, at several batch sizes.
        along: along the reference's own episodes.
        returns: of episodes that it plays by itself, if there was an environment.
    """

    exact: bool
    cases: Agreement
    along: Agreement
    returns: Returns | None

    def failure(self, standard: Standard) -> str | None:
        """Why the target may not be shipped, or None."""
        both = self.cases + self.along
        if self.exact and not both.complete:
            return (
                f"differs from the trained policy by {both.max_difference:.3g}; "
                "look for an operation in the network that the format computes otherwise"
            )
        if self.returns is None:
            return None
        if self.exact and standard.reference.scores is not None and self.returns.parted:
            return f"plays another episode than the trained policy at seed {self.returns.parted[0]}"
        reference = math.fsum(self.returns.reference) / len(self.returns.reference)
        # Without the return before training, the whole return passes for what was gained.
        gained = abs(reference - (standard.untrained_return or 0.0))
        share = EXACT_LOSS if self.exact else INT8_LOSS
        mean, _, highest = self.returns.gain()
        if highest >= -share * gained:
            return None
        return (
            f"loses {-mean:.3g} of the trained policy's return of {reference:.4g}; allowed are "
            f"{share * gained:.3g}, {share:.0%} of what training gained"
        )

    def to_dict(self) -> dict[str, Any]:
        """As the manifest has it, in `parity`."""
        document: dict[str, Any] = {
            "exact": self.exact,
            "max_difference": (self.cases + self.along).max_difference,
            "cases": self.cases.compared,
            "cases_equal": self.cases.equal,
            "episode_steps": self.along.compared,
            "episode_steps_equal": self.along.equal,
            "episode_max_difference": self.along.max_difference,
        }
        if self.returns is None:
            return document
        count = len(self.returns.target)
        mean, low, high = self.returns.gain()
        return document | {
            "episodes": count,
            "episodes_parted": len(self.returns.parted),
            "return": math.fsum(self.returns.target) / count,
            "reference_return": math.fsum(self.returns.reference) / count,
            "gain": mean,
            "gain_interval": [low, high] if count > 1 else None,
        }


def prove(name: str, actor: Actor, standard: Standard, *, exact: bool, samples: bool) -> Proof:
    """Compare an actor on golden cases and episodes, with noise if it `samples`.

    Raises `ExportError`, naming the target, for actions of another shape or type, or that are not finite.
    """
    reference, still = standard.reference, standard.still[:1]
    try:
        cases = compare_cases(actor, standard.cases + standard.noisy_cases if samples else standard.cases)
        along = compare_along(actor, reference, standard.episodes, still)
        if standard.environment is None or not standard.repeatable:
            return Proof(exact, cases, along, None)
        returns = compare_returns(actor, reference, standard.environment, standard.episodes, still)
    except ExportError as error:
        raise ExportError(f"{name} {error}") from None
    return Proof(exact, cases, along, returns)


def without_returns(proofs: Mapping[str, Proof]) -> dict[str, Proof]:
    """The proofs by cases alone."""
    return {name: replace(proof, returns=None) for name, proof in proofs.items()}


def is_repeatable(proofs: Mapping[str, Proof], standard: Standard) -> bool:
    """Whether the environment repeats the episodes that targets failed on, so that it is the targets that differ."""
    environment = standard.environment
    if environment is None:
        return standard.repeatable
    seeds = {
        seed
        for proof in proofs.values()
        if proof.returns is not None and proof.failure(standard)
        for seed in proof.returns.parted
    }
    episodes = {seed: standard.episodes[seed] for seed in sorted(seeds)}
    return repeats(standard.reference, environment, episodes, standard.still[:1])


def judged(proofs: Mapping[str, Proof], standard: Standard, *, accept_loss: bool) -> dict[str, Any]:
    """The manifest's `parity`.

    Raises `ParityError` for a target that may not be shipped, unless losses are accepted.
    """
    failures = {name: proof.failure(standard) for name, proof in proofs.items()}
    parity = {
        name: proof.to_dict()
        | ({} if standard.repeatable else {"repeatable": False})
        | ({"accepted": reason} if (reason := failures[name]) else {})
        for name, proof in proofs.items()
    }
    for name, reason in failures.items():
        if reason and not accept_loss:
            raise ParityError(f"{name} {reason}", _text(COLUMNS, proof_rows(parity, {})))
    return parity


def proof_rows(parity: Mapping[str, Mapping[str, Any]], sizes: Mapping[str, int]) -> list[list[str]]:
    """Cells of `COLUMNS` for each target of a manifest's `parity`; `sizes` are bytes."""
    return [list(_row(name, parity[name], sizes.get(name))) for name in _in_order(parity)]


def full_table(parity: Mapping[str, Mapping[str, Any]], sizes: Mapping[str, int], latencies: Mapping[str, Any]) -> str:
    """The same with latencies, as text: two tables, since one is wider than a terminal."""
    measured = [
        [f"{at['p50']:,.0f}/{at['p99']:,.0f}" for at in (latencies[name][str(batch)] for batch in BATCHES)]
        for name in _in_order(parity)
    ]
    *columns, gain = COLUMNS
    rows = proof_rows(parity, sizes)
    second = [[row[0], row[-1], *more] for row, more in zip(rows, measured, strict=True)]
    return "\n\n".join(
        (_text(columns, [row[:-1] for row in rows]), _text((columns[0], gain, *LATENCY_COLUMNS), second))
    )


def _in_order(parity: Mapping[str, Any]) -> list[str]:
    return sorted(parity, key=list(TARGETS).index)  # JSON keeps no order


def _text(columns: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    lines = [list(columns), *map(list, rows)]
    widths = [max(map(len, cells)) for cells in zip(*lines, strict=True)]
    first, *others = widths
    return "\n".join("  ".join([line[0].ljust(first), *map(str.rjust, line[1:], others)]) for line in lines)


def _row(name: str, figures: Mapping[str, Any], size: int | None) -> Iterable[str]:
    compared = figures["cases"] + figures["episode_steps"]
    equal = figures["cases_equal"] + figures["episode_steps_equal"]
    yield name
    yield "-" if size is None else f"{size:,}"
    yield f"{figures['max_difference']:.1e}"
    yield f"{figures['episode_max_difference']:.1e}" if figures["episode_steps"] else "-"
    yield f"{equal / compared:.2%}" if compared else "-"
    if "return" not in figures:
        yield from ("-", "-")
        return
    yield f"{figures['return']:.5g}"
    interval = figures["gain_interval"]
    yield f"{figures['gain']:+.3g}" + (f" ({interval[0]:+.3g} to {interval[1]:+.3g})" if interval else "")
