"""The import of TensorFlow: for the CPU alone, and without the log lines of its start."""

import contextlib
import functools
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType

_LEVEL = "TF_CPP_MIN_LOG_LEVEL"
_KINDS = "IWE"
"""First letters of log lines, by the level from which on TensorFlow leaves them out: information, warning, error."""
_NO_CUDA = "E[0-9]{4} .*cuInit"


def prepare() -> None:
    """Have the first import of TensorFlow in this process, by any module, log nothing but errors.

    A user's TF_CPP_MIN_LOG_LEVEL goes before that: 0 shows all. Repeated calls change nothing.
    """
    os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")
    level = os.environ.setdefault(_LEVEL, "2")
    known = any(isinstance(finder, _QuietFinder) for finder in sys.meta_path)
    if level in ("1", "2", "3") and not known:
        sys.meta_path.insert(0, _QuietFinder(int(level)))


class _QuietFinder(MetaPathFinder):
    """Finds TensorFlow as Python would, and filters what its import logs."""

    def __init__(self, level: int) -> None:
        self._level = level

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Leave all other modules to the finders that follow."""
        if fullname != "tensorflow":
            return None
        spec = PathFinder.find_spec(fullname, path, target)
        if spec is not None and spec.loader is not None:
            spec.loader.exec_module = functools.partial(_execute, spec.loader.exec_module, self._level)  # type: ignore[method-assign]
        return spec


def _execute(execute: Callable[[ModuleType], None], level: int, tensorflow: ModuleType) -> None:
    with _standard_error_without(f"^(WARNING: All log messages before absl|[{_KINDS[:level]}][0-9]{{4}} |{_NO_CUDA})"):
        execute(tensorflow)
        # The first look for devices logs that there is no CUDA.
        tensorflow.config.list_physical_devices()


@contextlib.contextmanager
def _standard_error_without(pattern: str) -> Iterator[None]:
    """Leave lines out of what is written to file descriptor 2: TensorFlow logs there before it heeds its level.

    The filter is a process of its own, so that what TensorFlow writes before it aborts is shown as well.
    """
    kept = os.dup(2)
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
