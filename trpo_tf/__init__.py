"""Train policies with trust region policy optimization in TensorFlow."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

import export  # noqa: F401 (from here on the import of TensorFlow is quiet)

if TYPE_CHECKING:
    from trpo_tf.config import Config
    from trpo_tf.evaluation import evaluate
    from trpo_tf.exporting import export_run, in_process
    from trpo_tf.runs import Run, load_run
    from trpo_tf.training import resume, train

__all__ = ["Config", "Run", "evaluate", "export_run", "in_process", "load_run", "resume", "train"]

_MODULES = {
    "config": ("Config",),
    "evaluation": ("evaluate",),
    "exporting": ("export_run", "in_process"),
    "runs": ("Run", "load_run"),
    "training": ("resume", "train"),
}


def __getattr__(name: str) -> Any:
    # On demand: `trpo-tf serve` works where TensorFlow is not installed.
    module = next((module for module, names in _MODULES.items() if name in names), None)
    if module is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"trpo_tf.{module}"), name)
    globals()[name] = value
    return value
