"""Compile and run a policy's C sources on this machine, to compare them with the original."""

import ctypes
import math
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from trpo_tf.export.c99.c_files import RUNNING, SOURCE_FILE, arguments, numpy_dtype, state_dtype
from trpo_tf.export.c99.static_graph import input_arrays
from trpo_tf.export.errors import ExportError
from trpo_tf.export.policy.functions import Actor, Answers
from trpo_tf.export.policy.spec import PolicySpec
from trpo_tf.serving.bundle.specs import RESET
from trpo_tf.serving.runtime.observations import Array, Observation, by_name

_FLAGS = ("-std=c99", "-O2", "-shared", "-fPIC")
_SECONDS = 600
_LARGE = 2**20
"""Bytes of text from which on a table is not for the compiler to read."""
_TABLE = re.compile(rb"^static const (?:POLICY_FLASH )?(\w+) (\w+)((?:\[\d+\])+) = \{\n", re.MULTILINE)


def host_compiler() -> str | None:
    """Find this machine's C compiler, first the one that the environment variable CC names; None if there is none."""
    return next(filter(None, map(shutil.which, (os.environ.get("CC", "cc"), "gcc", "clang"))), None)


def compiled_actor(sources: Mapping[str, bytes], spec: PolicySpec) -> Actor:
    """Compile the sources, and return a function of inputs [batch, ...] and noise [batch, k] that answers actions.

    Args:
        sources: the two files of `c_sources`.
        spec: the policy's arrays.

    Raises:
        ExportError: there is no C compiler, or it fails.
    """
    answers = compiled_step(sources, spec)
    return lambda observations, noise: answers(observations, noise)[spec.action.name]


def compiled_step(sources: Mapping[str, bytes], spec: PolicySpec) -> Answers:
    """Compile the sources as `compiled_actor` does; the function answers the next state too, if there is state."""
    function = _compiled(sources)
    *inputs, action = [numpy_dtype(memory.c_type) for memory in arguments(spec)]
    names = [array.name for array in input_arrays(spec)]

    def answer(observations: Observation, noise: Array) -> dict[str, Array]:
        arrays = {**by_name(observations, names[0]), spec.noise.name: noise}
        with np.errstate(over="ignore"):  # what float32 can't hold is infinite, here as in the graph
            *parts, noise = [np.ascontiguousarray(arrays[n], dtype) for n, dtype in zip(names, inputs, strict=True)]
            states = _states(arrays, spec, len(noise))
        actions = np.empty((len(noise), *spec.action.shape), action)
        for row, drawn in enumerate(noise):
            function(
                *([_pointer(states, row)] if spec.state else []),
                *(_pointer(part, row) for part in parts),
                _pointer(noise, row) if drawn.any() else None,
                _pointer(actions, row),
            )
        after = {each.next_name: states[each.name].reshape(-1, *each.shape).astype(each.dtype) for each in spec.state}
        return {spec.action.name: actions.astype(spec.action.dtype), **after}

    return answer


def _states(arrays: Mapping[str, Array], spec: PolicySpec, rows: int) -> Array:
    """Return a `policy_state` for each row."""
    states = np.zeros(rows, state_dtype(spec))
    for each in spec.state:
        states[each.name] = arrays[each.name].reshape(rows, -1)
    if spec.state:
        states[RUNNING] = ~arrays[RESET]
    return states


def _compiled(sources: Mapping[str, bytes]) -> Any:
    """Load `policy_act` from a shared library, which stays loaded when its file is gone."""
    compiler = host_compiler()
    if compiler is None:
        raise ExportError("there is no C compiler to check the C sources with; install gcc or clang, or set CC")
    with tempfile.TemporaryDirectory() as folder:
        for name, content in sources.items():
            (Path(folder) / name).write_bytes(content)
        tables = _move_tables(Path(folder)) if sys.platform == "linux" else []
        library = Path(folder) / "policy.so"
        command = [compiler, *_FLAGS, SOURCE_FILE, *tables, "-o", library.name, "-lm"]
        try:
            done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=_SECONDS, check=False)
        except subprocess.TimeoutExpired:
            raise ExportError(
                f"{compiler} takes more than {_SECONDS} s for the C sources; export a smaller network"
            ) from None
        if done.returncode != 0:
            raise ExportError(f"{compiler} can't compile the C sources: {' '.join(done.stderr.split())[:300]}")
        try:
            # PyDLL holds the interpreter's lock during a call: the policy's scratch memory serves one at a time.
            function = ctypes.PyDLL(str(library)).policy_act
        except OSError as error:  # made for another machine, or the folder allows no programs
            raise ExportError(
                f"this machine can't load what {compiler} made of the C sources ({error}); set CC to a compiler for "
                "this machine, or TMPDIR to a folder of programs"
            ) from None
    function.restype = None
    return function


def _move_tables(folder: Path) -> list[str]:
    """Move large tables of numbers from the C source to an object file, and return the names of the files to compile.

    A compiler takes a second and 50 MB of memory for each MB of floats as text. So NumPy reads these tables from the
    source, and the assembler makes an object file from their bytes.
    """
    source, kept, end = (folder / SOURCE_FILE).read_bytes(), [], 0
    assembly = ['.section .note.GNU-stack,"",@progbits', ".section .rodata"]
    for found in _TABLE.finditer(source):
        stop = source.index(b"\n};", found.end())
        if stop - found.end() < _LARGE:
            continue
        c_type, name, shape = (group.decode() for group in found.groups())
        numbers = source[found.end() : stop].translate(None, b"{}f\n ").rstrip(b",")
        exact = np.float64 if c_type == "float" else np.int64
        values = np.fromstring(numbers.decode(), exact, sep=",").astype(numpy_dtype(c_type))
        if len(values) != math.prod(map(int, re.findall(r"\d+", shape))):
            raise ExportError(f"{SOURCE_FILE} declares {name}{shape} and gives {len(values)} numbers; export it again")
        (folder / f"{name}.bin").write_bytes(values.tobytes())
        assembly += [".balign 16", f".globl {name}", f".hidden {name}", f"{name}:", f'.incbin "{name}.bin"']
        kept += [source[end : found.start()], f"extern const {c_type} {name}{shape};".encode()]
        end = stop + len(b"\n};")
    if not kept:
        return []
    (folder / SOURCE_FILE).write_bytes(b"".join([*kept, source[end:]]))
    (folder / "tables.s").write_text("\n".join([*assembly, ""]))
    return ["tables.s"]


def _pointer(rows: Array, row: int) -> ctypes.c_void_p:
    """Return a pointer to a row of a contiguous array."""
    return ctypes.c_void_p(rows.ctypes.data + row * rows.strides[0])
