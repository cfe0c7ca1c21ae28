"""Observations: one array, or a dict of arrays by the names of the policy's inputs."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from trpo_tf.serving.bundle.input_names import ROOT as ROOT
from trpo_tf.serving.bundle.input_names import Path, input_names

Array = NDArray[Any]

T = TypeVar("T")

Observation = Array | dict[str, Array]
"""An array if the policy has one input; otherwise a dict of arrays by input name."""


def leaves_of(value: Any) -> Iterable[tuple[str, Any]]:
    """Return the arrays of an environment's observation, each with its input name.

    Names are made of the keys of dicts and the indices of tuples, outermost first: {"arm": (a, b)} has `arm_0` and
    `arm_1`. `input_names` has the rules for other keys.
    """
    if type(value) is np.ndarray or not isinstance(value, Mapping | tuple):
        return ((ROOT, value),)
    paths: list[Path] = []
    parts: list[Any] = []
    _flatten(value, (), paths, parts)
    return zip(input_names(tuple(paths)), parts, strict=True)


def parts_of(value: Any, names: Sequence[str]) -> Mapping[str, Any]:
    """Return the parts of an observation by input name. `value` is a dict with all `names`, or from an environment."""
    if isinstance(value, Mapping) and all(name in value for name in names):
        return value
    return dict(leaves_of(value))


def observation_of(value: Any, names: Sequence[str] = ()) -> Observation:
    """Convert an environment's observation to arrays. A dict that has all of `names` is taken as parts by name."""
    parts = parts_of(value, names).items() if names else leaves_of(value)
    return structured({name: np.asarray(part) for name, part in parts})


def by_name(observation: Observation, only: str) -> dict[str, Array]:
    """Return a dict of the arrays by input name; `only` is the name of a single array."""
    return dict(observation) if isinstance(observation, dict) else {only: observation}


def structured(parts: Mapping[str, T]) -> T | dict[str, T]:
    """Return parts by name as in an `Observation`: a single part without its name, several as a dict."""
    return dict(parts) if len(parts) > 1 else next(iter(parts.values()))


def map_parts(function: Callable[..., T], observation: Any, *others: Any) -> T | dict[str, T]:
    """Apply `function` to each part of an observation, together with the parts of `others` of the same name."""
    if isinstance(observation, dict):
        return {name: function(part, *(other[name] for other in others)) for name, part in observation.items()}
    return function(observation, *others)


def take(observations: Observation, rows: Any) -> Observation:
    """Return the rows of each part that an index, slice or mask selects."""
    return map_parts(lambda part: part[rows], observations)


def write(target: Observation, source: Observation) -> None:
    """Copy each part of `source` into the same part of `target`."""

    def copy(into: Array, values: Array) -> None:
        into[...] = values

    map_parts(copy, target, source)


def is_finite(observation: Observation) -> bool:
    """Return whether no part holds an infinity or NaN."""
    return all(map(all_finite, list_parts(observation)))


def all_finite(array: Array) -> bool:
    """Return whether an array holds no infinity or NaN."""
    return 0 not in np.isfinite(array).tobytes()  # several times faster than NumPy's `all`


def list_parts(observation: Observation) -> list[Array]:
    """Return the arrays of an observation as a list, without their names."""
    return list(observation.values()) if isinstance(observation, dict) else [observation]


def batch_size(observations: Observation) -> int:
    """Return the batch size of observations [batch, ...]."""
    return len(list_parts(observations)[0])


def _flatten(value: Any, path: Path, paths: list[Path], parts: list[Any]) -> None:
    if type(value) is np.ndarray:  # the common case first, since `isinstance` with an abstract class is slower
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
