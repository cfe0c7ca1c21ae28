"""Triton's extensions of the protocol that the server does not have, each with what it has instead.

Triton's clients offer them, so a client may ask.
"""

_INSTEAD = {
    "config": "the model's metadata has its inputs and outputs",
    "stats": "GET /metrics has the numbers of every model",
    "trace": "the server sends traces with --otlp-endpoint",
    "logging": "the server has --log-format and --access-log",
    "sharedmemory": "send tensors in the request",
}

NO_METHODS = {
    "ModelConfig": _INSTEAD["config"],
    "ModelStatistics": _INSTEAD["stats"],
    "TraceSetting": _INSTEAD["trace"],
    "LogSettings": _INSTEAD["logging"],
    **{
        f"{kind}SharedMemory{action}": _INSTEAD["sharedmemory"]
        for kind in ("System", "Cuda")
        for action in ("Status", "Register", "Unregister")
    },
    **dict.fromkeys(
        ("RepositoryIndex", "RepositoryModelLoad", "RepositoryModelUnload"),
        "with --repository-api, models are loaded and unloaded over HTTP",
    ),
}
"""Methods of gRPC that Triton has beside the protocol's, each with a hint for the client."""


def instead_of(path: str) -> str:
    """Return the hint for an unknown path that is one of Triton's; empty if it is none."""
    match path.split("/")[1:]:
        case ["v2", *_, ("config" | "stats") as last]:
            return _INSTEAD[last]
        case ["v2", *_, "trace", "setting"]:
            return _INSTEAD["trace"]
        case ["v2", "logging"]:
            return _INSTEAD["logging"]
        case ["v2", "systemsharedmemory" | "cudasharedmemory", *_]:
            return _INSTEAD["sharedmemory"]
    return ""
