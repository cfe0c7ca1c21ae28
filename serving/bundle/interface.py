"""The interface of a policy: the inputs and outputs that clients rely on, and whether a new version breaks them."""

from typing import Any, NamedTuple

from trpo_tf.serving.bundle.manifest import Manifest
from trpo_tf.serving.bundle.specs import ArraySpec, NoiseSpec

Array = tuple[str, tuple[int, ...]]
"""Datatype, and shape without the batch."""


class Interface(NamedTuple):
    """Names, datatypes and shapes of a policy's inputs and outputs, its noise, and its batch size.

    Attributes:
        noise: name, law, datatype and shape; None if the graph has no noise input.
        batch: the only batch size that the graph accepts; None for any.
    """

    inputs: frozenset[tuple[str, Array]]
    action: tuple[str, Array]
    outputs: frozenset[tuple[str, Array]]
    noise: tuple[str, str, Array] | None
    batch: int | None


def interface_of(manifest: Manifest) -> Interface:
    """Return the interface that a manifest declares."""
    noise = manifest.noise
    return Interface(
        inputs=frozenset((spec.name, _array(spec)) for spec in manifest.step_inputs),
        action=(manifest.action.name, _array(manifest.action)),
        outputs=frozenset((spec.name, _array(spec)) for spec in manifest.outputs[1:]),
        noise=None if manifest.graph.noise == "none" else (noise.name, noise.law, _array(noise)),
        batch=manifest.graph.batch,
    )


def to_json(interface: Interface) -> list[Any]:
    """Convert an interface to lists for JSON, which `from_json` reads back."""
    inputs, action, outputs, noise, batch = interface
    return [sorted(inputs), action, sorted(outputs), noise, batch]


def from_json(document: list[Any]) -> Interface:
    """Return the interface that `to_json` has written; JSON may have turned its tuples into lists."""
    inputs, action, outputs, noise, batch = document
    return Interface(
        frozenset(map(_named, inputs)),
        _named(action),
        frozenset(map(_named, outputs)),
        noise and (noise[0], noise[1], _array_of(noise[2])),
        batch,
    )


def breaking_change(old: Interface, new: Interface) -> str:
    """Describe a change from `old` to `new` that breaks clients; return an empty text if there is none.

    A new version may add outputs, add a noise input, or accept any batch size instead of a fixed one. Bounds, and all
    else that an interface doesn't hold, are free to change.
    """
    if old.inputs != new.inputs:
        return f"its inputs are {_shown(new.inputs)}, not {_shown(old.inputs)}"
    if old.action != new.action:
        return f"its action is {_shown({new.action})}, not {_shown({old.action})}"
    if not old.outputs <= new.outputs:
        return f"its further outputs are {_shown(new.outputs) or 'none'}, not {_shown(old.outputs)}"
    if old.noise is not None and old.noise != new.noise:
        return f"its noise is {_shown_noise(new.noise)}, not {_shown_noise(old.noise)}"
    if new.batch not in (None, old.batch):
        return f"its batches are of {new.batch}, not of {'any number' if old.batch is None else old.batch}"
    return ""


def _named(document: list[Any]) -> tuple[str, Array]:
    name, array = document
    return name, _array_of(array)


def _array_of(document: list[Any]) -> Array:
    datatype, shape = document
    return datatype, tuple(shape)


def _array(spec: ArraySpec | NoiseSpec) -> Array:
    return spec.dtype, spec.shape


def _shown(arrays: frozenset[tuple[str, Array]] | set[tuple[str, Array]]) -> str:
    return ", ".join(f"{name} {dtype}{list(shape)}" for name, (dtype, shape) in sorted(arrays))


def _shown_noise(noise: tuple[str, str, Array] | None) -> str:
    return "none" if noise is None else f"{noise[1]} {_shown({(noise[0], noise[2])})}"
