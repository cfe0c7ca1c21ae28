"""Settings of a training run, as frozen dataclasses, with presets and conversion from TOML."""

import dataclasses
import math
import tomllib
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Annotated, Any

from tyro.conf import Positional, UseAppendAction, arg

from trpo_tf.config.algorithms import find_algorithm
from trpo_tf.config.environment import Environment, as_json
from trpo_tf.config.former_names import SETTINGS, renamed, with_present_names
from trpo_tf.config.setting_types import check_types, whole_number
from trpo_tf.errors import UserError

FISHER_PRODUCTS = ("gauss-newton", "double-backprop", "score-covariance")
ADVANTAGES = ("gae", "monte-carlo", "return")
OBJECTIVES = ("discounted", "average")
SAMPLERS = ("single-path", "vine")
ENV_BACKENDS = ("auto", "gymnasium", "envpool")
VALUE_SCALINGS = ("targets", "rewards", "none")

PRESETS = resources.files("trpo_tf.config") / "presets"


@dataclass(frozen=True)
class EnvironmentConfig:
    """How the environment is made. If any of these is set, Gymnasium steps it, not EnvPool."""

    env_kwargs: str = ""
    """arguments of the environment's constructor, as JSON: '{"difficulty": 2}'"""
    max_episode_steps: int = 0
    """steps after which an episode is truncated; 0: the registered limit, if there is one"""
    env_wrapper: UseAppendAction[tuple[str, ...]] = ()
    """wrapper, innermost first: module:Class, or module:Class{"name": value} with arguments; may be given repeatedly"""

    def __post_init__(self) -> None:
        """Raise `UserError` naming the first setting that can't work."""
        object.__setattr__(self, "env_kwargs", as_json(self.env_kwargs))
        check_types(self)
        object.__setattr__(self, "env_wrapper", tuple(self.env_wrapper))
        _require(self.max_episode_steps >= 0, "max_episode_steps", "at least 0")
        made = Environment("", self.env_kwargs, self.max_episode_steps, self.env_wrapper)
        _ = made.arguments, made.wrappers


@dataclass(frozen=True)
class SamplingConfig:
    """Sampling of experience, and estimation of advantages."""

    sampler: str = "single-path"
    """single-path (whole trajectories) or vine (rollouts of several actions from states along trajectories)"""
    env_backend: str = "auto"
    """gymnasium, envpool, or auto: the fastest installed one that has the environment"""
    num_envs: int = 4
    """number of environments stepped together"""
    batch_size: int = 2048
    """environment steps per iteration, over all environments"""
    discount: float = 0.99
    """discount factor of future rewards"""
    final_discount: float = 0.0
    """discount at the end of training; the horizon 1 / (1 - discount) is interpolated geometrically. 0: constant"""
    advantage: str = "gae"
    """gae, monte-carlo (return minus the critic's value) or return (no baseline)"""
    gae_lambda: float = 0.95
    """lambda of generalised advantage estimation: 0 relies on the critic, 1 on the sampled returns"""
    adaptive_lambda: bool = True
    """use lambda 1 while rewards come only at the end of episodes and the critic does not predict them"""
    objective: str = "discounted"
    """discounted (return) or average (reward per step, for tasks that never end)"""
    noise_correlation: float = 0.0
    """correlation of a continuous action's noise with that of the previous step, for exploration (single path only)"""
    stagger: bool = True
    """cut each environment's first episode at a random step, so that a batch covers all parts of an episode"""
    time_feature: bool = False
    """also observe the logarithm of the steps left, and treat the time limit as the end of the task"""
    normalize_observations: bool = True
    """standardise observations by their running mean and deviation, inside the policy's graph"""
    observation_offset: tuple[float, ...] = ()
    """subtracted from the observation's numbers in float64, so that small changes of large values stay visible. Not
    given: the first observation's values where they are at least 8,192 and of a type that float32 can't represent
    exactly"""
    statistics_window: int = 16_384
    """environment steps that observation statistics reach back; 0: the whole run"""
    least_deviation: float = 0.1
    """observations are divided by sqrt(variance + this^2), so that a nearly constant one is not magnified; 0: by the
    deviation alone"""
    value_scaling: str = "targets"
    """targets: standardise the critic's targets; rewards: divide rewards by the deviation of the discounted return, and
    clip them to +-10; none"""

    def __post_init__(self) -> None:
        """Raise `UserError` naming the first setting that can't work."""
        check_types(self)
        _require(self.num_envs >= 1, "num_envs", "at least 1")
        _require(self.batch_size >= 2 * self.num_envs, "batch_size", "at least twice num_envs")
        _require(0 < self.discount <= 1, "discount", "above 0 and at most 1")
        if self.final_discount > 0:
            _require(self.discount < 1, "discount", "below 1, with a final_discount")
        _require(0 <= self.final_discount < 1, "final_discount", "at least 0 and below 1")
        _require_one_of(self.sampler, "sampler", SAMPLERS)
        _require_one_of(self.env_backend, "env_backend", ENV_BACKENDS)
        _require(self.sampler != "vine" or self.env_backend != "envpool", "env_backend", "gymnasium, for the vine")
        _require_one_of(self.advantage, "advantage", ADVANTAGES)
        _require_one_of(self.objective, "objective", OBJECTIVES)
        _require_one_of(self.value_scaling, "value_scaling", VALUE_SCALINGS)
        _require(self.statistics_window >= 0, "statistics_window", "at least 0")
        _require(self.least_deviation >= 0, "least_deviation", "at least 0")
        _require(0 <= self.gae_lambda <= 1, "gae_lambda", "between 0 and 1")
        _require(0 <= self.noise_correlation < 1, "noise_correlation", "at least 0 and below 1")
        _require(self.sampler != "vine" or self.noise_correlation == 0, "noise_correlation", "0, for the vine")
        if self.time_feature:
            _require(self.objective == "discounted", "objective", "discounted, of a task that ends (time_feature)")


