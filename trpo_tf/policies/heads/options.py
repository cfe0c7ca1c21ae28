"""The options of a discrete action, without TensorFlow: rollout workers draw from them."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Options:
    """Options of a discrete action, which consists of one choice or of several; samples number the chosen options.

    Attributes:
        counts: number of options of each choice.
        is_single: whether the action is one choice, so that samples are [...], not [..., choices].
    """

    counts: tuple[int, ...]
    is_single: bool = False

    def uniform(self, shape: tuple[int, ...], rng: np.random.Generator) -> NDArray[np.int64]:
        """Return samples int64 [shape, ...] in which every option has the same probability."""
        return self._sample(rng.integers(self.counts, size=(*shape, len(self.counts))))

    def legal(self, legal: NDArray[np.bool_], count: int, rng: np.random.Generator) -> NDArray[np.int64]:
        """Return `count` samples for each row of a mask, int64 [N, count, ...]: legal options, each about as often.

        In a mask [N, sum of counts] the options of several choices stand side by side.
        """
        choices = np.split(legal, np.cumsum(self.counts)[:-1], axis=1)
        return self._sample(np.stack([_legal_options(each, count, rng) for each in choices], axis=-1))

    def _sample(self, chosen: NDArray[Any]) -> NDArray[np.int64]:
        return chosen[..., 0] if self.is_single else chosen


def _legal_options(legal: NDArray[np.bool_], count: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """Return `count` of each row's legal options, int64 [N, count]: all in random order, and so again and again.

    A row without a legal option, such as an episode's last observation may have, gives any.
    """
    legal = legal | ~legal.any(axis=1, keepdims=True)
    order = np.argsort(np.where(legal, rng.random(legal.shape), 1.0), axis=1)
    places = np.arange(count) % legal.sum(axis=1, keepdims=True)
    return np.take_along_axis(order, places, axis=1)
