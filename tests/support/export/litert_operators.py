"""Read the operators of a LiteRT file."""

from tensorflow.lite.python.schema_py_generated import ModelT


def operators(content):
    """Code, and types of the input tensors, of each operator."""
    model = ModelT.InitFromPackedBuf(content)
    (graph,) = model.subgraphs
    codes = [max(code.builtinCode, code.deprecatedBuiltinCode) for code in model.operatorCodes]
    return [
        (codes[operator.opcodeIndex], [graph.tensors[place].type for place in operator.inputs])
        for operator in graph.operators
    ]
