"""Watches a folder of bundles: loads and checks new versions, and unloads removed ones.

docs/howto/serve/serve-models.md says what operators may rely on. Everything here may block, so the server calls it in a
thread, and then takes the new catalog.
"""

import errno
import logging
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from trpo_tf.serving.bundle.interface import Interface, breaking_change, interface_of
from trpo_tf.serving.bundle.manifest import read_manifest
from trpo_tf.serving.errors import BundleError, quoted
from trpo_tf.serving.options import ServeOptions
from trpo_tf.serving.repository.canary import make_release
from trpo_tf.serving.repository.catalog import Catalog, Entry, Model, Release
from trpo_tf.serving.repository.discovery import (
    BundleLocation,
    Found,
    Source,
    find_bundles,
    holds_bundle,
    resolve_source,
)
from trpo_tf.serving.repository.loading import Fingerprint, folder_fingerprint, load_model
from trpo_tf.serving.support.logs import emit

OnEvent = Callable[[str, str, str, str], None]
"""Called with model, version, result (`loaded`, `refused` or `unloaded`) and reason, in the thread that loads."""

Acting = tuple[str, Interface]
"""Version that clients of a model rely on, and its interface."""


class Slot(NamedTuple):
    """State of one bundle path.

    Attributes:
        fingerprint: fingerprint of the files at the last attempt to load them; of the manifest alone if that succeeded.
        model: the last model that loaded.
        reason: why the current files did not load; empty if they did.
        refusal: why loading them was not attempted; empty if it was.
        is_reported: whether the operator was told the reason.
    """

    fingerprint: Fingerprint
    model: Model | None
    reason: str = ""
    refusal: str = ""
    is_reported: bool = False

    def is_current(self, location: BundleLocation) -> bool:
        """Return whether the model was loaded from the files as they are now."""
        return (
            self.model is not None
            and not self.reason
            and self.fingerprint == folder_fingerprint(location.folder, deep=False)
        )


def _device_of(folder: Path) -> int | None:
    """Return the device of the file system that a folder is on; None if there is no folder."""
    try:
        return os.stat(folder).st_dev
    except FileNotFoundError:
        return None