@dataclass(frozen=True)
class VineConfig:
    """Rollouts of the vine; their steps count as environment steps."""

    rollout_states: int = 128
    """number of the batch's states that rollouts start from"""
    branch_actions: int = 4
    """actions tried from each state; all of them if there are no more than that"""
    branch_length: int = 20
    """most steps of a rollout; the critic's value stands for the rest"""

    def __post_init__(self) -> None:
        """Raise `UserError` naming the first setting that can't work."""
        check_types(self)
        _require(self.rollout_states >= 1, "rollout_states", "at least 1")
        _require(self.branch_actions >= 2, "branch_actions", "at least 2")
        _require(self.branch_length >= 1, "branch_length", "at least 1")


@dataclass(frozen=True)
class PolicyConfig:
    """The policy's network and distribution."""

    head: str = "auto"
    """distribution of the actions: gaussian, categorical, bernoulli, multi-categorical, or one that an installed
    package adds; auto: the first of these that fits the action space"""
    hidden_sizes: tuple[int, ...] = (64, 64)
    """widths of the policy's hidden layers"""
    activation: str = "tanh"
    """activation of the hidden layers of policy and critic: any name that Keras knows"""
    last_layer_scale: float = 0.01
    """initial gain of the policy's last layer; small values give near-uniform actions"""
    initial_log_std: float = 0.0
    """log of the Gaussian's initial standard deviation, in half widths of the action range"""
    unit_std: bool = True
    """limit the initial standard deviation to one unit of the action, but not to less than half of the half width"""
    final_std: float = 0.0
    """target of the Gaussian's standard deviation at the end, in half widths; entropy_coefficient weights it. 0: no
    target"""
    state_dependent_std: bool = False
    """let the network widen or narrow the Gaussian in each state"""
    censored: bool = False
    """for a clipped action, use the probability of all samples clipped to it, not the density of its sample"""
    squash: bool = False
    """keep continuous actions within their bounds by tanh instead of clipping"""

    def __post_init__(self) -> None:
        """Raise `UserError` naming the first setting that can't work."""
        check_types(self)
        _require(all(n >= 1 for n in self.hidden_sizes), "hidden_sizes", "positive")
        _require(self.last_layer_scale > 0, "last_layer_scale", "above 0")
        _require(self.final_std >= 0, "final_std", "at least 0")
        _require(not (self.censored and self.squash), "censored", "off, for squashed actions, which are not clipped")


