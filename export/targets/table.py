"""The targets of an export, by name: how each is written, run here to be compared, and when it can't be had."""

import importlib.util
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import tensorflow as tf

from trpo_tf.export import c99
from trpo_tf.export.graph.convert import ExportError
from trpo_tf.export.graph.noise_input import with_fixed_batch
from trpo_tf.export.graph.ort_format import to_ort
from trpo_tf.export.graph.quantize import quantize_dynamic, quantize_static
from trpo_tf.export.litert import convert as litert
from trpo_tf.export.parity.reference import Actor, Answers
from trpo_tf.export.policy.spec import InferenceFunction, Outputs, PolicySpec
from trpo_tf.export.policy.traced_graph import all_nodes
from trpo_tf.export.targets.openers import (
    c_opener,
    litert_opener,
    onnx_opener,
    ort_opener,
    saved_model_further,
    saved_model_opener,
    session_further,
)
from trpo_tf.export.targets.saved_model import signature_names, write_saved_model
from trpo_tf.serving import Manifest
from trpo_tf.serving.bundle.manifest import MODEL_FILE
from trpo_tf.serving.errors import install
from trpo_tf.serving.runtime.observations import Observation, batch_size
from trpo_tf.serving.runtime.policy import draw_noise

DEFAULT_TARGETS = ("onnx", "savedmodel")
ALL = "all"

SAVED_MODEL_FOLDER = "saved_model"
STATIC_FILE, DYNAMIC_FILE = "policy.int8.onnx", "policy.int8-dynamic.onnx"
ORT_FOLDER, ORT_FILE, OPERATORS_FILE = "ort", "policy.ort", "required_operators.config"
LITERT_FILE, LITERT_INT8_FILE = "policy.tflite", "policy.int8.tflite"
C_FOLDER, C_INT8_FOLDER = "c", "c-int8"

_CONVOLUTIONS = {"Conv2D", "Conv3D", "DepthwiseConv2dNative", "Conv2DBackpropInput", "MaxPool", "AvgPool"}
_LOOPS = {"While", "StatelessWhile"}

Refusal = Callable[[Any, PolicySpec], str | None]
"""Of the traced graph of a policy and its spec: why a target can't carry it, or None."""


@dataclass(frozen=True)
class Material:
    """What targets are made of.

    Attributes:
        function: the policy.
        outputs: the policy and whatever else is answered, by name.
        spec: its arrays.
        graph: ONNX as it is asked for, its noise input and all its outputs, but of a free batch.
        batch: the one number of rows that it is to take, if any.
        plain: ONNX of the action alone, with optional noise and a free batch.
        visited: observations [n, ...] that the policy visits, to calibrate 8 bits on.
    """

    function: InferenceFunction
    outputs: Outputs
    spec: PolicySpec
    graph: bytes
    batch: int | None
    plain: bytes
    visited: Observation | None


@dataclass(frozen=True)
class Target:
    """One way to ship a policy.

    Attributes:
        path: the file or folder in the bundle.
        write: makes it there, given the bundle's folder.
        open: runs it here: bundle's folder and manifest -> actor.
        purpose: what it is for.
        exact: whether it computes in floats.
        formed: whether it has the graph's form, its noise input and its batch.
        refusal: why it can't carry a policy, told before anything is converted.
        names: of its inputs, by the spec's names.
        further: runs its further outputs here, as `open` does; None if it answers the action alone.
    """

    path: str
    write: Callable[[Material, Path], None]
    open: Callable[[Path, Manifest], Actor]
    purpose: str
    exact: bool = True
    formed: bool = False
    refusal: Refusal = lambda *_: None
    names: Callable[[PolicySpec], Mapping[str, str]] = lambda _: {}
    further: Callable[[Path, Manifest], Answers] | None = None

    def renamed(self, spec: PolicySpec) -> dict[str, str]:
        """Those inputs that have other names in the target, by the spec's names."""
        return {name: own for name, own in self.names(spec).items() if own != name}

    def files(self, manifest: Manifest) -> list[str]:
        """Those of the manifest's files that belong to it."""
        return [name for name in manifest.files if name == self.path or name.startswith(f"{self.path}/")]


