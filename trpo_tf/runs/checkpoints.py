"""Checkpoints of a run: written atomically, and named by their checksum."""

import hashlib
import io
import re
import warnings
from pathlib import Path

import numpy as np

from trpo_tf.errors import UserError
from trpo_tf.learning.training_state import Arrays, TrainingState
from trpo_tf.support.atomic_write import write_atomically

KEPT = 3
_NAME = re.compile(r"\d{6}-[0-9a-f]{64}\.npz")


def pack(arrays: Arrays) -> bytes:
    """Return arrays as an .npz archive without pickle."""
    buffer = io.BytesIO()
    np.savez(buffer, allow_pickle=False, **arrays)
    return buffer.getvalue()


def unpack(content: bytes) -> Arrays:
    """Return the arrays of an archive of `pack`. Raises `ValueError` or `OSError` for other content."""
    with np.load(io.BytesIO(content), allow_pickle=False) as archive:
        return dict(archive)


def save_checkpoint(folder: Path, state: TrainingState) -> Path:
    """Write a checkpoint, named by its number and its SHA-256, and delete all but the last few."""
    content = pack(state.to_arrays())
    path = folder / f"{state.checkpoint:06d}-{hashlib.sha256(content).hexdigest()}.npz"
    write_atomically(path, content)
    for old in _checkpoints(folder)[:-KEPT]:
        old.unlink()
    return path


def load_checkpoint(folder: Path) -> TrainingState:
    """Load the latest undamaged checkpoint, and warn of each damaged one. Raises `UserError` if none is left."""
    for path in reversed(_checkpoints(folder)):
        content = path.read_bytes()
        if path.stem.endswith(hashlib.sha256(content).hexdigest()):
            return TrainingState.from_arrays(unpack(content))
        warnings.warn(f"checkpoint {path.name} is damaged; using the one before it", stacklevel=2)
    raise UserError(f"{folder} holds no checkpoint that can be used; train again")


def _checkpoints(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("*.npz") if _NAME.fullmatch(path.name))


WEIGHTS_FILE = "weights.npz"
