"""First actions of rollouts: which are tried from a state, and what the policy remembers after them."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trpo_tf.policies.heads.options import Options
from trpo_tf.sampling.actor import NEXT, Actor, in_parts
from trpo_tf.serving.runtime.observations import Array
from trpo_tf.serving.runtime.onnx_runtime import open_session

SAMPLE, ACTION = "sample", "action"
"""Names of an input and an output of the graph."""


@dataclass(frozen=True)
class FirstActions:
    """Kind of the first actions, and a graph that makes actions of samples.

    Attributes:
        count: number of actions tried from a state.
        options: the options of a discrete action; None if actions are the policy's samples.
        graph: the serialized graph. It maps samples to actions, and inputs of the actor to what the policy remembers
            after these actions, except for what its recurrent core computes.
    """

    count: int
    options: Options | None
    graph: bytes


class FirstStep:
    """The first step of rollouts from rows of an actor's inputs."""

    def __init__(self, first: FirstActions, actor: Actor) -> None:
        """Open the graph; the recurrent part of the policy's memory is computed by `actor`."""
        self._first, self._actor = first, actor
        self._session = open_session(first.graph)
        self._inputs = [each.name for each in self._session.get_inputs()]
        self._outputs = [each.name for each in self._session.get_outputs()]

    def samples(self, inputs: Mapping[str, Array], rng: np.random.Generator) -> NDArray[Any]:
        """Return the first actions of rollouts from N rows of the actor's `inputs`, as samples [N, K, ...].

        If there are exactly K discrete actions, each is taken once. Other discrete actions are drawn uniformly, and
        continuous ones from the policy. With a mask, legal actions are taken about equally often.
        """
        actor, options = self._actor, self._first.options
        n, k = len(next(iter(inputs.values()))), self._first.count
        if options is not None and actor.mask is not None:
            return options.legal(inputs[actor.mask] != 0, k, rng)
        if options is not None and options.is_single and options.counts == (k,):
            return np.tile(np.arange(k), (n, 1))
        if options is not None:
            return options.uniform((n, k), rng)
        states = in_parts(np.repeat(np.arange(n), k), len(actor.action))
        asked = [actor.ask({name: rows[part] for name, rows in inputs.items()}, rng) for part in states]
        return np.concatenate(asked).reshape(n, k, -1)

    def take(
        self, samples: NDArray[Any], inputs: Mapping[str, Array], rows: Array
    ) -> tuple[NDArray[Any], dict[str, Array]]:
        """Return the actions of samples [M, ...], given in these M rows of `inputs`, and the actor's state after."""
        given = {SAMPLE: samples} | {name: inputs[name][rows] for name in self._inputs if name != SAMPLE}
        found = dict(zip(self._outputs, self._session.run(self._outputs, given), strict=True))
        action = found.pop(ACTION)
        state = {name.removeprefix(NEXT): values for name, values in found.items()}
        computed = [name for name in self._actor.state if name not in state]
        return action, state | self._actor.next_states(computed, inputs, rows)
