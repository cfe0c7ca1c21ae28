"""ONNX Runtime's own format: for a build of it that holds only the operators that the policy needs."""

from functools import partial
from pathlib import Path

from trpo_tf.export.ort.convert import to_ort
from trpo_tf.export.targets.onnx import with_batch
from trpo_tf.export.targets.session import session_actor, session_outputs, session_snippet
from trpo_tf.export.targets.target import ExportInputs, Target

_FOLDER, _OPERATORS_FILE = "ort", "required_operators.config"
_FILE = f"{_FOLDER}/policy.ort"


def _write(inputs: ExportInputs, folder: Path) -> None:
    model, operators = to_ort(with_batch(inputs.graph, inputs.batch))
    (folder / _FOLDER).mkdir()
    (folder / _FILE).write_bytes(model)
    (folder / _FOLDER / _OPERATORS_FILE).write_text(operators)


ORT = Target(
    "ort",
    _FOLDER,
    _write,
    partial(session_actor, _FILE),
    partial(session_snippet, _FILE),
    "a minimal build of ONNX Runtime",
    follows_form=True,
    open_outputs=partial(session_outputs, _FILE),
    open_step=partial(session_outputs, _FILE),
)
