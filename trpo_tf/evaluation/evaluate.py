"""Evaluate a policy on episodes, through its exported graph."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple, Self

import gymnasium as gym
import numpy as np

from trpo_tf.config.environment import Environment
from trpo_tf.envs.checked import integer_bounds
from trpo_tf.envs.info_sums import InfoSums, Sums, added, means
from trpo_tf.envs.make import make_env, readable_errors, spec_of
from trpo_tf.envs.remaining_time import observes_time
from trpo_tf.envs.spaces import action_spec, observation_spec
from trpo_tf.errors import UserError
from trpo_tf.serving import ArraySpec, Manifest, Policy
from trpo_tf.serving.argument_checks import expect, expect_count

if TYPE_CHECKING:
    from trpo_tf.export import PolicySpec

LONGEST_EPISODE = 100_000
"""Default step limit of `play`, and the steps that `evaluate` shares out if the length of training is unknown."""

_SHORT_LIMIT = 1_000
"""Episodes of environments with a time limit up to this are always played whole."""

OnStep = Callable[[int, int], None]
"""Called after each step with the number of ended episodes and of steps so far; an exception ends the evaluation."""

FIRST_SEED = 1_000_000
"""Seed of the first evaluation episode. Training never uses seeds from here on in practice."""


class Episode(NamedTuple):
    """An episode's undiscounted return and length, whether it ended before it was cut, and sums of its `info`."""

    returned: float
    length: int
    ended: bool
    info: Sums


@dataclass(frozen=True)
class Evaluation:
    """Undiscounted returns of episodes; `std_return` is over episodes, with n in the denominator.

    `episodes_cut` counts the episodes that did not end within `longest_episode` steps; their returns so far count.
    `mean_length` is the mean over the others, and None if there are no others. `info` has means of the numbers that the
    environment reports, such as `is_success`, as `InfoSums` computes them.
    """

    mean_return: float
    std_return: float
    min_return: float
    max_return: float
    mean_length: float | None
    episodes: int
    episodes_cut: int
    longest_episode: int
    info: dict[str, float | None] = field(default_factory=dict)

    @classmethod
    def of(cls, played: Sequence[Episode], longest: int) -> Self:
        """Return the statistics of episodes of at most `longest` steps."""
        returns = np.array([episode.returned for episode in played])
        lengths = [episode.length for episode in played if episode.ended]
        return cls(
            mean_return=float(returns.mean()),
            std_return=float(returns.std()),
            min_return=float(returns.min()),
            max_return=float(returns.max()),
            mean_length=float(np.mean(lengths)) if lengths else None,
            episodes=len(played),
            episodes_cut=len(played) - len(lengths),
            longest_episode=longest,
            info=means(added(episode.info for episode in played)),
        )

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as plain values."""
        return asdict(self)


def longest_episode(environment: str | Environment, total_steps: int, episodes: int) -> int:
    """Return the step limit of each of `episodes` episodes: an equal share of `total_steps`.

    It is more if the share is below the environment's own time limit, up to 1,000 steps. Raises `UserError` for an id
    that Gymnasium does not know.
    """
    with readable_errors(str(environment)):
        limit = spec_of(environment).max_episode_steps or 0
    return max(total_steps // episodes, min(limit, _SHORT_LIMIT), 1)


def evaluate(
    policy: Policy,
    environment: str | Environment,
    *,
    episodes: int = 20,
    seed: int = FIRST_SEED,
    deterministic: bool = True,
    longest: int | None = None,
    on_step: OnStep = lambda *_: None,
) -> Evaluation:
    """Play `episodes` episodes, the k-th from seed + k, each of `longest` steps at most; return their statistics.

    Without `longest`, each episode may take its share of the policy's training steps: see `longest_episode`.

    Raises:
        UserError: the policy's observations or actions are not the environment's.
        EnvironmentFailure: the environment raised an exception, or gave a value that is not finite.
    """
    wanted = "policy must be a serving.Policy: of a run in_process(run.policy, name), of a bundle serving.load(folder)"
    expect(policy, Policy, wanted, UserError)
    expect(environment, str | Environment, "environment must be the id of a registered one", UserError)
    expect_count(episodes, "episodes", 1, UserError)
    expect_count(seed, "seed", 0, UserError)
    longest = longest or longest_of(policy.manifest, environment, episodes)
    played = played_episodes(policy, environment, range(episodes), seed, deterministic, longest, on_step)
    return Evaluation.of(played, longest)


def played_episodes(
    policy: Policy,
    environment: str | Environment,
    numbers: range,
    seed: int,
    deterministic: bool,
    longest: int,
    on_step: OnStep,
) -> list[Episode]:
    """Play the episodes with these numbers, in one environment; an episode depends only on its number and `seed`."""
    masked, steps = policy.manifest.mask is not None, 0
    played: list[Episode] = []
    env = make_env(environment, time_feature=observes_time(policy.manifest.observation), masked=masked)
    try:
        check_spaces(policy.manifest, env, str(environment))
        session = policy.start()
        for k in numbers:
            # Not of the seed that the environment draws from.
            act = partial(session.act, deterministic=deterministic, rng=np.random.default_rng((seed, k)))
            session.reset()
            returned, length, ended, info = 0.0, 0, False, InfoSums()
            for step in play(act, env, seed + k, longest):
                returned, length, ended = returned + step.reward, length + 1, step.is_over
                info.add(step.info, ended=ended)
                steps += 1
                on_step(len(played), steps)
            played.append(Episode(returned, length, ended, info.take()))
    finally:
        env.close()
    return played


def longest_of(manifest: Manifest, environment: str | Environment, episodes: int) -> int:
    """Return the step limit of each of `episodes` episodes of a policy, by the steps of its training."""
    return longest_episode(environment, _trained_for(manifest), episodes)


def cut_note(evaluation: Mapping[str, Any]) -> str:
    """Return a note on the episodes that were cut, from an evaluation's plain values; empty if none was."""
    cut = evaluation.get("episodes_cut", 0)
    if not cut:
        return ""
    return (
        f"{cut} of {evaluation['episodes']} episodes did not end within {evaluation['longest_episode']:,} steps and "
        "were cut there; their returns are those so far"
    )