@dataclass(frozen=True)
class TrustRegionConfig:
    """The policy update: trust region, Fisher products, conjugate gradient, line search."""

    max_kl: float = 0.015
    """trust region radius: the mean KL divergence that an update may reach, in nats; kl-penalty's target"""
    entropy_coefficient: float = 0.0
    """entropy bonus coefficient; with final_std, the weight of the penalty 0.5 (entropy - scheduled entropy)^2. Not for
    nac and ppo"""
    damping: float = 0.1
    """multiple of the identity added to the Fisher matrix"""
    fisher: str = "gauss-newton"
    """how Fisher products are computed: gauss-newton, double-backprop or score-covariance"""
    fisher_fraction: float = 1.0
    """fraction of the batch that Fisher products are computed on"""
    precondition: bool = False
    """precondition conjugate gradient by an estimate of the Fisher matrix's diagonal"""
    cg_iterations: int = 15
    """maximum number of conjugate gradient iterations"""
    cg_tolerance: float = 1e-5
    """residual, relative to the gradient's norm, at which conjugate gradient stops"""
    backtrack_ratio: float = 0.8
    """factor by which the line search shortens the step"""
    max_backtracks: int = 10
    """maximum number of step lengths that the line search tries"""
    l2_radius: float = 0.2
    """vpg: length of the step in parameter space"""

    def __post_init__(self) -> None:
        """Raise `UserError` naming the first setting that can't work."""
        check_types(self)
        _require(self.max_kl > 0, "max_kl", "above 0")
        _require(self.entropy_coefficient >= 0, "entropy_coefficient", "at least 0")
        _require(self.damping >= 0, "damping", "at least 0")
        _require_one_of(self.fisher, "fisher", FISHER_PRODUCTS)
        _require(0 < self.fisher_fraction <= 1, "fisher_fraction", "above 0 and at most 1")
        _require(self.cg_iterations >= 1, "cg_iterations", "at least 1")
        _require(self.cg_tolerance >= 0, "cg_tolerance", "at least 0")
        _require(0 < self.backtrack_ratio < 1, "backtrack_ratio", "between 0 and 1, both excluded")
        _require(self.max_backtracks >= 1, "max_backtracks", "at least 1")
        _require(self.l2_radius > 0, "l2_radius", "above 0")


@dataclass(frozen=True)
class InnerConfig:
    """The update of kl-penalty and ppo: Adam over minibatches."""

    policy_epochs: int = 10
    """passes over the batch per iteration"""
    policy_batch_size: int = 128
    """minibatch size"""
    policy_learning_rate: float = 1e-3
    """learning rate of Adam"""
    clip_range: float = 0.2
    """ppo: the probability ratio is clipped to within this distance of 1"""
    kl_coefficient: float = 1.0
    """kl-penalty: initial coefficient of the mean KL divergence"""
    adapt_kl: bool = True
    """kl-penalty: double the coefficient after a mean KL divergence above 1.5 max_kl, halve it after one below max_kl /
    1.5"""

    def __post_init__(self) -> None:
        """Raise `UserError` naming the first setting that can't work."""
        check_types(self)
        _require(self.policy_epochs >= 1, "policy_epochs", "at least 1")
        _require(self.policy_batch_size >= 1, "policy_batch_size", "at least 1")
        _require(self.policy_learning_rate > 0, "policy_learning_rate", "above 0")
        _require(self.clip_range > 0, "clip_range", "above 0")
        _require(self.kl_coefficient > 0, "kl_coefficient", "above 0")


@dataclass(frozen=True)
class CriticConfig:
    """The critic, a value network, and its fit by Adam over minibatches."""

    # `own_name` puts critic_ before these names where a setting is asked for without its group.

    hidden_sizes: Annotated[tuple[int, ...], arg(name="critic-hidden-sizes")] = (64, 64)
    """widths of the critic's hidden layers"""
    epochs: Annotated[int, arg(name="critic-epochs")] = 10
    """passes over the batch per iteration"""
    batch_size: Annotated[int, arg(name="critic-batch-size")] = 128
    """minibatch size"""
    learning_rate: Annotated[float, arg(name="critic-learning-rate")] = 1e-3
    """learning rate of Adam"""
    memory: Annotated[int, arg(name="critic-memory")] = 1
    """number of latest batches that the critic is fitted to; an epoch has as many minibatches as with one batch"""

    def __post_init__(self) -> None:
        """Raise `UserError` naming the first setting that can't work."""
        check_types(self, prefix="critic_")
        _require(all(n >= 1 for n in self.hidden_sizes), "critic_hidden_sizes", "positive")
        _require(self.epochs >= 1, "critic_epochs", "at least 1")
        _require(self.batch_size >= 1, "critic_batch_size", "at least 1")
        _require(self.learning_rate > 0, "critic_learning_rate", "above 0")
        _require(self.memory >= 1, "critic_memory", "at least 1")


