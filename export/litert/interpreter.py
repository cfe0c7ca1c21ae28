"""Run a LiteRT model in its interpreter."""

import functools

import numpy as np

from trpo_tf.export.errors import ExportError
from trpo_tf.export.litert.quiet_stderr import quiet_stderr
from trpo_tf.export.policy.functions import Actor, Answers
from trpo_tf.export.policy.signature_names import signature_names
from trpo_tf.export.policy.spec import PolicySpec
from trpo_tf.serving.errors import install
from trpo_tf.serving.runtime.observations import Array, Observation, by_name, list_parts
from trpo_tf.serving.verify import all_in_batches_of


def litert_actor(content: bytes, spec: PolicySpec) -> Actor:
    """Open the model in LiteRT's interpreter as a function that returns the action alone; see `litert_step`."""
    answers = litert_step(content, spec)
    return lambda observations, noise: answers(observations, noise)[spec.action.name]


def litert_step(content: bytes, spec: PolicySpec) -> Answers:
    """Open the model in LiteRT's interpreter, for any number of rows. It must not be called by several threads at once.

    It answers the action, and the next state of a policy with state. Raises `ExportError` if LiteRT isn't installed or
    refuses the model.
    """
    try:
        from ai_edge_litert.interpreter import Interpreter
    except ImportError as error:
        raise ExportError(f"LiteRT is not installed; {install('litert')}") from error
    parts, noise_input = spec.signature()
    inputs = signature_names(spec)
    try:
        with quiet_stderr():
            run = Interpreter(model_content=content, num_threads=1).get_signature_runner()
            size = int(run.get_input_details()[inputs[spec.noise.name]]["shape_signature"][0])
            run(
                **{
                    inputs[tensor.name]: np.zeros((max(1, size), *tensor.shape[1:]), tensor.dtype.name)
                    for tensor in (*list_parts(parts), noise_input)
                }
            )
    except (RuntimeError, ValueError) as error:
        raise ExportError(f"LiteRT can't load the model: {error}") from error

    outputs = (spec.action, *spec.next_state)

    def answer(observations: Observation, noise: Array | None) -> dict[str, Array]:
        feeds = by_name(observations, spec.observation[0].name) | {spec.noise.name: noise}
        found = run(**{inputs[name]: array for name, array in feeds.items()})
        return {array.name: found[array.name].astype(array.dtype, copy=False) for array in outputs}

    if size <= 0:
        return answer
    return functools.partial(all_in_batches_of, size, answer)
