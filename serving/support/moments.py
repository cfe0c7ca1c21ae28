"""Mean and sum of squared deviations of two sets of samples together."""

from typing import Any, Protocol

from numpy.typing import NDArray


class Moments(Protocol):
    """Mean and sum of squared deviations of `total` samples, element by element."""

    @property
    def mean(self) -> NDArray[Any]:
        """Mean of each number [...]."""

    @property
    def deviations(self) -> NDArray[Any]:
        """Sum of squared deviations from the mean [...]."""

    @property
    def total(self) -> Any:
        """Number of samples."""


def combined(old: Moments, new: Moments) -> tuple[NDArray[Any], NDArray[Any], Any]:
    """Return mean, sum of squared deviations and number of both sets' samples (Chan, Golub & LeVeque 1983, eq 2.1).

    There must be at least one sample.
    """
    total = old.total + new.total
    shift = new.mean - old.mean
    return (
        old.mean + shift * new.total / total,
        old.deviations + new.deviations + shift**2 * old.total * new.total / total,
        total,
    )
