"""Name the inputs of a TensorFlow or LiteRT signature."""

import itertools
import keyword

from trpo_tf.export.policy.spec import PolicySpec
from trpo_tf.serving.bundle.input_names import input_names


def signature_names(spec: PolicySpec) -> dict[str, str]:
    """Name the inputs of a signature, of a SavedModel or LiteRT, by the spec's names.

    A name stays as it is unless it can't be a Python argument, or differs from another only in case. Then it is the one
    that `input_names` gives, and the noise's name may get a number.
    """
    inputs = [part.name for part in spec.step_inputs]
    found = input_names(tuple((name,) for name in inputs))
    taken = {name.lower() for name in found}
    own = spec.noise.name
    wanted = [own] if own.isidentifier() and own.isascii() and not keyword.iskeyword(own) and own != "self" else []
    numbered = (f"noise_{number}" for number in itertools.count(2))
    noise = next(name for name in itertools.chain(wanted, ["noise"], numbered) if name.lower() not in taken)
    return {**dict(zip(inputs, found, strict=True)), own: noise}
