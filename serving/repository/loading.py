"""Loading of a bundle for the server: its files are read and checked, and its policy is warmed up."""

import os
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

from trpo_tf.serving.bundle.available_memory import check_memory
from trpo_tf.serving.bundle.files import EPISODE_FILES, MANIFEST_FILE, MODEL_FILE
from trpo_tf.serving.bundle.golden import read_golden_file
from trpo_tf.serving.bundle.manifest import model_version, read_checked, read_manifest
from trpo_tf.serving.bundle.signing import signed_copy
from trpo_tf.serving.errors import BundleError
from trpo_tf.serving.repository.catalog import Episode, Model
from trpo_tf.serving.repository.discovery import BundleLocation
from trpo_tf.serving.runtime.policy import Policy
from trpo_tf.serving.support.regular_file import fingerprint
from trpo_tf.serving.verify import check_golden

Fingerprint = tuple[tuple[int, ...] | None, ...]
"""Fingerprint of a folder's content, made of its files' stat data without reading them; the manifest comes first."""


def load_model(location: BundleLocation, public_key: str | None = None, share: int = 1, sequences: int = 0) -> Model:
    """Load a bundle and replay its golden cases, which also warms the policy up.

    With the state of so many `sequences` it may need up to `1 / share` of the available memory. Raises `BundleError`,
    whatever goes wrong.
    """
    try:
        with ExitStack() as stack:
            folder = location.folder.resolve()  # one bundle, even if a link is swapped while it is read
            if public_key is not None:
                folder = stack.enter_context(signed_copy(folder, Path(public_key)))
            manifest = replace(read_manifest(folder), name=location.name)
            check_memory(manifest, share, sequences)
            content, golden = read_checked(folder, manifest, MODEL_FILE), read_golden_file(folder, manifest)
            videos = (file for file in EPISODE_FILES if file in manifest.files)
            episode = next((Episode(file, read_checked(folder, manifest, file)) for file in videos), None)
        policy = Policy(content, manifest)
        check_golden(policy, golden)
        return Model(location.name, location.version or model_version(manifest), policy, episode)
    except BundleError:
        raise
    except Exception as error:
        raise BundleError(f"{location.folder} can't be loaded ({error}); export it again") from error


def folder_fingerprint(folder: Path, *, deep: bool) -> Fingerprint:
    """Return the fingerprint of a bundle's manifest or, with `deep`, of the manifest and every file."""
    files = [os.path.join(base, name) for base, _, names in os.walk(folder) for name in names] if deep else []
    return tuple(map(fingerprint, [str(folder / MANIFEST_FILE), *sorted(files)]))
