"""Groups of settings, one dataclass for each: a field's docstring is the help text of its option."""

from dataclasses import dataclass
from typing import Annotated

from tyro.conf import UseAppendAction, arg

from trpo_tf.config.environment import ACTION_MASKS, Environment, as_json
from trpo_tf.config.recurrent_memory import parse_memory
from trpo_tf.config.setting_checks import KnownSettings, check_types, require, require_one_of

FISHER_PRODUCTS = ("gauss-newton", "double-backprop", "score-covariance")
ADVANTAGES = ("gae", "monte-carlo", "return")
OBJECTIVES = ("discounted", "average")
SAMPLERS = ("single-path", "vine")
ENV_BACKENDS = ("auto", "gymnasium", "envpool")
VALUE_SCALINGS = ("targets", "rewards", "none")


@dataclass(frozen=True)
class EnvironmentConfig(KnownSettings):
    """How the environment is made. If any of these is set, Gymnasium steps it, not EnvPool."""

    env_kwargs: Annotated[str, arg(metavar="JSON", help_behavior_hint="")] = ""
    """arguments of the environment's constructor, as JSON: '{"difficulty": 2}'"""
    max_episode_steps: int = 0
    """steps after which an episode is truncated; 0: the registered limit, if there is one"""
    env_wrapper: Annotated[UseAppendAction[tuple[str, ...]], arg(help_behavior_hint="")] = ()
    """wrapper, innermost first: module:Class, or module:Class{"name": value} with arguments; may be given repeatedly"""
    reset_options: Annotated[str, arg(metavar="JSON", help_behavior_hint="")] = ""
    """options of the environment's reset, as JSON: '{"level": 2}'; a value {"from": 0, "to": 3} changes over the run"""
    action_mask: str = "auto"
    """source of the mask of legal actions: auto (observation key action_mask), info, method (action_masks()) or off"""

    def __post_init__(self) -> None:
        """Raise `UserError` naming the first setting that can't work."""
        for name in ("env_kwargs", "reset_options"):
            object.__setattr__(self, name, as_json(getattr(self, name), name))
        if isinstance(self.env_wrapper, str):
            object.__setattr__(self, "env_wrapper", (self.env_wrapper,))
        check_types(self)
        object.__setattr__(self, "env_wrapper", tuple(self.env_wrapper))
        require(self.max_episode_steps >= 0, "max_episode_steps", "at least 0")
        require_one_of(self.action_mask, "action_mask", ACTION_MASKS)
        made = Environment("", self.env_kwargs, self.max_episode_steps, self.env_wrapper, self.reset_options)
        _ = made.arguments, made.wrappers, made.options


@dataclass(frozen=True)
class SamplingConfig(KnownSettings):
    """Sampling of experience, and estimation of advantages."""

    sampler: str = "single-path"
    """single-path (whole trajectories) or vine (rollouts of several actions from states along trajectories)"""
    env_backend: str = "auto"
    """gymnasium, envpool, or auto: the fastest installed one that has the environment"""
    num_envs: int = 4
    """number of environments stepped together"""
    shards: int = 1
    """groups of environments with random streams of their own, at most num_envs; workers share them out"""
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
    """also observe the log of the steps left, counted in the policy's state; the time limit then is a termination"""
    normalize_observations: bool = True
    """standardise observations by their running mean and deviation, inside the policy's graph"""
    observation_offset: Annotated[tuple[float, ...], arg(help_behavior_hint="")] = ()
    """numbers to subtract from observations; by default the first observation's beyond +-8,192, unless float32"""
    statistics_window: int = 16_384
    """environment steps that observation statistics reach back; 0: the whole run"""
    least_deviation: float = 0.1
    """observations are divided by sqrt(variance + this^2), so that nearly constant ones are not magnified"""
    value_scaling: str = "targets"
    """targets (standardise the critic's targets), rewards (divide by the return's deviation, clip to +-10) or none"""

    def __post_init__(self) -> None:
        """Raise `UserError` naming the first setting that can't work."""
        check_types(self)
        require(self.num_envs >= 1, "num_envs", "at least 1")
        require(1 <= self.shards <= self.num_envs, "shards", f"at least 1, and at most num_envs, {self.num_envs}")
        require(self.env_backend != "envpool" or self.shards == 1, "shards", "1, for envpool")
        require(self.batch_size >= 2 * self.num_envs, "batch_size", "at least twice num_envs")
        require(0 < self.discount <= 1, "discount", "above 0 and at most 1")
        if self.final_discount > 0:
            require(self.discount < 1, "discount", "below 1, with a final_discount")
        require(0 <= self.final_discount < 1, "final_discount", "at least 0 and below 1")
        require_one_of(self.sampler, "sampler", SAMPLERS)
        require_one_of(self.env_backend, "env_backend", ENV_BACKENDS)
        require(self.sampler != "vine" or self.env_backend != "envpool", "env_backend", "gymnasium, for the vine")
        require_one_of(self.advantage, "advantage", ADVANTAGES)
        require_one_of(self.objective, "objective", OBJECTIVES)
        require_one_of(self.value_scaling, "value_scaling", VALUE_SCALINGS)
        require(self.statistics_window >= 0, "statistics_window", "at least 0")
        require(self.least_deviation >= 0, "least_deviation", "at least 0")
        require(0 <= self.gae_lambda <= 1, "gae_lambda", "between 0 and 1")
        require(0 <= self.noise_correlation < 1, "noise_correlation", "at least 0 and below 1")
        require(self.sampler != "vine" or self.noise_correlation == 0, "noise_correlation", "0, for the vine")
        if self.time_feature:
            require(self.objective == "discounted", "objective", "discounted, of a task that ends (time_feature)")


