"""Find outputs that depend on the number of rows; comparing a few batch sizes could not find all of them."""

from collections.abc import Iterator, Mapping

import numpy as np
import onnx
from onnx import helper

from trpo_tf.export.graph.editing import inner_graphs, names_read
from trpo_tf.serving.runtime.observations import Array
from trpo_tf.serving.runtime.onnx_runtime import open_session

_SIZES = {"Shape", "Size"}
_SHAPED_BY = {
    *("ConstantOfShape", "Expand", "Gather", "GatherElements", "GatherND", "OneHot", "Pad", "Range", "Reshape"),
    *("Resize", "ScatterND", "Slice", "Split", "Squeeze", "Tile", "TopK", "Unsqueeze"),
}
"""Operators whose further inputs say where numbers go, not what they are."""
_MADE = {"ConstantOfShape", "Range"}
"""Operators of which the first input says so too."""
_LOOPS = {"Loop", "Scan"}
"""Loops, whose trip counts are sizes as well."""
_CHOSEN = {"Gather", "Slice"}
_ROWS = (3, 5)


def outputs_of_batch_size(model: onnx.ModelProto, feeds: Mapping[str, Array]) -> set[str]:
    """List the outputs that are computed from the number of rows, for example by a condition or a division.

    `feeds` are inputs [batch, ...] of at least five rows.
    """
    fixed = _fixed_sizes(model, feeds)
    tainted: set[str] = set()
    for node in model.graph.node:
        if node.op_type in _SIZES or tainted.intersection(_values(node)):
            tainted.update(set(node.output) - fixed)
    return tainted & {output.name for output in model.graph.output}


def _values(node: onnx.NodeProto) -> Iterator[str]:
    """Iterate over the tensors that a node computes with."""
    if node.op_type in _MADE | _LOOPS:
        return
    if node.op_type in _SHAPED_BY:
        yield node.input[0]
        return
    yield from names_read([node]) if any(inner_graphs(node)) else node.input


def _fixed_sizes(model: onnx.ModelProto, feeds: Mapping[str, Array]) -> set[str]:
    """List the sizes, and tensors made of them, that are equal for batches of 3 and of 5."""
    names = [name for node in model.graph.node if node.op_type in _SIZES | _CHOSEN for name in node.output]
    if not names:
        return set()
    revealing = onnx.ModelProto()
    revealing.CopyFrom(model)
    del revealing.graph.output[:]
    revealing.graph.output.extend(helper.make_empty_tensor_value_info(name) for name in names)
    session = open_session(revealing.SerializeToString())
    one, other = (session.run(names, {name: array[:rows] for name, array in feeds.items()}) for rows in _ROWS)
    return {name for name, *both in zip(names, one, other, strict=True) if np.array_equal(*both)}
