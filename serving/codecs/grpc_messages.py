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

_COMPILED = Path(__file__).parent / "protocol" / "compiled.binpb"

_pool = DescriptorPool()
for _file in FileDescriptorSet.FromString(_COMPILED.read_bytes()).file:
    _pool.Add(_file)


class Call:
    """One method of a service: its path, and the classes of its request and response."""

    def __init__(self, service: str, name: str) -> None:
        method = _pool.FindMethodByName(f"{service}.{name}")
        self.path = f"/{service}/{name}"
        self.request: Any = GetMessageClass(method.input_type)
        self.response: Any = GetMessageClass(method.output_type)


SERVICES = {name: [*_pool.FindServiceByName(name).methods_by_name] for name in (INFERENCE, HEALTH)}
"""Method names by service."""

SERVER_LIVE, SERVER_READY, MODEL_READY, SERVER_METADATA, MODEL_METADATA, MODEL_INFER, MODEL_STREAM_INFER = (
    Call(INFERENCE, name) for name in SERVICES[INFERENCE]
)
HEALTH_CHECK, HEALTH_WATCH = (Call(HEALTH, name) for name in SERVICES[HEALTH])
