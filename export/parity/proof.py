"""Decide whether a target acts like the policy that it was made of."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trpo_tf.export.errors import ExportError, ParityError
from trpo_tf.export.parity.compare import (
    Agreement,
    Environment,
    Episode,
    Returns,
    compare_cases,
    compare_returns,
    compare_sequences,
    episode_batches,
    in_batches,
    repeats,
)
from trpo_tf.export.parity.quantization_error import MOST_ERROR, action_error, output_error
from trpo_tf.export.parity.recurrent import Recurrent
from trpo_tf.export.parity.reference import Answered, Reference, flat
from trpo_tf.export.parity.rounding import along_sequences
from trpo_tf.export.parity.soundness import check_bounds
from trpo_tf.export.parity.table import columns_of, proof_rows
from trpo_tf.export.policy.functions import Actor, Answers
from trpo_tf.export.policy.spec import PolicySpec
from trpo_tf.export.support.text_table import text_table
from trpo_tf.serving import ArraySpec
from trpo_tf.serving.bundle.golden import STEPS
from trpo_tf.serving.runtime.observations import Array, Observation, batch_size, by_name, take
from trpo_tf.serving.runtime.sequences import run_sequences

EXACT_LOSS, INT8_LOSS = 0.01, 0.05
"""Return that a target may lose, as a share of what training gained."""

LEAST_DECIDED = 0.5
"""Share of cases in which one action alone must be right, or they would show nothing."""


@dataclass(frozen=True)
class ReferenceCases:
    """The cases and episodes that targets are compared on, with the policy's own answers.

    Attributes:
        reference: the policy as it was trained.
        observations: golden cases [case, ...].
        noise: of the golden cases [case, k].
        visited: observations [n, ...] that the policy visits, where known.
        environment: where episodes are played.
        episodes: the reference's own, by seed.
        untrained_return: mean return before training, where known.
        repeatable: whether the environment plays the same episode again from the same seed. If not, returns can't be
            compared, and a target is compared on cases alone.
        action: what actions are declared to be.
        outputs: what further outputs are declared to be.
        far: which golden cases lie outside the range of 8-bit targets [case].
        noisy_observations: of a policy with state, the golden cases with noise: they have another state.
    """

    reference: Reference
    observations: Observation
    noise: Array
    visited: Observation | None
    environment: Environment | None
    episodes: Mapping[int, Episode]
    untrained_return: float | None
    repeatable: bool = True
    action: ArraySpec | None = None
    outputs: tuple[ArraySpec, ...] = ()
    far: NDArray[np.bool_] | None = None
    noisy_observations: Observation | None = None

    @cached_property
    def zero_noise(self) -> Array:
        """Zeros as the noise of every case, which give the deterministic actions."""
        return np.zeros_like(self.noise)

    @cached_property
    def golden(self) -> Answered:
        """Golden cases without noise, each answered in a batch of its own; computed once for all targets."""
        return self.reference.answered_one_by_one(self.observations, self.zero_noise).with_margins()

    @cached_property
    def noisy_golden(self) -> Answered:
        """Golden cases with noise, each answered in a batch of its own."""
        observations = self.observations if self.noisy_observations is None else self.noisy_observations
        return self.reference.answered_one_by_one(observations, self.noise).with_margins()

    @cached_property
    def rounding_of_returns(self) -> float:
        """Mean |change| of an episode's return if the policy's actions are moved by one unit in the last place.

        Targets that round otherwise change returns by as much, and by chance. It is 0 without an environment.
        """
        if self.environment is None:
            return 0.0
        moved, zero_noise = self.reference.moved_by_rounding(), self.zero_noise[:1]
        returns = compare_returns(moved, self.reference, self.environment, self.episodes, zero_noise)
        return float(np.abs(np.subtract(returns.target, returns.reference)).mean())

    @property
    def episode_batches(self) -> Iterator[Answered]:
        """Every observation of the reference's own episodes; answered at each access, since they may be large."""
        return episode_batches(self.reference, self.episodes, self.zero_noise[:1])

    @cached_property
    def visits(self) -> Answered:
        """Observations that the policy visits; if none are known, the golden cases that are not far."""
        if self.visited is None:
            return self.golden if self.far is None else self.golden.take(~self.far)
        rows = np.unique(np.linspace(0, batch_size(self.visited) - 1, _MOST_VISITED).astype(int))
        return self.reference.answered(take(self.visited, rows), np.repeat(self.zero_noise[:1], len(rows), axis=0))

    def cases(self, *, exact: bool, noise: bool) -> list[Answered]:
        """Return golden cases at several batch sizes. Targets that are not `exact` get no far ones."""
        golden = self.noisy_golden if noise else self.golden
        return in_batches(golden if exact or self.far is None else golden.take(~self.far))

    def sequences(self, *, exact: bool, noise: bool) -> Answered:
        """Return the golden sequences of a policy with state, with what rounding may change along them."""
        golden = along_sequences(self.noisy_golden if noise else self.golden)
        if exact or self.far is None:
            return golden
        return golden.take(np.repeat(~self.far.reshape(-1, STEPS).any(axis=1), STEPS))


