"""A run beside the same run, interrupted and resumed."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from trpo_tf import Config
from trpo_tf.training.train import resume, train


class _Stop(BaseException):
    """As a kill: no checkpoint is saved for it."""


def whole_and_resumed(config: Config, folder: Path, networks: Callable[[], dict[str, Any]] = dict) -> tuple[Any, Any]:
    """Train in one go, and in two: stopped from half of the steps on, then resumed. Return both results.

    `networks` makes the networks of each, as arguments.
    """
    whole = train(config, folder / "whole", **networks())

    def stop(metrics: Any) -> None:
        if metrics["steps"] >= config.total_steps // 2:
            raise _Stop

    with pytest.raises(_Stop):
        train(config, folder / "part", observer=stop, **networks())
    return whole, resume(folder / "part")
