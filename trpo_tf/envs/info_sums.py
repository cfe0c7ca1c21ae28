"""Add up the numbers that environments report in `info`, and average them."""

import contextlib
import math
import numbers
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

_OF_EVERY_STEP = "reward"

Sums = dict[str, tuple[float, int]]
"""Sum and count of the numbers of each name."""


class InfoSums:
    """Sums of the numbers in `info`: of episodes' last steps, or of all steps if the name begins with `reward`.

    Numbers in a nested dict have its name as prefix: `episode.r`. Values that are no numbers are left out, and so are
    an `info` that is no dict, and a dict within itself.
    """

    def __init__(self) -> None:
        self._values: Sums = {}

    def add(self, info: Any, *, ended: bool) -> None:
        """Add the numbers of one step's `info`; `ended` is whether the step was its episode's last."""
        if not isinstance(info, Mapping):
            return
        for name, value in info.items():
            if ended or str(name).startswith(_OF_EVERY_STEP):
                self._add(str(name), value, (info,))

    def _add(self, name: str, value: Any, outer: tuple[Any, ...]) -> None:
        """Add a value, which stands in each of the dicts `outer`."""
        if isinstance(value, Mapping):
            for key, part in value.items() if not any(value is each for each in outer) else ():
                self._add(f"{name}.{key}", part, (*outer, value))
        elif isinstance(value, numbers.Real | np.bool_) or _is_scalar(value):
            total, count = self._values.get(name, (0.0, 0))
            with contextlib.suppress(OverflowError):  # an integer beyond all floats
                self._values[name] = total + float(value), count + 1

    def take(self) -> Sums:
        """Return the sums and reset them."""
        taken, self._values = self._values, {}
        return taken


def _is_scalar(value: Any) -> bool:
    return isinstance(value, np.ndarray) and value.shape == () and value.dtype.kind in "biuf"


def added(parts: Iterable[Sums]) -> Sums:
    """Add the sums of several environments' groups, in the order given."""
    sums: Sums = {}
    for part in parts:
        for name, (total, count) in part.items():
            before, seen = sums.get(name, (0.0, 0))
            sums[name] = before + total, seen + count
    return sums


def means(sums: Sums) -> dict[str, float | None]:
    """Return the mean of each name; None if it is not finite."""
    found = {name: total / count for name, (total, count) in sorted(sums.items())}
    return {name: mean if math.isfinite(mean) else None for name, mean in found.items()}
