"""Where bundles lie below a folder, and what they are served as."""

import errno
import os
import re
import stat
import unicodedata
from collections import defaultdict
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

from trpo_tf.serving.bundle.manifest import MANIFEST_FILE, read_manifest
from trpo_tf.serving.errors import BundleError

VERSION_RULE = "a version's folder is a positive integer of at most 18 digits without leading zeros, such as 42"

_VERSION = re.compile("[1-9][0-9]{0,17}")
_MOST_SHOWN = 5


class BundleLocation(NamedTuple):
    """Where a bundle lies, and what it is served as; with version "" as its manifest says."""

    name: str
    version: str
    folder: Path


class Source(NamedTuple):
    """What is served: bundles below `root`, or `only` one, whatever else comes to `root`."""

    root: Path
    only: BundleLocation | None


class Found(NamedTuple):
    """What lies below a folder.

    Attributes:
        places: bundles by model name, oldest version first. A folder without a bundle is a model without versions.
        unreadable: names of folders that can't be read, and why.
        notes: what an operator should know: what is ignored, and why.
    """

    locations: dict[str, list[BundleLocation]]
    unreadable: dict[str, str]
    notes: list[str]


def resolve_source(root: Path) -> Source:
    """What `root` is: a bundle if it holds a manifest, otherwise a repository, whatever it holds.

    Raises `BundleError` if it is no folder, can't be read, or holds files and no bundle.
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
    """The bundles below `root`: `NAME/` is one, or holds `VERSION/` folders. Raises `OSError` if it can't be read.

    Names that begin with a dot, and `lost+found`, are left out without a word.
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
    """Whether there is a manifest; also if that can't be seen now, so that loading it says why."""
    try:
        os.stat(folder / MANIFEST_FILE)
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError:
        return True
    return True


def _why_no_model(folder: Path) -> str | None:
    """Why a folder can't be a model; None if it can, empty if there is nothing to say. Raises `OSError`."""
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
        beside = [child for child in children if _VERSION.fullmatch(child) and holds_bundle(folder / child)]
        if beside:
            ignored[folder, f"beside a {MANIFEST_FILE}, which makes {name} one bundle"] += beside
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
    """Whether there is a manifest. Raises `OSError` if that can't be seen."""
    try:
        os.stat(folder / MANIFEST_FILE)
    except FileNotFoundError:
        return False
    except OSError as error:
        if error.errno == errno.ELOOP:  # of the manifest itself
            return True
        raise
    return True


def _is_hidden(name: str) -> bool:
    """Whether to leave a name out without a word: also the folder that file systems make for what they find."""
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
