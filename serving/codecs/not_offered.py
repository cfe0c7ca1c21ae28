"""Methods and paths that other servers have and this one lacks, each with what it has instead.

Clients of those servers ask for them, and so do probes of a new deployment.
"""

_METADATA = "has the inputs and outputs"
_STATISTICS = "GET /metrics has the numbers of every model"
_TRACES = "the server sends traces with --otlp-endpoint"
_LOGS = "the server has --log-format and --access-log"
_TENSORS = "send tensors in the request"

METHODS = {
    "ModelConfig": f"ModelMetadata {_METADATA}",
    "ModelStatistics": _STATISTICS,
    "TraceSetting": _TRACES,
    "LogSettings": _LOGS,
    **{
        f"{kind}SharedMemory{action}": _TENSORS
        for kind in ("System", "Cuda")
        for action in ("Status", "Register", "Unregister")
    },
    **dict.fromkeys(
        ("RepositoryIndex", "RepositoryModelLoad", "RepositoryModelUnload"),
        "with --repository-api, models are loaded and unloaded over HTTP",
    ),
}
"""Triton's methods of gRPC beside the protocol's, each with a hint for the client."""


def instead_of(path: str) -> str:
    """Return the hint for an unknown path; empty if no other server has such a path."""
    match path.split("/")[1:]:
        case ["v2", *_, "config"] | ["v1", "models", *_, "metadata"]:
            return f"GET /v2/models/NAME {_METADATA}"
        case ["v2", *_, "stats"]:
            return _STATISTICS
        case ["v2", *_, "trace", "setting"]:
            return _TRACES
        case ["v2", "logging"]:
            return _LOGS
        case ["v2", "systemsharedmemory" | "cudasharedmemory", *_]:
            return _TENSORS
        case ["v1", "models", *_, last] if last.endswith((":classify", ":regress", ":explain")):
            return "POST /v1/models/NAME:predict answers actions"
        case ["infer" | "invocations" | "predict" | "predictions", *_]:
            return "POST /v2/models/NAME/infer answers actions"
        case ["health" | "healthz" | "live" | "livez" | "ping" | "ready" | "readyz"]:
            return "probes ask /v2/health/live and /v2/health/ready"
    return ""
