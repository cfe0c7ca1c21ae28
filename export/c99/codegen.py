"""Generate the body of a C function from steps, with the constants and helpers that it needs."""

import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trpo_tf.export.c99.c_operators import CALL, SUM, UNARY, WEIGHT_SCALE
from trpo_tf.export.c99.expressions import (
    BYTES,
    Apply,
    Dot,
    Element,
    Expression,
    Fold,
    Index,
    Inner,
    Lookup,
    Memory,
    Place,
    Step,
    is_integer,
    memories,
)

WIDTH = 110
_LONGEST_FORMULA = 80
_MATRIX = "matrix"
"""Noun of constants that are read through a pointer like computed numbers."""
_WHOLE = re.compile(r"(?<![^ ])(-?\d+)f(?![^,])")
"""A number without fraction or exponent, to which C allows no `f`."""


@dataclass
class Body:
    """The C code generated so far.

    `constants` are declarations by content, `helpers` the functions of `HELPERS` that are called.
    """

    homes: Mapping[Memory, str]
    lines: list[str] = field(default_factory=list)
    constants: dict[tuple[str, bool, tuple[int, ...], bytes], tuple[str, str]] = field(default_factory=dict)
    constant_bytes: int = 0
    helpers: dict[str, None] = field(default_factory=dict)
    _nouns: Counter[str] = field(default_factory=Counter)
    _locals: list[str] = field(default_factory=list)

    def add(self, step: Step) -> None:
        """Write one step."""
        self._locals = []
        value, _ = self._formula(step.value)
        if step.target.c_type not in ("float", "int64_t") and not isinstance(step.value, Fold):
            value = f"({step.target.c_type})({value})"
        count = len(step.positions)
        target = self._home(step.target)
        statements = [*self._locals, f"{target}[{self._index(step.positions)}] = {value};"]
        read = dict.fromkeys(f"{self._home(m)} [{m.size}]" for m in memories(step.value) if m.values is None)
        self.lines.append(f"/* {', '.join(read) or 'constants'} -> {target} [{count}] */")
        if count > 1:
            self._block(f"for (int i = 0; i < {count}; ++i) {{", statements)
        elif self._locals:
            self._block("{", statements)
        else:
            self.lines.extend(statements)
        self.lines.append("")

    def _block(self, opening: str, statements: Iterable[str]) -> None:
        self.lines.extend([opening, *(f"    {statement}" for statement in statements), "}"])

    def _home(self, memory: Memory) -> str:
        return memory.name or self.homes[memory]

    def _formula(self, expression: Expression, noun: str = "constant") -> tuple[str, int]:
        """Write element i in C, and return the precedence of the formula."""
        match expression:
            case Element(memory, at) if memory.values is None:
                return f"{self._home(memory)}[{self._index(at)}]", CALL
            case Element(memory, at):
                return self._constant_element(memory, at, noun)
            case Dot(weights, rows, memory, starts):
                assert weights.values is not None
                function = self._helper("dot" if weights.c_type == "float" else "dot_int8")
                name = self._constant(weights.values, weights.c_type, "weights")
                row, length = f"{name}[{self._index(rows)}]", weights.values.shape[1]
                return f"{function}({row}, {self._pointer(memory, starts)}, {length})", CALL
            case Inner(memory, starts, other, other_starts, length):
                pointers = f"{self._pointer(memory, starts)}, {self._pointer(other, other_starts)}"
                return f"{self._helper('inner')}({pointers}, {length})", CALL
            case Lookup(memory, starts, places):
                return f"{self._name(memory, 'table')}[{' + '.join(self._terms(starts, places))}]", CALL
            case Fold(function, memory, starts, length):
                return f"{self._helper(function)}({self._pointer(memory, starts)}, {length})", CALL
            case Apply():
                return self._applied(expression), expression.operator.binding

    def _applied(self, expression: Apply) -> str:
        operator, arguments = expression.operator, expression.arguments
        noun = "bias" if operator.noun == "offset" and any(map(_is_dense, arguments)) else operator.noun
        if operator.helper:
            self._helper(operator.helper)
        texts = []
        for place, argument in enumerate(arguments):
            text, binding = self._formula(argument, noun)
            texts.append(f"({text})" if binding < operator.wants[min(place, len(operator.wants) - 1)] else text)
        if len(operator.text.format(*texts)) > _LONGEST_FORMULA:
            longest = max(range(len(texts)), key=lambda place: len(texts[place]))
            if isinstance(arguments[longest], Apply):
                texts[longest] = self._local(texts[longest], "int64_t" if is_integer(arguments[longest]) else "float")
        return operator.text.format(*texts)

    def _local(self, text: str, c_type: str) -> str:
        name = f"x{len(self._locals) + 1}"
        self._locals.append(f"const {c_type} {name} = {text};")
        return name

    def _helper(self, name: str) -> str:
        self.helpers[name] = None
        return name

    def _terms(self, starts: Index, places: Iterable[Place]) -> Iterator[str]:
        """Write the terms whose sum is the position that computed indices give."""
        start = self._index(starts)
        if start != "0":
            yield start
        for place in places:
            index, _ = self._formula(place.index)
            term = f"{self._helper('place')}({index}, {place.count})"
            yield term if place.stride == 1 else f"{place.stride} * {term}"

    def _name(self, memory: Memory, noun: str) -> str:
        return self._home(memory) if memory.values is None else self._constant(memory.values, memory.c_type, noun)

    def _pointer(self, memory: Memory, starts: Index) -> str:
        name, start = self._name(memory, _MATRIX), self._index(starts)
        return name if start == "0" else f"&{name}[{start}]"

    def _constant_element(self, memory: Memory, at: Index, noun: str) -> tuple[str, int]:
        assert memory.values is not None
        values = memory.values[at]
        if values.tobytes() == values[:1].tobytes() * len(values):
            return _literal(values[0].item()), UNARY if values[0] < 0 else CALL
        if values.dtype.kind != "f" and (formula := _as_formula(values)):
            return formula, CALL if formula == "i" else SUM
        return f"{self._constant(memory.values, memory.c_type, noun)}[{self._index(at)}]", CALL

    def _index(self, at: Index) -> str:
        """Write at[i] in C, as a formula if there is one, otherwise as an element of a table."""
        formula = _as_formula(at)
        if formula is not None:
            return formula
        c_type = next(name for name in ("uint8_t", "uint16_t", "uint32_t") if at.max() < 256 ** BYTES[name])
        return f"{self._constant(at, c_type, 'index')}[i]"

    def _constant(self, values: NDArray[Any], c_type: str, noun: str) -> str:
        """Return the name of a constant array with these values, which is declared once."""
        key = (c_type, noun == _MATRIX, values.shape, values.tobytes())
        if key not in self.constants:
            self._nouns[noun] += 1
            name = f"{noun}_{self._nouns[noun]}"
            # A pointer to flash is of another type on AVR; helpers take pointers to RAM, but for weights.
            place = "" if noun == _MATRIX else "POLICY_FLASH "
            self.constants[key] = (name, declaration(name, values, f"{place}{c_type}"))
            self.constant_bytes += values.size * BYTES[c_type]
        return self.constants[key][0]


