"""A folder of bundles, looked at again and again: what is new is loaded and checked, and what is gone is unloaded.

docs/serving.md says what operators may rely on. Everything here may block: the server calls it in a thread, and takes
the catalog that comes of it.
"""

import logging
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from fractions import Fraction
from itertools import count
from pathlib import Path
from typing import NamedTuple

from serving.catalog import Catalog, Entry, Episode, Model, Release
from serving.errors import BundleError, quoted
from serving.events import emit
from serving.manifest import (
    EPISODE_FILES,
    GOLDEN_FILE,
    MANIFEST_FILE,
    MODEL_FILE,
    model_version,
    read_checked,
    read_manifest,
)
from serving.options import ServeOptions
from serving.policy import Policy
from serving.signature import signed_copy
from serving.verify import check_golden

_VERSION = re.compile("[1-9][0-9]{0,17}")

Mark = tuple[tuple[int, ...] | None, ...]
"""What tells a folder's content from what was there before, without reading it: the manifest's stat comes first."""

OnEvent = Callable[[str, str, str, str], None]
"""Called with model, version, result (`loaded`, `refused` or `unloaded`) and reason, in the thread that loads."""


class Place(NamedTuple):
    """Where a bundle lies, and what it is served as; with version "" as its manifest says."""

    name: str
    version: str
    folder: Path


class Source(NamedTuple):
    """What is served: bundles below `root`, or `only` one, whatever else comes to `root`."""

    root: Path
    only: Place | None


@dataclass(frozen=True)
class Slot:
    """What came of a place: `model` is the last good one, `reason` why what is there now could not be loaded."""

    mark: Mark
    model: Model | None
    reason: str = ""
    is_reported: bool = False


class Repository:
    """The bundles below a folder, and the catalog of those that are loaded. For one thread at a time.

    Attributes:
        is_readable: whether the folder could be read at the last look.
    """

    def __init__(self, source: Source, options: ServeOptions, on_event: OnEvent | None = None) -> None:
        """Load nothing yet: `start` does.

        `on_event` is told of each version that is refused, and of each that is loaded or unloaded after the start.
        """
        self.source, self._options = source, options
        self._on_event = on_event or (lambda *_: None)
        self._slots: dict[Place, Slot] = {}
        self._unloaded: set[str] = set()
        self._missed: set[str] = set()
        self.is_readable, self._is_started = True, False
        self.catalog = Catalog()

    def start(self, unloaded: Iterable[str] = ()) -> None:
        """Load for the first time, all but the models `unloaded`. Raises `BundleError` if none of them loads."""
        self._unloaded.update(unloaded)
        self.refresh()
        if self.catalog.absent and not self.catalog.releases:
            raise BundleError(next(entry.reason for entry in self.catalog.entries if entry.name in self.catalog.absent))
        self.refresh(patient=False)
        self._is_started = True

    def refresh(self, *, patient: bool = True) -> None:
        """Look for what changed, and make the catalog anew.

        What can't be loaded leaves the last good version in place, and is tried again once its files change. With
        `patient` it counts as refused only if its files are still the same the next time: they may be being written.
        """
        found = self._find()
        if found is None:
            return
        before, releases, entries = self.catalog, {}, []
        self._missed = before.releases.keys() - found.keys() - self._unloaded - self._missed
        for name in self._missed:  # a folder that is away for a moment is being replaced
            releases[name] = before.releases[name]
        for name, places in found.items():
            models, tried = self._load_latest(name, places, patient)
            entries += tried
            if models:
                releases[name] = self._release(models, before.releases.get(name))
        wanted = {place for places in found.values() for place in places if place.name not in self._unloaded}
        self._slots = {
            place: slot for place, slot in self._slots.items() if place in wanted or place.name in self._missed
        }
        absent = frozenset(place.name for place in wanted) - releases.keys()
        self.catalog = Catalog(dict(sorted(releases.items())), tuple(entries), absent)
        for name, version in sorted(_loaded(before) - _loaded(self.catalog)):
            self._on_event(name, version, "unloaded", "")

    def load(self, name: str) -> None:
        """Load the latest versions of a model now, also if it was unloaded.

        Raises `LookupError` if there is no such model, `BundleError` if its newest version can't be loaded.
        """
        self._unloaded.discard(name)
        self._slots = {place: slot for place, slot in self._slots.items() if place.name != name or not slot.reason}
        self.refresh(patient=False)
        newest = self._newest(name)
        if newest.reason:
            raise BundleError(newest.reason)

    def unload(self, name: str) -> None:
        """Unload every version of a model, until `load`. Raises `LookupError` if there is no such model."""
        self._newest(name)
        self._unloaded.add(name)
        self.refresh()

    def _newest(self, name: str) -> Entry:
        for entry in self.catalog.entries:
            if entry.name == name:
                return entry
        raise LookupError(f"there is no model {quoted(name)}")

    def _find(self) -> Mapping[str, Sequence[Place]] | None:
        """What there is, by name; None if that can't be seen just now."""
        root, only = self.source
        try:
            found = find_places(root) if only is None else {only.name: [only] if _holds_bundle(only.folder) else []}
        except OSError as error:
            if self.is_readable:
                message = f"{root} can't be read ({error.strerror}): everything stays as it is"
                emit("model", message, level=logging.WARNING)
            self.is_readable = False
            return None
        self.is_readable = True
        return found

    def _load_latest(self, name: str, places: Sequence[Place], patient: bool) -> tuple[list[Model], list[Entry]]:
        """The latest versions that can be loaded, oldest first, and an entry for each that there is, newest first."""
        if name in self._unloaded:
            return [], [Entry(name, place.version, False, "it was unloaded") for place in reversed(places)]
        models: list[Model] = []
        entries = []
        most = self._options.versions
        for place in reversed(places):
            if len(models) == most:
                self._slots.pop(place, None)
                entries.append(Entry(name, place.version, False, f"the latest {most} are kept loaded"))
                continue
            slot = self._slots[place] = self._try(place, patient)
            if slot.model:
                models.insert(0, slot.model)
            version = slot.model.version if slot.model else place.version
            entries.append(Entry(name, version, slot.model is not None, slot.reason))
        if not models and name in self.catalog.releases:
            *_, last = self.catalog.releases[name].versions.values()
            return [last], [*entries, Entry(name, last.version, True, "its folder is gone")]
        return models, entries

    def _try(self, place: Place, patient: bool) -> Slot:
        """Load what a place holds, unless it was tried before."""
        slot = self._slots.get(place)
        if slot is None or slot.mark != mark(place.folder, deep=bool(slot.reason)):
            tried = mark(place.folder, deep=True)  # before reading: what changes meanwhile is noticed the next time
            try:
                model = load_model(place, self._options.public_key)
            except BundleError as error:
                slot = Slot(tried, slot.model if slot else None, str(error))
            else:
                if self._is_started:
                    self._on_event(place.name, model.version, "loaded", "")
                return Slot(tried[:1], model)
            if patient:
                return slot
        if slot.reason and not slot.is_reported:
            self._on_event(place.name, place.version, "refused", slot.reason)
            return replace(slot, is_reported=True)
        return slot

    def _release(self, models: Sequence[Model], before: Release | None) -> Release:
        """Of the same models the release that there was, whose count goes on."""
        if before is not None and list(before.versions.values()) == list(models):
            return before
        return make_release(models, self._options.canary)


