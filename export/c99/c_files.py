"""Write the C sources of a policy: `policy.h` and `policy.c`."""

import itertools
import math
import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from trpo_tf.export.c99.buffer_allocation import lay_out
from trpo_tf.export.c99.c_operators import HELPERS
from trpo_tf.export.c99.codegen import WIDTH, Body
from trpo_tf.export.c99.expressions import BYTES, Memory, memories
from trpo_tf.export.c99.lowering.graph_lowering import KNOWN, lower, with_int8_weights
from trpo_tf.export.c99.static_graph import input_arrays, static_graph
from trpo_tf.export.errors import ExportError
from trpo_tf.export.policy.spec import PolicySpec
from trpo_tf.serving import ArraySpec, NoiseSpec
from trpo_tf.serving.bundle.specs import RESET

HEADER_FILE = "policy.h"
SOURCE_FILE = "policy.c"

_WIDEST = 2**63 - 1

_POINTER = "state->"
_STARTS = Memory("uint8_t", 1, RESET)
"""Whether an episode starts, in the body of `policy_act`."""

_HEADER = """\
/* A policy: one observation in, one action out.
 *
{arguments}
 *
 * Flash: {flash} bytes of constants, and the code: 1 to 2 KB on a Cortex-M4 with what it needs of math.h.
 * RAM:   {ram} bytes, static{shared}, and some 100 of stack.{owned}
 */
#ifndef POLICY_H
#define POLICY_H

#include <stdint.h>

#ifdef __cplusplus
extern "C" {{
#endif

{sizes}

{state}{prototype};

#ifdef __cplusplus
}}
#endif

#endif /* POLICY_H */
"""

_STATE = """\
/* What the policy carries from an action to the next: one for each episode. One of zeros starts an episode. */
typedef struct {{
{fields}
    uint8_t running; /* 0 before the first action of an episode */
}} policy_state;

/* Start an episode: the next action begins with the initial state. */
void policy_reset(policy_state *state);

"""

_RESET = """\


void policy_reset(policy_state *state)
{
    state->running = 0;
}
"""

_RUNNING = "running"
RUNNING = f"{_POINTER}{_RUNNING}"
"""The field of `policy_state` that says whether an episode goes on."""

_KEYWORDS = (
    *("auto", "break", "case", "char", "const", "continue", "default", "do", "double", "else", "enum", "extern"),
    *("float", "for", "goto", "if", "inline", "int", "long", "register", "restrict", "return", "short", "signed"),
    *("sizeof", "static", "struct", "switch", "typedef", "union", "unsigned", "void", "volatile", "while"),
    # Of later versions of C, and macros that GCC defines.
    *("alignas", "alignof", "bool", "constexpr", "false", "linux", "nullptr", "static_assert", "thread_local", "true"),
    *("typeof", "typeof_unqual", "unix"),
    # Macros of machines and of C's own headers, and the types of other fields.
    *("complex", "errno", "i386", "imaginary", "mips", "sparc", "stderr", "stdin", "stdout", *BYTES),
    # Of C++, which may include the header.
    *("and", "and_eq", "asm", "bitand", "bitor", "catch", "char16_t", "char32_t", "char8_t", "class", "co_await"),
    *("co_return", "co_yield", "compl", "concept", "const_cast", "consteval", "constinit", "decltype", "delete"),
    *("dynamic_cast", "explicit", "export", "friend", "mutable", "namespace", "new", "noexcept", "not", "not_eq"),
    *("operator", "or", "or_eq", "private", "protected", "public", "reinterpret_cast", "requires", "static_cast"),
    *("template", "this", "throw", "try", "typeid", "typename", "using", "virtual", "wchar_t", "xor", "xor_eq"),
)

_SOURCE = """\
/* The policy that policy.h declares. Weights have a row for each output. */
#include "policy.h"

#include <math.h>

{declarations}

{prototype}
{{
{body}
}}
"""

_FLASH = """\
/* AVR would copy constants to RAM. GNU C has an address space that stays in flash, in the first 64 KB. */
#ifndef POLICY_FLASH
#if defined(__FLASH) && !defined(__AVR_HAVE_ELPM__)
#define POLICY_FLASH __flash
#else
#define POLICY_FLASH
#endif
#endif"""


