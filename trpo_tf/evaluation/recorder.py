"""Record an episode in a process of its own: `python -m trpo_tf.evaluation.recorder FOLDER`.

The folder holds request.json and a bundle; episode.mp4 or episode.gif, and answer.json, are written to it.
"""

import dataclasses
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TypedDict, Unpack

from trpo_tf.config.environment import Environment
from trpo_tf.errors import UserError
from trpo_tf.evaluation.video import Recording, record
from trpo_tf.serving import Manifest, load
from trpo_tf.serving.bundle.files import MANIFEST_FILE, MODEL_FILE

_BUNDLE, _REQUEST, _ANSWER = "bundle", "request.json", "answer.json"


class RecordOptions(TypedDict, total=False):
    """Keyword arguments of `record`, which explains them and has their defaults."""

    seed: int
    deterministic: bool
    width: int
    max_seconds: float


def record_apart(
    model: bytes,
    manifest: Manifest,
    environment: str | Environment,
    kind: str,
    **options: Unpack[RecordOptions],
) -> Recording:
    """Record an episode of an ONNX graph's policy as `record` does, in a process of its own.

    The manifest must list the graph. Raises `UserError` for every failure of that process.
    """
    request = {"environment": dataclasses.asdict(Environment.of(environment)), "kind": kind, "options": options}
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        (folder / _BUNDLE).mkdir()
        (folder / _BUNDLE / MODEL_FILE).write_bytes(model)
        (folder / _BUNDLE / MANIFEST_FILE).write_text(manifest.to_json())
        (folder / _REQUEST).write_text(json.dumps(request))
        done = subprocess.run(
            [sys.executable, "-m", "trpo_tf.evaluation.recorder", scratch],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            last = done.stderr.strip().splitlines()[-1:] or [f"the process that draws ended with {done.returncode}"]
            raise UserError(last[0])
        answer = json.loads((folder / _ANSWER).read_text())
        if "error" in answer:
            raise UserError(answer["error"])
        return Recording((folder / f"episode.{kind}").read_bytes(), **answer)


def _answer(folder: Path) -> dict[str, object]:
    """Record what the folder's request asks for; return the recording without its video, or the error."""
    request = json.loads((folder / _REQUEST).read_text())
    environment = request["environment"]
    environment["env_wrapper"] = tuple(environment["env_wrapper"])
    kind = request["kind"]
    try:
        recording = record(load(folder / _BUNDLE), Environment(**environment), kind, **request["options"])
        (folder / f"episode.{kind}").write_bytes(recording.video)
    except (UserError, OSError, ValueError, RuntimeError, ImportError) as error:
        return {"error": " ".join(str(error).split()) or type(error).__name__}
    return recording.to_dict()


if __name__ == "__main__":
    own = Path(sys.argv[1])
    (own / _ANSWER).write_text(json.dumps(_answer(own)))
