"""Names of a policy's inputs, for the parts of any observation that Gymnasium can nest."""

import functools
import itertools
import keyword
import re
from collections import defaultdict
from collections.abc import Sequence

ROOT = "obs"
"""Name of an observation that is one array, and beginning of the names in one that is a tuple."""

_RESERVED = ("action", "noise", "self")
"""Names of the policy's other arrays, and one that TensorFlow has for no input of a function."""

Path = tuple[str | int, ...]
"""Keys of dicts and places in tuples, from the outside in."""

_PLAIN_NAME = re.compile("[A-Za-z][A-Za-z0-9_]*")
_OTHER_CHARACTER = re.compile("[^A-Za-z0-9_]")


@functools.lru_cache(maxsize=256)
def input_names(paths: tuple[Path, ...]) -> tuple[str, ...]:
    """A name for each path: its keys joined by underscores, of ASCII letters, digits and underscores.

    Other characters become underscores. A name that would not begin with a letter, is reserved, or is a keyword of
    Python begins with `obs_`. Of paths whose names differ in case at most, the first keeps it, and a key of just that
    name comes first; the others end in `_2`, `_3` ... So a dict by these names has these names, and the order of keys
    plays no part.
    """
    names = [_joined(path) for path in paths]
    taken, alike = {name.lower() for name in names}, defaultdict(list)
    for place, name in enumerate(names):
        alike[name.lower()].append(place)
    for _, places in sorted(alike.items()):
        _, *others = sorted(places, key=lambda place: _order(paths[place], names[place]))
        for place in others:
            numbered = (f"{names[place]}_{number}" for number in itertools.count(2))
            names[place] = next(name for name in numbered if name.lower() not in taken)
            taken.add(names[place].lower())
    return tuple(names)


def _order(path: Path, name: str) -> tuple[bool, Sequence[str]]:
    return path != (name,), [str(key) for key in path]


def _joined(path: Path) -> str:
    if not path:
        return ROOT
    keys = (ROOT, *path) if isinstance(path[0], int) else path
    name = _OTHER_CHARACTER.sub("_", "_".join(map(str, keys)))
    if _PLAIN_NAME.fullmatch(name) and name not in _RESERVED and not keyword.iskeyword(name):
        return name
    return f"{ROOT}_{name}" if name else ROOT
