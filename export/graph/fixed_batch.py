"""Give an ONNX graph one fixed batch size."""

import copy

import numpy as np
import onnx
from onnx import numpy_helper

from trpo_tf.export.errors import ExportError
from trpo_tf.export.graph.check import check_graph
from trpo_tf.export.graph.constant_folding import with_constants_folded
from trpo_tf.export.graph.editing import BATCH


def with_fixed_batch(model: onnx.ModelProto, size: int) -> onnx.ModelProto:
    """Fix inputs and outputs to `size` rows, for runtimes that plan ahead. Raises `ExportError` below 1.

    Tensors that depend only on the number of rows become constants.
    """
    if size < 1:
        raise ExportError(f"a batch of {size} rows isn't one; choose 1 or more")
    fixed = copy.deepcopy(model)
    graph = fixed.graph
    for value in (*graph.input, *graph.output, *graph.value_info):
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param == BATCH:
                dim.dim_value = size
    inputs = {i.name for i in graph.input}
    for tensor in graph.initializer:
        if tensor.name in inputs:  # the one row of an optional input
            tensor.CopyFrom(numpy_helper.from_array(np.repeat(numpy_helper.to_array(tensor), size, 0), tensor.name))
    folded = with_constants_folded(fixed)
    check_graph(folded)
    return folded
