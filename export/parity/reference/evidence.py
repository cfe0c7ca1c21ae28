"""Collect the reference that targets are compared with: the policy's own answers to cases, observations and
episodes.
"""

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import onnx
from numpy.typing import NDArray

from trpo_tf.export.errors import ExportError
from trpo_tf.export.graph.batch_dependence import outputs_of_batch_size
from trpo_tf.export.parity.reference.answers import BATCH_SIZES, Answered, Reference
from trpo_tf.export.parity.reference.case_inputs import far_rows, with_tails
from trpo_tf.export.parity.reference.episodes import Environment, Episode, play, repeats
from trpo_tf.export.parity.reference.legal_actions import policy_cases
from trpo_tf.export.parity.reference.recurrent import (
    Recurrent,
    fresh,
    observed,
    order_of_sequences,
    sequence_inputs,
    with_state,
)
from trpo_tf.export.parity.reference.reference_cases import ReferenceCases
from trpo_tf.export.parity.reference.rounding import Rounding, undefined_choice
from trpo_tf.export.parity.reference.soundness import (
    check_actions,
    check_further,
    check_rows,
    check_scores,
    check_scores_shape,
    is_finite_rows,
    outputs_of,
)
from trpo_tf.export.policy.batches import ActionAlone
from trpo_tf.export.policy.functions import Actor, InferenceFunction, Outputs, PolicyFunction
from trpo_tf.export.policy.on_arrays import OnArrays
from trpo_tf.export.policy.outputs import of_inputs
from trpo_tf.export.policy.spec import PolicySpec, check_callable, spec_of
from trpo_tf.export.targets.target import Target
from trpo_tf.serving import Manifest
from trpo_tf.serving.argument_checks import expect, expect_count
from trpo_tf.serving.bundle.golden import STEPS
from trpo_tf.serving.runtime.conversion import as_observations
from trpo_tf.serving.runtime.noise import draw_noise
from trpo_tf.serving.runtime.observations import Array, Observation, batch_size, by_name, map_parts, take

_VISITED = 512
"""Observations of the policy's own episodes that it is compared and calibrated on."""

_MOST_CASES, _MOST_NUMBERS = 4096, 2_000_000
"""Cases that bounds are checked on besides the golden ones, and numbers in all of their observations."""

_LEAST_EPISODES = 2
"""Fewest episodes for a target in 8 bits: one difference of returns has no interval."""


@dataclass(frozen=True)
class Evidence:
    """Observations, environment and scores to compare an export on, besides random observations and bounds.

    Attributes:
        observations: recorded observations [n, ...], of a policy with state in the order of time; by default those of
            the episodes.
        environment: an environment to play whole episodes in.
        scores: for discrete actions, the function whose argmax over the last axis is the action: [batch, ..., n]. Its
            arguments are the policy's.
        episodes: number of episodes, with seeds from 0 on.
        untrained_return: mean return before training, against which a loss of return is weighed.
    """

    observations: Observation | None = None
    environment: Environment | None = None
    scores: PolicyFunction | None = None
    episodes: int = 20
    untrained_return: float | None = None

    def __post_init__(self) -> None:
        expect_count(self.episodes, "episodes", 1, ExportError)
        if self.scores is not None:
            check_callable(self.scores, "scores")
        if self.environment is not None and not all(hasattr(self.environment, each) for each in ("reset", "step")):
            raise ExportError(f"environment must be one, with reset and step, not {self.environment!r}")
        if self.observations is not None:
            wanted = "observations must be an array [n, ...], or a dict of them by input"
            parts = self.observations.values() if isinstance(self.observations, dict) else [self.observations]
            for part in parts:
                expect(part, np.ndarray, wanted, ExportError)


def check_episodes(targets: Mapping[str, Target], evidence: Evidence) -> None:
    """Refuse a single episode for 8 bits: those are compared by return, and one difference has no interval."""
    coarse = [name for name, target in targets.items() if not target.exact]
    if coarse and evidence.environment is not None and evidence.episodes < _LEAST_EPISODES:
        raise ExportError(
            f"target {coarse[0]} is compared by its return, for which {evidence.episodes} episode shows nothing; play "
            f"{_LEAST_EPISODES} or more"
        )


