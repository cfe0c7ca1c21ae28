"""Write the inputs of one observation as Python, for the lines of a model card."""

from collections.abc import Mapping

from trpo_tf.serving import Manifest


def feeds(manifest: Manifest, inputs: Mapping[str, str], *, noise: bool, rows: int = 1) -> str:
    """Write a dict of batches of so many rows, from `observation` as `serving.load(...).act` takes it.

    `inputs` are names that the target has instead of the manifest's.
    """
    first, *others = (spec.name for spec in manifest.observation)
    parts = [f"{inputs.get(first, first)!r}: {repeated('', rows)}"]
    if others:
        parts = [f"{inputs.get(name, name)!r}: {repeated(f'[{name!r}]', rows)}" for name in (first, *others)]
    if noise:
        shape = ", ".join(map(str, (rows, *manifest.noise.shape)))
        own = manifest.noise.name
        parts.append(f'{inputs.get(own, own)!r}: np.zeros(({shape}), "{manifest.noise.dtype}")')
    return "{" + ", ".join(parts) + "}"


def repeated(part: str, rows: int) -> str:
    """Write a batch that has `observation`, or a part of it, in each of so many rows."""
    return f"observation{part}[None]" if rows == 1 else f"np.repeat(observation{part}[None], {rows}, 0)"
