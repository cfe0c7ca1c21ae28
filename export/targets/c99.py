"""C99 sources: for microcontrollers, with weights in floats or in 8 bits."""

from functools import partial
from pathlib import Path
from typing import Any

from trpo_tf.export.c99.c_files import HEADER_FILE, SOURCE_FILE, argument_names, arguments, c_sources, state_memories
from trpo_tf.export.c99.host_compile import compiled_actor, compiled_step, host_compiler
from trpo_tf.export.errors import ExportError
from trpo_tf.export.policy.functions import Actor, Answers
from trpo_tf.export.policy.spec import PolicySpec, spec_of
from trpo_tf.export.targets.target import ExportInputs, Target
from trpo_tf.export.targets.traced_operators import LARGE_OFFSET, no_loops, operations_among, subtracts_in_float64
from trpo_tf.serving import Manifest

_FOLDER, _INT8_FOLDER = "c", "c-int8"
_CONVOLUTIONS = {"Conv2D", "Conv3D", "DepthwiseConv2dNative", "Conv2DBackpropInput", "MaxPool", "AvgPool"}
_LINES = """\
#include "policy.h"
{arguments}
{call}
"""
_STATE_LINES = """\
#include "policy.h"
policy_state state; {arguments}
policy_reset(&state); /* when an episode starts */
{call}
"""


def _write(path: str, inputs: ExportInputs, folder: Path) -> None:
    sources = c_sources(inputs.action_graph, inputs.spec, int8=path == _INT8_FOLDER)
    (folder / path).mkdir()
    for name, content in sources.items():
        (folder / path / name).write_bytes(content)


def _open(path: str, folder: Path, manifest: Manifest) -> Actor:
    """Compile the sources on this machine."""
    sources = {file: (folder / path / file).read_bytes() for file in (HEADER_FILE, SOURCE_FILE)}
    return compiled_actor(sources, spec_of(manifest))


def _open_step(path: str, folder: Path, manifest: Manifest) -> Answers:
    sources = {file: (folder / path / file).read_bytes() for file in (HEADER_FILE, SOURCE_FILE)}
    return compiled_step(sources, spec_of(manifest))


def _snippet(manifest: Manifest) -> tuple[str, str]:
    *parts, _, action = arguments(spec_of(manifest))
    declared = [f"{array.c_type} {array.name}[POLICY_{array.name.upper()}];" for array in (*parts, action)]
    state = ["&state"] if manifest.state else []
    call = f"policy_act({', '.join([*state, *(part.name for part in parts)])}, 0, action);"
    return "c", (_STATE_LINES if state else _LINES).format(arguments=" ".join(declared), call=call)


def _refusal(graph: Any, spec: PolicySpec) -> str | None:
    if host_compiler() is None:
        return "there is no C compiler to compare it with (install gcc or clang, or set CC)"
    if subtracts_in_float64(graph):
        return f"C computes in float32, and {LARGE_OFFSET}"
    try:
        arguments(spec)
        state_memories(spec)
    except ExportError as error:
        return str(error)
    found = operations_among(graph, _CONVOLUTIONS)
    return f"C has no convolutions ({', '.join(found)})" if found else no_loops(graph, "C")


C = Target(
    "c",
    _FOLDER,
    partial(_write, _FOLDER),
    partial(_open, _FOLDER),
    _snippet,
    "microcontrollers",
    refusal=_refusal,
    input_names=argument_names,
    open_step=partial(_open_step, _FOLDER),
)
C_INT8 = Target(
    "c-int8",
    _INT8_FOLDER,
    partial(_write, _INT8_FOLDER),
    partial(_open, _INT8_FOLDER),
    _snippet,
    "microcontrollers with little flash",
    refusal=_refusal,
    input_names=argument_names,
    exact=False,
    open_step=partial(_open_step, _INT8_FOLDER),
)
