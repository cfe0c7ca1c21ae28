"""Change a built-in target for one test."""

import dataclasses
from typing import Any

import pytest

from trpo_tf.export.targets.table import TARGETS


def replace_target(patch: pytest.MonkeyPatch, name: str, **changes: Any) -> None:
    """Replace the target's module attribute, which the table reads at each look-up, until `patch` is undone."""
    place = TARGETS._built_in[name].replace(":", ".")
    patch.setattr(f"trpo_tf.export.targets.{place}", dataclasses.replace(TARGETS[name], **changes))
