"""A manifest's specifications of a policy's arrays: names, types, shapes, bounds, noise, state, and statistics."""

import math
import reprlib
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trpo_tf.serving.errors import BundleError

NOISE_LAWS = ("normal", "gumbel", "logistic")
NOISE_INPUTS = ("optional", "required", "none")
DTYPES = (
    *("bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"),
    *("float16", "float32", "float64"),
)

RESET = "reset"
"""Name of the input [batch] of a policy with state: rows in which it is true start from the initial state."""

NEXT = "next_"
"""Prefix of the outputs with the next state."""

MOST_STATISTICS = 1000
"""Most elements of an input with statistics; larger inputs are images, or of their size."""

Bound = float | tuple[float, ...]
"""One bound for all elements, or one for each element in row-major order; infinite means no bound."""


@dataclass(frozen=True)
class ArraySpec:
    """One array as the environment defines it, without the batch dimension."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    low: Bound = -math.inf
    high: Bound = math.inf

    def __post_init__(self) -> None:
        """Convert None to an infinite bound, and NumPy's values to Python's. Raises `BundleError` for others."""
        _check_array(self)
        object.__setattr__(self, "low", _as_bound(self, "low", -math.inf))
        object.__setattr__(self, "high", _as_bound(self, "high", math.inf))
        if np.greater(self.low, self.high).any():
            raise BundleError(
                f"low of {self.name!r} must not be above its high; they are {self.low!r} and {self.high!r}"
            )

    def bounds(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return lower and upper bounds, each of the array's shape."""
        return self._filled(self.low), self._filled(self.high)

    @property
    def unit(self) -> NDArray[np.float64]:
        """Size of each element's numbers, to which a tolerance is relative: the range between its bounds, at most 1."""
        low, high = self.bounds()
        return np.where(low < high, np.minimum(high - low, 1.0), 1.0)

    def _filled(self, bound: Bound) -> NDArray[np.float64]:
        values = np.asarray(bound, np.float64)
        return np.broadcast_to(values if values.ndim == 0 else values.reshape(self.shape), self.shape).copy()


@dataclass(frozen=True)
class NoiseSpec:
    """Specification of the noise input, with which a policy samples; zeros give the deterministic action.

    `law` is the standard distribution to draw from: `normal`, `gumbel` or `logistic`.
    """

    law: str
    shape: tuple[int, ...]
    name: str = "noise"
    dtype: str = "float32"

    def __post_init__(self) -> None:
        """Convert NumPy's values to Python's. Raises `BundleError` for invalid values."""
        _check_array(self)
        if self.law not in NOISE_LAWS:
            raise BundleError(f"noise law {self.law!r} is unknown; choose one of {', '.join(NOISE_LAWS)}")


