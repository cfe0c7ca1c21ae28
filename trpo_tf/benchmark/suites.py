"""What a benchmark trains: which environments, for how many steps, from which seeds."""

import dataclasses
import importlib.util
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from trpo_tf.config import Config, load_preset, preset_for
from trpo_tf.envs import make_env
from trpo_tf.errors import UserError
from trpo_tf.training import with_env_backend

SUITES: Mapping[str, Mapping[str, int]] = {
    "classic": {
        "CartPole-v1": 100_000,
        "Acrobot-v1": 100_000,
        "Pendulum-v1": 100_000,
        "MountainCar-v0": 100_000,
        "MountainCarContinuous-v0": 50_000,
        "LunarLander-v3": 200_000,
    },
    "mujoco": dict.fromkeys(
        (
            "Ant-v5",
            "HalfCheetah-v5",
            "Hopper-v5",
            "Walker2d-v5",
            "Swimmer-v5",
            "Humanoid-v5",
            "InvertedDoublePendulum-v5",
            "Reacher-v5",
        ),
        1_000_000,
    ),
}
"""Environment steps of each environment: those that RL Baselines3 Zoo trains for, and 1M for all of MuJoCo."""

_NEEDS = {"LunarLander-v3": "Box2D"}


class Plan(NamedTuple):
    """The runs of a benchmark, and a line for each environment of a suite that this machine can't make."""

    configs: tuple[Config, ...]
    left_out: tuple[str, ...]


def plan(names: Sequence[str], seeds: range, steps: int | None) -> Plan:
    """A run for each seed of each environment, seed by seed, with the environment's preset.

    Args:
        names: suites, or environments beside them; those are trained as long as their presets say.
        seeds: seeds of every environment.
        steps: environment steps of every run, instead of what the suites say.

    Raises `UserError` for a name that is neither, or settings that can't work.
    """
    if not names:
        raise UserError(f"which suite? Name one of {', '.join(SUITES)}, for example: trpo-tf benchmark classic")
    if len(seeds) < 1:
        raise UserError("seeds must be at least 1")
    if seeds.start < 0:
        raise UserError("first_seed must be at least 0")
    steps_of: dict[str, int | None] = {}
    for name in names:
        steps_of |= SUITES[name] if name in SUITES else {_environment(name): None}
    left_out = {env_id: _NEEDS[env_id] for env_id in steps_of if _is_missing(_NEEDS.get(env_id))}
    configs = [
        _config(env_id, seed, suite_steps if steps is None else steps)
        for seed in seeds
        for env_id, suite_steps in steps_of.items()
        if env_id not in left_out
    ]
    return Plan(
        tuple(configs),
        tuple(
            f"{env_id} was left out: it needs {package}, which is not installed" for env_id, package in left_out.items()
        ),
    )


def _config(env_id: str, seed: int, steps: int | None) -> Config:
    preset = load_preset(preset_for(env_id), env_id)
    # The benchmark plays the exported policy at the end; a run's own evaluation would be the same once more.
    changed = {"seed": seed, "eval_episodes": 0, **({} if steps is None else {"total_steps": steps})}
    try:
        return with_env_backend(dataclasses.replace(preset, **changed))  # type: ignore[arg-type]
    except UserError as error:
        raise UserError(f"--steps {steps} can't work for {env_id}: {error}") from error


def _environment(name: str) -> str:
    try:
        make_env(name).close()
    except UserError as error:
        raise UserError(f"{name!r} is neither a suite ({', '.join(SUITES)}) nor an environment: {error}") from error
    return name


def _is_missing(package: str | None) -> bool:
    return package is not None and importlib.util.find_spec(package) is None