def checked_targets(
    names: Sequence[str],
    function: InferenceFunction,
    spec: PolicySpec,
    observer: Callable[[str], None] = lambda _: None,
) -> dict[str, Target]:
    """Targets by name, ONNX first, which every bundle has; `all` are those that can carry the policy.

    The observer is told which `all` leaves out, and why. Raises `ExportError` for one unknown or impossible.
    """
    known = f"choose from {', '.join((*TARGETS, ALL))}"
    if isinstance(names, str) or not isinstance(names, Iterable):
        raise ExportError(f"targets must be a list of names, such as ['onnx', 'c'], not {names!r}; {known}")
    names = list(names)
    unknown = [name for name in names if name not in (*TARGETS, ALL)]
    if unknown:
        raise ExportError(f"target {unknown[0]!r} is unknown; {known}")
    refusals = refusals_of(function, spec)
    if ALL in names:
        for name, reason in refusals.items():
            observer(f"{name} is left out: {reason}")
        names = [name for name in TARGETS if name not in refusals]
    for name in names:
        if name in refusals:
            raise ExportError(f"target {name} can't carry this policy: {refusals[name]}; leave it out")
    return {name: target for name, target in TARGETS.items() if name in {"onnx", *names}}


def refusals_of(function: InferenceFunction, spec: PolicySpec) -> dict[str, str]:
    """Target -> why it can't carry the policy; no entry for one that can."""
    graph = tf.function(function, autograph=False).get_concrete_function(*spec.signature()).graph
    reasons = {name: target.refusal(graph, spec) for name, target in TARGETS.items()}
    return {name: reason for name, reason in reasons.items() if reason is not None}


def _sized(graph: bytes, batch: int | None) -> bytes:
    """The graph for batches of that many rows; quantised before, since it is calibrated on others."""
    if batch is None:
        return graph
    return with_fixed_batch(onnx.load_from_string(graph), batch).SerializeToString()


def _calibration(material: Material) -> Observation:
    if material.visited is None:
        raise ExportError("8 bits are calibrated on what the policy visits; give observations, or an environment")
    return material.visited


def _write_onnx(material: Material, folder: Path) -> None:
    (folder / MODEL_FILE).write_bytes(_sized(material.graph, material.batch))


def _write_saved_model(material: Material, folder: Path) -> None:
    write_saved_model(material.outputs, material.spec, folder / SAVED_MODEL_FOLDER)


def _write_dynamic(material: Material, folder: Path) -> None:
    (folder / DYNAMIC_FILE).write_bytes(_sized(quantize_dynamic(material.graph), material.batch))


def _write_static(material: Material, folder: Path) -> None:
    visited = _calibration(material)
    noise = draw_noise(material.spec.noise, batch_size(visited), np.random.default_rng(0))
    quantized = quantize_static(material.graph, material.spec, visited, noise)
    (folder / STATIC_FILE).write_bytes(_sized(quantized, material.batch))


def _write_ort(material: Material, folder: Path) -> None:
    model, operators = to_ort(_sized(material.graph, material.batch))
    (folder / ORT_FOLDER).mkdir()
    (folder / ORT_FOLDER / ORT_FILE).write_bytes(model)
    (folder / ORT_FOLDER / OPERATORS_FILE).write_text(operators)


def _write_litert(material: Material, folder: Path) -> None:
    (folder / LITERT_FILE).write_bytes(litert.to_litert(material.function, material.spec, batch=material.batch))


def _write_litert_int8(material: Material, folder: Path) -> None:
    calibration = _calibration(material)
    content = litert.to_litert(material.function, material.spec, batch=material.batch, int8_observations=calibration)
    (folder / LITERT_INT8_FILE).write_bytes(content)


def _c_writer(path: str, *, int8: bool) -> Callable[[Material, Path], None]:
    def write(material: Material, folder: Path) -> None:
        (folder / path).mkdir()
        for name, content in c99.c_sources(material.plain, material.spec, int8=int8).items():
            (folder / path / name).write_bytes(content)

    return write


_FLOAT64 = "a large offset is subtracted from the observation in float64; give what is small, or float32"


def _subtracts_in_float64(graph: Any) -> bool:
    """Whether numbers are centred before they become float32, which what computes in float32 alone can't do."""
    return any(node.type == "Sub" and node.inputs[0].dtype == tf.float64 for node in graph.get_operations())


