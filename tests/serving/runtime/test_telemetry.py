"""Nothing phones home: ONNX Runtime would, unless a variable is set before its import."""

import importlib.util
import pkgutil

from trpo_tf import serving

EXTRAS = {
    "trpo_tf.serving.grpc.listener": "grpc",
    "trpo_tf.serving.grpc.server": "grpc",
    "trpo_tf.serving.codecs.v2_grpc": "google.protobuf",
    "trpo_tf.serving.codecs.grpc_messages": "google.protobuf",
    "trpo_tf.serving.tracing.opentelemetry": "opentelemetry.sdk",
}
MODULES = ["trpo_tf.serving", *(f"trpo_tf.serving.{module.name}" for module in pkgutil.iter_modules(serving.__path__))]

WATCHED_IMPORT = """
import importlib, os, sys

seen = []

class Watch:
    def find_spec(self, name, path=None, target=None):
        if name == "onnxruntime":
            seen.append(os.environ.get("ORT_DISABLE_TELEMETRY"))

sys.meta_path.insert(0, Watch())
for module in {modules!r}:
    if os.fork() == 0:
        importlib.import_module(module)
        import trpo_tf.serving.runtime.onnx_runtime  # in case that it needs none
        print(module, *seen, flush=True)
        os._exit(0)
    os.wait()
"""

ACT = """
import numpy, time
from trpo_tf import serving
policy = serving.load({bundle!r})
for _ in range(100):
    policy.act([0.1, 0.2, 0.3, 0.4])
time.sleep(1)
"""


def test_telemetry_is_off_before_onnxruntime_is_imported(run_python):
    """Each module is imported first in a process of its own."""
    here = [module for module in MODULES if is_installed(EXTRAS.get(module, "numpy"))]
    assert run_python(WATCHED_IMPORT.format(modules=here)).splitlines() == [f"{module} 1" for module in here]


def is_installed(package: str) -> bool:
    return importlib.util.find_spec(package.partition(".")[0]) is not None


def test_telemetry_is_off_where_the_variable_would_turn_it_on(run_python):
    code = WATCHED_IMPORT.format(modules=["trpo_tf.serving"])
    assert run_python(code, ORT_DISABLE_TELEMETRY="0") == "trpo_tf.serving 1\n"


def test_no_file_is_written_in_a_fresh_home(run_python, discrete):
    run_python(ACT.format(bundle=str(discrete)), PYTHONDONTWRITEBYTECODE="1")
    assert list(run_python.home.rglob("*")) == []


def test_no_thread_is_left_running(run_python, discrete):
    code = ACT.format(bundle=str(discrete)) + "import os; print(*os.listdir('/proc/self/task'))"
    assert len(run_python(code, OPENBLAS_NUM_THREADS="1", OMP_NUM_THREADS="1").split()) == 1
