"""Versions of a model whose right answers are known, and bundles that must not be served."""

import io
import os
import shutil
import struct
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper

from tests.container.engine import ROOT
from trpo_tf import serving
from trpo_tf.serving.bundle.files import GOLDEN_FILE, MANIFEST_FILE, MODEL_FILE, FileEntry
from trpo_tf.serving.bundle.manifest import read_manifest
from trpo_tf.serving.runtime.onnx_runtime import open_session
from trpo_tf.serving.runtime.policy import Policy
from trpo_tf.serving.runtime.sequences import run_sequences
from trpo_tf.serving.verify import read_golden

BUNDLES = ROOT / "tests" / "serving" / "bundles"
OBSERVATIONS = np.random.default_rng(1).normal(size=(64, 3))
GIBIBYTE = 2**30

SEEN = np.random.default_rng(2).uniform(-2, 2, (64, 2)).astype(np.float32)
"""An episode of the policy with state."""

Action = tuple[float, ...]


def make_version(model: str, version: int, folder: Path) -> list[Action]:
    """Write a bundle with weights of its own; its actions for `OBSERVATIONS`."""
    graph = onnx.load(BUNDLES / "continuous" / MODEL_FILE)
    (weights,) = (tensor for tensor in graph.graph.initializer if list(tensor.dims) == [8, 2])
    drawn = np.random.default_rng((version, *model.encode())).normal(scale=0.3, size=(8, 2))
    weights.CopyFrom(numpy_helper.from_array(drawn.astype(np.float32), weights.name))
    content = graph.SerializeToString()
    manifest = replace(read_manifest(BUNDLES / "continuous"), name=model)
    cases = read_golden((BUNDLES / "continuous" / GOLDEN_FILE).read_bytes(), manifest)
    policy = Policy(content, manifest)
    golden = io.BytesIO()
    np.savez(golden, **(cases | {"action": policy.run(cases["obs"], cases["noise"])}))
    write_files(folder, manifest, {MODEL_FILE: content, GOLDEN_FILE: golden.getvalue()})
    return [tuple(map(float, action)) for action in serving.load(folder).act_batch(OBSERVATIONS)]


def make_recurrent_version(model: str, version: int, folder: Path) -> list[Action]:
    """Write a bundle of a policy with state, with weights of its own; the actions of its session for `SEEN`."""
    graph = onnx.load(BUNDLES / "recurrent" / MODEL_FILE)
    rng = np.random.default_rng((version, *model.encode()))
    for tensor in graph.graph.initializer:
        if len(tensor.dims) == 2 and tensor.dims[1] in (1, 8) and tensor.dims[0] > 1:
            drawn = rng.normal(scale=0.5, size=tuple(tensor.dims)).astype(np.float32)
            tensor.CopyFrom(numpy_helper.from_array(drawn, tensor.name))
    content = graph.SerializeToString()
    manifest = replace(read_manifest(BUNDLES / "recurrent"), name=model)
    cases = read_golden((BUNDLES / "recurrent" / GOLDEN_FILE).read_bytes(), manifest)
    session, outputs = open_session(content), ("action", "next_hidden")

    def step(inputs: dict[str, np.ndarray], noise: np.ndarray) -> dict[str, np.ndarray]:
        return dict(zip(outputs, session.run(outputs, inputs | {"noise": noise}), strict=True))

    inputs = {spec.name: cases[spec.name] for spec in manifest.step_inputs}
    seen, answers = run_sequences(step, inputs, cases["noise"], manifest.state)
    golden = io.BytesIO()
    np.savez(golden, **(cases | seen | answers))
    write_files(folder, manifest, {MODEL_FILE: content, GOLDEN_FILE: golden.getvalue()})
    episode = serving.load(folder).start()
    return [tuple(map(float, episode.act(observation))) for observation in SEEN]


def write_files(folder: Path, manifest: serving.Manifest, files: dict[str, bytes]) -> None:
    """Write a bundle of these files, each listed in the manifest."""
    folder.mkdir(parents=True)
    listed = {name: FileEntry.of(content) for name, content in files.items()}
    for name, content in files.items():
        (folder / name).write_bytes(content)
    (folder / MANIFEST_FILE).write_text(replace(manifest, files=listed).to_json())


def _truncated_model(folder: Path) -> None:
    os.truncate(folder / MODEL_FILE, 500)


