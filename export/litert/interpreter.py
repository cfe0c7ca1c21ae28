"""Run a LiteRT model in its interpreter."""

import numpy as np

from trpo_tf.export.errors import ExportError
from trpo_tf.export.litert.quiet_stderr import quiet_stderr
from trpo_tf.export.policy.functions import Actor
from trpo_tf.export.policy.signature_names import signature_names
from trpo_tf.export.policy.spec import PolicySpec
from trpo_tf.serving.errors import install
from trpo_tf.serving.runtime.observations import Array, Observation, by_name, list_parts
from trpo_tf.serving.verify import in_batches_of


def litert_actor(content: bytes, spec: PolicySpec) -> Actor:
    """Open the model in LiteRT's interpreter, for any number of rows. It must not be called by several threads at once.

    Raises `ExportError` if LiteRT isn't installed or refuses the model.
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

    def act(observations: Observation, noise: Array | None) -> Array:
        feeds = by_name(observations, spec.observation[0].name) | {spec.noise.name: noise}
        actions = run(**{inputs[name]: array for name, array in feeds.items()})[spec.action.name]
        return actions.astype(spec.action.dtype)  # type: ignore[no-any-return]

    return lambda observations, noise: in_batches_of(size if size > 0 else None, act, observations, noise)
