"""Imports ONNX Runtime, after its telemetry is switched off. No other module imports it directly."""

import os

# Only this variable, set before the import, keeps ONNX Runtime 1.32 from sending telemetry.
os.environ["ORT_DISABLE_TELEMETRY"] = "1"

import onnxruntime

__all__ = ["onnxruntime", "open_session"]

_LOG_ERRORS_ONLY = 3


def open_session(model: bytes, *, threads: int = 1) -> onnxruntime.InferenceSession:
    """Open a CPU session on a serialized ONNX model.

    The thread pool does not spin: that gains nothing for a small policy, and takes processor time from others.
    Warnings are not logged, since loading a graph with an optional input (`noise`) always causes one.
    """
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = _LOG_ERRORS_ONLY
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.add_session_config_entry("session.inter_op.allow_spinning", "0")
    # With the fallback it would load a graph that it refuses a second time, and tell so on stdout.
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"], enable_fallback=0)
