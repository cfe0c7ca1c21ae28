"""Make ORT files reproducible: ONNX Runtime writes one of their tables in an order that differs between processes.

Six conversions of one policy gave five different files, so that neither a checksum nor a signature could be compared.

The file is a FlatBuffer. The table lists the types by which each operator's kernels are found. It stands before the
model, whose bytes never differ. So everything before the model is written again, in alphabetical order.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import flatbuffers
from flatbuffers.number_types import SOffsetTFlags

import onnxruntime.tools.ort_format_model  # noqa: F401  # isort: skip  # puts what follows on the path
from ort_flatbuffers_py.fbs.InferenceSession import InferenceSession  # isort: skip

_IDENTIFIER = b"ORTM"
_ALIGNMENT = 16
_VERSION, _MODEL, _RESOLVER = 0, 1, 3
"""Fields of the root."""

KernelTypes = dict[bytes, dict[bytes, list[tuple[int, int]]]]
"""Operator -> name of a type -> arguments of that type: input or output, and place."""


def in_order(content: bytes) -> bytes:
    """Write the same file with that table in alphabetical order."""
    session = InferenceSession.GetRootAs(content, 0)
    model = session.Model()._tab
    # A table's description may stand before it.
    start = min(model.Pos, model.Pos - model.Get(SOffsetTFlags, model.Pos))
    return _written(session.OrtVersion(), content[start:], model.Pos - start, _kernel_types(session))


def _kernel_types(session: Any) -> KernelTypes:
    resolver = session.KernelTypeStrResolver()
    operators = [resolver.OpKernelTypeStrArgs(i) for i in range(resolver.OpKernelTypeStrArgsLength())]
    return {operator.OpId(): _types(operator) for operator in operators}


def _types(operator: Any) -> dict[bytes, list[tuple[int, int]]]:
    types = [operator.KernelTypeStrArgs(i) for i in range(operator.KernelTypeStrArgsLength())]
    return {
        kind.KernelTypeStr(): [(kind.Args(i).ArgType(), kind.Args(i).Index()) for i in range(kind.ArgsLength())]
        for kind in types
    }


def _written(version: bytes, model: bytes, place: int, kernel_types: KernelTypes) -> bytes:
    """Write the file, with the kernel types sorted.

    `model` holds the last bytes of the file as it was; the model's table is at `place` in them.
    """
    builder = flatbuffers.Builder(len(model) + 4096)
    # FlatBuffers are written from their end.
    builder.Prep(_ALIGNMENT, 0)
    builder.head -= len(model)
    builder.Bytes[builder.head : builder.head + len(model)] = model
    model_offset = len(model) - place
    operators = []
    for operator, types in sorted(kernel_types.items()):
        kinds = []
        for kind, arguments in sorted(types.items()):
            tables = [_table(builder, {0: ("Int8", of), 1: ("Uint32", index)}, 2) for of, index in arguments]
            fields = {
                0: ("UOffsetTRelative", builder.CreateString(kind)),
                1: ("UOffsetTRelative", _vector(builder, tables)),
            }
            kinds.append(_table(builder, fields, 2))
        fields = {
            0: ("UOffsetTRelative", builder.CreateString(operator)),
            1: ("UOffsetTRelative", _vector(builder, kinds)),
        }
        operators.append(_table(builder, fields, 2))
    resolver = _table(builder, {0: ("UOffsetTRelative", _vector(builder, operators))}, 1)
    fields = {
        _VERSION: ("UOffsetTRelative", builder.CreateString(version)),
        _MODEL: ("UOffsetTRelative", model_offset),
        _RESOLVER: ("UOffsetTRelative", resolver),
    }
    builder.Finish(_table(builder, fields, 4), file_identifier=_IDENTIFIER)
    return bytes(builder.Output())


def _table(builder: Any, fields: Mapping[int, tuple[str, int]], size: int) -> int:
    """Write a table of so many fields: place -> type and value. Where it is."""
    builder.StartObject(size)
    for place, (kind, value) in fields.items():
        getattr(builder, f"Prepend{kind}Slot")(place, value, 0)
    return int(builder.EndObject())


def _vector(builder: Any, tables: Sequence[int]) -> int:
    builder.StartVector(4, len(tables), 4)
    for table in reversed(tables):
        builder.PrependUOffsetTRelative(table)
    return int(builder.EndVector())