def _truncated_manifest(folder: Path) -> None:
    os.truncate(folder / MANIFEST_FILE, 100)


def _missing_model(folder: Path) -> None:
    (folder / MODEL_FILE).unlink()


def _sparse_model(folder: Path) -> None:
    os.truncate(folder / MODEL_FILE, GIBIBYTE)


def _sparse_manifest(folder: Path) -> None:
    os.truncate(folder / MANIFEST_FILE, GIBIBYTE)


@cache
def bomb() -> bytes:
    """Golden cases of 1 MB that unpack to a gibibyte."""
    header, rows, zeros = io.BytesIO(), GIBIBYTE // 24, bytes(2**20)
    np.lib.format.write_array_header_1_0(header, {"descr": "<f8", "fortran_order": False, "shape": (rows, 3)})
    times, rest = divmod(rows * 24, len(zeros))
    start = header.getvalue() + bytes(rest)
    checksum = zlib.crc32(start)
    packer = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    packed = packer.compress(start) + packer.flush(zlib.Z_FULL_FLUSH)
    # What is packed between two full flushes does not depend on what was before, so it is packed once.
    packed += times * (packer.compress(zeros) + packer.flush(zlib.Z_FULL_FLUSH)) + packer.flush()
    for _ in range(times):
        checksum = zlib.crc32(zeros, checksum)
    empty = (zlib.compressobj(wbits=-zlib.MAX_WBITS).flush(), 0, 0)
    return _zip(
        {"obs.npy": (packed, checksum, len(start) + times * len(zeros)), "noise.npy": empty, "action.npy": empty}
    )


def _zip(members: dict[str, tuple[bytes, int, int]]) -> bytes:
    """Join members, each packed, with its checksum and its unpacked size, to an archive."""
    content, index = b"", b""
    for name, (packed, checksum, size) in members.items():
        fields = (20, 0, zipfile.ZIP_DEFLATED, 0, 33, checksum, len(packed), size, len(name), 0)
        index += struct.pack("<4sH5H3I2H3H2I", b"PK\x01\x02", 20, *fields, 0, 0, 0, 0, len(content)) + name.encode()
        content += struct.pack("<4s5H3I2H", b"PK\x03\x04", *fields) + name.encode() + packed
    count = len(members)
    return content + index + struct.pack("<4s4H2IH", b"PK\x05\x06", 0, 0, count, count, len(index), len(content), 0)


def _zip_bomb(folder: Path) -> None:
    manifest, model = read_manifest(folder), (folder / MODEL_FILE).read_bytes()
    shutil.rmtree(folder)
    write_files(folder, manifest, {MODEL_FILE: model, GOLDEN_FILE: bomb()})


def _fifo_model(folder: Path) -> None:
    (folder / MODEL_FILE).unlink()
    os.mkfifo(folder / MODEL_FILE)


def _fifo_manifest(folder: Path) -> None:
    (folder / MANIFEST_FILE).unlink()
    os.mkfifo(folder / MANIFEST_FILE)


def _folder_for_a_manifest(folder: Path) -> None:
    (folder / MANIFEST_FILE).unlink()
    (folder / MANIFEST_FILE).mkdir()


def _circular_link(folder: Path) -> None:
    (folder / MODEL_FILE).unlink()
    (folder / MODEL_FILE).symlink_to(MODEL_FILE)


def _unreadable(folder: Path) -> None:
    (folder / MODEL_FILE).chmod(0)


def _other_inputs(folder: Path) -> None:
    """Another policy, which takes four numbers where the model's clients send three."""
    shutil.rmtree(folder)
    shutil.copytree(BUNDLES / "discrete", folder)


def _other_weights(folder: Path) -> None:
    """A graph that was changed after its checksum was taken."""
    content = bytearray((folder / MODEL_FILE).read_bytes())
    content[-1] ^= 1
    (folder / MODEL_FILE).write_bytes(content)


DAMAGES: dict[str, Callable[[Path], None]] = {
    damage.__name__.strip("_"): damage
    for damage in (
        *(_sparse_model, _zip_bomb, _fifo_model, _other_inputs, _missing_model, _sparse_manifest, _truncated_model),
        *(_fifo_manifest, _folder_for_a_manifest, _truncated_manifest, _circular_link, _unreadable, _other_weights),
    )
}
"""What is done to a good bundle in its folder, by name."""