def c_sources(model: bytes, spec: PolicySpec, *, int8: bool = False) -> dict[str, bytes]:
    """Write the policy in C99, as the contents of `policy.h` and `policy.c`.

    Args:
        model: the policy's graph, as `convert_policy` makes it.
        spec: the arrays' names, types, shapes and bounds, and the law of the noise.
        int8: round the weights of dense layers to 8 bits, with a float32 scale for each output.

    Raises:
        ExportError: the graph has an operator that has no C here.
    """
    graph = static_graph(model, spec, KNOWN)
    *inputs, action = arguments(spec)
    names, state = [array.name for array in input_arrays(spec)], state_memories(spec)
    carried = {each.next_name: state[each.name] for each in spec.state}
    given = {**dict(zip(names, inputs, strict=True)), **state, **({RESET: _STARTS} if state else {})}
    steps = lower(graph, given, {spec.action.name: action}, carried)
    if int8:
        steps = with_int8_weights(steps)
    layout = lay_out(steps)
    body = Body(layout.homes)
    for step in steps:
        body.add(step)
    read = {memory for step in steps for memory in memories(step.value)}
    return {
        HEADER_FILE: _header(spec, body, layout.arrays).encode(),
        SOURCE_FILE: _source(spec, body, layout.arrays, [m for m in inputs if m not in read]).encode(),
    }


def state_memories(spec: PolicySpec) -> dict[str, Memory]:
    """Return the fields of `policy_state` by the spec's names. Raises as `arguments` does."""
    fields = _identifiers([_free(each.name) for each in spec.state])
    types = [argument_type(ArraySpec(each.name, each.dtype, each.shape)) for each in spec.state]
    return {
        each.name: Memory(c_type, math.prod(each.shape), f"{_POINTER}{field}")
        for each, c_type, field in zip(spec.state, types, fields, strict=True)
    }


def state_dtype(spec: PolicySpec) -> np.dtype[Any]:
    """Return `policy_state` as a NumPy dtype, with a field for each state by the spec's names, and `RUNNING`."""
    fields = [(name, numpy_dtype(memory.c_type), (memory.size,)) for name, memory in state_memories(spec).items()]
    return np.dtype([*fields, (RUNNING, np.uint8)], align=True)


def numpy_dtype(c_type: str) -> np.dtype[Any]:
    """Return the dtype of NumPy arrays whose numbers are of a C type."""
    return np.dtype("float32" if c_type == "float" else c_type.removesuffix("_t"))


def arguments(spec: PolicySpec) -> list[Memory]:
    """List the arguments of `policy_act`: each part of the observation, noise and action, in row-major order.

    Floats of any width become `float`, and booleans become bytes. Integers of 64 bits become 32 bits wide if their
    bounds allow it. An integer action is an int32_t if its bounds allow it, otherwise an int64_t.

    Raises `ExportError` for integers beyond those of int64_t.
    """
    names = [array.name for array in spec.observation]
    parts = ["obs"] if len(names) == 1 else [f"obs_{name}" for name in _identifiers(names)]
    observation = [
        Memory(argument_type(array), _size(array), name) for array, name in zip(spec.observation, parts, strict=True)
    ]
    action_type = argument_type(spec.action)
    if action_type not in ("float", "int64_t"):
        action_type = "int64_t" if action_type == "uint32_t" else "int32_t"
    return [
        *observation,
        Memory("float", _size(spec.noise), "noise"),
        Memory(action_type, _size(spec.action), "action"),
    ]


def argument_names(spec: PolicySpec) -> dict[str, str]:
    """Map the spec's input names to the arguments of `policy_act`."""
    *inputs, _ = arguments(spec)
    return {array.name: memory.name for array, memory in zip(input_arrays(spec), inputs, strict=True)}


def argument_type(array: ArraySpec) -> str:
    """Return the C type of an array's numbers: 32 bits for integers whose bounds fit in them, otherwise its own width.

    Raises `ExportError` for integers beyond those of int64_t.
    """
    dtype = np.dtype(array.dtype)
    if dtype.kind in "fb":
        return "float" if dtype.kind == "f" else "uint8_t"
    if dtype.itemsize < np.dtype("int64").itemsize:
        return f"{dtype}_t"
    lows, highs = (bound if isinstance(bound, tuple) else (bound,) for bound in (array.low, array.high))
    low, high = max(min(lows), np.iinfo(dtype).min), min(max(highs), np.iinfo(dtype).max)
    if high > _WIDEST:
        raise ExportError(
            f"the C target has integers up to 2^63 - 1, and {array.name!r} may hold larger ones; declare its bounds"
        )
    narrow = f"{dtype}_t".replace("64", "32")
    limits = np.iinfo(narrow.removesuffix("_t"))
    return narrow if limits.min <= low and high <= limits.max else "int64_t"


def _size(array: ArraySpec | NoiseSpec) -> int:
    return math.prod(array.shape)


