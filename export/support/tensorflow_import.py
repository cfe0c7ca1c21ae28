"""Import TensorFlow and Keras in less time; TensorFlow for the CPU alone, and without the log lines of its start."""

import contextlib
import functools
import logging
import os
import subprocess
from collections.abc import Callable, Iterator, Sequence
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType

from trpo_tf.export.support.freed_memory import return_unused_memory
from trpo_tf.export.support.heavy_imports import executed_when_used, uncollected

_LEVEL = "TF_CPP_MIN_LOG_LEVEL"
_KINDS = "IWE"
"""First letters of log lines, by the level from which on TensorFlow leaves them out: information, warning, error."""
_OF_PYTHON = {1: logging.WARNING, 2: logging.ERROR, 3: logging.CRITICAL}
"""The least severe records of TensorFlow's Python logger that are shown, by the same levels."""
_NO_CUDA = "E[0-9]{4} .*cuInit"

_OF_KERAS = ("matplotlib.pyplot", "matplotlib.patches")
"""Modules that Keras imports if they are installed, for plots of images: a tenth of TensorFlow's import."""


def quiet_spec(path: Sequence[str] | None = None, target: ModuleType | None = None) -> ModuleSpec | None:
    """Return TensorFlow's import spec, changed so that its import uses only the CPU and logs only errors.

    A user's TF_CPP_MIN_LOG_LEVEL takes precedence: 0 shows all lines.
    """
    os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")
    level = os.environ.setdefault(_LEVEL, "2")
    spec = PathFinder.find_spec("tensorflow", path, target)
    if spec is not None and spec.loader is not None and level in ("1", "2", "3"):
        spec.loader.exec_module = functools.partial(_execute, spec.loader.exec_module, int(level))  # type: ignore[method-assign]
    return spec


def keras_spec(path: Sequence[str] | None = None, target: ModuleType | None = None) -> ModuleSpec | None:
    """Find Keras, as a module whose first import does less; it imports TensorFlow, or the other way round."""
    spec = PathFinder.find_spec("keras", path, target)
    if spec is not None and spec.loader is not None:
        spec.loader.exec_module = functools.partial(_execute_quickly, spec.loader.exec_module)  # type: ignore[method-assign]
    return spec


def _execute_quickly(execute: Callable[[ModuleType], None], module: ModuleType) -> None:
    with uncollected(), executed_when_used(*_OF_KERAS):
        execute(module)


def _execute(execute: Callable[[ModuleType], None], level: int, tensorflow: ModuleType) -> None:
    chosen = logging.getLogger("tensorflow").level
    with _standard_error_without(f"^(WARNING: All log messages before absl|[{_KINDS[:level]}][0-9]{{4}} |{_NO_CUDA})"):
        _execute_quickly(execute, tensorflow)
        # The first look for devices logs that there is no CUDA.
        tensorflow.config.list_physical_devices()
        return_unused_memory()
    # In a notebook, and on Python's prompt, TensorFlow would also log what it does, to both streams.
    tensorflow.get_logger().setLevel(chosen or _OF_PYTHON[level])


@contextlib.contextmanager
def _standard_error_without(pattern: str) -> Iterator[None]:
    """Filter lines out of what is written to file descriptor 2: TensorFlow logs there before it reads its level.

    The filter is a separate process, so that lines written before an abort are shown as well.
    """
    try:
        kept = os.dup(2)
    except OSError:  # it is closed, so there is nothing to filter
        yield
        return
    try:
        # In a session of its own, since Ctrl-C would end it before this process.
        with subprocess.Popen(
            ["grep", "--invert-match", "--text", "--extended-regexp", pattern],
            stdin=subprocess.PIPE,
            stdout=kept,
            start_new_session=True,
        ) as lines:
            assert lines.stdin is not None
            os.dup2(lines.stdin.fileno(), 2)
            try:
                yield
            finally:
                os.dup2(kept, 2)
    finally:
        os.close(kept)
