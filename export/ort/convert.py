"""Convert to ONNX Runtime's own format, for a build of it that holds only the operators that a policy needs."""

import tempfile
import warnings
from pathlib import Path

from trpo_tf.export.errors import ExportError
from trpo_tf.serving.runtime.onnx_runtime import onnxruntime

_ERRORS_ONLY = 3


def to_ort(model: bytes) -> tuple[bytes, str]:
    """Convert a serialized ONNX graph to ORT format, optimised, and list the operators it needs.

    The list is the text of a configuration for ONNX Runtime's `build.sh --minimal_build --include_ops_by_config`.
    Optimisations that depend on the processor are left out. Raises `ExportError` if ONNX Runtime refuses the graph, and
    `OSError` for a full disk.
    """
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "policy.ort"
        options = onnxruntime.SessionOptions()
        options.log_severity_level = _ERRORS_ONLY
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
        options.optimized_model_filepath = str(target)
        options.add_session_config_entry("session.save_model_format", "ORT")
        try:
            onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # ONNX Runtime documents no narrower one
            if "Failed to save" in str(error):
                target.write_bytes(bytes(2 * len(model)))  # raises the OSError, which ONNX Runtime does not tell
            reason = " ".join(str(error).split())
            raise ExportError(f"ONNX Runtime can't convert the graph to its own format: {reason}") from error
        from trpo_tf.export.ort.table_order import in_order  # here, since telemetry must be off first

        return in_order(target.read_bytes()), _required_operators(target)


def _required_operators(model: Path) -> str:
    """List operators in lines `domain;opset;operators`."""
    from onnxruntime.tools.ort_format_model import OrtFormatModelProcessor  # here, since telemetry must be off first

    required: dict[str, dict[int, set[str]]] = {}
    with warnings.catch_warnings(action="ignore", category=ResourceWarning):  # it doesn't close the file
        OrtFormatModelProcessor(str(model), required, None).process()
    return "".join(
        f"{domain};{opset};{','.join(sorted(operators))}\n"
        for domain, opsets in sorted(required.items())
        for opset, operators in sorted(opsets.items())
    )
