"""Describe the vine of a run to the processes that sample it, which have no TensorFlow."""

from typing import Any

import tensorflow as tf

from trpo_tf.config.settings import VineConfig
from trpo_tf.export import to_onnx
from trpo_tf.export.policy.outputs import started
from trpo_tf.policies.heads.discrete import DiscreteHead
from trpo_tf.policies.heads.head import Head
from trpo_tf.policies.heads.options import Options
from trpo_tf.policies.policy import Policy
from trpo_tf.sampling.acting_graph import tensor_specs
from trpo_tf.sampling.actor import NEXT, OBSERVATION, RESET, STATE, prefixed
from trpo_tf.sampling.vine.first_actions import ACTION, SAMPLE, FirstActions
from trpo_tf.sampling.vine.sampler import VinePlan
from trpo_tf.serving import ArraySpec
from trpo_tf.serving.runtime.observations import structured


def branch_count(head: Head, config: VineConfig) -> int:
    """Return the number of actions tried from a state.

    All actions of a small discrete set are tried, which makes the estimate of their mean exact.
    """
    options = _options(head)
    if options is not None and options.is_single:
        return min(options.counts[0], config.branch_actions)
    return config.branch_actions


def build_vine(policy: Policy, sample: ArraySpec, config: VineConfig) -> VinePlan:
    """Return the plan of a policy's vine; `sample` is the spec of the policy's samples."""
    first = FirstActions(branch_count(policy.head, config), _options(policy.head), _first_graph(policy, sample))
    return VinePlan(config.rollout_states, config.branch_length, first)


def _options(head: Head) -> Options | None:
    return head.options if isinstance(head, DiscreteHead) else None


def _first_graph(policy: Policy, sample: ArraySpec) -> bytes:
    """Convert the head's `action`, and the memory's `advance` for an action that is given."""
    memory = policy.memory

    def actions(samples: Any) -> dict[str, Any]:
        return {ACTION: tf.identity(policy.head.action(samples))}

    def actions_and_memory(samples: Any, observation: Any, state: dict[str, Any], reset: Any) -> dict[str, Any]:
        assert memory is not None
        found = actions(samples)
        state = started(memory.state, state, reset)
        following = memory.advance(memory.observe(observation, state, reset), state, found[ACTION])
        return found | {name: tf.identity(values) for name, values in prefixed(NEXT, following).items()}

    signature = [tf.TensorSpec((None, *sample.shape), sample.dtype, SAMPLE)]
    if memory is None:
        return bytes(to_onnx(actions, signature).SerializeToString())
    observation = structured(tensor_specs(OBSERVATION, policy.spec.observation))
    reset = tf.TensorSpec((None,), tf.bool, RESET)
    signature += [observation, tensor_specs(STATE, policy.spec.state), reset]
    return bytes(to_onnx(actions_and_memory, signature).SerializeToString())
