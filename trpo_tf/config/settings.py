"""All settings of a training run as one frozen dataclass, with presets and conversion from TOML."""

import dataclasses
import math
import tomllib
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from tyro.conf import Positional, arg

from trpo_tf.config.algorithms import find_algorithm
from trpo_tf.config.environment import Environment
from trpo_tf.config.former_names import SETTINGS, renamed, with_present_names
from trpo_tf.config.groups import (
    CriticConfig,
    EnvironmentConfig,
    InnerConfig,
    PolicyConfig,
    SamplingConfig,
    TrustRegionConfig,
    VineConfig,
)
from trpo_tf.config.names_elsewhere import known_as
from trpo_tf.config.option_names import flat, former_own_names, nested, own_name
from trpo_tf.config.preset_files import preset_for, preset_names, read_preset
from trpo_tf.config.setting_checks import KnownSettings, check_types, refuse_unknown, require, whole_number
from trpo_tf.errors import UserError

__all__ = [
    "Config",
    "CriticConfig",
    "EnvironmentConfig",
    "InnerConfig",
    "PolicyConfig",
    "SamplingConfig",
    "TrustRegionConfig",
    "VineConfig",
    "differing_settings",
    "former_own_names",
    "load_preset",
    "own_name",
    "preset_for",
    "preset_names",
    "read_config",
    "upgraded",
    "with_changes",
]


