"""Plan of a benchmark: its environments, with their settings and seeds."""

import dataclasses
import importlib.util
from collections.abc import Sequence
from typing import NamedTuple

from trpo_tf.benchmark.results import EPISODES
from trpo_tf.benchmark.suites import NEEDS, SUITES, UNTUNED
from trpo_tf.config.settings import Config, load_preset, preset_for
from trpo_tf.envs.make import make_env
from trpo_tf.envs.vector.backends import with_env_backend
from trpo_tf.errors import UserError


class Plan(NamedTuple):
    """The runs of a benchmark."""

    configs: tuple[Config, ...]
    left_out: tuple[str, ...]
    """a line for each environment of a suite that this machine can't make"""
    untuned: frozenset[str]
    """environments trained with the default settings"""


def plan(names: Sequence[str], seeds: range, steps: int | None) -> Plan:
    """Plan a run for each seed of each environment, seed by seed, with the preset, or the defaults in `UNTUNED` suites.

    Args:
        names: suites or environments. An environment named by itself is trained for the steps of its preset.
        seeds: seeds of every environment.
        steps: environment steps of every run, in place of those of suites and presets.

    Raises `UserError` for a name that is neither, or settings that can't work.
    """
    if not names:
        raise UserError(f"which suite? Name one of {', '.join(SUITES)}, for example: trpo-tf benchmark classic")
    if len(seeds) < 1:
        raise UserError("seeds must be at least 1")
    if seeds.start < 0:
        raise UserError("first_seed must be at least 0")
    wanted: dict[str, _Wanted] = {}
    for name in names:
        for env_id, found in _wanted(name).items():
            if wanted.setdefault(env_id, found).preset != found.preset:
                raise UserError(f"{env_id} is asked for with its preset and without; run {name} by itself")
            wanted[env_id] = found
    missing = {env_id: package for env_id in wanted if (package := _missing(env_id))}
    configs = [
        _config(env_id, seed, preset, suite_steps if steps is None else steps)
        for seed in seeds
        for env_id, (preset, suite_steps) in wanted.items()
        if env_id not in missing
    ]
    left_out = [f"{name} was left out: it needs {package}, which is not installed" for name, package in missing.items()]
    untuned = frozenset(env_id for env_id, (preset, _) in wanted.items() if preset == "default")
    return Plan(tuple(configs), tuple(left_out), untuned)


class _Wanted(NamedTuple):
    """Preset and steps of an environment's runs."""

    preset: str
    steps: int | None


def _wanted(name: str) -> dict[str, _Wanted]:
    """Return the environments of a suite, or the one environment of that name."""
    if name not in SUITES:
        return {_environment(name): _Wanted(preset_for(name), None)}
    return {
        env_id: _Wanted("default" if name in UNTUNED else preset_for(env_id), steps)
        for env_id, steps in SUITES[name].items()
    }


def _config(env_id: str, seed: int, preset: str, steps: int | None) -> Config:
    # The benchmark evaluates the exported policy itself, so a run need not. With default settings it does so anyway,
    # since it then also evaluates the untrained policy: that shows whether training did harm.
    episodes = EPISODES if preset == "default" else 0
    changed = {"seed": seed, "eval_episodes": episodes, **({} if steps is None else {"total_steps": steps})}
    try:
        return with_env_backend(dataclasses.replace(load_preset(preset, env_id), **changed))  # type: ignore[arg-type]
    except UserError as error:
        raise UserError(f"--steps {steps} can't work for {env_id}: {error}") from error


def _environment(name: str) -> str:
    try:
        make_env(name).close()
    except UserError as error:
        raise UserError(f"{name!r} is neither a suite ({', '.join(SUITES)}) nor an environment: {error}") from error
    return name


def _missing(env_id: str) -> str | None:
    """Return the first package that an environment needs and that is not installed."""
    needed = (package for start, packages in NEEDS.items() if env_id.startswith(start) for package in packages)
    return next((package for package in needed if importlib.util.find_spec(package) is None), None)
