"""Narrow integers of a LiteRT model from 64 to 32 bits, since TensorFlow Lite Micro lacks operators of 64 bits.

Indices of largest scores fit in 32 bits, and so do their sums with the first action.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tensorflow.lite.python.schema_py_generated import BufferT, BuiltinOperator, TensorType

_CHOICES = (BuiltinOperator.ARG_MAX, BuiltinOperator.ARG_MIN)
_KEEP_TYPES = frozenset(
    getattr(BuiltinOperator, name)
    for name in (
        *("ADD", "CONCATENATION", "EXPAND_DIMS", "GATHER", "MAXIMUM", "MINIMUM", "MUL", "PACK", "RESHAPE", "SLICE"),
        *("SPLIT", "SQUEEZE", "STRIDED_SLICE", "SUB", "TRANSPOSE", "UNPACK"),
    )
)
"""Operators whose results are integers of the size of their arguments."""


def narrow_integers(model: Any) -> None:
    """Narrow choices, tensors computed from them, and constant indices of gathers to 32 bits, in place.

    Choices keep 64 bits if they meet a computed integer of 64 bits, or an operator that may need them.
    """
    graph = model.subgraphs[0]
    codes = [max(code.builtinCode, code.deprecatedBuiltinCode) for code in model.operatorCodes]
    operators = [(codes[operator.opcodeIndex], operator) for operator in graph.operators]
    for place in [operator.inputs[1] for code, operator in operators if code == BuiltinOperator.GATHER]:
        if _fits(model, graph.tensors[place]):
            _narrow(model, graph.tensors[place])
    narrow = _computed_of_choices(model, operators)
    if narrow is None:
        return
    for code, operator in operators:
        if code in _CHOICES:
            operator.builtinOptions.outputType = TensorType.INT32
        if code == BuiltinOperator.CAST and operator.inputs[0] in narrow and operator.builtinOptions is not None:
            operator.builtinOptions.inDataType = TensorType.INT32
    for place in narrow:
        _narrow(model, graph.tensors[place])


def _computed_of_choices(model: Any, operators: list[tuple[int, Any]]) -> set[int] | None:
    """Collect the tensors of 64 bits to narrow, including constants; None if they can't be narrowed."""
    tensors, narrow = model.subgraphs[0].tensors, set[int]()

    def wide(places: Any) -> Iterator[int]:
        return (place for place in places if place >= 0 and tensors[place].type == TensorType.INT64)

    for code, operator in operators:
        if code in _CHOICES:
            narrow.update(wide(operator.outputs))
        elif narrow.intersection(operator.inputs) and code != BuiltinOperator.CAST:
            others = set(wide(operator.inputs)) - narrow
            if code not in _KEEP_TYPES or not all(_fits(model, tensors[place]) for place in others):
                return None
            narrow.update(others, wide(operator.outputs))
    return narrow


def _values(model: Any, tensor: Any) -> NDArray[np.int64]:
    """Read a constant of 64 bits; a computed tensor has no values."""
    data = model.buffers[tensor.buffer].data
    wide = tensor.type == TensorType.INT64 and data is not None
    return np.frombuffer(np.asarray(data, np.uint8).tobytes() if wide else b"", np.int64)


def _fits(model: Any, tensor: Any) -> bool:
    values = _values(model, tensor)
    return len(values) > 0 and bool((values == values.astype(np.int32)).all())


def _narrow(model: Any, tensor: Any) -> None:
    values = _values(model, tensor)
    tensor.type = TensorType.INT32
    if len(values):
        # Another buffer: several tensors may have the same one.
        model.buffers.append(BufferT())
        model.buffers[-1].data = np.frombuffer(values.astype(np.int32).tobytes(), np.uint8)
        tensor.buffer = len(model.buffers) - 1