@dataclass(frozen=True)
class Config(KnownSettings):
    """All settings of a training run."""

    env_id: Annotated[Positional[str], arg(metavar="ENVIRONMENT", help_behavior_hint="")]
    """Gymnasium environment; `module:Name-v0` if your own module registers it"""
    seed: int = 0
    """seed of all random numbers"""
    total_steps: int = 100_000
    """environment steps to train for; no iteration starts that could exceed them"""
    algo: str = "trpo"
    """policy update: trpo, trpo-adaptive, npg, nac, vpg, kl-penalty or ppo"""
    eval_episodes: int = 20
    """episodes of the evaluation before training and of the one after it; 0: none"""
    eval_interval: int = 0
    """evaluate the policy every N environment steps and keep the best; 0: keep the last"""
    periodic_eval_episodes: int = 20
    """episodes of each periodic evaluation, always of the same seeds; their steps do not count as total_steps"""
    anneal: bool = False
    """linearly decrease max_kl, critic_learning_rate, noise_correlation, entropy_coefficient to 0 (trpo, npg, nac)"""
    checkpoint_steps: int = 0
    """environment steps between checkpoints; 0: several episodes of every environment"""
    environment: EnvironmentConfig = field(default_factory=EnvironmentConfig)
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    vine: VineConfig = field(default_factory=VineConfig)
    policy: PolicyConfig = field(default_factory=PolicyConfig)
    trust_region: TrustRegionConfig = field(default_factory=TrustRegionConfig)
    inner: InnerConfig = field(default_factory=InnerConfig)
    critic: CriticConfig = field(default_factory=CriticConfig)

    def __post_init__(self) -> None:
        """Raise `UserError` naming the first setting that can't work with the others."""
        own = "the id of a registered environment; gymnasium.register registers one of your own"
        require(isinstance(self.env_id, str), "env_id", own)
        check_types(self)
        for name, value in flat(self.to_dict()).items():
            require(not isinstance(value, float) or math.isfinite(value), name, "a finite number")
        algorithm = find_algorithm(self.algo)
        require(self.seed >= 0, "seed", "at least 0")
        require(not self.anneal or algorithm.can_anneal, "algo", "trpo, npg or nac, to anneal")
        if self.trust_region.entropy_coefficient > 0:
            require(algorithm.has_entropy_term, "entropy_coefficient", f"0, for {self.algo}")
        if self.policy.final_std > 0:
            require(self.trust_region.entropy_coefficient > 0, "entropy_coefficient", "above 0, with a final_std")
        if self.policy.memory:
            products = "gauss-newton or score-covariance, with a recurrent memory"
            require(self.trust_region.fisher != "double-backprop", "fisher", products)
        require(self.eval_episodes >= 0, "eval_episodes", "at least 0")
        require(self.checkpoint_steps >= 0, "checkpoint_steps", "at least 0")
        require(self.eval_interval >= 0, "eval_interval", "at least 0")
        require(self.periodic_eval_episodes >= 1, "periodic_eval_episodes", "at least 1")
        batch_size, rows = self.sampling.batch_size, self.rollout_length * self.sampling.num_envs
        require(self.total_steps >= batch_size, "total_steps", f"at least batch_size, {batch_size}")
        if self.sampler_is_vine:
            require(self.vine.rollout_states <= rows, "rollout_states", f"at most the rows of a batch, {rows}")
            shards = self.sampling.shards
            require(self.vine.rollout_states >= shards, "rollout_states", f"at least as many as shards, {shards}")
            require(not algorithm.uses_minibatches, "algo", "one without minibatches, for the vine")
            require(self.sampling.objective == "discounted", "objective", "discounted, for the vine")
        require(self.critic.batch_size <= rows, "critic_batch_size", f"at most the rows of a batch, {rows}")
        if algorithm.uses_minibatches:
            require(self.inner.policy_batch_size <= rows, "policy_batch_size", f"at most the rows of a batch, {rows}")

    @classmethod
    def _meant(cls, name: str) -> str:
        """Return which setting an unknown argument means, and how it is given; empty if none is close."""
        meant = _meant(name)
        return f"{meant}; Config.for_env takes every setting by its own name" if meant else ""

    @property
    def made_environment(self) -> Environment:
        """Environment of the run, with its arguments, time limit and wrappers."""
        return Environment(self.env_id, **dataclasses.asdict(self.environment))

    @property
    def sampler_is_vine(self) -> bool:
        """Whether the policy learns from rollouts that branch off trajectories."""
        return self.sampling.sampler == "vine"

    @property
    def rollout_length(self) -> int:
        """Steps of each environment in an iteration."""
        return self.sampling.batch_size // self.sampling.num_envs

    def to_dict(self) -> dict[str, Any]:
        """Return the settings as nested plain values, which TOML and JSON can hold."""
        return dataclasses.asdict(self)

    @classmethod
    def for_env(cls, env_id: str, *, preset: str | None = None, **settings: Any) -> "Config":
        """Return the settings that `trpo-tf train env_id` would use: the environment's preset, changed by `settings`.

        `Config.for_env("CartPole-v1", total_steps=50_000, num_envs=4)` gives settings by their own names, without
        groups. `preset` names another preset, or `default`. Values of the preset that conflict with the settings are
        left out with a warning. Raises `UserError`.
        """
        settings = _asked_for(settings)
        values = flat(load_preset(preset or preset_for(env_id), env_id, settings).to_dict())
        return cls.from_dict(nested({**values, **settings}, cls))

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "Config":
        """Return the config of nested values: the inverse of `to_dict`.

        Absent settings take their defaults, and names of earlier releases are accepted. Raises `UserError` for unknown
        names.
        """
        return _from_dict(cls, with_present_names(values))  # type: ignore[no-any-return]


