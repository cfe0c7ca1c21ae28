"""The bundle's manifest: a policy's inputs and outputs, and a checksum of every file.

docs/reference/bundle.md specifies the format; writers and readers both use this module.
"""

import contextlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

from trpo_tf.serving.bundle import manifest_fields as fields
from trpo_tf.serving.bundle.files import MANIFEST_FILE, FileEntry, read_at_most, read_exactly, sha256_of_file
from trpo_tf.serving.bundle.specs import (
    ArraySpec,
    GraphSpec,
    NoiseSpec,
    StateSpec,
    Statistics,
    carried_inputs,
    next_outputs,
)
from trpo_tf.serving.errors import BundleError

FORMAT = "trpo-tf-bundle"
FORMAT_VERSION = 3
STATE_FORMAT_VERSION = 4
"""Version of the bundles of policies with state, which readers of version 3 would run without it."""

FORMER_TARGETS = {"policy.onnx": "onnx", "saved_model": "savedmodel"}
"""Present names of the targets in `parity`, by their names in the first bundles."""

_ARCHIVES = {".zip", ".tar", ".gz", ".tgz", ".xz", ".bz2", ".zst"}


@dataclass(frozen=True)
class Manifest:
    """Content of a bundle's manifest.

    `observation` has an entry for each array that the policy takes. `files` maps a relative POSIX path to its entry.
    `statistics` has the training statistics by input name, for the inputs whose statistics are known. `state` has an
    entry for each array that the policy carries from a step to the next. `mask` names the part of the observation that
    tells which actions are legal, if one does.
    """

    name: str
    observation: tuple[ArraySpec, ...]
    action: ArraySpec
    noise: NoiseSpec
    graph: GraphSpec = field(default_factory=GraphSpec)
    files: Mapping[str, FileEntry] = field(default_factory=dict)
    provenance: Mapping[str, Any] = field(default_factory=dict)
    parity: Mapping[str, Any] = field(default_factory=dict)
    statistics: Mapping[str, Statistics] = field(default_factory=dict)
    state: tuple[StateSpec, ...] = ()
    mask: str | None = None

    @cached_property
    def step_inputs(self) -> tuple[ArraySpec, ...]:
        """All inputs of the graph but the noise: the observation and, of a policy with state, state and `reset`."""
        return *self.observation, *carried_inputs(self.state)

    @cached_property
    def inputs(self) -> tuple[ArraySpec | NoiseSpec, ...]:
        """All inputs of the graph: those of a step, then noise if the graph takes it."""
        return *self.step_inputs, *(() if self.graph.noise == "none" else (self.noise,))

    @cached_property
    def outputs(self) -> tuple[ArraySpec, ...]:
        """All outputs of the graph: the action first, the next state last."""
        return self.action, *self.graph.outputs, *next_outputs(self.state)

    @cached_property
    def input_names(self) -> tuple[str, ...]:
        """Names of `inputs`."""
        return tuple(spec.name for spec in self.inputs)

    @cached_property
    def output_names(self) -> tuple[str, ...]:
        """Names of `outputs`."""
        return tuple(spec.name for spec in self.outputs)

    def to_json(self) -> str:
        """Return the manifest as JSON text; an infinite bound is written as null."""
        version = STATE_FORMAT_VERSION if self.state else FORMAT_VERSION
        document: dict[str, Any] = {"format": FORMAT, "format_version": version, **asdict(self)}
        for spec in (*document["observation"], document["action"], *document["graph"]["outputs"]):
            spec["low"], spec["high"] = fields.bound_to_json(spec["low"]), fields.bound_to_json(spec["high"])
        for key in ("state", "statistics", "mask"):
            if not document[key]:
                del document[key]
        text = json.dumps(document, indent=2, sort_keys=True, allow_nan=False)
        return f"{text}\n"

    @classmethod
    def from_json(cls, text: str | bytes) -> "Manifest":
        """Parse and check a manifest. Raises `BundleError` naming the field that is wrong."""
        document = fields.parsed_json(text.encode(errors="surrogatepass") if isinstance(text, str) else text)
        fields.check(isinstance(document, dict), "the document", "an object")
        fields.check(document.get("format") == FORMAT, "format", f"{FORMAT!r}")
        version = document.get("format_version")
        fields.check(
            type(version) is int and version in (FORMAT_VERSION, STATE_FORMAT_VERSION),
            "format_version",
            f"{FORMAT_VERSION} or {STATE_FORMAT_VERSION}, the ones this release reads",
        )
        name, files = fields.model_name(document), fields.files(document)
        observation, action = fields.array_specs(document, "observation"), fields.array_spec(document, "action")
        fields.check(len(observation) > 0, "observation", "a list of objects, one for each array")
        noise, graph = fields.noise_spec(document), fields.graph_spec(document)
        state = fields.state_specs(document) if version == STATE_FORMAT_VERSION else ()
        arrays = (*observation, action, *graph.outputs, *carried_inputs(state), *next_outputs(state))
        names = [noise.name, *(spec.name for spec in arrays)]
        fields.check(len(set(names)) == len(names), "the names", "one for each array that goes in or out")
        return cls(
            name=name,
            observation=observation,
            action=action,
            noise=noise,
            graph=graph,
            files=files,
            provenance=fields.provenance(document),
            parity={FORMER_TARGETS.get(name, name): each for name, each in fields.any_json(document, "parity").items()},
            statistics=fields.statistics(document, observation),
            state=state,
            mask=fields.mask(document, observation, action),
        )


