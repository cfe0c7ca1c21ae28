"""Write every target of a bundle, and compare each with the policy."""

import shutil
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

import tensorflow as tf

from trpo_tf.export.errors import ExportError
from trpo_tf.export.parity.compare_target import compare_target
from trpo_tf.export.parity.proof import Proof, manifest_parity, proof_table
from trpo_tf.export.parity.reference.reference_cases import ReferenceCases
from trpo_tf.export.policy.batches import ActionAlone
from trpo_tf.export.policy.functions import Actor
from trpo_tf.export.policy.spec import spec_of
from trpo_tf.export.targets.target import ExportInputs, Target
from trpo_tf.serving import Manifest


def make_targets(
    folder: Path,
    manifest: Manifest,
    targets: Mapping[str, Target],
    inputs: ExportInputs,
    reference_cases: ReferenceCases,
    optional: Collection[str],
    observer: Callable[[str], None],
) -> tuple[dict[str, Actor], dict[str, Proof]]:
    """Write every target and compare it. Returns the actors and the proofs, both by target name.

    An `optional` target that can't be made is left out, and the observer is called with the reason. So is one whose
    actions are wrong by themselves, such as out of their bounds.
    """
    actors, proofs = {}, {}
    for name, target in targets.items():
        observer(f"writing and comparing {name}")
        try:
            _write(name, target, inputs, folder)
            actors[name], proofs[name] = _compared(name, target, folder, manifest, reference_cases)
        except ExportError as error:
            if name not in optional:
                raise
            observer(f"{name} is left out: {_reason(name, error)}")
            _remove(folder / target.path)
    return actors, proofs


def _compared(
    name: str, target: Target, folder: Path, manifest: Manifest, reference_cases: ReferenceCases
) -> tuple[Actor, Proof]:
    """Open a target that was written, and compare it. Raises `ExportError`."""
    samples = manifest.graph.noise != "none" or not target.follows_form
    step = target.open_step(folder, manifest) if target.open_step and manifest.state else None
    actor = target.open(folder, manifest) if step is None else ActionAlone(step, manifest.action.name)
    further = target.open_outputs(folder, manifest) if target.open_outputs and manifest.graph.outputs else step
    return actor, compare_target(
        name, actor, reference_cases, exact=target.exact, samples=samples, further=further, step=step
    )


def _reason(name: str, error: ExportError) -> str:
    """Return an error's message, in which `it` stands for the target's name at the beginning."""
    text = str(error)
    return f"it {text.removeprefix(f'{name} ')}" if text.startswith(f"{name} ") else text


def without_failed(
    folder: Path,
    targets: Mapping[str, Target],
    proofs: dict[str, Proof],
    cases: ReferenceCases,
    optional: Collection[str],
    observer: Callable[[str], None],
    *,
    accept_loss: bool,
) -> dict[str, Proof]:
    """Leave out the `optional` targets that may not be shipped; losses in 8 bits may be if they are accepted.

    The observer is called with each reason, and then with a table of all targets, also of those that are left out.
    """
    failed = {
        name: reason
        for name, proof in proofs.items()
        if name in optional and (proof.exact or not accept_loss) and (reason := proof.failure(cases))
    }
    for name, reason in failed.items():
        observer(f"{name} is left out: it {reason}")
        _remove(folder / targets[name].path)
    if failed:
        observer(f"all targets that were compared:\n{proof_table(proofs)}")
    return {name: proof for name, proof in proofs.items() if name not in failed}


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _write(name: str, target: Target, inputs: ExportInputs, folder: Path) -> None:
    """Write a target. Raises `ExportError` for whatever its converter raises, and `OSError` for a full disk."""
    try:
        target.write(inputs, folder)
    except (ExportError, OSError):
        raise
    except tf.errors.OpError as error:  # a full disk, say
        raise ExportError(f"{name} can't be written: {error.message}") from error
    except Exception as error:
        reason = " ".join(str(error).split())
        raise ExportError(f"{name} can't be made of this function: {reason}") from error


def target_parity(
    proofs: Mapping[str, Proof],
    cases: ReferenceCases,
    targets: Mapping[str, Target],
    manifest: Manifest,
    *,
    accept_loss: bool,
) -> dict[str, Any]:
    """Return the manifest's `parity`: how each target compared, its own names of inputs, and which outputs it lacks.

    Raises `ParityError` for a target that may not be shipped, unless losses are accepted.
    """
    parity = manifest_parity(proofs, cases, accept_loss=accept_loss)
    further = [spec.name for spec in manifest.graph.outputs]
    for name, figures in parity.items():
        if renamed := targets[name].renamed_inputs(spec_of(manifest)):
            figures["inputs"] = renamed
        if further and targets[name].open_outputs is None:
            figures["without"] = further
    return parity
