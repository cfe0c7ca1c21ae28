"""Compiled functions that the runs of one test process share: tracing them takes most of a small run's second.

They are functions of their arguments alone, weights included, so that learners of the same structure can share them.
What makes the structure is the key: settings of the update, encoder, head, memory and the layers of the network.
"""

import re
from collections.abc import Callable
from typing import Any

import keras
import pytest

from trpo_tf.config.algorithms import ALGORITHMS
from trpo_tf.config.settings import Config
from trpo_tf.estimation.critic import ValueFunction
from trpo_tf.learning import learner
from trpo_tf.policies.policy import Policy
from trpo_tf.sampling import acting_graph, sampler
from trpo_tf.training import best_policy

_MADE: dict[object, Any] = {}


def share(patch: pytest.MonkeyPatch) -> None:
    """Let runs share the update, the critic's functions and the graph that acts, until `patch` is undone."""

    def once(key: object, make: Callable[[], Any]) -> Any:
        if key is None:
            return make()
        if key not in _MADE:
            _MADE[key] = make()
        return _MADE[key]

    def update(policy: Policy, config: Config, branches: int | None = None, *, xla: bool) -> Any:
        settings = (config.algo, config.policy, config.trust_region, config.inner, branches, xla)
        key = _structure(policy) if config.algo in ALGORITHMS else None
        return once(key and (key, repr(settings)), lambda: compile_update(policy, config, branches, xla=xla))

    def critic(network: keras.Model, *, xla: bool) -> ValueFunction:
        value_function, layers = ValueFunction(network, xla=xla), _layers(network)
        shared = once(layers and ("critic", layers, xla), lambda: value_function)
        value_function.values, value_function.fit = shared.values, shared.fit
        return value_function

    def graph(policy: Policy) -> Any:
        return once(_structure(policy), lambda: make_graph(policy))

    compile_update, make_graph = learner.compile_update, acting_graph.acting_graph
    patch.setattr(learner, "compile_update", update)
    patch.setattr(learner, "ValueFunction", critic)
    patch.setattr(sampler, "acting_graph", graph)
    patch.setattr(best_policy, "acting_graph", graph)


def _structure(policy: Policy) -> object:
    """All that a policy's functions depend on besides their arguments; None if that can't be told."""
    parts = policy.spec, vars(policy.encoder), type(policy.head), vars(policy.head), policy.memory, policy.core
    # The functions of a recurrent cell close over nothing that is not told beside them.
    layers, told = _layers(policy.network.network), re.sub(r"<function (\S+) at 0x\w+>", r"\1", repr(parts))
    return None if layers is None or " at 0x" in told else (layers, told)


def _layers(network: keras.Model) -> str | None:
    """The network's layers, without their names and the seeds of their weights; None if some are not Keras's own."""
    layers = list(network._flatten_layers())
    if network.non_trainable_variables or not all(type(each).__module__.startswith("keras.") for each in layers):
        return None
    text = re.sub(r'"seed": \d+', "", network.to_json())
    for place, layer in enumerate(layers):
        text = re.sub(rf'"{re.escape(layer.name)}"', f'"{place}"', text)
    return text
