"""Evaluate a policy on episodes, through its exported graph."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import gymnasium as gym
import numpy as np

from trpo_tf.config.environment import Environment
from trpo_tf.envs.info_sums import InfoSums, means
from trpo_tf.envs.make import make_env, readable_errors, spec_of
from trpo_tf.envs.remaining_time import observes_time
from trpo_tf.envs.spaces import action_spec, observation_spec
from trpo_tf.errors import UserError
from trpo_tf.serving import ArraySpec, Manifest, Policy
from trpo_tf.serving.arguments import expect, expect_count

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
    masked = policy.manifest.mask is not None
    env = make_env(environment, time_feature=observes_time(policy.manifest.observation), masked=masked)
    try:
        check_spaces(policy.manifest, env, str(environment))
        longest = longest or longest_episode(environment, _trained_for(policy), episodes)
        session = policy.start()
        act = partial(session.act, deterministic=deterministic, rng=np.random.default_rng(seed))
        returns, lengths, ended, steps = np.zeros(episodes), np.zeros(episodes), np.zeros(episodes, bool), 0
        info = InfoSums()
        for k in range(episodes):
            session.reset()
            for step in play(act, env, seed + k, longest):
                returns[k] += step.reward
                lengths[k] += 1
                ended[k] = step.is_over
                info.add(step.info, ended=step.is_over)
                steps += 1
                on_step(k, steps)
    finally:
        env.close()
    return Evaluation(
        float(returns.mean()),
        float(returns.std()),
        float(returns.min()),
        float(returns.max()),
        float(lengths[ended].mean()) if ended.any() else None,
        episodes,
        episodes - int(ended.sum()),
        longest,
        means(info.take()),
    )


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


def _trained_for(policy: Policy) -> int:
    """Return the environment steps of the policy's training run, or a default if its manifest has none."""
    config = policy.manifest.provenance.get("config")
    steps = config.get("total_steps") if isinstance(config, dict) else None
    return steps if isinstance(steps, int) else LONGEST_EPISODE


def check_spaces(policy: "Manifest | PolicySpec", env: gym.Env[Any, Any], env_id: str) -> None:
    """Raise `UserError` unless the policy's observations and actions match the environment's."""
    for verb, specs, own in (
        ("observes", policy.observation, observation_spec(env.observation_space)),
        ("gives", (policy.action,), (action_spec(env.action_space),)),
    ):
        if {_described(spec) for spec in specs} != {_described(spec) for spec in own}:
            takes, has = (", ".join(map(_described, group)) for group in (specs, own))
            raise UserError(f"the policy {verb} {takes}, {env_id} has {has} there")


def _described(spec: ArraySpec) -> str:
    return f"{spec.name} {spec.dtype}{list(spec.shape)}"
