"""Average the numbers that an environment reports in `info`."""

import numbers
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

_OF_EVERY_STEP = "reward"


class InfoMeans:
    """Means of the numbers in `info`: of episodes' last steps, or of all steps if the name begins with `reward`.

    Numbers in a nested dict have its name as prefix: `episode.r`. Values that are no numbers are left out.
    """

    def __init__(self) -> None:
        self._values: dict[str, tuple[float, int]] = {}

    def add(self, info: Mapping[str, Any], *, ended: bool) -> None:
        """Add the numbers of one step's `info`; `ended` is whether the step was its episode's last."""
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
        """Return the means over several instances, and reset these."""
        sums: dict[str, tuple[float, int]] = {}
        for part in means:
            for name, (total, count) in part._values.items():
                before, seen = sums.get(name, (0.0, 0))
                sums[name] = before + total, seen + count
            part._values = {}
        return {name: total / count for name, (total, count) in sorted(sums.items())}