_MOST_VISITED = 512


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
    errors: Mapping[str, float] = field(default_factory=dict)
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
        if self.error > MOST_ERROR:
            worst = max(self.errors, key=self.errors.__getitem__)
            return (
                f"loses the policy in 8 bits: its {worst!r} errs by {self.error:.2f} of what the best constant does on "
                f"the observations that the policy visits, allowed are {MOST_ERROR}; scale inputs alike, and outputs, "
                "or ship floats"
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
    def error(self) -> float:
        """The largest of the errors."""
        return max(self.errors.values(), default=0.0)

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
            document["error"] = self.error
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


def compare_target(
    name: str,
    actor: Actor,
    reference_cases: ReferenceCases,
    *,
    exact: bool,
    samples: bool,
    further: Answers | None = None,
    step: Answers | None = None,
) -> Proof:
    """Compare an actor on golden cases and episodes, with noise if it `samples`, and its `further` outputs.

    `step` answers the action and the next state of a policy with state.

    Raises `ExportError`, naming the target, for answers of another shape or type, actions that are not finite or
    outside their bounds, and further outputs that differ.
    """
    bounded, compared = _bounded(actor, reference_cases.action), further if exact else None
    reference = reference_cases.reference
    try:
        groups = [compare_cases(bounded, reference_cases.cases(exact=exact, noise=False), compared)]
        if samples:
            groups.append(compare_cases(bounded, reference_cases.cases(exact=exact, noise=True), compared))
        visited = compare_cases(bounded, reference_cases.episode_batches, compared)
        errors = {} if exact else _errors(bounded, further, reference_cases)
        decided = min((1 - each.undecided / each.compared for each in (*groups, visited) if each.compared), default=1.0)
        cases, sequences = sum(groups, Agreement()), Agreement()
        player: Actor | Recurrent = bounded
        if step is not None and reference.recurrent is not None:
            spec = reference.recurrent.spec
            step = _bounded_step(step, spec.action)
            player = Recurrent(step, spec)
            for noisy in (False, True)[: 1 + samples]:
                golden = reference_cases.sequences(exact=exact, noise=noisy)
                sequences += compare_sequences(step, golden, spec)
                if not exact:
                    errors |= _state_errors(step, golden, spec, errors)
        if reference_cases.environment is None or not reference_cases.repeatable:
            return Proof(exact, cases, visited, None, decided, errors, sequences)
        zero_noise = reference_cases.zero_noise[:1]
        returns = compare_returns(
            player, reference_cases.reference, reference_cases.environment, reference_cases.episodes, zero_noise
        )
    except ExportError as error:
        raise ExportError(f"{name} {error}") from None
    return Proof(exact, cases, visited, returns, decided, errors, sequences)


def _bounded(actor: Actor, action: ArraySpec | None) -> Actor:
    """Check the bounds of the actor's actions at each call."""
    if action is None:
        return actor

    def act(observations: Observation, noise: Array) -> Array:
        actions = actor(observations, noise)
        if actions.shape[1:] == action.shape:
            check_bounds(actions, action)
        return actions

    return act


def _bounded_step(step: Answers, action: ArraySpec) -> Answers:
    """Check the bounds of the actions among the answers at each call."""

    def answers(inputs: Observation, noise: Array) -> dict[str, Array]:
        found = step(inputs, noise)
        check_bounds(found[action.name], action)
        return found

    return answers


def _errors(actor: Actor, further: Answers | None, reference_cases: ReferenceCases) -> dict[str, float]:
    """Measure the error of each output in 8 bits on observations that the policy visits."""
    visits, action = (
        reference_cases.visits,
        reference_cases.action or ArraySpec("action", "float32", reference_cases.golden.actions.shape[1:]),
    )
    batches = [visits.take(slice(start, start + 64)) for start in range(0, len(visits), 64)]
    actions = np.concatenate([actor(batch.observations, batch.noise) for batch in batches])
    errors = {action.name: action_error(actions, visits, action)}
    if further is None or not visits.further:
        return errors
    answers = [further(batch.observations, batch.noise) for batch in batches]
    same, state = _same_choices(actions, visits.actions), _next_state(reference_cases.reference)
    for spec in (spec for spec in reference_cases.outputs if spec.name in answers[0]):
        found = np.concatenate([answer[spec.name] for answer in answers])
        rows = same if spec in state and same.any() else np.ones(len(visits), np.bool_)
        errors[spec.name] = output_error(found[rows], visits.further[spec.name][rows], spec)
    return errors


def _next_state(reference: Reference) -> tuple[ArraySpec, ...]:
    return () if reference.recurrent is None else reference.recurrent.spec.next_state


def _same_choices(actions: Array, expected: Array) -> NDArray[np.bool_]:
    """Mark the rows in which a target chose as the policy did; another choice may rightly lead to another state."""
    if expected.dtype.kind == "f":
        return np.ones(len(expected), np.bool_)
    return np.asarray(flat(actions == expected).all(axis=1))


def _state_errors(step: Answers, golden: Answered, spec: PolicySpec, errors: Mapping[str, float]) -> dict[str, float]:
    """Measure the error of the next state in 8 bits along golden sequences, at least that in `errors`.

    A sequence counts until the target makes another choice than the policy.
    """
    if not len(golden):
        return {}
    inputs = by_name(golden.observations, spec.observation[0].name)
    _, found = run_sequences(step, inputs, golden.noise, spec.state)
    same = _same_choices(found[spec.action.name], golden.actions).reshape(-1, STEPS)
    rows = np.logical_and.accumulate(same, axis=1).ravel() if same[:, 0].any() else np.ones(len(golden), np.bool_)
    return {
        each.name: max(
            errors.get(each.name, 0.0),
            output_error(found[each.name][rows], golden.further[each.name][rows], each),
        )
        for each in spec.next_state
    }


def without_returns(proofs: Mapping[str, Proof]) -> dict[str, Proof]:
    """Drop the returns from the proofs."""
    return {name: replace(proof, returns=None) for name, proof in proofs.items()}


def is_repeatable(proofs: Mapping[str, Proof], reference_cases: ReferenceCases) -> bool:
    """Return whether the environment repeats the episodes that targets failed on, so that the targets differ."""
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
            raise ParityError(f"{name} {reason}", text_table(columns_of(parity), proof_rows(parity, {})))
    return parity
