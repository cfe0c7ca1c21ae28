"""Ways in which an exporter may be wrong: each changes what it makes of a small policy."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import pytest
import tensorflow as tf
from onnx import helper, numpy_helper

from trpo_tf.export.graph.editing import set_field

Graph = onnx.GraphProto
FLOAT, HALF, DOUBLE, INT32 = (getattr(onnx.TensorProto, name) for name in ("FLOAT", "FLOAT16", "DOUBLE", "INT32"))


@dataclass(frozen=True)
class Mutation:
    """What the exporter of `target` does wrong with the policy `policy`."""

    policy: str
    target: str
    graph: Callable[[Graph], None] = lambda _: None
    patch: Callable[[pytest.MonkeyPatch], None] = lambda _: None


def node_of(graph: Graph, operator: str, place: int = 0) -> onnx.NodeProto:
    return [node for node in graph.node if node.op_type == operator][place]


def dropped(operator: str, place: int = 0) -> Callable[[Graph], None]:
    """Leave a node out: what it reads first is what it gives."""

    def change(graph: Graph) -> None:
        node = node_of(graph, operator, place)
        source, gone = node.input[0], node.output[0]
        graph.node.remove(node)
        if gone in {output.name for output in graph.output}:
            before = next(other for other in graph.node if source in other.output)
            before.output[0] = gone
            source, gone = gone, source
        for other in graph.node:
            other.input[:] = [source if name == gone else name for name in other.input]

    return change


def both(*changes: Callable[[Graph], None]) -> Callable[[Graph], None]:
    def change(graph: Graph) -> None:
        for each in changes:
            each(graph)

    return change


def constant(operator: str, change: Callable[[np.ndarray], Any], place: int = 0, argument: int = 1):
    """Change a constant that a node reads, for that node alone."""

    def edit(graph: Graph) -> None:
        node = node_of(graph, operator, place)
        tensor = next(tensor for tensor in graph.initializer if tensor.name == node.input[argument])
        changed = np.asarray(change(numpy_helper.to_array(tensor).copy()))
        node.input[argument] = f"changed/{tensor.name}"
        graph.initializer.append(numpy_helper.from_array(changed.astype(changed.dtype), node.input[argument]))

    return edit


def renamed(operator: str, new: str, place: int = 0) -> Callable[[Graph], None]:
    def change(graph: Graph) -> None:
        node_of(graph, operator, place).op_type = new

    return change


def inserted(place: str, *nodes: onnx.NodeProto, **constants: Any) -> Callable[[Graph], None]:
    """Put nodes, from `in` to `out`, behind the input or the tensor `place`."""

    def change(graph: Graph) -> None:
        copies = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
        is_output = place in {output.name for output in graph.output}
        before, after = (f"{place}/before", place) if is_output else (place, f"{place}/after")
        for node in graph.node:
            if is_output:
                node.output[:] = [before if name == place else name for name in node.output]
                node.input[:] = [before if name == place else name for name in node.input]
            else:
                node.input[:] = [after if name == place else name for name in node.input]
        for node in copies:
            node.input[:] = [before if name == "in" else name for name in node.input]
            node.output[:] = [after if name == "out" else name for name in node.output]
        last = max((n for n, node in enumerate(graph.node) if before in node.output), default=-1)
        set_field(graph.node, [*graph.node[: last + 1], *copies, *graph.node[last + 1 :]])
        for name, value in constants.items():
            graph.initializer.append(numpy_helper.from_array(np.asarray(value), name))

    return change


def cast(place: str, *types: int) -> Callable[[Graph], None]:
    names = ["in", *(f"{place}/{n}" for n in range(len(types) - 1)), "out"]
    pairs = zip(names, names[1:], types, strict=False)
    insert = inserted(place, *(helper.make_node("Cast", [a], [b], to=to) for a, b, to in pairs))

    def change(graph: Graph) -> None:
        insert(graph)
        for output in (output for output in graph.output if output.name == place):
            output.type.tensor_type.elem_type = types[-1]

    return change


def attribute(operator: str, name: str, value: Any) -> Callable[[Graph], None]:
    def change(graph: Graph) -> None:
        node = node_of(graph, operator)
        kept = [given for given in node.attribute if given.name != name]
        set_field(node.attribute, [*kept, helper.make_attribute(name, value)])

    return change


def everywhere(change: Callable[[np.ndarray], np.ndarray]) -> Callable[[Graph], None]:
    """Change every matrix of weights."""

    def edit(graph: Graph) -> None:
        for tensor in graph.initializer:
            array = numpy_helper.to_array(tensor)
            if array.dtype == np.float32 and array.ndim > 1 and tensor.name != "noise":
                tensor.CopyFrom(numpy_helper.from_array(change(array).astype(np.float32), tensor.name))

    return edit


def text(old: str, new: str) -> Callable[[pytest.MonkeyPatch], None]:
    """Change the C that is written."""

    def patch(monkeypatch: pytest.MonkeyPatch) -> None:
        from trpo_tf.export.targets import c99

        right = c99.c_sources

        def wrong(*arguments: Any, **options: Any) -> dict[str, bytes]:
            files = {name: content.decode() for name, content in right(*arguments, **options).items()}
            assert any(old in content for content in files.values())
            return {name: content.replace(old, new).encode() for name, content in files.items()}

        monkeypatch.setattr(c99, "c_sources", wrong)

    return patch


def quantized(*changes: Callable[[Graph], None]) -> Callable[[pytest.MonkeyPatch], None]:
    """Change the graph of 8 bits that is written."""

    def patch(monkeypatch: pytest.MonkeyPatch) -> None:
        from trpo_tf.export.targets import onnx as target

        right = target.quantize_static

        def wrong(*arguments: Any) -> bytes:
            model = onnx.load_from_string(right(*arguments))
            for change in changes:
                change(model.graph)
            return bytes(model.SerializeToString())

        monkeypatch.setattr(target, "quantize_static", wrong)

    return patch


def units(factor: float, place: str) -> Callable[[Graph], None]:
    """Scale what a step of activations or weights is worth: in 8 bits they then saturate, or lose their steps."""

    def edit(graph: Graph) -> None:
        for tensor in graph.initializer:
            if tensor.name.endswith("_scale") and place in tensor.name:
                changed = numpy_helper.to_array(tensor) * np.float32(factor)
                tensor.CopyFrom(numpy_helper.from_array(changed, tensor.name))

    return edit


def zero_points(shift: int) -> Callable[[Graph], None]:
    def edit(graph: Graph) -> None:
        for tensor in graph.initializer:
            array = numpy_helper.to_array(tensor)
            if tensor.name.endswith("_zero_point") and array.dtype == np.uint8:
                changed = np.asarray((array.astype(int) + shift) % 256, np.uint8)
                tensor.CopyFrom(numpy_helper.from_array(changed, tensor.name))

    return edit


def function(wrong: Callable[[Any, Any, Any], Any]) -> Callable[[pytest.MonkeyPatch], None]:
    """Let LiteRT or a SavedModel be made of another function: of the right one, the observation and the noise."""

    def patch(monkeypatch: pytest.MonkeyPatch) -> None:
        from trpo_tf.export.litert import convert
        from trpo_tf.export.targets import saved_model

        to_litert, write_saved_model = convert.to_litert, saved_model.write_saved_model

        def changed(right: Any) -> Any:
            return lambda observation, noise: wrong(right, observation, noise)

        monkeypatch.setattr(
            convert, "to_litert", lambda right, *rest, **options: to_litert(changed(right), *rest, **options)
        )
        monkeypatch.setattr(
            saved_model, "write_saved_model", lambda right, *rest: write_saved_model(changed(right), *rest)
        )

    return patch


def swapped(array: np.ndarray) -> np.ndarray:
    return array[..., ::-1]


def noises(wrong: Callable[[Any], Any]) -> Callable[[pytest.MonkeyPatch], None]:
    return function(lambda right, observation, noise: right(observation, wrong(noise)))


ROW = {"first_row": np.int64(0), "as_rows": np.int64([1, -1])}
MUTATIONS: dict[str, Mutation] = {
    "drop the clip to the action's bounds": Mutation("continuous", "onnx", both(dropped("Max", 1), dropped("Min", 1))),
    "drop the lower bound alone": Mutation("continuous", "onnx", dropped("Max", 1)),
    "drop the clip of normalised observations": Mutation("continuous", "onnx", both(dropped("Max"), dropped("Min"))),
    "lose the normaliser's mean": Mutation("continuous", "onnx", dropped("Sub")),
    "lose the normaliser's scale": Mutation("continuous", "onnx", dropped("Mul", 1)),
    "clip before normalising": Mutation(
        "continuous",
        "onnx",
        both(
            dropped("Max"),
            dropped("Min"),
            inserted(
                "obs",
                *[helper.make_node("Clip", ["in", "clip_low", "clip_high"], ["out"])],
                clip_low=np.float32(-5),
                clip_high=np.float32(5),
            ),
        ),
    ),
    "transpose a weight": Mutation("continuous", "onnx", constant("MatMul", np.transpose, 1)),
    "swap two actions": Mutation("continuous", "onnx", constant("MatMul", swapped, 2)),
    "reverse an observation": Mutation("continuous", "onnx", constant("MatMul", lambda w: w[::-1].copy())),
    "forget a bias": Mutation("continuous", "onnx", dropped("Add", 1)),
    "change the sign of one weight": Mutation(
        "continuous", "onnx", constant("MatMul", lambda w: w * np.where(np.arange(4) == 2, -1, 1).astype("f"), 1)
    ),
    "round weights to 16 bits": Mutation("continuous", "onnx", everywhere(lambda w: w.astype(np.float16))),
    "round weights to bfloat16": Mutation(
        "continuous", "onnx", everywhere(lambda w: (w.view(np.uint32) & 0xFFFF0000).view(np.float32))
    ),
    "write weights with four digits": Mutation("continuous", "onnx", everywhere(lambda w: np.round(w, 4))),
    "narrow the observation to 16 bits": Mutation("continuous", "onnx", cast("obs", HALF, FLOAT)),
    "sigmoid for tanh": Mutation("continuous", "onnx", renamed("Tanh", "Sigmoid")),
    "drop an activation": Mutation("continuous", "onnx", dropped("Relu")),
    "leaky ReLU for ReLU": Mutation("continuous", "onnx", renamed("Relu", "LeakyRelu")),
    "leave actions in the network's units": Mutation("continuous", "onnx", dropped("Mul", 2)),
    "ignore the noise": Mutation("continuous", "onnx", constant("Mul", lambda scale: 0 * scale)),
    "scale the noise twice": Mutation("continuous", "onnx", constant("Mul", np.square)),
    "deal the noise out in another order": Mutation(
        "continuous",
        "onnx",
        inserted("noise/rows", helper.make_node("Gather", ["in", "turned"], ["out"], axis=1), turned=np.int64([1, 0])),
    ),
    "give every row the first one's noise": Mutation(
        "continuous",
        "onnx",
        inserted(
            "noise/rows",
            helper.make_node("Gather", ["in", "first"], ["one"], axis=0),
            helper.make_node("Shape", ["in"], ["size"]),
            helper.make_node("Expand", ["one", "size"], ["out"]),
            first=np.int64([0]),
        ),
    ),
    "subtract the batch's mean": Mutation(
        "continuous",
        "onnx",
        inserted(
            "Tanh:0",
            helper.make_node("ReduceMean", ["in"], ["mean"], axes=[0]),
            helper.make_node("Sub", ["in", "mean"], ["out"]),
        ),
    ),
    "divide by the batch's norm": Mutation(
        "continuous",
        "onnx",
        inserted(
            "Relu:0",
            helper.make_node("ReduceL2", ["in"], ["norm"], axes=[0]),
            helper.make_node("Max", ["norm", "one"], ["size"]),
            helper.make_node("Div", ["in", "size"], ["out"]),
            one=np.float32(1),
        ),
    ),
    "answer the rows in reverse": Mutation(
        "continuous",
        "onnx",
        inserted(
            "action",
            helper.make_node("Slice", ["in", "from", "to", "axes", "step"], ["out"]),
            **{"from": np.int64([-1]), "to": np.int64([-(2**31)]), "axes": np.int64([0]), "step": np.int64([-1])},
        ),
    ),
    "answer the first row for all": Mutation(
        "continuous",
        "onnx",
        inserted(
            "action",
            helper.make_node("Gather", ["in", "first"], ["one"], axis=0),
            helper.make_node("Shape", ["in"], ["size"]),
            helper.make_node("Expand", ["one", "size"], ["out"]),
            first=np.int64([0]),
        ),
    ),
    "give actions as float64": Mutation("continuous", "ort", cast("action", DOUBLE)),
    "lose a weight to NaN": Mutation(
        "continuous",
        "onnx",
        constant("MatMul", lambda w: np.where(np.arange(w.size).reshape(w.shape) == 1, np.nan, w).astype("f"), 2),
    ),
    "one-hot off by one": Mutation("discrete", "onnx", constant("Sub", lambda first: first + 1)),
    "one-hot without its last value": Mutation(
        "discrete", "onnx", inserted("sub:0", helper.make_node("Min", ["in", "last"], ["out"]), last=np.int64(3))
    ),
    "count actions from 0": Mutation("discrete", "onnx", dropped("Add", 2)),
    "the smallest score": Mutation("discrete", "onnx", renamed("ArgMax", "ArgMin")),
    "never the last action": Mutation(
        "discrete", "onnx", inserted("ArgMax:0", helper.make_node("Min", ["in", "last"], ["out"]), last=np.int64(2))
    ),
    "swap two choices": Mutation("discrete", "onnx", constant("MatMul", lambda w: w[:, [0, 2, 1, 3]], 2)),
    "halve the scores before noise": Mutation("discrete", "onnx", constant("MatMul", lambda w: w / 2, 2)),
    "narrow the action to 32 bits": Mutation("discrete", "ort", cast("action", INT32)),
    "narrow integers to 32 bits": Mutation("counting", "onnx", cast("obs", INT32, onnx.TensorProto.INT64)),
    "divide as integers": Mutation(
        "counting", "onnx", inserted("truediv:0", helper.make_node("Floor", ["in"], ["out"]))
    ),
    "pad on the other side": Mutation("seeing", "onnx", attribute("Conv", "pads", [0, 0, 2, 2])),
    "flatten channels first": Mutation("seeing", "onnx", dropped("Transpose")),
    "take bytes as signed": Mutation(
        "seeing",
        "onnx",
        inserted(
            "obs",
            helper.make_node("Cast", ["in"], ["signed"], to=onnx.TensorProto.INT8),
            helper.make_node("Cast", ["signed"], ["out"], to=FLOAT),
        ),
    ),
    "leave pixels from 0 to 255": Mutation("seeing", "onnx", dropped("Mul", 1)),
    "answer another value": Mutation(
        "outputs", "onnx", inserted("value", helper.make_node("Mul", ["in", "twice"], ["out"]), twice=np.float32(1.01))
    ),
    "answer logits with noise in them": Mutation(
        "outputs", "onnx", inserted("logits", helper.make_node("Add", ["in", "noise/rows"], ["out"]))
    ),
    "lose the value to NaN": Mutation(
        "outputs",
        "savedmodel",
        patch=function(
            lambda right, observation, noise: {
                name: tensor * np.nan if name == "value" else tensor
                for name, tensor in right(observation, noise).items()
            }
        ),
    ),
    "couple the value's rows": Mutation(
        "outputs",
        "ort",
        inserted(
            "value",
            helper.make_node("ReduceMax", ["in"], ["most"], axes=[0]),
            helper.make_node("Min", ["in", "most"], ["low"]),
            helper.make_node("Max", ["low", "most"], ["out"]),
        ),
    ),
    "SavedModel without noise": Mutation("continuous", "savedmodel", patch=noises(tf.zeros_like)),
    "SavedModel that always samples": Mutation("continuous", "savedmodel", patch=noises(lambda noise: noise + 0.01)),
    "LiteRT with two actions swapped": Mutation(
        "continuous",
        "litert",
        patch=function(lambda right, observation, noise: tf.reverse(right(observation, noise), [1])),
    ),
    "LiteRT that couples rows": Mutation(
        "continuous",
        "litert",
        patch=function(
            lambda right, observation, noise: right(observation - 0.01 * tf.reduce_mean(observation, 0), noise)
        ),
    ),
    "saturate 8 bits": Mutation("continuous", "onnx-int8", patch=quantized(units(1 / 16, "clip_by_value"))),
    "8 bits of too few steps": Mutation("continuous", "onnx-int8", patch=quantized(units(64, "matmul_2"))),
    "shift the zero of 8 bits": Mutation("continuous", "onnx-int8", patch=quantized(zero_points(64))),
    "8 bits that answer a constant": Mutation("continuous", "onnx-int8", patch=quantized(units(0, "matmul_2"))),
    "8 bits that choose the worst action": Mutation("discrete", "onnx-int8", patch=quantized(units(-1, "matmul_2/b"))),
    "C: keep a sum of the call before": Mutation(
        "continuous", "c", patch=text("float sum = 0.0f", "static float sum = 0.0f")
    ),
    "C: keep a scratch array too short a time": Mutation("continuous", "c", patch=text("scratch_2", "scratch_1")),
    "C: stop before the last element": Mutation("continuous", "c", patch=text("i < n;", "i < n - 1;")),
    "C: ignore the noise": Mutation("continuous", "c", patch=text("if (!noise)", "if (1)")),
    "C: narrow integers to 32 bits": Mutation("counting", "c", patch=text("(float)obs", "(float)(int32_t)obs")),
    "C: compare the other way": Mutation("discrete", "c", patch=text("x[i] > x[best]", "x[i] < x[best]")),
    "C: int8 with one scale for all": Mutation(
        "continuous", "c-int8", patch=text("weight_scale_2[i]", "weight_scale_2[0]")
    ),
}
"""By what goes wrong."""
