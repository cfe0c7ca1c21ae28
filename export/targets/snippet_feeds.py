"""Write Python code that makes the inputs from one observation, for the model card."""

from collections.abc import Mapping

from trpo_tf.serving import Manifest
from trpo_tf.serving.bundle.specs import RESET


def feeds(manifest: Manifest, inputs: Mapping[str, str], *, noise: bool, rows: int = 1) -> str:
    """Write a dict of batches of `rows` copies of `observation`, which has the form that `serving.load(...).act` takes.

    `inputs` are the target's own names of inputs, by the manifest's.
    """
    first, *others = (spec.name for spec in manifest.observation)
    parts = [f"{inputs.get(first, first)!r}: {repeated('', rows)}"]
    if others:
        parts = [f"{inputs.get(name, name)!r}: {repeated(f'[{name!r}]', rows)}" for name in (first, *others)]
    for spec in manifest.state:
        shape = ", ".join(map(str, (rows, *spec.shape)))
        shape += "," if not spec.shape else ""
        parts.append(f'{inputs.get(spec.name, spec.name)!r}: np.zeros(({shape}), "{spec.dtype}")')
    if manifest.state:
        parts.append(f"{inputs.get(RESET, RESET)!r}: np.ones({rows}, bool)")
    if noise:
        shape = ", ".join(map(str, (rows, *manifest.noise.shape)))
        own = manifest.noise.name
        parts.append(f'{inputs.get(own, own)!r}: np.zeros(({shape}), "{manifest.noise.dtype}")')
    return "{" + ", ".join(parts) + "}"


def repeated(part: str, rows: int) -> str:
    """Write a batch of `rows` copies of `observation`, or of a part of it."""
    return f"observation{part}[None]" if rows == 1 else f"np.repeat(observation{part}[None], {rows}, 0)"
