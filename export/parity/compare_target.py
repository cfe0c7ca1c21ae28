"""Compare one target with the policy that it was made of, in all that counts."""

from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray

from trpo_tf.export.errors import ExportError
from trpo_tf.export.parity.compare import Agreement, compare_cases, compare_returns, compare_sequences
from trpo_tf.export.parity.proof import Proof
from trpo_tf.export.parity.quantization_error import OutputError, action_error, output_error
from trpo_tf.export.parity.reference.answers import BATCH_SIZES, Answered, Reference, flat
from trpo_tf.export.parity.reference.legal_actions import check_legal
from trpo_tf.export.parity.reference.recurrent import Recurrent
from trpo_tf.export.parity.reference.reference_cases import ReferenceCases
from trpo_tf.export.parity.reference.soundness import check_bounds
from trpo_tf.export.policy.functions import Actor, Answers
from trpo_tf.export.policy.spec import PolicySpec
from trpo_tf.serving import ArraySpec
from trpo_tf.serving.bundle.golden import STEPS
from trpo_tf.serving.runtime.observations import Array, Observation, by_name
from trpo_tf.serving.runtime.sequences import run_sequences


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
    check = _check_of(reference_cases.action, reference_cases.mask)
    bounded, compared = _bounded(actor, check), further if exact else None
    reference = reference_cases.reference
    try:
        groups = [
            compare_cases(
                actor, [reference_cases.cases(exact=exact, noise=noisy)], compared, sizes=BATCH_SIZES, check=check
            )
            for noisy in (False, True)[: 1 + samples]
        ]
        visited = compare_cases(actor, reference_cases.episode_batches, compared, check=check)
        errors = {} if exact else _errors(bounded, further, reference_cases)
        decided = min((1 - each.undecided / each.compared for each in (*groups, visited) if each.compared), default=1.0)
        cases, sequences = sum(groups, Agreement()), Agreement()
        player: Actor | Recurrent = bounded
        if step is not None and reference.recurrent is not None:
            spec = reference.recurrent.spec
            step = _bounded_step(step, spec)
            player = Recurrent(step, spec)
            for noisy in (False, True)[: 1 + samples]:
                golden = reference_cases.sequences(exact=exact, noise=noisy)
                sequences += compare_sequences(step, golden, spec)
                if not exact:
                    visited_or_golden = reference_cases.visited_sequences or golden
                    errors |= _state_errors(step, visited_or_golden, spec, errors)
        if reference_cases.environment is None or not reference_cases.repeatable:
            return Proof(exact, cases, visited, None, decided, errors, sequences)
        zero_noise = reference_cases.zero_noise[:1]
        returns = compare_returns(
            player, reference_cases.reference, reference_cases.environment, reference_cases.episodes, zero_noise
        )
    except ExportError as error:
        raise ExportError(f"{name} {error}") from None
    return Proof(exact, cases, visited, returns, decided, errors, sequences)


def _check_of(action: ArraySpec | None, mask: str | None) -> Callable[[Array, Observation], None]:
    """Return a function that raises `ExportError` for actions out of their bounds, or that their masks forbid."""

    def check(actions: Array, observations: Observation) -> None:
        if action is not None and actions.shape[1:] == action.shape:
            check_bounds(actions, action)
            check_legal(actions, observations, mask, action)

    return check


def _bounded(actor: Actor, check: Callable[[Array, Observation], None]) -> Actor:
    """Check the actor's actions at each call."""

    def act(observations: Observation, noise: Array) -> Array:
        actions = actor(observations, noise)
        check(actions, observations)
        return actions

    return act


def _bounded_step(step: Answers, spec: PolicySpec) -> Answers:
    """Check the bounds of the actions among the answers at each call, and that their masks allow them."""

    def answers(inputs: Observation, noise: Array) -> dict[str, Array]:
        found = step(inputs, noise)
        check_bounds(found[spec.action.name], spec.action)
        check_legal(found[spec.action.name], inputs, spec.mask, spec.action)
        return found

    return answers


def _errors(actor: Actor, further: Answers | None, reference_cases: ReferenceCases) -> dict[str, OutputError]:
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


def _state_errors(
    step: Answers, cases: Answered, spec: PolicySpec, errors: Mapping[str, OutputError]
) -> dict[str, OutputError]:
    """Measure the error of the next state in 8 bits along sequences, at least that in `errors`.

    A sequence counts until the target makes another choice than the policy.
    """
    if not len(cases):
        return {}
    inputs = by_name(cases.observations, spec.observation[0].name)
    _, found = run_sequences(step, inputs, cases.noise, spec.state)
    same = _same_choices(found[spec.action.name], cases.actions).reshape(-1, STEPS)
    rows = np.logical_and.accumulate(same, axis=1).ravel() if same[:, 0].any() else np.ones(len(cases), np.bool_)
    return {
        each.name: errors.get(each.name, OutputError())
        | output_error(found[each.name][rows], cases.further[each.name][rows], each)
        for each in spec.next_state
    }
