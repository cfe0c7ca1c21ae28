"""Build the compiled functions of a run: policy, critic, update."""

import contextlib
import dataclasses
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from trpo_tf.config.algorithms import find_algorithm
from trpo_tf.config.settings import Config
from trpo_tf.envs.action_mask import warn_of_unused_mask
from trpo_tf.envs.agents import AgentsInTurn
from trpo_tf.envs.curriculum import warn_of_others
from trpo_tf.envs.make import environment_seed, make_env
from trpo_tf.envs.spaces import Spaces
from trpo_tf.errors import EnvironmentFailure, UserError
from trpo_tf.estimation.critic import FrozenNetworks, ValueFunction
from trpo_tf.learning.training_state import TrainingState
from trpo_tf.policies.build import build_encoder, build_memory, build_policy
from trpo_tf.policies.heads.head import Head
from trpo_tf.policies.network_checks import check_shapes
from trpo_tf.policies.networks import default_network
from trpo_tf.policies.policy import Policy, TrainedPolicy
from trpo_tf.policies.running_stats import Moments, Normalizer
from trpo_tf.sampling.vine.build import branch_count
from trpo_tf.serving import StateSpec
from trpo_tf.solvers.adam import AdamState
from trpo_tf.updates.compiled_update import EntropyTerm, compile_update
from trpo_tf.updates.local_problem import Rows
from trpo_tf.updates.result import Update

_EPISODES_BETWEEN_CHECKPOINTS = 4
_STEPS_BETWEEN_CHECKPOINTS = 20_000
_XLA_PAYS_FROM = 400_000
"""Run length in steps from which XLA is used: it compiles for two seconds, and saves five microseconds per step."""
_XLA_PAYS_FOR_LOOPS_FROM = 20_000
"""Run length from which XLA is used for recurrent policies, whose products then run nine times as fast."""


@dataclass(frozen=True)
class Learner:
    """Policy, critic and update as pure functions of the training state, compiled when first called.

    `xla` tells whether XLA compiles the update.
    """

    spaces: Spaces
    policy: Policy
    value_function: ValueFunction
    update: Callable[[Any, Rows, Any, Any, EntropyTerm], Update]
    encode: Callable[[Normalizer, Any], Any]
    log_prob: Callable[[Any, Any, Any], Any]
    initial_adapted: float
    iteration_steps: int
    checkpoint_steps: int
    xla: bool

    def initial_state(self, num_envs: int) -> TrainingState:
        """Return the state before the first iteration, with the networks' present weights."""
        value_theta = self.value_function.initial_theta()
        return TrainingState(
            theta=self.policy.initial_theta(),
            value_theta=value_theta,
            adam=AdamState.zeros(len(value_theta)),
            observation_moments=Moments.empty((self.policy.encoder.statistics,)),
            return_moments=Moments.empty(()),
            carried_returns=np.zeros(num_envs),
            adapted=np.float32(self.initial_adapted),
        )

    def frozen(self, state: TrainingState) -> FrozenNetworks:
        """Return policy and critic at `state`, as the estimators call them."""
        normalizer = self.policy.encoder.normalizer(state.observation_moments)
        return FrozenNetworks(
            encode=lambda observation: self.encode(normalizer, observation),
            values=lambda inputs: self.value_function.values(state.value_theta, inputs).numpy(),
            log_prob=lambda inputs, sample: self.log_prob(state.theta, inputs, sample).numpy(),
            is_discrete=self.policy.is_discrete,
            is_recurrent=self.policy.core.is_recurrent,
        )

    def trained(self, state: TrainingState) -> TrainedPolicy:
        """Return the policy at `state`."""
        return self.policy.trained(state.theta, state.observation_moments)


def _check_tensorflow() -> None:
    """Raise `UserError` if this process has set Keras or TensorFlow to something that no update can be traced with."""
    if (backend := keras.config.backend()) != "tensorflow":
        raise UserError(f"Keras runs on {backend}; set KERAS_BACKEND=tensorflow before it is imported")
    if tf.config.functions_run_eagerly():
        raise UserError("TensorFlow runs functions eagerly; leave out tf.config.run_functions_eagerly(True)")


