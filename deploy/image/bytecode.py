"""Compile what the server loads into $PYTHONPYCACHEPREFIX, so that a container compiles nothing when it starts.

Also of Python's own library, which the official image comes without. The bytecode is never compared with its source:
neither changes in an image.
"""

import importlib
import pkgutil
import py_compile
import sys

import serving


def main() -> None:
    """Import the server with all that it needs, and compile every module that was loaded."""
    for name in ("serving.server", "serving.__main__", "runpy", "ssl", "traceback", "numpy.random"):
        importlib.import_module(name)
    own = [module.module_finder.path + f"/{module.name}.py" for module in pkgutil.iter_modules(serving.__path__)]
    loaded = [getattr(module, "__file__", None) or "" for module in sys.modules.values()]
    for path in sorted({path for path in own + loaded if path.endswith(".py") and path != __file__}):
        py_compile.compile(path, doraise=True, invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH)


if __name__ == "__main__":
    main()
