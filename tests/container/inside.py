"""Looks around in a container that serves, whose code is /app/trpo_tf and whose server is process 1: JSON on stdout.

check_image.py runs it inside. All but `libraries` must be empty.
"""

import importlib.util
import json
import os
import shutil
import sys
from pathlib import Path

import trpo_tf.serving.__main__  # noqa: F401

MODULES = (
    "tensorflow",
    "keras",
    "onnx",
    "gymnasium",
    "trpo_tf.training",
    "trpo_tf.export",
    "tyro",
    "pip",
    "setuptools",
    "cyclonedx",
)
PROGRAMS = ("cc", "gcc", "ld", "make", "pip", "pip3", "curl")
NOT_THE_IMAGE = ("/proc", "/dev", "/sys", "/tmp", "/run", "/var/tmp")  # podman has memory at the last three


def main() -> None:
    modules = [sys.modules[name] for name in sorted(sys.modules) if name != "__main__"]
    cached = [(module.__name__, getattr(module, "__cached__", None)) for module in modules]
    folders = [folder for folder, _, _ in os.walk("/") if not folder.startswith(NOT_THE_IMAGE)]
    mapped = {line.split()[-1] for line in Path("/proc/1/maps").read_text().splitlines() if "/" in line}
    found = {
        "modules": [name for name in MODULES if importlib.util.find_spec(name)],
        "programs": [name for name in PROGRAMS if shutil.which(name)],
        "installers": [folder for folder in folders if Path(folder).name in ("pip", "ensurepip")],
        "tests": [folder for folder in folders if folder.startswith("/opt") and Path(folder).name == "tests"],
        "without bytecode": [name for name, path in cached if path and not Path(path).exists()],
        "writable": [folder for folder in folders if os.access(folder, os.W_OK)],
        "libraries": sorted(path for path in mapped if "onnxruntime" in path),
    }
    print(json.dumps(found))


main()
