"""Import large packages in less time."""

import contextlib
import gc
import importlib.util
import sys
from collections.abc import Iterator, Sequence
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType


@contextlib.contextmanager
def uncollected() -> Iterator[None]:
    """Import without garbage collections, each of which would look at every object imported so far.

    TensorFlow makes a million objects that stay: collections are a fifth of its import. Those made here are left out of
    later collections too.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        if was_enabled:
            gc.enable()


@contextlib.contextmanager
def executed_when_used(*names: str) -> Iterator[None]:
    """Execute modules, if they are imported here for the first time, when one of their attributes is first read.

    Import a name from such a module only if it is a module too: others are read at once. The parents of modules are
    executed at once.
    """

    class Finder:
        @staticmethod
        def find_spec(
            fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
        ) -> ModuleSpec | None:
            """Return the spec of a module to execute later, and None for others."""
            spec = PathFinder.find_spec(fullname, path, target) if fullname in names else None
            if spec is not None and spec.loader is not None:
                spec.loader = importlib.util.LazyLoader(spec.loader)
            return spec

    sys.meta_path.insert(0, Finder)
    try:
        yield
    finally:
        sys.meta_path.remove(Finder)