@dataclass(frozen=True)
class Config:
    """All settings of a training run."""

    env_id: Positional[str]
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
    """episodes of each periodic evaluation, with the same seeds every time; their steps do not count towards
    total_steps"""
    anneal: bool = False
    """decrease max_kl, critic_learning_rate, noise_correlation and entropy_coefficient linearly, to 0 at total_steps
    (trpo, npg and nac)"""
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
        _require(isinstance(self.env_id, str), "env_id", own)
        check_types(self)
        for name, value in _flat(self.to_dict()).items():
            _require(not isinstance(value, float) or math.isfinite(value), name, "a finite number")
        algorithm = find_algorithm(self.algo)
        _require(self.seed >= 0, "seed", "at least 0")
        _require(not self.anneal or algorithm.can_anneal, "algo", "trpo, npg or nac, to anneal")
        if self.trust_region.entropy_coefficient > 0:
            _require(algorithm.has_entropy_term, "entropy_coefficient", f"0, for {self.algo}")
        if self.policy.final_std > 0:
            _require(self.trust_region.entropy_coefficient > 0, "entropy_coefficient", "above 0, with a final_std")
        _require(self.eval_episodes >= 0, "eval_episodes", "at least 0")
        _require(self.checkpoint_steps >= 0, "checkpoint_steps", "at least 0")
        _require(self.eval_interval >= 0, "eval_interval", "at least 0")
        _require(self.periodic_eval_episodes >= 1, "periodic_eval_episodes", "at least 1")
        batch_size, rows = self.sampling.batch_size, self.rollout_length * self.sampling.num_envs
        _require(self.total_steps >= batch_size, "total_steps", f"at least batch_size, {batch_size}")
        if self.sampler_is_vine:
            _require(self.vine.rollout_states <= rows, "rollout_states", f"at most the rows of a batch, {rows}")
            _require(not algorithm.uses_minibatches, "algo", "one without minibatches, for the vine")
            _require(self.sampling.objective == "discounted", "objective", "discounted, for the vine")
        _require(self.critic.batch_size <= rows, "critic_batch_size", f"at most the rows of a batch, {rows}")
        if algorithm.uses_minibatches:
            _require(self.inner.policy_batch_size <= rows, "policy_batch_size", f"at most the rows of a batch, {rows}")

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
        values = _flat(load_preset(preset or preset_for(env_id), env_id, settings).to_dict())
        return cls.from_dict(_nested({**values, **settings}))

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "Config":
        """Return the config of nested values: the inverse of `to_dict`.

        Absent settings take their defaults, and names of earlier releases are accepted. Raises `UserError` for unknown
        names.
        """
        return _from_dict(cls, with_present_names(values))  # type: ignore[no-any-return]


def former_own_names() -> dict[str, str]:
    """Return the settings whose own name has changed since earlier releases: former name -> present name."""
    names = {former.rpartition(".")[2]: own_name(*_in_group(present)) for former, present in SETTINGS.items()}
    return {former: present for former, present in names.items() if former != present}


def own_name(group: str, name: str) -> str:
    """Return the name of a setting outside its group, as an option or an argument of `Config.for_env` has it."""
    return f"critic_{name}" if group == "critic" else name


def _in_group(path: str) -> tuple[str, str]:
    group, _, name = path.rpartition(".")
    return group, name


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


def preset_names() -> list[str]:
    """Return the names of the package's presets: the environments, or namespaces, that they are tuned for."""
    return sorted(path.name.removesuffix(".toml") for path in PRESETS.iterdir() if path.name.endswith(".toml"))


def preset_for(env_id: str) -> str:
    """Return the preset's name for `env_id`: the id, its namespace (`ALE/Pong-v5`: `ALE`), or `default`."""
    candidates = (env_id, env_id.rpartition(":")[2].partition("/")[0])
    return next((name for name in candidates if name in preset_names()), "default")


