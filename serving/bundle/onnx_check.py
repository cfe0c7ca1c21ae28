"""Refuses ONNX files that could do more than compute: with custom operators, or weights in other files.

The check runs before ONNX Runtime loads the file. It uses `serving.support.protobuf_wire`, so that serving does not
need the `onnx` package.
"""

from collections.abc import Callable, Iterator

from trpo_tf.serving.bundle.files import MODEL_FILE
from trpo_tf.serving.errors import BundleError
from trpo_tf.serving.support.protobuf_wire import START_GROUP, WireError, fields_of

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
"""Operators that a policy may use: deterministic standard operators on tensors."""
DOMAINS = ("", "ai.onnx")

Field = int | memoryview
"""Value of a field: a number, or the bytes of a text or message."""

Message = dict[int, list[Field]]
"""The fields of a message that a check needs: all values of each, by field number."""

MOST_FIELDS = 250_000
"""Most fields of all messages together; an exported policy has hundreds. The limit bounds memory: two bytes of a file
may take a hundred bytes of memory, here and in ONNX Runtime.
"""

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
"""Deepest nesting of messages; Protobuf has the same limit."""
_ORT_FORMAT = b"ORTM"


def check_model(content: bytes) -> None:
    """Refuse a serialized ONNX model unless it uses only `OPERATORS` and holds all of its weights.

    Raises `BundleError`, which names the operator or tensor. The values of tensors and attributes are not checked:
    ONNX Runtime does that.
    """
    # ONNX Runtime reads a file with this mark in its own format, even if it is valid Protobuf too.
    if content[4:8] == _ORT_FORMAT:
        raise BundleError(f"{MODEL_FILE} is in ONNX Runtime's own format; give the ONNX file that was exported")
    model = _Walk().message(memoryview(content), "ModelProto", 0)
    if _MODEL_GRAPH not in model:
        raise BundleError(f"{MODEL_FILE} holds no ONNX graph; export it again")


def _fields(content: memoryview) -> Iterator[tuple[int, Field]]:
    """Yield the number and value of each field of a message. Raises `BundleError`."""
    try:
        for field in fields_of(content):
            if field.wire_type == START_GROUP:  # ONNX has none
                raise WireError
            yield field.number, field.value
    except WireError:
        raise _damaged() from None


class _Walk:
    """A walk through the messages of a file. It keeps only the number of fields that are left of `MOST_FIELDS`."""

    def __init__(self) -> None:
        self._left = MOST_FIELDS

    def message(self, content: memoryview, kind: str, depth: int) -> set[int]:
        """Check a message with all messages inside it, and return the numbers of its fields."""
        if depth > _DEEPEST:
            raise BundleError(f"{MODEL_FILE} nests deeper than {_DEEPEST} messages; export it again")
        inner, found = _MESSAGES_IN[kind], set()
        kept: dict[int, list[Field]] = {number: [] for number in _KEPT[kind]}
        for number, value in _fields(content):
            self._left -= 1
            if self._left < 0:
                raise BundleError(
                    f"{MODEL_FILE} has more than {MOST_FIELDS:,} fields, unlike any policy; export it again"
                )
            found.add(number)
            if number in kept:
                kept[number].append(value)
            if number in inner:
                if isinstance(value, int):
                    raise _damaged()
                self.message(value, inner[number], depth + 1)
        if kind in _CHECKS:
            _CHECKS[kind](kept)
        return found


def _check_model_fields(model: Message) -> None:
    for number, what in ((_MODEL_TRAINING, "training information"), (_MODEL_FUNCTIONS, "functions of its own")):
        if model[number]:
            raise BundleError(f"{MODEL_FILE} holds {what}, which a policy does without; export it again")


def _check_node(node: Message) -> None:
    operators, domains = _texts(node, _NODE_OPERATOR), _texts(node, _NODE_DOMAIN)
    operator = next((operator for operator in operators if operator not in OPERATORS), operators[-1])
    domain = next((domain for domain in domains if domain not in DOMAINS), "")
    if domain or operator not in OPERATORS:
        name = f"{domain}.{operator}" if domain else operator
        raise BundleError(f"{MODEL_FILE} uses {name!r}, which no policy is made of; export it again")


def _check_tensor(tensor: Message) -> None:
    if tensor[_TENSOR_EXTERNAL] or any(location != 0 for location in tensor[_TENSOR_LOCATION]):
        name = _texts(tensor, _TENSOR_NAME)[-1]
        raise BundleError(f"{MODEL_FILE} keeps tensor {name!r} in another file; export it with its weights inside")


_CHECKS: dict[str, Callable[[Message], None]] = {
    "ModelProto": _check_model_fields,
    "NodeProto": _check_node,
    "TensorProto": _check_tensor,
}
_KEPT = dict.fromkeys(_MESSAGES_IN, ()) | {
    "ModelProto": (_MODEL_TRAINING, _MODEL_FUNCTIONS),
    "NodeProto": (_NODE_OPERATOR, _NODE_DOMAIN),
    "TensorProto": (_TENSOR_NAME, _TENSOR_EXTERNAL, _TENSOR_LOCATION),
}


def _texts(message: Message, number: int) -> list[str]:
    """Return all values of a text field, or one empty text if it is missing."""
    found = message[number] or [memoryview(b"")]
    return [bytes(value).decode(errors="replace") if isinstance(value, memoryview) else "" for value in found]


def _damaged() -> BundleError:
    return BundleError(f"{MODEL_FILE} is damaged: it is not the protobuf of an ONNX model; export it again")
