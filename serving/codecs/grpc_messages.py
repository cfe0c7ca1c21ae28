"""Classes of the gRPC messages, created on import from `serving/codecs/protocol`, which `make protocol` compiles.

They have their own descriptor pool. Other packages, such as `tritonclient`, define messages of the same names, and
Protobuf allows each name once in a pool.
"""

from pathlib import Path
from typing import Any

from google.protobuf.descriptor_pb2 import FileDescriptorSet
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message_factory import GetMessageClass

INFERENCE = "inference.GRPCInferenceService"
HEALTH = "grpc.health.v1.Health"
REFLECTION = "grpc.reflection.v1.ServerReflection"
FORMER_REFLECTION = "grpc.reflection.v1alpha.ServerReflection"

_COMPILED = Path(__file__).parent / "protocol" / "compiled.binpb"

_pool = DescriptorPool()
_files: dict[str, bytes] = {}
for _file in FileDescriptorSet.FromString(_COMPILED.read_bytes()).file:
    _pool.Add(_file)
    _files[_file.name] = _file.SerializeToString()


class Call:
    """One method of a service: its path, and the classes of its request and response."""

    def __init__(self, service: str, name: str, *, former: str = "") -> None:
        """Find the method; its path has the `former` name of the service if one is given."""
        method = _pool.FindMethodByName(f"{service}.{name}")
        self.path = f"/{former or service}/{name}"
        self.request: Any = GetMessageClass(method.input_type)
        self.response: Any = GetMessageClass(method.output_type)


SERVICES = {name: [*_pool.FindServiceByName(name).methods_by_name] for name in (INFERENCE, HEALTH, REFLECTION)}
"""Method names by service."""

SERVER_LIVE, SERVER_READY, MODEL_READY, SERVER_METADATA, MODEL_METADATA, MODEL_INFER, MODEL_STREAM_INFER = (
    Call(INFERENCE, name) for name in SERVICES[INFERENCE]
)
HEALTH_CHECK, HEALTH_WATCH = (Call(HEALTH, name) for name in SERVICES[HEALTH])
REFLECTION_INFO = Call(REFLECTION, "ServerReflectionInfo")
FORMER_REFLECTION_INFO = Call(REFLECTION, "ServerReflectionInfo", former=FORMER_REFLECTION)


def compiled_file(name: str) -> bytes:
    """Return a compiled file of the protocol, none of which imports another. Raises `KeyError`."""
    return _files[name]


def file_of(symbol: str) -> str:
    """Return the name of the file that defines a service, method, message or enumeration. Raises `KeyError`."""
    try:
        return str(_pool.FindFileContainingSymbol(symbol).name)
    except KeyError:  # Protobuf does not look among the methods
        return str(_pool.FindMethodByName(symbol).containing_service.file.name)