@dataclass(frozen=True)
class VineConfig(KnownSettings):
    """Rollouts of the vine; their steps count as environment steps."""

    rollout_states: int = 128
    """number of the batch's states that rollouts start from, at least one for each shard"""
    branch_actions: int = 4
    """actions tried from each state; every action if there are not more"""
    branch_length: int = 20
    """largest number of steps of a rollout; the critic estimates the return after it"""

    def __post_init__(self) -> None:
        """Raise `UserError` naming the first setting that can't work."""
        check_types(self)
        require(self.rollout_states >= 1, "rollout_states", "at least 1")
        require(self.branch_actions >= 2, "branch_actions", "at least 2")
        require(self.branch_length >= 1, "branch_length", "at least 1")


@dataclass(frozen=True)
class PolicyConfig(KnownSettings):
    """The policy's network and distribution."""

    head: str = "auto"
    """gaussian, categorical, bernoulli, multi-categorical, a package's own, or auto: the first that fits the actions"""
    hidden_sizes: tuple[int, ...] = (64, 64)
    """widths of the policy's hidden layers"""
    activation: str = "tanh"
    """activation of the hidden layers of policy and critic: any name that Keras knows"""
    last_layer_scale: float = 0.01
    """initial gain of the policy's last layer; small values give near-uniform actions"""
    initial_log_std: float = 0.0
    """log of the Gaussian's initial standard deviation, in half widths of the action range"""
    unit_std: bool = True
    """limit the initial standard deviation to one unit of the action, or a quarter of its range if that is more"""
    final_std: float = 0.0
    """Gaussian's standard deviation at the end, in half widths, weighted by entropy_coefficient; 0: no target"""
    state_dependent_std: bool = False
    """let the network widen or narrow the Gaussian in each state"""
    censored: bool = False
    """for a clipped action, use the probability of all samples clipped to it, not the density of its sample"""
    memory: Annotated[str, arg(metavar="CELL", help_behavior_hint="")] = ""
    """recurrent cell of the policy: gru:N or lstm:N, with N units, whose state the policy keeps; empty: none"""
    history: int = 1
    """latest observations that the policy and the critic see; the policy keeps the earlier ones in its state"""
    previous_action: bool = False
    """also observe the previous action, which the policy keeps in its state"""
    squash: bool = False
    """keep continuous actions within their bounds by tanh instead of clipping"""

    def __post_init__(self) -> None:
        """Raise `UserError` naming the first setting that can't work."""
        check_types(self)
        require(all(n >= 1 for n in self.hidden_sizes), "hidden_sizes", "positive")
        require(self.last_layer_scale > 0, "last_layer_scale", "above 0")
        parse_memory(self.memory)
        require(self.history >= 1, "history", "at least 1")
        require(self.final_std >= 0, "final_std", "at least 0")
        require(not (self.censored and self.squash), "censored", "off, for squashed actions, which are not clipped")


@dataclass(frozen=True)
class TrustRegionConfig(KnownSettings):
    """The policy update: trust region, Fisher products, conjugate gradient, line search."""

    max_kl: float = 0.015
    """trust region radius: the mean KL divergence that an update may reach, in nats; kl-penalty's target"""
    entropy_coefficient: float = 0.0
    """entropy bonus; with final_std, the weight of 0.5 (entropy - scheduled entropy)^2. Not for nac and ppo"""
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
        require(self.max_kl > 0, "max_kl", "above 0")
        require(self.entropy_coefficient >= 0, "entropy_coefficient", "at least 0")
        require(self.damping >= 0, "damping", "at least 0")
        require_one_of(self.fisher, "fisher", FISHER_PRODUCTS)
        require(0 < self.fisher_fraction <= 1, "fisher_fraction", "above 0 and at most 1")
        require(self.cg_iterations >= 1, "cg_iterations", "at least 1")
        require(self.cg_tolerance >= 0, "cg_tolerance", "at least 0")
        require(0 < self.backtrack_ratio < 1, "backtrack_ratio", "between 0 and 1, both excluded")
        require(self.max_backtracks >= 1, "max_backtracks", "at least 1")
        require(self.l2_radius > 0, "l2_radius", "above 0")


@dataclass(frozen=True)
class InnerConfig(KnownSettings):
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
    """kl-penalty: double the coefficient after a mean KL above 1.5 max_kl, halve it after one below max_kl / 1.5"""

    def __post_init__(self) -> None:
        """Raise `UserError` naming the first setting that can't work."""
        check_types(self)
        require(self.policy_epochs >= 1, "policy_epochs", "at least 1")
        require(self.policy_batch_size >= 1, "policy_batch_size", "at least 1")
        require(self.policy_learning_rate > 0, "policy_learning_rate", "above 0")
        require(self.clip_range > 0, "clip_range", "above 0")
        require(self.kl_coefficient > 0, "kl_coefficient", "above 0")


@dataclass(frozen=True)
class CriticConfig(KnownSettings):
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
        require(all(n >= 1 for n in self.hidden_sizes), "critic_hidden_sizes", "positive")
        require(self.epochs >= 1, "critic_epochs", "at least 1")
        require(self.batch_size >= 1, "critic_batch_size", "at least 1")
        require(self.learning_rate > 0, "critic_learning_rate", "above 0")
        require(self.memory >= 1, "critic_memory", "at least 1")