def read_manifest(bundle: Path) -> Manifest:
    """Read the manifest of the bundle in folder `bundle`. Raises `BundleError`."""
    path = bundle / MANIFEST_FILE
    try:
        return _parsed(read_at_most(path, fields.MOST_MANIFEST_BYTES))
    except (FileNotFoundError, NotADirectoryError):
        raise BundleError(f"{bundle} is no bundle (no {MANIFEST_FILE}); {_instead(bundle)}") from None
    except OSError as error:
        raise BundleError(f"{path} can't be read ({error.strerror}); check its permissions") from None


def _instead(path: Path) -> str:
    """Return what to give instead of a path that is no bundle: the one around it, or in it."""
    with contextlib.suppress(OSError):
        if (path.parent / MANIFEST_FILE).is_file():
            return f"give the folder that it lies in, {path.parent}"
        if path.suffix in _ARCHIVES and path.is_file():
            return "unpack it, and give the folder"
        for inside in sorted(path.glob(f"*/{MANIFEST_FILE}")):
            return f"give the folder in it, {inside.parent}"
    return "make one with `trpo-tf export`"


@lru_cache(maxsize=1)  # a server reads a bundle's manifest several times when it loads it
def _parsed(content: bytes) -> Manifest:
    return Manifest.from_json(content)


def model_version(manifest: Manifest) -> str:
    """Return the version that the bundle states: `model_version` of its provenance, or "1"."""
    return str(manifest.provenance.get("model_version", 1))


def read_checked(bundle: Path, manifest: Manifest, name: str) -> bytes:
    """Return the bytes of one listed file, the same bytes whose checksum was verified. Raises `BundleError`."""
    entry = _entry(bundle, manifest, name)
    with _readable(bundle / name):
        content = read_exactly(bundle / name, entry.size)
    if FileEntry.of(content) != entry:
        raise _changed(bundle / name)
    return content


def check_file(bundle: Path, manifest: Manifest, name: str) -> None:
    """Check one listed file as `read_checked` does, without holding it in memory. Raises `BundleError`."""
    entry = _entry(bundle, manifest, name)
    with _readable(bundle / name):
        digest = sha256_of_file(bundle / name, entry.size)
    if digest != entry.sha256:
        raise _changed(bundle / name)


def _entry(bundle: Path, manifest: Manifest, name: str) -> FileEntry:
    entry = manifest.files.get(name)
    if entry is None:
        raise BundleError(f"{bundle}: {MANIFEST_FILE} lists no {name}; export the bundle again")
    return entry


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    """Turn an `OSError` of reading `path` into a `BundleError`."""
    try:
        yield
    except OSError as error:
        raise BundleError(f"{path} can't be read ({error.strerror}); export it again") from None


def _changed(path: Path) -> BundleError:
    return BundleError(f"{path} is not what was exported (its sha256 differs); export it again")
