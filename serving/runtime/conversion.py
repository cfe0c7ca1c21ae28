"""Convert what a caller gives as observations and states to the arrays that a policy's graph takes."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from trpo_tf.serving.bundle.specs import RESET, ArraySpec, StateSpec
from trpo_tf.serving.runtime.observations import Array, Observation, all_finite, parts_of, structured

# Kinds of NumPy dtypes that a converted Python sequence may have, by the kind of the policy's input.
_CONVERTIBLE = {"b": "b", "i": "iu", "u": "iu", "f": "iuf"}


def as_observations(value: Any, specs: Sequence[ArraySpec], *, batched: bool) -> Observation:
    """Check observations against their specs and return them as [batch, ...] in the declared dtypes.

    An array must have the declared dtype exactly; a Python sequence is converted. Raises `ValueError`.
    """
    if len(specs) == 1 and not isinstance(value, Mapping):
        return _as_batch(value, specs[0], "observation", batched=batched)
    named = parts_of(value, [spec.name for spec in specs])
    missing = [spec.name for spec in specs if spec.name not in named]
    if missing:
        names = ", ".join(spec.name for spec in specs)
        raise ValueError(f"observation lacks {missing[0]!r}; give a dict of {names}")
    parts = {
        spec.name: _as_batch(named[spec.name], spec, f"observation {spec.name!r}", batched=batched) for spec in specs
    }
    if len({len(part) for part in parts.values()}) > 1:
        raise ValueError("the parts of the observation have different batch sizes")
    return structured(parts)


def as_carried(state: Mapping[str, Any], reset: Any, specs: Sequence[StateSpec], batch: int) -> dict[str, Array]:
    """Check state [batch, ...] by name and `reset` [batch], and return them as inputs of the graph.

    Raises `ValueError`.
    """
    names = [spec.name for spec in specs]
    if not isinstance(state, Mapping) or set(state) != set(names):
        given = ", ".join(map(str, state)) if isinstance(state, Mapping) else repr(state)
        raise ValueError(f"state must be a dict of {', '.join(names)}, not {given}")
    carried = {spec.name: _as_batch(state[spec.name], spec, f"state {spec.name!r}", batched=True) for spec in specs}
    carried[RESET] = _as_batch(reset, ArraySpec(RESET, "bool", ()), RESET, batched=True)
    for name, array in carried.items():
        if len(array) != batch:
            raise ValueError(f"{name!r} has {len(array)} rows, and the observation {batch}; give as many")
    return carried


def _as_batch(value: Any, spec: ArraySpec | StateSpec, what: str, *, batched: bool) -> Array:
    if type(value) is not np.ndarray and np.ma.is_masked(value):
        raise ValueError(f"{what} is a masked array that hides values; say what they are: .filled(value)")
    array: Array = np.asarray(value) if isinstance(value, np.ndarray | np.generic) else _convert(value, spec, what)
    if array.dtype != spec.dtype:
        raise ValueError(f"{what} has dtype {array.dtype}, the policy takes {spec.dtype}: use .astype({spec.dtype!r})")
    expected = spec.shape
    got = array.shape[1:] if batched and array.ndim else array.shape
    if got != expected or (batched and (array.ndim == 0 or len(array) == 0)):
        shown = ("batch", *expected) if batched else expected
        raise ValueError(f"{what} has shape {shown_shape(array.shape)}, the policy takes {shown_shape(shown)}")
    if array.dtype.kind == "f" and not all_finite(array):
        raise ValueError(f"{what} holds a value that is not finite (NaN or infinity)")
    return np.ascontiguousarray(array if batched else array[np.newaxis])


def _convert(value: Any, spec: ArraySpec | StateSpec, what: str) -> Array:
    try:
        array = np.asarray(value)
    except ValueError:
        raise ValueError(f"{what} is a ragged sequence; give one number for each element") from None
    dtype = np.dtype(spec.dtype)
    if array.dtype.kind not in _CONVERTIBLE[dtype.kind]:
        held = "text" if array.dtype.kind == "U" else f"{array.dtype} values"
        raise ValueError(f"{what} holds {held}, the policy takes {spec.dtype}")
    with np.errstate(over="ignore", under="ignore"):  # the check for finite values comes next
        converted = array.astype(dtype)
    if dtype.kind in "iu" and not np.array_equal(converted, array):
        raise ValueError(f"{what} holds a value out of range for {spec.dtype}")
    return converted


def shown_shape(shape: Sequence[object]) -> str:
    """Return a shape as text, such as `[batch, 4]`."""
    return f"[{', '.join(map(str, shape))}]"
