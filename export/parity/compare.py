"""Compare a target with the policy that it was made of: on cases, and in whole episodes."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

from trpo_tf.export.errors import ExportError
from trpo_tf.export.parity.reference.answers import Answered, Reference, matches, matches_output
from trpo_tf.export.parity.reference.episodes import Environment, Episode, names_of, observed_by, play, total_return
from trpo_tf.export.parity.reference.recurrent import Recurrent
from trpo_tf.export.policy.batches import in_batches, joined
from trpo_tf.export.policy.functions import Actor, Answers
from trpo_tf.export.policy.spec import PolicySpec
from trpo_tf.serving.bundle.golden import STEPS
from trpo_tf.serving.runtime.observations import (
    Array,
    Observation,
    by_name,
    list_parts,
    take,
)
from trpo_tf.serving.runtime.sequences import run_sequences
from trpo_tf.serving.verify import difference


@dataclass(frozen=True)
class Agreement:
    """Agreement of one target with the reference.

    Continuous actions are equal if they differ by at most 1e-5 + 1e-5 |action| and their margin of rounding. Choices
    are equal if they score as the best does.

    Attributes:
        max_difference: the largest |difference| of an action in rows with only one right action.
        equal: rows that were equal.
        compared: rows.
        undecided: rows in which more than one action is right.
    """

    max_difference: float = 0.0
    equal: int = 0
    compared: int = 0
    undecided: int = 0

    @property
    def complete(self) -> bool:
        """Whether every row was equal."""
        return self.equal == self.compared

    def __add__(self, other: "Agreement") -> "Agreement":
        largest = max(self.max_difference, other.max_difference)
        counts = (getattr(self, name) + getattr(other, name) for name in ("equal", "compared", "undecided"))
        return Agreement(largest, *counts)


@dataclass(frozen=True)
class Returns:
    """Returns of the episodes that target and reference play, by seed, and the seeds at which they diverge.

    An episode diverges if an action differs that was no tie.
    """

    target: tuple[float, ...]
    reference: tuple[float, ...]
    diverged: tuple[int, ...]

    def gain(self) -> tuple[float, float, float]:
        """Mean of the paired differences, target less reference, and its 95% interval by Student's t."""
        differences = np.array(self.target) - np.array(self.reference)
        mean, count = float(np.mean(differences)), len(differences)
        if count < 2:
            return mean, -math.inf, math.inf
        error = float(np.std(differences, ddof=1)) / math.sqrt(count)
        margin = student_t(count - 1) * error
        return mean, mean - margin, mean + margin


def student_t(freedom: int) -> float:
    """97.5% quantile of Student's t: in closed form for one and two degrees of freedom, then by Fisher's expansion.

    The error is 1% at three and 1e-4 from ten on. SciPy has the exact value, but takes 140 MB that nothing else needs.
    """
    if freedom == 1:
        return math.tan(0.475 * math.pi)
    if freedom == 2:
        return 0.95 * math.sqrt(2 / (1 - 0.95**2))
    z = NormalDist().inv_cdf(0.975)
    terms = (
        z,
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
    )
    return math.fsum(term / freedom**power for power, term in enumerate(terms))


def compare_cases(
    actor: Actor,
    cases: Iterable[Answered],
    further: Answers | None = None,
    *,
    sizes: Sequence[int] = (),
    check: Callable[[Array, Observation], None] = lambda *_: None,
) -> Agreement:
    """Compare the actor's actions with those of all cases, and its further outputs if `further` is given.

    The cases are run once for each batch size of `sizes`, by default in one batch.

    `check` raises an error for actions that are wrong by themselves.

    Raises `ExportError` for answers of another shape or type, or actions that are not finite.
    """
    found = Agreement()
    for group in cases:
        for size in sizes or (len(group),):
            found += _compare(actor, group, further, size, check)
    return found