def _no_litert(graph: Any, spec: PolicySpec) -> str | None:
    if importlib.util.find_spec("ai_edge_litert") is None:
        return f"LiteRT, which it is compared in, is not installed ({install('litert')})"
    wide = [array.name for array in (*spec.observation, spec.action) if array.dtype == "uint64"]
    if wide:
        return f"LiteRT has no uint64 ({wide[0]})"
    if _subtracts_in_float64(graph):
        return f"LiteRT computes in float32, and {_FLOAT64}"
    kind = np.dtype(spec.action.dtype)
    return f"LiteRT gives no {kind} actions" if kind.kind == "f" and kind != np.float32 else None


def _no_litert_int8(graph: Any, spec: PolicySpec) -> str | None:
    return _no_litert(graph, spec) or _no_loops(graph, "LiteRT in 8 bits")


def _no_c(graph: Any, spec: PolicySpec) -> str | None:
    if c99.host_compiler() is None:
        return "there is no C compiler to compare it with (install gcc or clang, or set CC)"
    if _subtracts_in_float64(graph):
        return f"C computes in float32, and {_FLOAT64}"
    try:
        c99.arguments(spec)
    except ExportError as error:
        return str(error)
    found = sorted(_operators(graph) & _CONVOLUTIONS)
    return f"C has no convolutions ({', '.join(found)})" if found else _no_loops(graph, "C")


def _operators(graph: Any) -> set[str]:
    """All that it computes, in the functions that it calls too."""
    return {node.op for node in all_nodes(graph.as_graph_def())}


def _no_loops(graph: Any, where: str) -> str | None:
    return f"{where} has no loops; give recurrent layers unroll=True" if _operators(graph) & _LOOPS else None


TARGETS: dict[str, Target] = {
    "onnx": Target(
        MODEL_FILE,
        _write_onnx,
        onnx_opener(MODEL_FILE),
        "ONNX Runtime and the server",
        formed=True,
        further=session_further(MODEL_FILE),
    ),
    "savedmodel": Target(
        SAVED_MODEL_FOLDER,
        _write_saved_model,
        saved_model_opener(SAVED_MODEL_FOLDER),
        "TensorFlow alone",
        names=signature_names,
        further=saved_model_further(SAVED_MODEL_FOLDER),
    ),
    "onnx-int8": Target(
        STATIC_FILE,
        _write_static,
        onnx_opener(STATIC_FILE),
        "8-bit accelerators (QDQ)",
        formed=True,
        exact=False,
        further=session_further(STATIC_FILE),
    ),
    "onnx-int8-dynamic": Target(
        DYNAMIC_FILE,
        _write_dynamic,
        onnx_opener(DYNAMIC_FILE),
        "small files of large networks",
        formed=True,
        exact=False,
        further=session_further(DYNAMIC_FILE),
    ),
    "ort": Target(
        ORT_FOLDER,
        _write_ort,
        ort_opener(f"{ORT_FOLDER}/{ORT_FILE}"),
        "a minimal build of ONNX Runtime",
        formed=True,
        further=session_further(f"{ORT_FOLDER}/{ORT_FILE}"),
    ),
    "litert": Target(
        LITERT_FILE,
        _write_litert,
        litert_opener(LITERT_FILE),
        "phones and small boards",
        refusal=_no_litert,
        names=signature_names,
    ),
    "litert-int8": Target(
        LITERT_INT8_FILE,
        _write_litert_int8,
        litert_opener(LITERT_INT8_FILE),
        "small boards with 8-bit kernels",
        refusal=_no_litert_int8,
        names=signature_names,
        exact=False,
    ),
    "c": Target(
        C_FOLDER,
        _c_writer(C_FOLDER, int8=False),
        c_opener(C_FOLDER),
        "microcontrollers",
        refusal=_no_c,
        names=c99.argument_names,
    ),
    "c-int8": Target(
        C_INT8_FOLDER,
        _c_writer(C_INT8_FOLDER, int8=True),
        c_opener(C_INT8_FOLDER),
        "microcontrollers with little flash",
        refusal=_no_c,
        names=c99.argument_names,
        exact=False,
    ),
}
