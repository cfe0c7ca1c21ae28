"""Check the arguments of `write_bundle` before any work is done."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypedDict

from trpo_tf.export.errors import ExportError
from trpo_tf.export.parity.reference.evidence import Evidence
from trpo_tf.export.policy.function_checks import check_answer
from trpo_tf.export.policy.spec import GraphForm, PolicySpec, check_function
from trpo_tf.serving import BundleError
from trpo_tf.serving.argument_checks import expect, expect_path
from trpo_tf.serving.bundle.signing import signer
from trpo_tf.serving.bundle.specs import Statistics
from trpo_tf.serving.runtime.conversion import as_observations

DEFAULT_NAME = "policy"


class Contents(TypedDict, total=False):
    """Contents of a bundle besides the policy; `write_bundle` takes each as a keyword argument and explains it."""

    name: str
    provenance: Mapping[str, Any] | None
    statistics: Mapping[str, Statistics] | None
    files: Mapping[str, bytes] | None
    signing_key: Path | None


def check_arguments(function: Any, spec: Any, path: Any, form: Any, evidence: Any, observer: Any) -> None:
    """Raise `ExportError` naming the first argument that can't be exported."""
    expect(spec, PolicySpec, "spec must be a PolicySpec", ExportError)
    check_function(function, "function", spec)
    expect_path(path, "path must be that of the folder to make", ExportError)
    expect(form, GraphForm, "form must be a GraphForm", ExportError)
    expect(evidence, Evidence, "evidence must be Evidence(observations), or Evidence(environment=...)", ExportError)
    expect(observer, Callable, "observer must be a function of what is being done", ExportError)
    for name, output in form.outputs.items():
        check_function(output, f"output {name!r}", spec)
    if evidence.scores is not None:
        check_function(evidence.scores, "scores", spec)
    arrays = (spec.noise, spec.action, *spec.step_inputs, *spec.next_state)
    clashes = set(form.outputs) & {array.name for array in arrays}
    if clashes:
        raise ExportError(f"output {min(clashes)!r} has the name of another array; choose another")
    check_answer(function, spec)
    if evidence.observations is not None:
        try:
            as_observations(evidence.observations, spec.observation, batched=True)
        except ValueError as error:
            raise ExportError(f"observations of the evidence: {error}") from None


def check_contents(contents: Contents) -> None:
    """Raise `ExportError` or `BundleError` naming the first of the contents that a bundle can't hold."""
    unknown = contents.keys() - Contents.__annotations__.keys()
    if unknown:
        raise TypeError(f"write_bundle() got an unexpected keyword argument {min(unknown)!r}")
    name = contents.get("name", DEFAULT_NAME)
    if not isinstance(name, str) or not name.isprintable() or "/" in name or not name:
        raise BundleError(f"name must be printable text without '/', not {name!r}")
    for wanted in ("provenance", "statistics", "files"):
        expect(contents.get(wanted), Mapping | None, f"{wanted} must be a dict", ExportError)
    _check_provenance(contents.get("provenance") or {})
    for each in (contents.get("statistics") or {}).values():
        expect(each, Statistics, "statistics must hold a Statistics for each input", ExportError)
    _check_files(contents.get("files") or {})
    if (key := contents.get("signing_key")) is not None:
        signer(key)


def _check_provenance(provenance: Mapping[str, Any]) -> None:
    try:
        json.dumps(dict(provenance), allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ExportError(f"provenance must be JSON: {error}") from None


def _check_files(files: Mapping[Any, Any]) -> None:
    for name, content in files.items():
        expect(content, bytes, f"files[{name!r}] must be bytes", ExportError)
        if not isinstance(name, str) or Path(name).name != name:
            raise ExportError(f"files must have plain names, without a folder, not {name!r}")
