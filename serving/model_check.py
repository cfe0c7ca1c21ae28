"""Refuse an ONNX file that could do more than compute: foreign operators, and weights read from other files.

The file is looked at as it lies, before ONNX Runtime sees it: `serving.wire` walks it, since serving does without the
`onnx` package.
"""

from collections.abc import Iterator

from serving.manifest import MODEL_FILE, BundleError
from serving.wire import WireError, fields_of

OPERATORS = frozenset(
    """
    Abs Acos Acosh Add And ArgMax ArgMin Asin Asinh Atan Atanh AveragePool BatchNormalization BitShift BitwiseAnd
    BitwiseNot BitwiseOr BitwiseXor Cast CastLike Ceil Celu CenterCropPad Clip Col2Im Compress Concat Constant
    ConstantOfShape Conv ConvInteger ConvTranspose Cos Cosh CumSum DepthToSpace DequantizeLinear Det Div
    DynamicQuantizeLinear Einsum Elu Equal Erf Exp Expand EyeLike Flatten Floor GRU Gather GatherElements GatherND Gemm
    GlobalAveragePool GlobalLpPool GlobalMaxPool Greater GreaterOrEqual GridSample HardSigmoid HardSwish Hardmax
    Identity If InstanceNormalization IsInf IsNaN LRN LSTM LayerNormalization LeakyRelu Less LessOrEqual Log LogSoftmax
    Loop LpNormalization LpPool MatMul MatMulInteger Max MaxPool Mean MeanVarianceNormalization Min Mish Mod Mul Neg
    NonZero Not OneHot Or PRelu Pad Pow QLinearConv QLinearMatMul QuantizeLinear RNN Range Reciprocal ReduceL1 ReduceL2
    ReduceLogSum ReduceLogSumExp ReduceMax ReduceMean ReduceMin ReduceProd ReduceSum ReduceSumSquare Relu Reshape
    Resize ReverseSequence Round Scan ScatterElements ScatterND Selu Shape Shrink Sigmoid Sign Sin Sinh Size Slice
    Softmax Softplus Softsign SpaceToDepth Split Sqrt Squeeze Sub Sum Tan Tanh ThresholdedRelu Tile TopK Transpose
    Trilu Unsqueeze Where Xor
    """.split()  # noqa: SIM905 (a list would have a name a line)
)
"""Standard operators on tensors that answer the same each time: what a policy may be made of."""
DOMAINS = ("", "ai.onnx")

Message = dict[int, list[int | memoryview]]
"""A message's fields by number: numbers, or the bytes of texts and messages, as often as they occur."""

# Field numbers of onnx.proto.
_MODEL_GRAPH, _MODEL_TRAINING, _MODEL_FUNCTIONS = 7, 20, 25
_NODE_OPERATOR, _NODE_DOMAIN = 4, 7
_TENSOR_NAME, _TENSOR_EXTERNAL, _TENSOR_LOCATION = 8, 13, 14
_MESSAGES_IN = {
    "ModelProto": {_MODEL_GRAPH: "GraphProto"},
    "GraphProto": {1: "NodeProto", 5: "TensorProto", 15: "SparseTensorProto"},
    "NodeProto": {5: "AttributeProto"},
    "AttributeProto": {
        **{5: "TensorProto", 6: "GraphProto", 10: "TensorProto", 11: "GraphProto"},
        **{22: "SparseTensorProto", 23: "SparseTensorProto"},
    },
    "SparseTensorProto": {1: "TensorProto", 2: "TensorProto"},
    "TensorProto": {},
}
_DEEPEST = 100
"""Messages inside each other; protobuf itself goes no deeper."""
_ORT_FORMAT = b"ORTM"


def check_model(content: bytes) -> None:
    """Refuse a serialized ONNX model unless it is made of `OPERATORS` and holds its own weights.

    Raises `BundleError` naming the operator, the tensor, or what else is wrong. What is inside a tensor or an
    attribute is left to ONNX Runtime.
    """
    # ONNX Runtime would take such a file for its own format, whatever it is as protobuf.
    if content[4:8] == _ORT_FORMAT:
        raise BundleError(f"{MODEL_FILE} is in ONNX Runtime's own format; give the ONNX file that was exported")
    for kind, fields in _messages(memoryview(content), "ModelProto", 0):
        if kind == "ModelProto":
            _check_fields(fields)
        elif kind == "NodeProto":
            _check_node(fields)
        elif kind == "TensorProto":
            _check_tensor(fields)


def _check_fields(model: Message) -> None:
    if _MODEL_GRAPH not in model:
        raise BundleError(f"{MODEL_FILE} holds no ONNX graph; export it again")
    for number, what in ((_MODEL_TRAINING, "training information"), (_MODEL_FUNCTIONS, "functions of its own")):
        if number in model:
            raise BundleError(f"{MODEL_FILE} holds {what}, which a policy does without; export it again")


def _check_node(node: Message) -> None:
    for operator in _texts(node, _NODE_OPERATOR):
        for domain in _texts(node, _NODE_DOMAIN):
            if domain not in DOMAINS or operator not in OPERATORS:
                name = f"{domain}.{operator}" if domain else operator
                raise BundleError(f"{MODEL_FILE} uses {name!r}, which no policy is made of; export it again")


def _check_tensor(tensor: Message) -> None:
    if _TENSOR_EXTERNAL in tensor or any(location != 0 for location in tensor.get(_TENSOR_LOCATION, [])):
        name = _texts(tensor, _TENSOR_NAME)[-1]
        raise BundleError(f"{MODEL_FILE} keeps tensor {name!r} in another file; export it with its weights inside")


def _messages(content: memoryview, kind: str, depth: int) -> Iterator[tuple[str, Message]]:
    """A message and all that it holds, at any depth."""
    if depth > _DEEPEST:
        raise BundleError(f"{MODEL_FILE} nests deeper than {_DEEPEST} messages; export it again")
    fields: Message = {}
    try:
        for field in fields_of(content):
            fields.setdefault(field.number, []).append(field.value)
    except WireError:
        raise _damaged() from None
    yield kind, fields
    for number, inner in _MESSAGES_IN[kind].items():
        for value in fields.get(number, []):
            if isinstance(value, int):
                raise _damaged()
            yield from _messages(value, inner, depth + 1)


def _texts(message: Message, number: int) -> list[str]:
    """A text field as often as it occurs, or one empty text."""
    return [bytes(v).decode(errors="replace") if isinstance(v, memoryview) else "" for v in message.get(number, [b""])]


def _damaged() -> BundleError:
    return BundleError(f"{MODEL_FILE} is damaged: it is not the protobuf of an ONNX model; export it again")
