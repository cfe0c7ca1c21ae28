"""Train policies with trust region policy optimization in TensorFlow."""

import contextlib
import sys
from collections.abc import Sequence
from importlib import import_module
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import TYPE_CHECKING

from trpo_tf.lazy_attributes import lazy_attributes

if TYPE_CHECKING:
    from trpo_tf.config.settings import Config
    from trpo_tf.envs.agents import register_parallel
    from trpo_tf.evaluation.evaluate import evaluate
    from trpo_tf.exporting.in_process import in_process
    from trpo_tf.exporting.run_bundle import export_run
    from trpo_tf.runs.folder import Run, load_run
    from trpo_tf.training.train import resume, train

__all__ = [
    "Config",
    "Run",
    "Workers",
    "evaluate",
    "export_run",
    "in_process",
    "load_run",
    "register_parallel",
    "resume",
    "train",
]

# Lazily: `trpo-tf serve` works where TensorFlow is not installed.
__getattr__ = lazy_attributes(
    __name__,
    {
        "Config": "config.settings",
        "Run": "runs.folder",
        "Workers": "sampling.workers",
        "evaluate": "evaluation.evaluate",
        "export_run": "exporting.run_bundle",
        "in_process": "exporting.in_process",
        "load_run": "runs.folder",
        "register_parallel": "envs.agents",
        "resume": "training.train",
        "train": "training.train",
    },
)


class _TensorFlowFinder:
    """Import hook that has `trpo_tf.export.support.tensorflow_import` import TensorFlow and Keras."""

    @staticmethod
    def find_spec(
        fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Return the spec of TensorFlow or Keras; None, for the next finders, if only `trpo_tf.serving` is in use."""
        if fullname not in ("tensorflow", "keras") or _parts_in_use() == {"serving"}:
            return None
        # Not imported above: a process that only serves does not need it, and keeps TensorFlow's own settings.
        from trpo_tf.export.support.tensorflow_import import keras_spec, quiet_spec

        if fullname == "tensorflow":
            # Where TensorFlow is not imported yet, this imports its parts when they are used.
            with contextlib.suppress(ImportError):
                import_module("tensorflow_probability")
        return (keras_spec if fullname == "keras" else quiet_spec)(path, target)


def _parts_in_use() -> set[str]:
    return {name.split(".")[1] for name in sys.modules if name.startswith("trpo_tf.")} - {"lazy_attributes"}


sys.meta_path.insert(0, _TensorFlowFinder)
