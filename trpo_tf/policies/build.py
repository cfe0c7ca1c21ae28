"""Build a run's policy from its settings and the environment's spaces."""

from collections.abc import Sequence

import keras

from trpo_tf.config.settings import Config
from trpo_tf.envs.spaces import Spaces
from trpo_tf.errors import UserError
from trpo_tf.export.support.forked import FORKED, forked_after_tensorflow
from trpo_tf.policies.core import NETWORK_ALONE, Core
from trpo_tf.policies.encoders import Encoder, make_encoder
from trpo_tf.policies.heads.make import make_head
from trpo_tf.policies.memory import Memory, make_memory
from trpo_tf.policies.network_checks import check_shapes
from trpo_tf.policies.networks import default_network
from trpo_tf.policies.policy import Policy
from trpo_tf.policies.recurrence.cells import make_cell
from trpo_tf.policies.recurrence.own_state import OwnState
from trpo_tf.policies.recurrence.recurrence import Recurrence
from trpo_tf.serving import StateSpec


def build_policy(
    config: Config, spaces: Spaces, network: keras.Model | None = None, state: Sequence[StateSpec] = ()
) -> Policy:
    """Return a policy with this network, or with the default one, and with memory if the settings say so.

    The network computes the `state`, if there is one. Raises `UserError` for settings that the spaces exclude, for a
    network that does not fit them, and in a process where TensorFlow would hang.
    """
    if forked_after_tensorflow():
        raise UserError(FORKED)
    settings, memory = config.policy, build_memory(config, spaces, state)
    encoder = build_encoder(config, spaces, memory)
    core = _make_core(config, encoder.observed_width, state)
    inputs = core.network_inputs(encoder)
    head = make_head(spaces.action, settings, masked=spaces.mask is not None)
    _check_activation(settings.activation)
    if head.noise.law != "normal":
        gaussian = {
            "noise_correlation": config.sampling.noise_correlation,
            "final_std": settings.final_std,
            "state_dependent_std": settings.state_dependent_std,
        }
        for name in (name for name, value in gaussian.items() if value):
            raise UserError(f"{name} is for Gaussian actions, which this policy has not; leave it out")
    if network is None:
        network = default_network(
            inputs,
            settings.hidden_sizes,
            head.inputs,
            activation=settings.activation,
            last_layer_scale=settings.last_layer_scale,
            seed=config.seed,
        )
    check_shapes(network, inputs, head.inputs, "policy_network", state)
    return Policy(encoder, network, head, spaces.observation, spaces.action, memory, core, spaces.mask)


def build_memory(config: Config, spaces: Spaces, state: Sequence[StateSpec] = ()) -> Memory | None:
    """Return the memory of a run's policy, or None if it has none; `state` is that of a network of one's own.

    Raises `UserError` if it can't be kept.
    """
    cell = make_cell(config.policy.memory)
    history, limit = config.policy.history, spaces.limit
    if limit and history > limit:
        raise UserError(f"history must be at most the steps of an episode, {limit} in {config.env_id}, not {history}")
    return make_memory(
        spaces,
        history=history,
        previous_action=config.policy.previous_action,
        counts_steps=config.sampling.time_feature,
        recurrent=[StateSpec(name, "float32", (cell.units,)) for name in cell.state] if cell else state,
    )


def build_encoder(config: Config, spaces: Spaces, memory: Memory | None) -> Encoder:
    """Return the encoder of a run's observations, as the network sees them."""
    sampling, seen = config.sampling, memory or spaces
    return make_encoder(
        seen.kinds,
        seen.observation,
        normalize=sampling.normalize_observations,
        offset=sampling.observation_offset,
        least_deviation=sampling.least_deviation,
    )


def _make_core(config: Config, width: int, state: Sequence[StateSpec]) -> Core:
    if cell := make_cell(config.policy.memory):
        return Recurrence(cell, width, config.seed)
    return OwnState(width, tuple(state)) if state else NETWORK_ALONE


def _check_activation(name: str) -> None:
    try:
        keras.activations.get(name)
    except ValueError:
        raise UserError(f"activation {name!r} is unknown; Keras has tanh, relu, elu, swish and others") from None
