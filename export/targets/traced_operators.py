"""Look for operations in a traced graph that a target can't compute."""

from collections.abc import Collection
from typing import Any

LARGE_OFFSET = "a large offset is subtracted from the observation in float64; give what is small, or float32"
_LOOPS = {"While", "StatelessWhile"}


_MOVES = {"Cast", "ConcatV2", "ExpandDims", "Identity", "Reshape", "Squeeze", "StridedSlice"}


def subtracts_in_float64(graph: Any) -> bool:
    """Return whether an input itself is centred in float64, before it becomes float32."""
    return any(
        node.type == "Sub" and node.inputs[0].dtype.name == "float64" and _is_given(node.inputs[0].op)
        for node in graph.get_operations()
    )


def _is_given(node: Any) -> bool:
    """Return whether a node is an input of the graph, in another type or shape or beside others."""
    return node.type == "Placeholder" or (node.type in _MOVES and any(_is_given(each.op) for each in node.inputs))


def operations_among(graph: Any, names: Collection[str]) -> list[str]:
    """List which of the operations `names` the graph uses, also in functions that it calls."""
    from trpo_tf.export.policy.traced_graph import all_nodes  # not above: it imports TensorFlow

    return sorted({node.op for node in all_nodes(graph.as_graph_def())}.intersection(names))


def no_loops(graph: Any, where: str) -> str | None:
    """Return the message that `where` has no loops, or None if the graph has none."""
    return f"{where} has no loops; give recurrent layers unroll=True" if operations_among(graph, _LOOPS) else None