def _asked_for(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings under their present own names, with a warning for each former name.

    Raises `UserError` if a setting is given under both names.
    """
    former = former_own_names()
    for name in settings.keys() & former.keys():
        if former[name] in settings:
            raise UserError(f"{name} is now {former[name]}; give that alone")
        warnings.warn(f"{name} is now {former[name]}", stacklevel=3)
    return renamed(settings, former)


def with_changes(config: Config, changes: Sequence[str]) -> Config:
    """Return the config changed by texts `group.name=value`. A value that is not TOML is taken as text.

    Raises `UserError`.
    """
    values = config.to_dict()
    for change in changes:
        path, equals, text = change.partition("=")
        path = path.strip()
        if path in SETTINGS:
            warnings.warn(f"{path} is now {SETTINGS[path]}", stacklevel=2)
        *groups, name = SETTINGS.get(path, path).split(".")
        if not equals:
            raise UserError(f"--set takes GROUP.NAME=VALUE, such as trust_region.max_kl=0.02, not {change!r}")
        place = values
        for group in groups:
            place = place.setdefault(group, {})
            if not isinstance(place, dict):
                raise UserError(f"--set {change}: {group} is no group of settings")
        try:
            place[name] = tomllib.loads(f"value = {text}")["value"]
        except tomllib.TOMLDecodeError:
            place[name] = text.strip()
    return Config.from_dict(values)


def load_preset(preset: str, env_id: str, given: Mapping[str, Any] | None = None) -> Config:
    """Return the settings of a preset for `env_id`; `default` means the dataclasses' defaults.

    Values of the preset that conflict with the settings in `given`, by their own names, are left out with a warning.
    Raises `UserError`.
    """
    if preset == "default":
        return Config(env_id)
    values, given = read_preset(preset), given or {}
    for name, reason in _unfit({**values, **given}):
        if name in values and name not in given:
            del values[name]
            warnings.warn(f"{name} of the preset {preset} is left out: {reason}", stacklevel=2)
    return Config.from_dict(nested({"env_id": env_id, **values}, Config))


def _unfit(settings: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield the settings that conflict with the algorithm, the sampler or another setting, each with the reason."""
    algo = settings.get("algo", "trpo")
    algorithm = find_algorithm(algo)
    if not algorithm.can_anneal:
        yield "anneal", f"{algo} is not annealed"
    if not algorithm.has_entropy_term:
        for name in ("entropy_coefficient", "final_std"):
            yield name, f"{algo} has none"
    if settings.get("sampler") == "vine":
        yield "noise_correlation", "the vine has none"
    if settings.get("squash"):
        yield "censored", "squashed actions are not clipped"
    if settings.get("objective") == "average":
        yield "time_feature", "an average has no time limit"
    if settings.get("discount") == 1:
        yield "final_discount", "the discount is 1"


def differing_settings(config: Config) -> dict[str, Any]:
    """Return the settings that differ from the dataclasses' defaults, under their own names."""
    defaults = flat(type(config)("").to_dict())
    return {name: value for name, value in flat(config.to_dict()).items() if value != defaults[name]}


def read_config(path: Path) -> Config:
    """Read a run's config.toml. Raises `UserError`."""
    try:
        values = tomllib.loads(path.read_text("utf-8-sig"))
        if "env_id" not in values:
            raise UserError(f'{path} names no environment; add one at its top, such as env_id = "CartPole-v1"')
        return Config.from_dict(upgraded(values))
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise UserError(f"{path} can't be read: {reason}; give a file of settings, such as RUN/config.toml") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not valid TOML: {error}") from error
    except TypeError as error:
        raise UserError(f"{path} has a setting of a wrong type, or lacks one: {error}") from error


def upgraded(values: dict[str, Any]) -> dict[str, Any]:
    """Return a run's settings with those of earlier releases replaced by their present equivalents.

    The config.toml that a run writes has every setting of its release. Settings that came later then get the values
    that reproduce that release. A file written by hand has only some settings, and the others take the present
    defaults.
    """
    sampling, policy = dict(values.get("sampling", {})), dict(values.get("policy", {}))
    former: dict[str, Any] = {}
    if "scale_rewards" in sampling:
        former["value_scaling"] = "rewards" if sampling.pop("scale_rewards") else "none"
    if {"num_envs", "batch_size", "objective", "gae_lambda", "normalize_observations"} <= sampling.keys():
        former |= {"stagger": False, "statistics_window": 0, "least_deviation": 0.0, "adaptive_lambda": False}
        policy.setdefault("unit_std", False)
    return {**values, "sampling": {**former, **sampling}, "policy": policy}


def _from_dict(kind: Any, values: dict[str, Any]) -> Any:
    fields = {f.name: f for f in dataclasses.fields(kind)}
    refuse_unknown(kind, values, _meant)
    arguments = {}
    for name, value in values.items():
        component = fields[name].type
        if dataclasses.is_dataclass(component):
            value = _from_dict(component, value)
        elif component is int:
            value = whole_number(value)
        arguments[name] = tuple(value) if isinstance(value, list) else value
    return kind(**arguments)


def _meant(name: str) -> str:
    """Return which setting an unknown name means, as a clause of an error; empty if none is close."""
    own_names = flat(Config("").to_dict())
    if name not in own_names:
        return known_as(name, own_names)
    ((group, inner),) = nested({name: None}, Config).items()
    return f"its place is {group}.{next(iter(inner))}" if inner else f"its place is outside of groups: {group}"