def compare_returns(
    actor: Actor | Recurrent,
    reference: Reference,
    environment: Environment,
    episodes: Mapping[int, Episode],
    zero_noise: Array,
) -> Returns:
    """Let the actor play by itself from each seed of the reference's episodes."""
    returns, diverged = [], []
    for seed, episode in episodes.items():
        free = list(play(actor, environment, seed, zero_noise, names_of(reference, episode)))
        returns.append(total_return(free))
        if _diverges(free, episode, reference, zero_noise):
            diverged.append(seed)
    expected = map(total_return, episodes.values())
    return Returns(tuple(returns), tuple(expected), tuple(diverged))


def compare_sequences(answers: Answers, cases: Answered, spec: PolicySpec) -> Agreement:
    """Compare along golden sequences, in which the target carries its own state; the differences are of the next state.

    After a step with several right actions, every answer of the target counts as right, since its state may differ.
    """
    if not len(cases):
        return Agreement()
    inputs = by_name(cases.observations, spec.observation[0].name)
    _, found = run_sequences(answers, inputs, cases.noise, spec.state)
    for each in spec.next_state:
        _check_array(found[each.name], cases.further[each.name], f"output {each.name!r}")
    tied = ~cases.decided.reshape(-1, STEPS)
    count = np.cumsum(tied, axis=1)
    after_tie, from_tie = np.ravel(count > tied), np.ravel(count > 0)
    right = matches(found[spec.action.name], cases) | after_tie
    for each in spec.next_state:
        right &= matches_output(found[each.name], cases, each.name) | from_tie
    decided = ~from_tie
    worst = max(difference(found[each.name][decided], cases.further[each.name][decided]) for each in spec.next_state)
    return Agreement(worst, int(right.sum()), len(cases), int(from_tie.sum()))


def _compare(
    actor: Actor,
    cases: Answered,
    further: Answers | None,
    size: int,
    check: Callable[[Array, Observation], None],
) -> Agreement:
    if not len(cases):
        return Agreement()
    answered = list(in_batches(actor, cases.observations, cases.noise, size))
    for rows, actions in answered:
        _check_array(actions, cases.actions[rows], "actions")
    actual = joined(answered)
    check(actual, cases.observations)
    if not np.isfinite(actual).all():
        raise ExportError("answers an action that is not finite; look for an overflow in the network")
    if further is not None and cases.further:
        _compare_further(list(in_batches(further, cases.observations, cases.noise, size)), cases)
    right, decided = matches(actual, cases), cases.decided
    worst = difference(actual[decided], cases.actions[decided])
    return Agreement(worst, int(right.sum()), len(cases), len(cases) - int(decided.sum()))


def _compare_further(answered: Sequence[tuple[slice, Mapping[str, Array]]], cases: Answered) -> None:
    for name in cases.further.keys() & answered[0][1].keys():
        expected = cases.further[name]
        for rows, answers in answered:
            _check_array(answers[name], expected[rows], f"output {name!r}")
        actual = np.concatenate([answers[name] for _, answers in answered])
        right = matches_output(actual, cases, name)
        if not right.all():
            worst = difference(actual[~right], expected[~right])
            raise ExportError(
                f"differs from the policy in output {name!r}, by {worst:.3g} at most; look for an operation in it that "
                "the format computes otherwise"
            )


def _check_array(actual: Array, expected: Array, what: str) -> None:
    if actual.shape != expected.shape or actual.dtype != expected.dtype:
        described = " not ".join(f"{array.dtype} {what} of shape {list(array.shape)}," for array in (actual, expected))
        raise ExportError(f"answers {described.removesuffix(',')}")


def _diverges(free: Episode, episode: Episode, reference: Reference, zero_noise: Array) -> bool:
    """Return whether two episodes from one seed diverge, other than at a tie that rounding broke the other way."""
    for step, ((seen, reward), (expected, expected_reward)) in enumerate(zip(free, episode, strict=False)):
        # The state may differ by rounding; what counts is what is seen.
        both = (list_parts(observed_by(reference, inputs)) for inputs in (seen, expected))
        same = all(map(np.array_equal, *both))
        if same and reward == expected_reward:
            continue
        last = free[step if same else step - 1][0]
        return bool(reference.untied(take(last, np.newaxis), zero_noise).all())
    return len(free) != len(episode)