def _free(name: str) -> str:
    """Turn a name into one that C allows for a field."""
    clean = _clean(name)
    if clean[0].isdigit():
        return f"_{clean}"
    return f"{clean}_" if clean in (*_KEYWORDS, _RUNNING) else clean


def _clean(name: str) -> str:
    return re.sub(r"[^a-z0-9_]", "_", name.lower())


def _identifiers(names: Sequence[str]) -> list[str]:
    """Turn names into different C identifiers. If several clash, the first keeps its name."""
    clean = list(map(_clean, names))
    found: list[str] = []
    for name in clean:
        numbered = (f"{name}_{number}" for number in itertools.count(2))
        found.append(next(free for free in numbered if free not in (*clean, *found)) if name in found else name)
    return found


def _header(spec: PolicySpec, body: Body, scratch: list[Memory]) -> str:
    every = arguments(spec)
    arrays = [*input_arrays(spec), spec.action]
    width = max(len(memory.name) for memory in every)
    ram = sum(array.size * BYTES[array.c_type] for array in scratch)
    flash = body.constant_bytes + BYTES["float"] * _size(spec.noise)
    return _HEADER.format(
        arguments="\n".join(
            f" * {memory.name:<{width}}  {memory.c_type}{_shape(array)}, {_remark(array)}"
            for memory, array in zip(every, arrays, strict=True)
        ),
        flash=flash,
        ram=ram,
        shared=", which all calls share: call it from one thread at a time" if scratch else "",
        owned=f"\n * State: {state_dtype(spec).itemsize} bytes of the caller's for each episode." if spec.state else "",
        sizes="\n".join(f"#define {_macro(memory)} {memory.size}" for memory in every),
        state=_state(spec),
        prototype=_prototype(spec),
    )


def _state(spec: PolicySpec) -> str:
    """Declare `policy_state`, if the policy has state."""
    if not spec.state:
        return ""
    lines = [
        f"    {memory.c_type} {memory.name.removeprefix(_POINTER)}[{memory.size}];"
        for memory in state_memories(spec).values()
    ]
    return _STATE.format(fields="\n".join(lines))


def _source(spec: PolicySpec, body: Body, scratch: list[Memory], unread: list[Memory]) -> str:
    noise = arguments(spec)[-2]
    default = f"/* The deterministic action's. */\nstatic const float no_noise[{_macro(noise)}] = {{0.0f}};"
    noise_is_read = all(memory.name != noise.name for memory in unread)
    start = [f"(void){memory.name};" for memory in unread]
    end = ["state->running = 1;"] if spec.state else []
    if spec.state:
        start.append(f"const uint8_t {RESET}[1] = {{!state->{_RUNNING}}};")
    if noise_is_read:
        start += ["if (!noise) {", "    noise = no_noise;", "}", ""]
    declarations = [declaration for _, declaration in body.constants.values()]
    if noise_is_read:
        declarations.append(default)
    if scratch:
        declarations.append("\n".join(f"static {array.c_type} {array.name}[{array.size}];" for array in scratch))
    declarations += [HELPERS[name] for name in body.helpers]
    if any("POLICY_FLASH" in declaration for declaration in declarations):
        declarations.insert(0, _FLASH)
    lines = [f"    {line}" if line else "" for line in (*start, *body.lines, *end)]
    source = _SOURCE.format(
        declarations="\n\n".join(declarations), prototype=_prototype(spec), body="\n".join(lines).rstrip()
    )
    return source + (_RESET if spec.state else "")


def _prototype(spec: PolicySpec) -> str:
    *observation, noise, action = arguments(spec)
    parts = ["policy_state *state"] if spec.state else []
    parts += [f"const {part.c_type} {part.name}[{_macro(part)}]" for part in observation]
    parts += [f"const {noise.c_type} *{noise.name}", f"{action.c_type} {action.name}[{_macro(action)}]"]
    in_one_line = f"void policy_act({', '.join(parts)})"
    return in_one_line if len(in_one_line) <= WIDTH else "void policy_act(\n    " + ",\n    ".join(parts) + ")"


def _macro(memory: Memory) -> str:
    return f"POLICY_{memory.name.upper()}"


def _shape(array: ArraySpec | NoiseSpec) -> str:
    return "".join(f"[{size}]" for size in array.shape or (1,))


def _remark(array: ArraySpec | NoiseSpec) -> str:
    if isinstance(array, NoiseSpec):
        law = "Gumbel" if array.law == "gumbel" else array.law
        return f"standard {law}; NULL for the deterministic action"
    low, high = array.bounds()
    return f"{low.min():g} to {high.max():g}"
