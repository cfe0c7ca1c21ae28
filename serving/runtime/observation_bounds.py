"""Handling of observations outside the observation space: reject, clip, or allow; and of masks without an action."""

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from trpo_tf.serving.bundle.manifest import Manifest
from trpo_tf.serving.bundle.specs import ArraySpec
from trpo_tf.serving.runtime.action_masks import mask_check
from trpo_tf.serving.runtime.observations import Array, Observation, by_name, structured

Bounded = Callable[[Observation], Observation]


def observation_check(manifest: Manifest, mode: str) -> Bounded | None:
    """Return the `bounds_check` of a policy; in every mode it raises `ValueError` for a mask that allows no action."""
    bounded, mask = bounds_check(manifest.observation, mode), manifest.mask
    if mask is None:
        return bounded
    check_mask = mask_check(mask, manifest.action)

    def check(observations: Observation) -> Observation:
        checked = observations if bounded is None else bounded(observations)
        check_mask(by_name(checked, mask)[mask])
        return checked

    return check


def bounds_check(specs: Sequence[ArraySpec], mode: str) -> Bounded | None:
    """Return a function that checks observations [batch, ...] and returns them; None if there is nothing to check.

    With mode `reject` the function raises `ValueError` for a value outside its bounds. With `clip` it moves the value
    to the nearest bound. Bounds are rounded to the observation's dtype.
    """
    limits = {spec.name: _limits(spec) for spec in specs if mode != "allow" and _is_bounded(spec)}
    if not limits:
        return None

    def clip(observations: Observation) -> Observation:
        parts = by_name(observations, specs[0].name)
        parts.update({name: np.clip(parts[name], *limits[name]) for name in limits})
        return structured(parts)

    def reject(observations: Observation) -> Observation:
        parts = by_name(observations, specs[0].name)
        for name, (low, high) in limits.items():
            if (parts[name] < low).any() or (parts[name] > high).any():
                raise ValueError(f"input {name!r} is outside the observation space; its bounds are in the metadata")
        return observations

    return clip if mode == "clip" else reject


def is_outside(values: Array, spec: ArraySpec) -> NDArray[np.bool_]:
    """Return a mask [batch, ...] of the elements that are outside the bounds."""
    if not _is_bounded(spec):
        return np.zeros(values.shape, np.bool_)
    low, high = _limits(spec)
    return np.asarray((values < low) | (values > high))


def _is_bounded(spec: ArraySpec) -> bool:
    return spec.dtype != "bool" and any(np.isfinite(bound).any() for bound in spec.bounds())


def _limits(spec: ArraySpec) -> tuple[Array, Array]:
    """Return the bounds in the dtype of the array.

    As float64 they would not do: a float32 that is exactly at its bound may be beyond it.
    """
    dtype = np.dtype(spec.dtype)
    if dtype.kind == "f":
        with np.errstate(over="ignore"):  # a bound beyond the dtype's range becomes infinite
            low, high = (bound.astype(dtype) for bound in spec.bounds())
        return low, high
    info = np.iinfo(dtype)
    low, high = (
        np.array(
            [int(min(max(x, info.min), info.max)) if np.isfinite(x) else end for x in bound.ravel().tolist()], dtype
        )
        for bound, end in zip(spec.bounds(), (info.min, info.max), strict=True)
    )
    return low.reshape(spec.shape), high.reshape(spec.shape)
