"""A repository that is followed without a server around it."""

import shutil
from pathlib import Path

import numpy as np

from trpo_tf.serving.options import ServeOptions
from trpo_tf.serving.repository.discovery import resolve_source
from trpo_tf.serving.repository.repository import Repository

OPTIONS = ServeOptions()


def put(bundle: Path, folder: Path) -> Path:
    """A copy of a bundle, all of it there at once."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    aside = Path(shutil.copytree(bundle, folder.parent / f".{folder.name}"))
    return aside.rename(folder)


class Followed:
    """A repository, and what it tells of."""

    def __init__(self, root: Path, options: ServeOptions = OPTIONS):
        self.events: list[tuple[str, ...]] = []
        self.repository = Repository(resolve_source(root), options, lambda *event: self.events.append(event))
        self.repository.start()

    def scan(self) -> list[tuple[str, ...]]:
        """Scan once more, and return the events: model, version, result."""
        self.events.clear()
        self.repository.refresh()
        return [event[:3] for event in self.events]

    @property
    def loaded(self) -> dict[str, list[str]]:
        return {name: list(release.versions) for name, release in self.repository.catalog.releases.items()}

    def answers(self, name: str) -> str:
        """The version that answers for the model, which must be able to act."""
        model = self.repository.catalog.find(name)
        assert model.policy.act_batch(np.zeros((1, 4), np.float32)).shape == (1,)
        assert model.policy.manifest.name == name
        return model.version
