"""Compile what the server loads into $PYTHONPYCACHEPREFIX, so that a container compiles nothing when it starts.

Also of Python's own library, which the official image comes without. The bytecode is never compared with its source:
neither changes in an image.
"""

import importlib
import pkgutil
import py_compile
import sys
from contextlib import suppress

from trpo_tf import serving


def main() -> None:
    """Import every module of the server that its packages suffice for, and compile all that was loaded with them."""
    own = [module.name for module in pkgutil.walk_packages(serving.__path__, "trpo_tf.serving.")]
    for name in (*own, "trpo_tf.__main__", "runpy", "ssl", "traceback", "numpy.random"):
        with suppress(ModuleNotFoundError):
            importlib.import_module(name)
    loaded = {getattr(module, "__file__", None) or "" for module in sys.modules.values()}
    for path in sorted(path for path in loaded if path.endswith(".py") and path != __file__):
        py_compile.compile(path, doraise=True, invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH)


if __name__ == "__main__":
    main()