def make_reference_cases(
    function: InferenceFunction, outputs: Outputs, manifest: Manifest, evidence: Evidence, graph: bytes
) -> ReferenceCases:
    """Make the reference, its episodes and the golden cases, and check that the policy is consistent.

    Raises `ExportError` for a policy that no target can reproduce, such as one whose actions differ from call to call.
    """
    spec = spec_of(manifest)
    reference = _reference(function, outputs, manifest, evidence, graph)
    zero_noise = np.zeros((1, *spec.noise.shape), spec.noise.dtype)
    environment, episodes = evidence.environment, _episodes(reference, spec, evidence, zero_noise)
    visited = _visited(episodes, STEPS if spec.state else 1)
    if evidence.observations is not None:
        visited = _recorded(as_observations(evidence.observations, spec.observation, batched=True), reference)
    rng = np.random.default_rng(0)
    seen = None if visited is None else observed(visited, spec)
    observations = policy_cases(spec, seen, rng)
    noise = with_tails(spec.noise, draw_noise(spec.noise, batch_size(observations), rng), rng)
    far = far_rows(spec.observation, observations, seen)
    kept = ~far | answerable(reference, fresh(observations, spec), noise)
    observations, noise, far = take(observations, kept), noise[kept], far[kept]
    noisy_observations = None
    if reference.recurrent is not None:
        observations, noisy_observations, noise, far = sequence_cases(
            reference.recurrent, observations, noise, far, rng
        )
    first = dict(itertools.islice(episodes.items(), 1))
    repeatable = environment is None or repeats(reference, environment, first, zero_noise)
    reference_cases = ReferenceCases(
        reference,
        observations,
        noise,
        visited,
        environment,
        episodes,
        evidence.untrained_return,
        repeatable,
        spec.action,
        manifest.outputs[1:],
        far,
        noisy_observations,
        spec.mask,
    )
    _check_policy(reference_cases, spec)
    _check_graph(graph, by_name(take(observations, ~far), spec.observation[0].name))
    return reference_cases


def _episodes(reference: Reference, spec: PolicySpec, evidence: Evidence, zero_noise: Array) -> dict[int, Episode]:
    """Play the reference's own episodes, by seed; none without an environment."""
    if evidence.environment is None:
        return {}
    names = [part.name for part in spec.observation] if len(spec.observation) > 1 else ()
    return {
        seed: list(play(reference.player, evidence.environment, seed, zero_noise, names))
        for seed in range(evidence.episodes)
    }


def _check_graph(graph: bytes, feeds: Mapping[str, Array]) -> None:
    """Raise `ExportError` for outputs that depend on the number of rows, and for comparisons with NaN."""
    sized = outputs_of_batch_size(onnx.load_from_string(graph), feeds)
    if sized:
        raise ExportError(
            f"the policy's {min(sized)!r} is computed of the number of rows of its batch, so that another batch may "
            "get another answer; take tf.shape(observation)[0] and tf.size out of conditions and of arithmetic"
        )
    operator = undefined_choice(graph, feeds)
    if operator is not None:
        raise ExportError(
            f"{operator} in the policy compares numbers of which some are NaN; look for an overflow or NaN in it"
        )


def sequence_cases(
    policy: Recurrent, observations: Observation, noise: Array, far: NDArray[np.bool_], rng: np.random.Generator
) -> tuple[dict[str, Array], dict[str, Array], Array, NDArray[np.bool_]]:
    """Order observations and noise [n, ...] in sequences, and run the policy along them without and with noise.

    Returns the inputs of the steps without noise, those with it, the noise, and which observations are far. A sequence
    with a far observation is left out where the policy has no finite answer to it.
    """
    spec = policy.spec
    order = order_of_sequences(len(noise), rng)
    observations, noise, far = take(observations, order), noise[order], far[order]
    zero_noise = np.zeros_like(noise)
    made = [sequence_inputs(policy.answers, observations, drawn, spec, rng) for drawn in (zero_noise, noise)]
    finite = np.ones(len(noise), np.bool_)
    for inputs, drawn in zip(made, (zero_noise, noise), strict=True):
        for answer in policy.answers(inputs, drawn).values():
            finite &= is_finite_rows(answer)
    whole = finite.reshape(-1, STEPS).all(axis=1) | ~far.reshape(-1, STEPS).any(axis=1)
    kept = np.repeat(whole, STEPS)
    plain, noisy = ({name: array[kept] for name, array in inputs.items()} for inputs in made)
    return plain, noisy, noise[kept], far[kept]