@dataclass(frozen=True)
class StateSpec:
    """One array that a policy carries from a step to the next, without the batch dimension.

    The graph takes it as input `name` and answers its next value as output `next_name`. `initial` is its value at the
    start of an episode: one number for all elements, or one for each element in row-major order.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    initial: float | tuple[float, ...] = 0

    def __post_init__(self) -> None:
        """Convert arrays and nested lists to a tuple, and equal numbers to one. Raises `BundleError`."""
        _check_array(self)
        object.__setattr__(self, "initial", _as_initial(self))

    @property
    def next_name(self) -> str:
        """Name of the output with the next value."""
        return f"{NEXT}{self.name}"

    def initial_rows(self, batch: int) -> NDArray[Any]:
        """Return the initial value of each of `batch` rows: [batch, *shape]."""
        values = np.asarray(self.initial, self.dtype)
        row = values if values.ndim == 0 else values.reshape(self.shape)
        return np.broadcast_to(row, (batch, *self.shape)).copy()


def carried_inputs(state: tuple[StateSpec, ...]) -> tuple[ArraySpec, ...]:
    """Return the inputs of a policy with state beside observation and noise: the state, and `reset`; else nothing."""
    if not state:
        return ()
    return *(ArraySpec(spec.name, spec.dtype, spec.shape) for spec in state), ArraySpec(RESET, "bool", ())


def next_outputs(state: tuple[StateSpec, ...]) -> tuple[ArraySpec, ...]:
    """Return the outputs with the next state."""
    return tuple(ArraySpec(spec.next_name, spec.dtype, spec.shape) for spec in state)


def option_counts(action: ArraySpec) -> NDArray[np.int64]:
    """Return the number of options of each choice of a discrete action, in row-major order."""
    low, high = action.bounds()
    return np.asarray((high - low).ravel().astype(np.int64) + 1)


def mask_fault(mask: Any, observation: tuple[ArraySpec, ...], action: ArraySpec) -> str | None:
    """Say what `mask` must be if it can't tell which actions are legal; None if it is a mask, or None.

    A mask is a part of the observation, one of several, with a number for each option of each choice, side by side.
    """
    if mask is None:
        return None
    found = next((part for part in observation if part.name == mask), None)
    if found is None or len(observation) == 1:
        return f"the name of one of several parts of the observation, not {mask!r}"
    if np.dtype(action.dtype).kind not in "iu" or not np.isfinite(action.bounds()).all():
        return f"None: an action of {action.dtype} without bounds for its choices has no options to mask"
    options = int(option_counts(action).sum())
    if found.shape != (options,):
        return f"a part of shape [{options}], for each option of each choice, not {list(found.shape)}"
    return None


@dataclass(frozen=True)
class GraphSpec:
    """Properties of the graph beyond its observation and action.

    Attributes:
        noise: `optional` or `required` noise input, or `none`: then it acts deterministically.
        batch: the only batch size that it accepts; None for any.
        outputs: its outputs besides the action.
    """

    noise: str = "optional"
    batch: int | None = None
    outputs: tuple[ArraySpec, ...] = ()


@dataclass(frozen=True)
class Statistics:
    """Mean and standard deviation of one input during training, for each element in row-major order."""

    mean: tuple[float, ...]
    stddev: tuple[float, ...]


def _check_array(spec: ArraySpec | NoiseSpec | StateSpec) -> None:
    """Make dtype and shape plain, such as those of an environment's space. Raises `BundleError` for invalid values."""
    if not is_text(spec.name):
        raise BundleError(f"an array's name must be printable text, not {spec.name!r}")
    dtype: Any = spec.dtype
    name = dtype if isinstance(dtype, str) else getattr(dtype, "name", getattr(dtype, "__name__", None))
    if name not in DTYPES:
        raise BundleError(f"dtype of {spec.name!r} must be one of {', '.join(DTYPES)}, not {dtype!r}")
    object.__setattr__(spec, "dtype", name)
    sizes = spec.shape if isinstance(spec.shape, list | tuple) else (None,)
    if any(isinstance(n, bool) or not isinstance(n, int | np.integer) or n <= 0 for n in sizes):
        raise BundleError(f"shape of {spec.name!r} must be a tuple of positive integers, not {spec.shape!r}")
    object.__setattr__(spec, "shape", tuple(map(int, sizes)))


def _as_bound(spec: ArraySpec, which: str, infinite: float) -> Bound:
    value = getattr(spec, which)
    several = isinstance(value, list | tuple | np.ndarray)
    values = [
        infinite if bound is None else bound for bound in (np.ravel(np.asarray(value, object)) if several else [value])
    ]
    size = math.prod(spec.shape) if several else 1
    if len(values) != size or not all(isinstance(b, int | float | np.number) and not math.isnan(b) for b in values):
        raise BundleError(
            f"{which} of {spec.name!r} must be a number, or one for each of its {math.prod(spec.shape)} elements, or "
            f"None for no bound; it is {value!r}"
        )
    plain = [b.item() if isinstance(b, np.number) else b for b in values]
    return tuple(plain) if several else plain[0]


def _as_initial(spec: StateSpec) -> float | tuple[float, ...]:
    """Return the initial value as Python numbers: one if all are equal, else one for each element."""
    wanted = (
        f"initial of {spec.name!r} must be a number of {spec.dtype}, or one for each of its {math.prod(spec.shape)} "
        f"elements of shape {list(spec.shape)}; it is {' '.join(reprlib.repr(spec.initial).split())}"
    )
    try:
        given = np.asarray(spec.initial)
        with np.errstate(over="ignore"):  # what becomes infinite is refused below
            values = given.astype(spec.dtype)
    except (TypeError, ValueError, OverflowError):
        raise BundleError(wanted) from None
    is_exact = values.dtype.kind == "f" or np.array_equal(values, given)
    if given.dtype.kind not in "biuf" or not _is_one_or_each(given, spec.shape) or not is_exact:
        raise BundleError(wanted)
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        raise BundleError(wanted)
    numbers = values.ravel().tolist()
    return numbers[0] if len(set(numbers)) == 1 else tuple(numbers)


def _is_one_or_each(values: NDArray[Any], shape: tuple[int, ...]) -> bool:
    """Return whether values are one number, or one for each element, flat or in the array's shape.

    A list of one number for several elements is none of these: more likely the others were forgotten.
    """
    if values.ndim < 2:
        return values.ndim == 0 or values.size == math.prod(shape)
    return [n for n in values.shape if n > 1] == [n for n in shape if n > 1]


def is_text(value: Any) -> bool:
    """Return whether the value is text that can be printed, and not empty."""
    return isinstance(value, str) and value != "" and value.isprintable()