def _is_dense(expression: Expression) -> bool:
    """Return whether the value is the matrix product of a dense layer, before its bias."""
    if isinstance(expression, Apply) and expression.operator is WEIGHT_SCALE:
        return True
    return isinstance(expression, Dot)


def declaration(name: str, values: NDArray[Any], c_type: str) -> str:
    """Declare a constant array [n] or [rows, columns]."""
    dimensions = "".join(f"[{size}]" for size in values.shape)
    if values.ndim == 1:
        numbers = _wrapped(values, "    ", "    ")
    else:
        numbers = ",\n".join(f"{_wrapped(row, '    {', '     ')}}}" for row in values)
    return f"static const {c_type} {name}{dimensions} = {{\n{numbers},\n}};"


def _wrapped(values: NDArray[Any], first: str, others: str) -> str:
    """Join numbers by commas in lines of at most `WIDTH`; textwrap would take most of an export's time."""
    text, start, lines = _numbers(values), 0, list[str]()
    while True:
        indent = first if not lines else others
        room = WIDTH - len(indent)
        if len(text) - start <= room:
            return "\n".join([*lines, indent + text[start:]])
        stop = text.rfind(", ", start, start + room + 1)
        lines.append(indent + text[start : stop + 1])
        start = stop + 2


def _numbers(values: NDArray[Any]) -> str:
    """Write the literals of many numbers at once, which is five times as fast as one by one."""
    if values.dtype.kind != "f" or not np.isfinite(values).all():
        return ", ".join(map(_literal, values.tolist()))
    text = ("%.9gf, " * len(values) % tuple(values.tolist())).removesuffix(", ")
    return _WHOLE.sub(r"\1.0f", text)


def _literal(number: float) -> str:
    """Write a number as a C literal, with all the digits of float32."""
    if isinstance(number, int):
        return "INT64_MIN" if number == -(2**63) else str(number)  # C reads a minus and a number that is too large
    if not math.isfinite(number):
        return "NAN" if math.isnan(number) else "INFINITY" if number > 0 else "-INFINITY"
    text = f"{number:.9g}"
    return f"{text}f" if "." in text or "e" in text else f"{text}.0f"


def _as_formula(at: NDArray[Any]) -> str | None:
    """Write at[i] in C if it is constant, a i + b, a (i / k) + b or a (i % k) + b; else return None."""
    i, base = np.arange(len(at)), int(at[0])
    changed = np.flatnonzero(at != base)
    if not len(changed):
        return str(base)
    returned = np.flatnonzero(at[1:] == base)
    forms = [("i", i)]
    if changed[0] > 1:
        forms.append((f"i / {changed[0]}", i // changed[0]))
    elif len(returned):
        forms.append((f"i % {returned[0] + 1}", i % (returned[0] + 1)))
    slope = int(at[changed[0]]) - base
    for text, numbers in forms:
        if np.array_equal(slope * numbers + base, at):
            return _scaled(text, slope, base)
    return None


def _scaled(text: str, slope: int, base: int) -> str:
    if slope != 1:
        text = f"{slope} * {text}" if text == "i" else f"{slope} * ({text})"
    if base == 0:
        return text
    return f"{text} + {base}" if base > 0 else f"{text} - {-base}"