def _recorded(observations: Observation, reference: Reference) -> Observation:
    """Add the state in which the policy meets recorded observations [n, ...], in the order that they have."""
    policy = reference.recurrent
    if policy is None:
        return observations
    rows = np.resize(np.arange(batch_size(observations)), -(-batch_size(observations) // STEPS) * STEPS)
    spec, zero_noise = policy.spec, np.zeros((len(rows), *policy.spec.noise.shape), policy.spec.noise.dtype)
    rng = np.random.default_rng(0)
    return sequence_inputs(policy.answers, take(observations, rows), zero_noise, spec, rng)


def _reference(
    function: InferenceFunction, outputs: Outputs, manifest: Manifest, evidence: Evidence, graph: bytes
) -> Reference:
    spec, scores, further, recurrent = spec_of(manifest), None, None, None
    signature = spec.signature()
    if evidence.scores is not None:
        scores = OnArrays(of_inputs(evidence.scores, spec), signature)
    if spec.state:
        recurrent = Recurrent(OnArrays(outputs, signature), spec)
    elif manifest.graph.outputs:
        further = OnArrays(_without(spec.action.name, outputs), signature)
    act: Actor = (
        OnArrays(function, signature) if recurrent is None else ActionAlone(recurrent.answers, spec.action.name)
    )
    return Reference(act, scores, further, Rounding(graph, spec), spec.action.name, recurrent, spec.action.unit)


def _without(name: str, outputs: Outputs) -> Outputs:
    return lambda inputs, noise: {key: tensor for key, tensor in outputs(inputs, noise).items() if key != name}


def answerable(reference: Reference, observations: Observation, noise: Array) -> NDArray[np.bool_]:
    """Mark the cases [case] for which the policy's answers are finite, with noise and without."""
    finite = np.ones(len(noise), bool)
    for drawn in (noise, np.zeros_like(noise)):
        answered = reference.answered(observations, drawn)
        check_scores_shape(answered)
        for array in outputs_of(answered).values():
            finite &= is_finite_rows(array)
        if answered.scores is not None:
            finite &= is_finite_rows(answered.scores.max(axis=-1))
    return finite


def _many(reference: Reference, spec: PolicySpec, visited: Observation | None, states: Observation) -> Answered:
    """Make as many more cases as one batch may have, for bounds that few observations break; `states` has some."""
    size = sum(math.prod(part.shape) for part in spec.observation)
    rng, seen = np.random.default_rng(1), None if visited is None else observed(visited, spec)
    observations = policy_cases(spec, seen, rng, min(_MOST_CASES, 1 + _MOST_NUMBERS // size))
    noise = with_tails(spec.noise, draw_noise(spec.noise, batch_size(observations), rng), rng)
    far = far_rows(spec.observation, observations, seen)
    inputs = with_state(observations, states, spec, rng)
    answered = Answered(inputs, noise, reference.act(inputs, noise), action=spec.action.name)
    return answered.take(~far | is_finite_rows(answered.actions))


def _check_policy(reference_cases: ReferenceCases, spec: PolicySpec) -> None:
    for cases, sizes in ((reference_cases.golden, BATCH_SIZES), (reference_cases.noisy_golden, ())):
        check_actions(cases, spec)
        check_scores(cases)
        check_rows(reference_cases.reference, cases, sizes)
    for batch in reference_cases.episode_batches:
        check_actions(batch, spec)
    check_actions(_many(reference_cases.reference, spec, reference_cases.visited, reference_cases.observations), spec)
    check_further(reference_cases.visits, is_known=reference_cases.visited is not None)


def _visited(episodes: Mapping[int, Episode], steps: int) -> Observation | None:
    """Take observations [n, ...] evenly spaced over all episodes, in pieces of so many steps that follow each other."""
    seen = [observation for episode in episodes.values() for observation, _ in episode]
    if not seen:
        return None
    starts = range(0, len(seen), steps)
    rows = [row for start in starts[:: -(-len(seen) // _VISITED)] for row in range(start, start + steps)]
    # The last piece ends with the first observations: those begin an episode, whatever the state before.
    first, *rest = [seen[row % len(seen)] for row in rows]
    return map_parts(lambda *parts: np.stack(parts), first, *rest)
