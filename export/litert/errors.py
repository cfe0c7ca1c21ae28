"""Explain in one line what LiteRT's converter could not do, and what to change."""

import re

from tensorflow.lite.python.convert_phase import ConverterError

from trpo_tf.export.errors import ExportError

_TYPES = {
    "bf16": "bfloat16",
    "f16": "float16",
    "f64": "float64",
    **{f"{sign}i{bits}": f"{sign and 'u'}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)},
}
_COMPUTED = ("int32", "int64")
"""Integers that LiteRT computes with as with float32."""
_ELEMENT = re.compile(r"tensor<[^>]*?(bf16|f16|f64|ui\d+|i\d+)>")


def lacking(error: ConverterError) -> set[str]:
    """Collect the operations that an error names, without the prefix of TensorFlow's dialect."""
    return {data.operator.name.removeprefix("tf.") for data in error.errors} - {""}


def inexpressible(error: ConverterError) -> ExportError:
    """Return the error that names what LiteRT can't express: operations, their type, or a free batch."""
    names = sorted(lacking(error))
    if any(name.startswith("TensorList") for name in names):
        return ExportError(
            "a loop over time of a free batch can't be expressed in LiteRT; export a fixed batch (--batch 1), or give "
            "recurrent layers unroll=True"
        )
    found = {kind for data in error.errors for kind in _ELEMENT.findall(data.error_message)}
    types = sorted({_TYPES[kind] for kind in found & _TYPES.keys()} - {*_COMPUTED})
    what = ", ".join(names) or str(error).partition("\n")[0]
    if not types:
        return ExportError(f"{what} can't be expressed in LiteRT; replace it in the network")
    remedy = "float32" if any("float" in each for each in types) else "int32"
    return ExportError(f"{what} of {', '.join(types)} can't be expressed in LiteRT; cast to {remedy} before it")
