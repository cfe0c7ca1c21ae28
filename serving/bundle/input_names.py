"""Names of a policy's inputs, one for each array of a nested Gymnasium observation."""

import functools
import itertools
import keyword
import re
from collections import defaultdict
from collections.abc import Sequence

ROOT = "obs"
"""Name of an observation that is one array, and prefix of the names in an observation that is a tuple."""

_RESERVED = ("action", "noise", "self")
"""Names of the policy's other arrays, and `self`, which TensorFlow accepts for no input of a function."""

Path = tuple[str | int, ...]
"""Keys of dicts and indices of tuples, outermost first."""

_PLAIN_NAME = re.compile("[A-Za-z][A-Za-z0-9_]*")
_OTHER_CHARACTER = re.compile("[^A-Za-z0-9_]")


@functools.lru_cache(maxsize=256)
def input_names(paths: tuple[Path, ...]) -> tuple[str, ...]:
    """Return a name for each path: its keys joined by underscores, of ASCII letters, digits and underscores.

    Other characters become underscores. The prefix `obs_` is added to a name that does not begin with a letter, is
    reserved, or is a Python keyword. If several names are equal or differ only in case, one keeps its name and the
    others end in `_2`, `_3` ... The one that keeps it is the path of just that key, or else the first alphabetically.
    So names map to themselves, and the order of a dict does not matter.
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