def success_rate(evaluation: Mapping[str, Any]) -> float | None:
    """Return the share of episodes that the environment called a success, from an evaluation's plain values."""
    info = evaluation.get("info", {})
    return next((info[name] for name in ("is_success", "success") if name in info), None)


class PlayedStep(NamedTuple):
    """A step of an episode: its reward, whether the episode ended with it, and the environment's `info`."""

    reward: float
    is_over: bool
    info: Any


def play(
    act: Callable[[Any], Any], env: gym.Env[Any, Any], seed: int, longest: int = LONGEST_EPISODE
) -> Iterator[PlayedStep]:
    """Play one episode from `seed`, of `longest` steps at most; `act` returns the action for an observation.

    `env` must come from `make_env`, so that its errors are `EnvironmentFailure`.
    """
    observation, _ = env.reset(seed=seed)
    for _ in range(longest):
        observation, reward, terminated, truncated, info = env.step(act(observation))
        yield PlayedStep(float(reward), terminated or truncated, info)
        if terminated or truncated:
            return


def _trained_for(manifest: Manifest) -> int:
    """Return the environment steps of the policy's training run, or a default if its manifest has none."""
    config = manifest.provenance.get("config")
    steps = config.get("total_steps") if isinstance(config, dict) else None
    return steps if isinstance(steps, int) else LONGEST_EPISODE


def check_spaces(policy: "Manifest | PolicySpec", env: gym.Env[Any, Any], env_id: str) -> None:
    """Raise `UserError` unless the policy's observations and actions match the environment's.

    Actions and single integers, which may be choices, must have the same range too.
    """
    observation, action = observation_spec(env.observation_space), action_spec(env.action_space)
    for verb, specs, own in (("observes", policy.observation, observation), ("gives", (policy.action,), (action,))):
        if {_described(spec) for spec in specs} != {_described(spec) for spec in own}:
            takes, has = (", ".join(map(_described, group)) for group in (specs, own))
            raise UserError(f"the policy {verb} {takes}, {env_id} has {has} there")
    by_name = {spec.name: spec for spec in observation}
    choices = [(spec, by_name[spec.name]) for spec in policy.observation if integer_bounds(spec)]
    for spec, other in ((policy.action, action), *choices):
        if not all(map(np.allclose, spec.bounds(), other.bounds())):
            raise UserError(
                f"the policy has {spec.name} from {spec.low} to {spec.high}, {env_id} from {other.low} to "
                f"{other.high}, and must have the same"
            )


def _described(spec: ArraySpec) -> str:
    return f"{spec.name} {spec.dtype}{list(spec.shape)}"