def load_preset(preset: str, env_id: str, given: Mapping[str, Any] | None = None) -> Config:
    """Return the settings of a preset for `env_id`; `default` means the dataclasses' defaults.

    Values of the preset that conflict with the settings in `given`, by their own names, are left out with a warning.
    Raises `UserError`.
    """
    if preset == "default":
        return Config(env_id)
    if preset not in preset_names():
        raise UserError(f"preset {preset!r} is unknown; choose one of default, {', '.join(preset_names())}")
    values = _flat(tomllib.loads((PRESETS / f"{preset}.toml").read_text()))
    given = given or {}
    for name, reason in _unfit({**values, **given}):
        if name in values and name not in given:
            del values[name]
            warnings.warn(f"{name} of the preset {preset} is left out: {reason}", stacklevel=2)
    return Config.from_dict(_nested({"env_id": env_id, **values}))


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


def _flat(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings under their own names, without groups."""
    groups = {name: value for name, value in values.items() if isinstance(value, dict)}
    flat = {name: value for name, value in values.items() if name not in groups}
    return flat | {
        own_name(group, name): value for group, settings in groups.items() for name, value in settings.items()
    }


def _nested(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings in their groups: the inverse of `_flat`. Unknown names stay outside of groups."""
    groups = {f.name: f.type for f in dataclasses.fields(Config) if dataclasses.is_dataclass(f.type)}
    places = {
        own_name(group, f.name): (group, f.name) for group, kind in groups.items() for f in dataclasses.fields(kind)
    }
    values: dict[str, Any] = {}
    for name, value in settings.items():
        if name in places:
            group, own = places[name]
            values.setdefault(group, {})[own] = value
        else:
            values[name] = value
    return values


def differing_settings(config: Config) -> dict[str, Any]:
    """Return the settings that differ from the dataclasses' defaults, under their own names."""
    defaults = _flat(type(config)("").to_dict())
    return {name: value for name, value in _flat(config.to_dict()).items() if value != defaults[name]}


def read_config(path: Path) -> Config:
    """Read a run's config.toml. Raises `UserError`."""
    try:
        return Config.from_dict(upgraded(tomllib.loads(path.read_text())))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not valid TOML: {error}") from error
    except TypeError as error:
        raise UserError(f"{path} has a setting of a wrong type, or lacks one: {error}") from error


def upgraded(values: dict[str, Any]) -> dict[str, Any]:
    """Return a run's settings with those of earlier releases replaced by their present equivalents.

    The config.toml that a run writes has every setting of its release. Newer settings then get the values that this
    release acted by. A file written by hand has only some settings, and the others take the present defaults.
    """
    sampling, policy = dict(values.get("sampling", {})), dict(values.get("policy", {}))
    former: dict[str, Any] = {}
    if "scale_rewards" in sampling:
        former["value_scaling"] = "rewards" if sampling.pop("scale_rewards") else "none"
    if {"num_envs", "batch_size", "objective", "gae_lambda", "normalize_observations"} <= sampling.keys():
        former |= {"stagger": False, "statistics_window": 0, "least_deviation": 0.0, "adaptive_lambda": False}
        policy.setdefault("unit_std", False)
    return {**values, "sampling": {**former, **sampling}, "policy": policy}


def _require_one_of(value: str, name: str, known: tuple[str, ...]) -> None:
    _require(value in known, name, f"one of {', '.join(known)}, not {value!r}")


def _require(condition: bool, name: str, expected: str) -> None:
    if not condition:
        raise UserError(f"{name} must be {expected}")


def _from_dict(kind: Any, values: dict[str, Any]) -> Any:
    fields = {f.name: f for f in dataclasses.fields(kind)}
    for name in values:
        if name not in fields:
            raise UserError(f"setting {name!r} is unknown; {kind.__name__} has {', '.join(fields)}")
    arguments = {}
    for name, value in values.items():
        component = fields[name].type
        if dataclasses.is_dataclass(component):
            value = _from_dict(component, value)
        elif component is int:
            value = whole_number(value)
        arguments[name] = tuple(value) if isinstance(value, list) else value
    return kind(**arguments)
