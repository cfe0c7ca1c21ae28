"""Convert a policy to the ONNX graph by which it acts while sampling."""

from collections.abc import Sequence
from typing import Any

import onnx
import tensorflow as tf

from trpo_tf.export import to_onnx
from trpo_tf.export.policy.outputs import started
from trpo_tf.policies.policy import Policy
from trpo_tf.policies.running_stats import Normalizer
from trpo_tf.sampling.actor import NEXT, OBSERVATION, RESET, SEEN, STATE, ActingGraph, prefixed
from trpo_tf.serving import ArraySpec, StateSpec
from trpo_tf.serving.runtime.observations import by_name, structured


def acting_graph(policy: Policy) -> ActingGraph:
    """Convert the policy's inference function, the one that is also exported, with weights and normaliser as inputs."""
    spec, model = policy.spec, _model(policy)
    return ActingGraph(
        model=model.SerializeToString(),
        constant_weights=not policy.network.dense_only,
        weights=tuple(tuple(shape) for shape in policy.network.shapes),
        statistics=policy.encoder.statistics,
        observation=tuple(spec.observation),
        noise=spec.noise,
        action=spec.action,
        sample=_sample_spec(model),
        state=tuple(spec.state),
        seen=tuple(policy.memory.observation) if policy.memory else (),
        mask=spec.mask,
    )


def _sample_spec(model: onnx.ModelProto) -> ArraySpec:
    kind = next(output for output in model.graph.output if output.name == "sample").type.tensor_type
    dtype = str(onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type))
    return ArraySpec("sample", dtype, tuple(dimension.dim_value for dimension in kind.shape.dim[1:]))


def _model(policy: Policy) -> onnx.ModelProto:
    def outputs(parts: list[Any], mean: Any, scale: Any, observation: Any, noise: Any) -> dict[str, Any]:
        action, sample = policy.act(parts, Normalizer(mean, scale), observation, noise)
        # Identities keep two outputs apart where the action is the sample itself.
        return {"action": tf.identity(action), "sample": tf.identity(sample)}

    def outputs_with_memory(
        parts: list[Any], mean: Any, scale: Any, observation: Any, state: dict[str, Any], reset: Any, noise: Any
    ) -> dict[str, Any]:
        state = started(policy.spec.state, state, reset)
        step = policy.step(parts, Normalizer(mean, scale), observation, state, reset, noise)
        seen = by_name(step.seen, policy.spec.observation[0].name)
        named = {"action": step.action, "sample": step.sample}
        named |= prefixed(SEEN, seen) | prefixed(NEXT, step.next_state)
        return {name: tf.identity(tensor) for name, tensor in named.items()}

    statistics = (policy.encoder.statistics,)
    signature = [
        [tf.TensorSpec(shape, tf.float32, f"weight_{i}") for i, shape in enumerate(policy.network.shapes)],
        tf.TensorSpec(statistics, tf.float32, "mean"),
        tf.TensorSpec(statistics, tf.float32, "scale"),
        structured(tensor_specs(OBSERVATION, policy.spec.observation)),
    ]
    noise = tf.TensorSpec((None, *policy.spec.noise.shape), policy.spec.noise.dtype, policy.spec.noise.name)
    if not policy.memory:
        return to_onnx(outputs, [*signature, noise])
    reset = tf.TensorSpec((None,), tf.bool, RESET)
    return to_onnx(outputs_with_memory, [*signature, tensor_specs(STATE, policy.spec.state), reset, noise])


def tensor_specs(prefix: str, specs: Sequence[ArraySpec | StateSpec]) -> dict[str, Any]:
    """Return `tf.TensorSpec`s of batches of these arrays, by name; the graph's own names have the prefix."""
    return {spec.name: tf.TensorSpec((None, *spec.shape), spec.dtype, f"{prefix}{spec.name}") for spec in specs}
