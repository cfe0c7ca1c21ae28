"""Nothing phones home: ONNX Runtime would, unless a variable is set before its import."""

import pkgutil

import pytest

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
importlib.import_module({module!r})
import trpo_tf.serving.runtime.onnx_runtime  # in case that it needs none
print(seen)
"""

ACT = """
import numpy, time
from trpo_tf import serving
policy = serving.load({bundle!r})
for _ in range(100):
    policy.act([0.1, 0.2, 0.3, 0.4])
time.sleep(1)
"""


@pytest.mark.parametrize("module", MODULES)
def test_telemetry_is_off_before_onnxruntime_is_imported(run_python, module):
    pytest.importorskip(EXTRAS.get(module, "serving"))
    assert run_python(WATCHED_IMPORT.format(module=module)) == "['1']\n"


def test_telemetry_is_off_where_the_variable_would_turn_it_on(run_python):
    code = WATCHED_IMPORT.format(module="trpo_tf.serving")
    assert run_python(code, ORT_DISABLE_TELEMETRY="0") == "['1']\n"


def test_no_file_is_written_in_a_fresh_home(run_python, discrete):
    run_python(ACT.format(bundle=str(discrete)), PYTHONDONTWRITEBYTECODE="1")
    assert list(run_python.home.rglob("*")) == []


def test_no_thread_is_left_running(run_python, discrete):
    code = ACT.format(bundle=str(discrete)) + "import os; print(*os.listdir('/proc/self/task'))"
    assert len(run_python(code, OPENBLAS_NUM_THREADS="1", OMP_NUM_THREADS="1").split()) == 1
