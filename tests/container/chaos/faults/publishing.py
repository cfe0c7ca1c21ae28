"""Publishes versions of models, good ones and others, and removes the old ones."""

import os
import shutil
import threading
import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from tests.container.chaos.faults.models import BUNDLES, DAMAGES, Action, bomb, make_version
from tests.container.chaos.target import GUEST, MODEL, RECURRENT, WIDE
from trpo_tf.serving.bundle.files import MANIFEST_FILE, MODEL_FILE

EVERY_SECONDS = 1.0
KEPT, OTHERS_KEPT = 2, 3
"""Good versions of the model in the repository at a time, and others.

So the oldest is always one that must not act, also when a worker is started.
"""

GUEST_PERIOD, GUEST_STAYS = 5, 3
"""Seconds between visits of the model that comes and goes, and of a visit."""

COPY_SECONDS = 0.5
"""How long a slow copy takes."""


@dataclass
class Publisher:
    """The repository below `folder`, and the `stock` of versions that it is filled from."""

    folder: Path
    stock: Path
    answers: dict[str, dict[str, list[Action]]] = field(default_factory=lambda: {MODEL: {}, GUEST: {}})
    published: Counter[str] = field(default_factory=Counter)

    def prepare(self, seconds: float) -> None:
        """Make all versions that will be needed, as nothing should take long later, and publish the first."""
        bomb()
        for model, count in ((MODEL, 2 * int(seconds + 30)), (GUEST, int(seconds + 30) // GUEST_PERIOD + 1)):
            for version in range(1, count + 1):
                actions = make_version(model, version, self.stock / model / str(version))
                self.answers[model][str(version)] = actions
            (self.folder / model).mkdir(parents=True)
        shutil.copytree(BUNDLES / WIDE, self.folder / WIDE)
        self._publish_again(0)
        os.mkfifo(self.folder / "fifo")
        (self.folder / "README").write_text("not a model\n")
        self._move(MODEL, 1, self.folder / MODEL / "1")

    def run(self, is_over: threading.Event) -> None:
        """Once a second a good version, and another that is damaged or copied slowly."""
        began, turn = time.monotonic(), 0
        while not is_over.wait(max(0.0, began + turn * EVERY_SECONDS - time.monotonic())):
            turn += 1
            self._move(MODEL, 2 * turn + 1, self.folder / MODEL / str(2 * turn + 1))
            self.published["good"] += 1
            for old in (2 * (turn - OTHERS_KEPT), 2 * (turn - KEPT) + 1):
                _remove(self.folder / MODEL / str(old))
            self._visit(turn)
            if turn % GUEST_PERIOD == 0:
                self._publish_again(turn)
            if not is_over.wait(EVERY_SECONDS / 2):
                self._publish_another(turn)

    def _publish_another(self, turn: int) -> None:
        """A version that is not as it should be: of the model, or as a model of its own."""
        kinds = ("slow copy", *DAMAGES)
        kind, version = kinds[turn % len(kinds)], 2 * turn + 2
        self.published[kind] += 1
        if kind == "slow copy":
            self._copy_slowly(version)
            return
        prepared = self.stock / f"damaged-{version}"
        self._move(MODEL, version, prepared)
        DAMAGES[kind](prepared)
        if turn // len(kinds) % 2:
            _remove(self.folder / "damaged")
            prepared.rename(self.folder / "damaged")
        else:
            prepared.rename(self.folder / MODEL / str(version))

    def _copy_slowly(self, version: int) -> None:
        """As a copy over a network is: first the manifest, the largest file last and in two parts."""
        source, folder = self.stock / MODEL / str(version), self.folder / MODEL / str(version)
        folder.mkdir()
        for name in sorted(os.listdir(source), key=(MANIFEST_FILE, "golden.npz", MODEL_FILE).index):
            content = (source / name).read_bytes()
            with open(folder / name, "wb", buffering=0) as file:
                file.write(content[: len(content) // 2])
                time.sleep(COPY_SECONDS / 3)
                file.write(content[len(content) // 2 :])

    def _publish_again(self, turn: int) -> None:
        """The policy with state as its next version: with the same weights, so that episodes go on."""
        stock, folder = self.stock / RECURRENT / str(turn + 1), self.folder / RECURRENT
        shutil.copytree(BUNDLES / RECURRENT, stock)
        folder.mkdir(exist_ok=True)
        stock.rename(folder / str(turn + 1))
        self.published[RECURRENT] += 1
        _remove(folder / str(turn + 1 - KEPT * GUEST_PERIOD))

    def _visit(self, turn: int) -> None:
        visit, since = divmod(turn, GUEST_PERIOD)
        folder = self.folder / GUEST
        if since == 0:
            folder.mkdir(exist_ok=True)
            self._move(GUEST, visit, folder / str(visit))
            self.published[GUEST] += 1
        elif since == GUEST_STAYS:
            _remove(folder)

    def _move(self, model: str, version: int, folder: Path) -> None:
        (self.stock / model / str(version)).rename(folder)


def _remove(folder: Path) -> None:
    """Remove a folder, whatever is in it."""
    with suppress(FileNotFoundError):
        shutil.rmtree(folder)
