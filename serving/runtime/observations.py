"""Observations: one array, or several by name, as the policy's inputs are."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trpo_tf.serving.bundle.input_names import ROOT as ROOT
from trpo_tf.serving.bundle.input_names import Path, input_names

Array = NDArray[Any]

Observation = Array | dict[str, Array]
"""An array where the policy has one input; otherwise an array for each, by its name."""


def leaves_of(value: Any) -> Iterable[tuple[str, Any]]:
    """The arrays of an observation as an environment gives it, each with its input name.

    Those of a dict have their keys as names, those of a tuple their places, behind the name of what holds them:
    {"arm": (a, b)} holds `arm_0` and `arm_1`. `input_names` says what becomes of other keys.
    """
    if type(value) is np.ndarray or not isinstance(value, Mapping | tuple):
        return ((ROOT, value),)
    paths: list[Path] = []
    parts: list[Any] = []
    _flatten(value, (), paths, parts)
    return zip(input_names(tuple(paths)), parts, strict=True)


def parts_of(value: Any, names: Sequence[str]) -> Mapping[str, Any]:
    """The parts of an observation by input name, from a dict by `names` or as an environment gives it."""
    if isinstance(value, Mapping) and all(name in value for name in names):
        return value
    return dict(leaves_of(value))


def observation_of(value: Any, names: Sequence[str] = ()) -> Observation:
    """An observation as an environment gives it, as arrays; a dict that has all of `names` is one by these names."""
    parts = parts_of(value, names).items() if names else leaves_of(value)
    return structured({name: np.asarray(part) for name, part in parts})  # type: ignore[no-any-return]


def by_name(observation: Observation, only: str) -> dict[str, Array]:
    """The arrays by input name, which is `only` if there is but one."""
    return dict(observation) if isinstance(observation, dict) else {only: observation}


def structured(parts: Mapping[str, Any]) -> Any:
    """Parts by name as an `Observation`: the only one by itself."""
    return dict(parts) if len(parts) > 1 else next(iter(parts.values()))


def map_parts(function: Callable[..., Any], observation: Any, *others: Any) -> Any:
    """`function` of each part, and of those of `others` that have the same names."""
    if isinstance(observation, dict):
        return {name: function(part, *(other[name] for other in others)) for name, part in observation.items()}
    return function(observation, *others)


def take(observations: Observation, rows: Any) -> Observation:
    """The rows that an index, slice or mask chooses of each part."""
    return map_parts(lambda part: part[rows], observations)  # type: ignore[no-any-return]


def write(target: Observation, source: Observation) -> None:
    """Copy each part of `source` into that of `target`."""

    def copy(into: Array, values: Array) -> None:
        into[...] = values

    map_parts(copy, target, source)


def is_finite(observation: Observation) -> bool:
    """Whether no part holds an infinity or NaN."""
    # Looking for a zero byte is several times faster than NumPy's `all`.
    return all(b"\0" not in np.isfinite(part).tobytes() for part in list_parts(observation))


def list_parts(observation: Observation) -> list[Array]:
    """The arrays, without their names."""
    return list(observation.values()) if isinstance(observation, dict) else [observation]


def batch_size(observations: Observation) -> int:
    """Rows of observations [batch, ...]."""
    return len(list_parts(observations)[0])


def _flatten(value: Any, path: Path, paths: list[Path], parts: list[Any]) -> None:
    if type(value) is np.ndarray:  # most are, and `isinstance` of an abstract class takes longer
        paths.append(path)
        parts.append(value)
    elif isinstance(value, Mapping):
        for key, part in value.items():
            _flatten(part, (*path, str(key)), paths, parts)
    elif isinstance(value, tuple):
        for place, part in enumerate(value):
            _flatten(part, (*path, place), paths, parts)
    else:
        paths.append(path)
        parts.append(value)
