"""Operators that move elements without computing: reshape, transpose, slice, concatenate and others."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import helper

from trpo_tf.export.c99.expressions import Index
from trpo_tf.export.c99.static_graph import Node
from trpo_tf.export.policy.opsets import OPSET
from trpo_tf.serving.runtime.onnx_runtime import open_session

_EVERY = range(1_000)

MOVES: dict[str, Sequence[int]] = {
    "Concat": _EVERY,
    "Expand": (0,),
    "Flatten": (0,),
    "Gather": (0,),
    "Identity": (0,),
    "Pad": (0, 2),
    "Reshape": (0,),
    "ReverseSequence": (0,),
    "Slice": (0,),
    "Split": (0,),
    "Squeeze": (0,),
    "Tile": (0,),
    "Transpose": (0,),
    "Unsqueeze": (0,),
}
"""Positions of the inputs whose elements move; the other inputs say where to."""


def origins(node: Node, inputs: Sequence[NDArray[Any]]) -> list[Index]:
    """Find, for each element of each output, which input element it is.

    The node is run on element numbers instead of values. They count from 1 through all inputs whose elements move, and
    0 stands for the zero that a Pad fills in.
    """
    feeds: dict[str, NDArray[Any]] = {}
    names, counted = [f"input_{place}" if name else "" for place, name in enumerate(node.inputs)], 1
    for place, (name, array) in enumerate(zip(names, inputs, strict=True)):
        if not name:
            continue
        feeds[name] = array
        if place in MOVES[node.operator]:
            feeds[name] = np.arange(counted, counted + array.size).reshape(array.shape)
            counted += array.size
    outputs = [f"output_{place}" for place, _ in enumerate(node.outputs)]
    given = [
        helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(feed.dtype), feed.shape)
        for name, feed in feeds.items()
    ]
    graph = helper.make_graph(
        [helper.make_node(node.operator, names, outputs, **node.attributes)],
        "moves",
        given,
        [helper.make_empty_tensor_value_info(name) for name in outputs],
    )
    model = helper.make_model_gen_version(graph, opset_imports=[helper.make_opsetid("", OPSET)])
    return [origin.ravel() for origin in open_session(model.SerializeToString()).run(outputs, feeds)]
