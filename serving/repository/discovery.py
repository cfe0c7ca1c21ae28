"""Search for bundles below a folder, and the names and versions that they are served as."""

import errno
import os
import re
import stat
import unicodedata
from collections import defaultdict
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

from trpo_tf.serving.bundle.files import MANIFEST_FILE
from trpo_tf.serving.bundle.manifest import read_manifest
from trpo_tf.serving.errors import BundleError

VERSION_RULE = "a version's folder is a positive integer of at most 18 digits without leading zeros, such as 42"

_VERSION = re.compile("[1-9][0-9]{0,17}")
_MOST_SHOWN = 5


class BundleLocation(NamedTuple):
    """Folder of a bundle, with the model name and version that it is served as; version "" means the manifest's."""

    name: str
    version: str
    folder: Path


class Source(NamedTuple):
    """Source of the models: all bundles below `root`, or if set the `only` one, whatever else appears in `root`."""

    root: Path
    only: BundleLocation | None

    def to_json(self) -> Any:
        """Return the source as JSON, for a process that is to serve the same."""
        return [str(self.root), self.only and [self.only.name, str(self.only.folder)]]

    @classmethod
    def from_json(cls, source: Any) -> "Source":
        """Return the source that `to_json` gave."""
        root, only = source
        return cls(Path(root), only and BundleLocation(only[0], "", Path(only[1])))


class Found(NamedTuple):
    """Result of a search for bundles below a folder.

    Attributes:
        locations: bundles by model name, oldest version first. A folder without a bundle is a model without versions.
        unreadable: reasons by the name of each folder that can't be read.
        notes: messages for the operator: ignored files and folders with the reason, and names that look alike.
    """

    locations: dict[str, list[BundleLocation]]
    unreadable: dict[str, str]
    notes: list[str]


def resolve_source(root: Path) -> Source:
    """Return the source at `root`: a single bundle if it holds a manifest, otherwise a repository.

    Raises `BundleError` if it is not a folder, can't be read, or holds files but no bundle.
    """
    try:
        if holds_bundle(root):
            return Source(root, BundleLocation(read_manifest(root).name, "", root))
        if not root.is_dir():
            raise BundleError(f"{root} is no folder; give the path of a bundle, or of a folder of bundles")
        found = find_bundles(root)
        is_blank = not found.unreadable and all(_is_blank(root / name) for name in os.listdir(root))
    except OSError as error:
        raise BundleError(f"{root} can't be read ({error.strerror}); check its permissions") from None
    if not any(found.locations.values()) and not is_blank:
        why = "".join(f" ({note})" for note in found.notes[:1])
        raise BundleError(f"{root} neither is nor holds a bundle{why}; make one with `trpo-tf export`")
    return Source(root, None)


def find_bundles(root: Path) -> Found:
    """Search `root` for bundles: `NAME/` is a bundle, or holds `VERSION/` folders that are.

    Names that begin with a dot, and `lost+found`, are skipped without a note. Raises `OSError` if `root` can't be read.
    """
    locations: dict[str, list[BundleLocation]] = {}
    unreadable: dict[str, str] = {}
    ignored: dict[tuple[Path, str], list[str]] = defaultdict(list)
    for name in sorted(os.listdir(root)):
        if _is_hidden(name):
            continue
        try:
            reason = _why_no_model(root / name)
            if reason is None:
                locations[name] = _locations_of(name, root / name, ignored)
            elif reason:
                ignored[root, reason].append(name)
        except FileNotFoundError:
            continue  # removed meanwhile
        except OSError as error:
            unreadable[name] = f"{root / name} can't be read ({error.strerror})"
            ignored[root, f"it can't be read ({error.strerror})"].append(name)
    notes = [f"ignored in {folder}: {_listed(names)} ({reason})" for (folder, reason), names in ignored.items()]
    return Found(locations, unreadable, [*notes, *_look_alikes(root, locations)])


def holds_bundle(folder: Path) -> bool:
    """Return whether a folder has a manifest. It also counts if it can't be accessed: loading then gives the reason."""
    try:
        os.stat(folder / MANIFEST_FILE)
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError:
        return True
    return True


def _why_no_model(folder: Path) -> str | None:
    """Return why a folder can't be a model: None if it can, "" if the operator need not know. Raises `OSError`."""
    if not folder.name.isprintable():
        return "its name has characters that can't be shown"
    if folder.name.endswith(":predict"):
        return "the path of another model's predictions would be the same"
    try:
        is_folder = stat.S_ISDIR(os.stat(folder).st_mode)
    except OSError as error:
        if error.errno not in (errno.ENOENT, errno.ELOOP):
            raise
        return "its link leads nowhere" if os.path.islink(folder) else ""
    return None if is_folder else "it is no folder"


def _locations_of(name: str, folder: Path, ignored: dict[tuple[Path, str], list[str]]) -> list[BundleLocation]:
    children = sorted(child for child in os.listdir(folder) if not _is_hidden(child))
    if _is_bundle(folder):
        unused = [child for child in children if _VERSION.fullmatch(child) and holds_bundle(folder / child)]
        if unused:
            ignored[folder, f"next to a {MANIFEST_FILE}, which makes {name} one bundle"] += unused
        return [BundleLocation(name, "", folder)]
    versions = []
    for child in children:
        is_version = _VERSION.fullmatch(child) is not None
        if holds_bundle(folder / child):
            if is_version:
                versions.append(BundleLocation(name, child, folder / child))
            else:
                ignored[folder, VERSION_RULE].append(child)
        elif is_version and not os.path.isdir(folder / child):
            ignored[folder, "it is no folder"].append(child)
    return sorted(versions, key=lambda location: int(location.version))


def _is_bundle(folder: Path) -> bool:
    """Return whether a folder has a manifest. Raises `OSError` if that can't be determined."""
    try:
        os.stat(folder / MANIFEST_FILE)
    except FileNotFoundError:
        return False
    except OSError as error:
        if error.errno == errno.ELOOP:  # the manifest is a link that leads to itself; loading it gives the reason
            return True
        raise
    return True


def _is_hidden(name: str) -> bool:
    """Return whether a name is skipped without a note. File systems make `lost+found` themselves."""
    return name.startswith(".") or name == "lost+found"


def _is_blank(entry: Path) -> bool:
    return _is_hidden(entry.name) or (entry.is_dir() and not os.listdir(entry))


def _look_alikes(root: Path, names: Iterable[str]) -> list[str]:
    alike: dict[str, list[str]] = defaultdict(list)
    for name in names:
        alike[unicodedata.normalize("NFKC", name).casefold()].append(name)
    return [
        f"in {root} there are {_listed(map(ascii, group), str)}, which look alike: each is a model of its own"
        for group in alike.values()
        if len(group) > 1
    ]


def _listed(names: Iterable[str], shown: Callable[[str], str] = repr) -> str:
    every = list(names)
    more = f" and {len(every) - _MOST_SHOWN} more" if len(every) > _MOST_SHOWN else ""
    return ", ".join(map(shown, every[:_MOST_SHOWN])) + more