class Repository:
    """The bundles below a folder, and the catalog of the loaded ones. For one thread at a time.

    Attributes:
        is_readable: whether the folder could be read at the last scan.
    """

    def __init__(self, source: Source, options: ServeOptions, on_event: OnEvent | None = None) -> None:
        """Set up an empty catalog; `start` loads the models.

        `on_event` is called for each version that is refused, and for each that is loaded or unloaded after the start.
        """
        self.source, self._options = source, options
        self._is_reporting, self._reported_notes = on_event is not None, frozenset[str]()
        self._on_event = on_event or (lambda *_: None)
        self._slots: dict[BundleLocation, Slot] = {}
        self._interfaces: dict[BundleLocation, tuple[Fingerprint, Interface | None]] = {}
        self._unloaded: set[str] = set()
        self._acted: dict[str, Acting] = {}
        self._missed: set[str] = set()
        self.is_readable, self._is_started = True, False
        self._device: int | None = None  # that held the folder when there was a bundle last
        self.catalog = Catalog(is_strict=options.strict_readiness)

    def start(self, unloaded: Iterable[str] = (), acted: Mapping[str, Acting] | None = None) -> None:
        """Load all models for the first time, except the models `unloaded`.

        A version must keep its model's interface in `acted`, which another worker process has served to clients.
        Raises `BundleError` if there are models to load and none of them loads.
        """
        self._unloaded.update(unloaded)
        self._acted.update(acted or {})
        self.refresh()
        if self.catalog.absent and not self.catalog.releases:
            raise BundleError(next(entry.reason for entry in self.catalog.entries if entry.name in self.catalog.absent))
        self.refresh(patient=False)
        self._is_started = True

    def refresh(self, *, patient: bool = True) -> None:
        """Scan the repository for changes, and replace the catalog.

        If files can't be loaded, the last good model stays, and they are tried again once they change. With `patient`
        they are reported as refused only if they are the same at the next scan: they may still be being written.
        """
        found = self._find()
        if found is None:
            return
        before, releases, entries = self.catalog, {}, []
        self._missed = (
            before.releases.keys() - found.locations - found.unreadable.keys() - self._unloaded - self._missed
        )
        # A folder that is missing may be being replaced, so its model stays until the next scan.
        kept = self._missed | (before.releases.keys() & found.unreadable.keys())
        for name in kept:
            releases[name] = before.releases[name]
            reason = found.unreadable.get(name, "its folder is gone")
            entries += [Entry(name, version, True, _printable(reason)) for version in releases[name].versions]
        for name, locations in found.locations.items():
            models, tried = self._load_latest(name, locations, patient)
            entries += tried
            if models:
                releases[name] = self._release(models, before.releases.get(name))
        wanted = {
            location
            for locations in found.locations.values()
            for location in locations
            if location.name not in self._unloaded
        }
        self._slots = {
            location: slot for location, slot in self._slots.items() if location in wanted or location.name in kept
        }
        self._acted = {name: acted for name, acted in self._acted.items() if name not in releases}
        self._interfaces = {location: known for location, known in self._interfaces.items() if location in wanted}
        absent = frozenset(location.name for location in wanted) - releases.keys()
        releases = dict(sorted(releases.items()))
        self.catalog = Catalog(releases, tuple(entries), absent, self._options.strict_readiness)
        for name, version in sorted(_loaded(before) - _loaded(self.catalog)):
            self._on_event(name, version, "unloaded", "")

    def load(self, name: str) -> None:
        """Load the latest versions of a model now, even if it was unloaded.

        Raises `LookupError` if there is no such model, and `BundleError` if its newest version can't be loaded.
        """
        self._unloaded.discard(name)
        self._slots = {
            location: slot for location, slot in self._slots.items() if location.name != name or not slot.reason
        }
        self.refresh(patient=False)
        newest = self._newest(name)
        if newest.reason:
            raise BundleError(newest.reason)

    def unload(self, name: str) -> None:
        """Unload every version of a model until `load` is called. Raises `LookupError` if there is no such model."""
        self._newest(name)
        self._unloaded.add(name)
        self._acted.pop(name, None)
        self.refresh()

    def acting(self, name: str) -> Acting | None:
        """Return the version and interface that clients of a model rely on, or None.

        If the model is not loaded, they are those that the process before this one has served.
        """
        if name not in self.catalog.releases:
            return self._acted.get(name)
        newest = [*self.catalog.releases[name].versions.values()][-1]
        return newest.version, interface_of(newest.policy.manifest)

    def _newest(self, name: str) -> Entry:
        for entry in self.catalog.entries:
            if entry.name == name:
                return entry
        raise LookupError(f"there is no model {quoted(name)}")

    def _find(self) -> Found | None:
        """Return the bundles that are there; None if the folder can't be read now."""
        root, only = self.source
        try:
            if only is not None:
                found = Found({only.name: [only] if holds_bundle(only.folder) else []}, {}, [])
            else:
                found = find_bundles(root)
                if holds_bundle(root):
                    found = self._find_at_root(found)
            self._check_mount(found)
        except OSError as error:
            if self.is_readable:
                self._say(f"{root} can't be read ({error.strerror}): everything stays as it is")
            self.is_readable = False
            return None
        self.is_readable = True
        for note in found.notes:
            if note not in self._reported_notes:
                self._say(note)
        self._reported_notes = frozenset(found.notes)
        return found

    def _check_mount(self, found: Found) -> None:
        """Raise `OSError` if nothing is found where a volume was mounted that is not any more.

        The mount's folder is empty then, which does not mean that the models were removed.
        """
        device = _device_of(self.source.root)
        if any(found.locations.values()):
            self._device = device
        elif None not in (device, self._device) and device != self._device:
            raise OSError(errno.ENODEV, "what was mounted there is gone")

    def _find_at_root(self, found: Found) -> Found:
        """Handle a manifest that has appeared in a repository: if it held no models yet, it becomes a bundle."""
        root = self.source.root
        if self.catalog.releases or any(found.locations.values()):
            note = f"{root} holds a manifest since, and models: these are served until the server is started again"
            return found._replace(notes=[*found.notes, note])
        try:
            self.source = resolve_source(root)
        except BundleError as error:  # it may be being written
            return Found({}, {}, [str(error)])
        return self._find() or found

    def _say(self, message: str) -> None:
        """Log a warning, in one of several workers only."""
        if self._is_reporting:
            emit("model", message, level=logging.WARNING)

    def _refusals(self, name: str, locations: Sequence[BundleLocation]) -> dict[BundleLocation, str]:
        """Return the versions that may not be served, with the reason: their interface breaks existing clients.

        A version is compared with the next older one in the folder that is not refused itself. Only manifests are
        compared, so that a server refuses the same versions when it starts as when it runs. The oldest version, and a
        bundle that is replaced in its folder, are compared with the version that clients rely on now.
        """
        acting = self.acting(name)
        refused: dict[BundleLocation, str] = {}
        older: Acting | None = None
        for location in locations:
            interface, slot = self._interface(location), self._slots.get(location)
            if interface is None:
                continue  # loading says why
            reason = ""
            if slot is None or not slot.is_current(location):
                reason = _misfit((location.version, interface), older or acting)
            if reason:
                refused[location] = reason
            else:
                older = location.version or "before", interface
        return refused

    def _interface(self, location: BundleLocation) -> Interface | None:
        """Return the interface that a bundle's manifest declares; None if the manifest can't be read."""
        now = folder_fingerprint(location.folder, deep=False)
        known = self._interfaces.get(location)
        if known is None or known[0] != now:
            try:
                manifest = read_manifest(location.folder)
            except BundleError:
                known = now, None
            else:
                known = now, interface_of(manifest)
                if self.source.only == location and manifest.name != location.name:
                    self._say(
                        f"the bundle is called {manifest.name} now; it is served as {location.name} until a restart"
                    )
            self._interfaces[location] = known
        return known[1]

    def _load_latest(
        self, name: str, locations: Sequence[BundleLocation], patient: bool
    ) -> tuple[list[Model], list[Entry]]:
        """Load the latest versions of a model.

        Returns the loaded ones, oldest first, and an entry for every version in the folder, newest first.
        """
        if name in self._unloaded:
            return [], [Entry(name, location.version, False, "it was unloaded") for location in reversed(locations)]
        # Refusals need every manifest, so they are determined only once there is something to load.
        refusals: dict[BundleLocation, str] | None = None
        models: list[Model] = []
        entries = []
        most = self._options.versions
        for location in reversed(locations):
            if len(models) == most:
                self._slots.pop(location, None)
                entries.append(Entry(name, location.version, False, f"the latest {most} are kept loaded"))
                continue
            known = self._slots.get(location)
            if refusals is None and not (known and known.is_current(location)):
                refusals = self._refusals(name, locations)
            slot = self._slots[location] = self._try(location, patient, (refusals or {}).get(location, ""))
            if slot.model:
                models.insert(0, slot.model)
            version = slot.model.version if slot.model else location.version
            entries.append(Entry(name, version, slot.model is not None, slot.reason))
        if not models and name in self.catalog.releases:
            *_, last = self.catalog.releases[name].versions.values()
            return [last], [*entries, Entry(name, last.version, True, "its folder is gone")]
        return models, entries

    def _try(self, location: BundleLocation, patient: bool, change: str) -> Slot:
        """Load the bundle at a location, unless its files were tried before.

        `change` says how its interface breaks existing clients; empty if it doesn't.
        """
        allowed = self._options.allow_new_interface
        refusal = "" if allowed or not change else f"{change}; --allow-new-interface lets it take over"
        slot = self._slots.get(location)
        if (
            slot is None
            or slot.refusal != refusal
            or slot.fingerprint != folder_fingerprint(location.folder, deep=bool(slot.reason))
        ):
            # Taken before reading, so that files that change meanwhile are noticed at the next scan.
            tried = folder_fingerprint(location.folder, deep=True)
            before = slot.model if slot else None
            try:
                if refusal:
                    raise BundleError(refusal)
                options = self._options
                model = load_model(location, options.public_key, options.workers, options.kept_sequences)
            except BundleError as error:
                slot = Slot(tried, before, _printable(str(error)), refusal)
            else:
                if change:
                    self._say(f"{location.name} version {model.version} has another interface: {change}")
                if self._is_started:
                    self._on_event(location.name, model.version, "loaded", "")
                return Slot(tried[:1], model)
            if patient:
                return slot
        if slot.reason and not slot.is_reported:
            self._on_event(location.name, location.version, "refused", slot.reason)
            return slot._replace(is_reported=True)
        return slot

    def _release(self, models: Sequence[Model], before: Release | None) -> Release:
        """Return a release of the models: the one before if they are the same, so that the canary count goes on."""
        if before is not None and list(before.versions.values()) == list(models):
            return before
        return make_release(models, self._options.canary)


def _misfit(candidate: Acting, acting: Acting | None) -> str:
    """Return why a version may not replace the acting one; empty if it may.

    The newer of the two must answer all requests that the older one answers.
    """
    if acting is None:
        return ""
    (version, interface), (known, expected) = candidate, acting
    if _is_older(version, known):
        change = breaking_change(interface, expected)
        return change and f"version {known} is acting, and differs: {change}"
    change = breaking_change(expected, interface)
    return change and f"{change}, as clients of version {known} expect"


def _is_older(version: str, acting: str) -> bool:
    """Return whether both versions are numbers, and the first is smaller."""
    return version.isdecimal() and acting.isdecimal() and int(version) < int(acting)


def _printable(text: str) -> str:
    """Escape surrogates, which JSON can't hold: file names may contain bytes that are not text."""
    return text.encode(errors="backslashreplace").decode()


def _loaded(catalog: Catalog) -> set[tuple[str, str]]:
    return {(name, version) for name, release in catalog.releases.items() for version in release.versions}