def build_learner(
    config: Config,
    policy_network: keras.Model | None = None,
    value_network: keras.Model | None = None,
    policy_state: Sequence[StateSpec] = (),
) -> Learner:
    """Build the compiled functions of a run from its config; given networks replace the default ones.

    `policy_state` is the state that the given policy network computes.

    Raises `UserError` for an environment, a space or a network that can't be trained.
    """
    _check_tensorflow()
    env = make_env(config.made_environment, limit_ends=config.sampling.time_feature)
    with contextlib.closing(env):
        spaces = Spaces.of(env)
        in_turn = isinstance(env.unwrapped, AgentsInTurn)
        warn_of_others(env)
        if not in_turn:
            warn_of_unused_mask(env, config.environment.action_mask)

    policy = build_policy(config, spaces, policy_network, policy_state)
    if in_turn and policy.memory is not None:
        raise UserError("agents that share a policy can't have memory: leave out memory, history and previous_action")
    if value_network is None:
        sizes, activation = config.critic.hidden_sizes, config.policy.activation
        value_network = default_network(policy.encoder.inputs, sizes, 1, activation=activation, seed=config.seed + 1)
    check_shapes(value_network, policy.encoder.inputs, 1, "value_network")
    several_episodes = _EPISODES_BETWEEN_CHECKPOINTS * spaces.limit * config.sampling.num_envs
    # On convolutions XLA is slower on a CPU than TensorFlow's own kernels.
    xla = policy.network.dense_only and config.total_steps >= _XLA_PAYS_FROM
    looped = policy.core.is_recurrent and config.total_steps >= _XLA_PAYS_FOR_LOOPS_FROM
    branches = branch_count(policy.head, config.vine) if config.sampler_is_vine else None
    return Learner(
        spaces=spaces,
        policy=policy,
        value_function=ValueFunction(value_network, xla=xla),
        update=compile_update(policy, config, branches, xla=xla or looped),
        encode=tf.function(policy.encoder, autograph=False, jit_compile=xla),
        log_prob=tf.function(policy.log_prob, autograph=False, jit_compile=xla),
        xla=xla or looped,
        iteration_steps=_iteration_steps(config, policy.head),
        initial_adapted=find_algorithm(config.algo).initial(config),
        checkpoint_steps=config.checkpoint_steps or max(several_episodes, _STEPS_BETWEEN_CHECKPOINTS),
    )


def with_observation_offset(config: Config) -> Config:
    """Return the config with the `observation_offset` that the first observation needs, and warn if it needs one.

    Raises `UserError` for an environment or a space that can't be trained.
    """
    if config.sampling.observation_offset:
        return config
    env = make_env(config.made_environment, limit_ends=config.sampling.time_feature)
    offset: tuple[float, ...] = ()
    # The sampler resets again, and reports a reset that fails.
    with contextlib.closing(env), contextlib.suppress(EnvironmentFailure):
        spaces = Spaces.of(env)
        memory = build_memory(config, spaces)
        encoder = build_encoder(config, spaces, memory)
        if encoder.has_wide_numbers:
            first = env.reset(seed=environment_seed(config.seed, 0))[0]
            offset = encoder.needed_offset(memory.first(first) if memory else first)
    if not offset:
        return config
    warnings.warn(
        f"{np.count_nonzero(offset)} of {len(offset)} observed numbers are 8,192 or more at first, where float32 does "
        "not see small changes; their first values are subtracted in float64 (observation_offset in config.toml)",
        stacklevel=3,
    )
    return dataclasses.replace(config, sampling=dataclasses.replace(config.sampling, observation_offset=offset))


def _iteration_steps(config: Config, head: Head) -> int:
    """Return the most environment steps that an iteration may take. Raises `UserError` if the run has fewer."""
    steps = config.sampling.batch_size
    if config.sampler_is_vine:
        steps += config.vine.rollout_states * branch_count(head, config.vine) * config.vine.branch_length
    if steps > config.total_steps:
        raise UserError(f"total_steps must be at least the steps of an iteration, {steps:,}")
    return steps
