"""Numbers that an environment tells beside the transition, in `info`, as means."""

import numbers
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

_OF_EVERY_STEP = "reward"


class InfoMeans:
    """Means of the numbers in `info`: of an episode's last step, or of all steps where the name begins with `reward`.

    Those of a dict in it, such as `episode`, have its name before theirs: `episode.r`. What is no number is left out.
    """

    def __init__(self) -> None:
        self._values: dict[str, tuple[float, int]] = {}

    def add(self, info: Mapping[str, Any], *, ended: bool) -> None:
        """Take in a step's `info`."""
        for name, value in info.items():
            if ended or str(name).startswith(_OF_EVERY_STEP):
                self._add(str(name), value)

    def _add(self, name: str, value: Any) -> None:
        if isinstance(value, Mapping):
            for key, part in value.items():
                self._add(f"{name}.{key}", part)
        elif isinstance(value, numbers.Real | np.bool_):
            total, count = self._values.get(name, (0.0, 0))
            self._values[name] = total + float(value), count + 1

    @staticmethod
    def taken(means: "Iterable[InfoMeans]") -> dict[str, float]:
        """The means over several, which are empty afterwards."""
        sums: dict[str, tuple[float, int]] = {}
        for part in means:
            for name, (total, count) in part._values.items():
                before, seen = sums.get(name, (0.0, 0))
                sums[name] = before + total, seen + count
            part._values = {}
        return {name: total / count for name, (total, count) in sorted(sums.items())}