def make_release(models: Sequence[Model], canary: float = 0.0) -> Release:
    """Versions of one name, oldest first.

    The newest answers what names no version; with a canary share only that share of it, and the next older one the
    rest. The share is exact, not drawn: with 0.1 every tenth request goes to the newest.
    """
    versions = {model.version: model for model in models}
    newest, older = models[-1], models[-2:][0]
    if not canary or len(models) == 1:
        return Release(versions, lambda: newest)
    share, requests = Fraction(str(canary)), count()

    def choose() -> Model:
        number = next(requests)  # atomic, for callers in threads
        is_due = (number + 1) * share.numerator // share.denominator > number * share.numerator // share.denominator
        return newest if is_due else older

    return Release(versions, choose)


def load_model(place: Place, public_key: str | None = None) -> Model:
    """Load a bundle, and replay its golden cases, which also warms it up. Raises `BundleError`, whatever is wrong."""
    try:
        with ExitStack() as stack:
            folder = place.folder.resolve()  # one bundle, even if a link is swapped while it is read
            if public_key is not None:
                folder = stack.enter_context(signed_copy(folder, Path(public_key)))
            manifest = replace(read_manifest(folder), name=place.name)
            content, golden = (read_checked(folder, manifest, file) for file in (MODEL_FILE, GOLDEN_FILE))
            videos = (file for file in EPISODE_FILES if file in manifest.files)
            episode = next((Episode(file, read_checked(folder, manifest, file)) for file in videos), None)
        policy = Policy(content, manifest)
        check_golden(policy, golden)
        return Model(place.name, place.version or model_version(manifest), policy, episode)
    except BundleError:
        raise
    except Exception as error:
        raise BundleError(f"{place.folder} can't be loaded ({error}); export it again") from error


def settle(root: Path) -> Source:
    """What `root` is: a bundle, a folder that holds one, or a folder of several, or of those that are to come.

    Raises `BundleError` if it is nothing of that.
    """
    if _holds_bundle(root):
        return Source(root, Place(read_manifest(root).name, "", root))
    if not root.is_dir():
        raise BundleError(f"{root} is no folder; give the path of a bundle")
    places = [place for places in find_places(root).values() for place in places]
    if not places and any(root.iterdir()):
        raise BundleError(f"{root} neither is nor holds a bundle; make one with `trpo-tf export`")
    if len(places) > 1 or not places or places[0].version:
        return Source(root, None)
    return Source(root, Place(read_manifest(places[0].folder).name, "", places[0].folder))


def find_places(root: Path) -> dict[str, list[Place]]:
    """The bundles below `root` by model name, oldest version first: `NAME/` is one, or holds `VERSION/` folders.

    A folder without a bundle, or none that can be read, is a model without versions. Raises `OSError` if `root`
    can't be read.
    """
    found = {}
    for name in sorted(os.listdir(root)):
        folder = root / name
        if name.startswith(".") or not name.isprintable() or not os.path.isdir(folder):
            continue
        if _holds_bundle(folder):
            found[name] = [Place(name, "", folder)]
            continue
        try:
            versions = sorted((child for child in os.listdir(folder) if _VERSION.fullmatch(child)), key=int)
        except OSError:
            versions = []
        found[name] = [Place(name, child, folder / child) for child in versions if _holds_bundle(folder / child)]
    return found


def mark(folder: Path, *, deep: bool) -> Mark:
    """The mark of the manifest alone; `deep` of every file."""
    files = [os.path.join(base, name) for base, _, names in os.walk(folder) for name in names] if deep else []
    return tuple(map(_stat, [str(folder / MANIFEST_FILE), *sorted(files)]))


def _stat(path: str) -> tuple[int, ...] | None:
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns


def _holds_bundle(folder: Path) -> bool:
    return os.path.exists(folder / MANIFEST_FILE)


def _loaded(catalog: Catalog) -> set[tuple[str, str]]:
    return {(name, version) for name, release in catalog.releases.items() for version in release.versions}
