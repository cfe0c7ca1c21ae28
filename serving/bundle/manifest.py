"""The bundle's manifest: a policy's inputs and outputs, and a checksum of every file.

docs/reference/bundle.md specifies the format; writers and readers both use this module.
"""

import hashlib
import json
import math
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trpo_tf.serving.bundle.files import read_at_most, read_exactly, sha256_of_file
from trpo_tf.serving.errors import BundleError as BundleError

FORMAT = "trpo-tf-bundle"
FORMAT_VERSION = 3
MANIFEST_FILE = "manifest.json"
MODEL_FILE = "policy.onnx"
GOLDEN_FILE = "golden.npz"
EPISODE_FILES = ("episode.mp4", "episode.gif")
LATENCY_FILE = "latency.json"
SIGNATURE_FILE = "model.sig"

UNLISTED_FILES = {MANIFEST_FILE, LATENCY_FILE, SIGNATURE_FILE}
"""Files that a manifest does not list: itself, and files that differ between two exports of the same run."""

FORMER_TARGETS = {"policy.onnx": "onnx", "saved_model": "savedmodel"}
"""Present names of the targets in `parity`, by their names in the first bundles."""

NOISE_LAWS = ("normal", "gumbel", "logistic")
NOISE_INPUTS = ("optional", "required", "none")
DTYPES = (
    *("bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"),
    *("float16", "float32", "float64"),
)

MOST_MANIFEST_BYTES = 4 * 2**20
MOST_MANIFEST_VALUES = 250_000
"""Most values in a manifest, estimated by its commas and opening brackets. A parsed value takes up to 200 bytes."""
MOST_MANIFEST_DEPTH = 64
MOST_DIMENSIONS = 32
MOST_NAME = 255
"""Most characters of a name or version; the names of folders are limited to as many bytes."""

MOST_STATISTICS = 1000
"""Most elements of an input with statistics; larger inputs are images, or of their size."""

Bound = float | tuple[float, ...]
"""One bound for all elements, or one for each element in row-major order; infinite means no bound."""


@dataclass(frozen=True)
class ArraySpec:
    """One array as the environment defines it, without the batch dimension."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    low: Bound = -math.inf
    high: Bound = math.inf

    def __post_init__(self) -> None:
        """Convert None to an infinite bound, and sequences to tuples. Raises `BundleError` for invalid values."""
        _check_array(self)
        object.__setattr__(self, "shape", tuple(self.shape))
        object.__setattr__(self, "low", _as_bound(self, "low", -math.inf))
        object.__setattr__(self, "high", _as_bound(self, "high", math.inf))

    def bounds(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return lower and upper bounds, each of the array's shape."""
        return self._filled(self.low), self._filled(self.high)

    def _filled(self, bound: Bound) -> NDArray[np.float64]:
        values = np.asarray(bound, np.float64)
        return np.broadcast_to(values if values.ndim == 0 else values.reshape(self.shape), self.shape).copy()


@dataclass(frozen=True)
class NoiseSpec:
    """Specification of the noise input, with which a policy samples; zeros give the deterministic action.

    `law` is the standard distribution to draw from: `normal`, `gumbel` or `logistic`.
    """

    law: str
    shape: tuple[int, ...]
    name: str = "noise"
    dtype: str = "float32"

    def __post_init__(self) -> None:
        """Convert sequences to tuples. Raises `BundleError` for invalid values."""
        _check_array(self)
        if self.law not in NOISE_LAWS:
            raise BundleError(f"noise law {self.law!r} is unknown; choose one of {', '.join(NOISE_LAWS)}")
        object.__setattr__(self, "shape", tuple(self.shape))


@dataclass(frozen=True)
class GraphSpec:
    """Properties of the graph beyond its observation and action.

    Attributes:
        noise: `optional` or `required` noise input, or `none`: then it acts deterministically.
        batch: the only batch size that it accepts; None for any.
        outputs: its outputs besides the action.
    """

    noise: str = "optional"
    batch: int | None = None
    outputs: tuple[ArraySpec, ...] = ()


@dataclass(frozen=True)
class Statistics:
    """Mean and standard deviation of one input during training, for each element in row-major order."""

    mean: tuple[float, ...]
    stddev: tuple[float, ...]


@dataclass(frozen=True)
class FileEntry:
    """Size in bytes and SHA-256 of one file of the bundle."""

    size: int
    sha256: str

    @classmethod
    def of(cls, content: bytes) -> "FileEntry":
        """Return the size and checksum of `content`."""
        return cls(len(content), hashlib.sha256(content).hexdigest())


@dataclass(frozen=True)
class Manifest:
    """Content of a bundle's manifest.

    `observation` has an entry for each array that the policy takes. `files` maps a relative POSIX path to its entry.
    `statistics` has the training statistics by input name, for the inputs whose statistics are known.
    """

    name: str
    observation: tuple[ArraySpec, ...]
    action: ArraySpec
    noise: NoiseSpec
    graph: GraphSpec = GraphSpec()
    files: Mapping[str, FileEntry] = field(default_factory=dict)
    provenance: Mapping[str, Any] = field(default_factory=dict)
    parity: Mapping[str, Any] = field(default_factory=dict)
    statistics: Mapping[str, Statistics] = field(default_factory=dict)

    @property
    def outputs(self) -> tuple[ArraySpec, ...]:
        """All outputs of the graph, the action first."""
        return self.action, *self.graph.outputs

    def to_json(self) -> str:
        """Return the manifest as JSON text; an infinite bound is written as null."""
        document: dict[str, Any] = {"format": FORMAT, "format_version": FORMAT_VERSION, **asdict(self)}
        for spec in (*document["observation"], document["action"], *document["graph"]["outputs"]):
            spec["low"], spec["high"] = _bound_to_json(spec["low"]), _bound_to_json(spec["high"])
        if not self.statistics:
            del document["statistics"]
        text = json.dumps(document, indent=2, sort_keys=True, allow_nan=False)
        return f"{text}\n"

    @classmethod
    def from_json(cls, text: str | bytes) -> "Manifest":
        """Parse and check a manifest. Raises `BundleError` naming the field that is wrong."""
        document = _parsed(text.encode(errors="surrogatepass") if isinstance(text, str) else text)
        _check(isinstance(document, dict), "the document", "an object")
        _check(document.get("format") == FORMAT, "format", f"{FORMAT!r}")
        version = document.get("format_version")
        _check(
            type(version) is int and version == FORMAT_VERSION,
            "format_version",
            f"{FORMAT_VERSION}, the one this release reads",
        )
        files = document.get("files")
        _check(isinstance(files, dict) and MODEL_FILE in files, "files", f"an object with {MODEL_FILE!r}")
        name = document.get("name")
        _check(_is_name(name), "name", f"printable text without '/', of at most {MOST_NAME} characters")
        observation, action = _array_specs(document, "observation"), _array_spec(document, "action")
        _check(len(observation) > 0, "observation", "a list of objects, one for each array")
        noise, graph = _noise_spec(document), _graph_spec(document)
        names = [noise.name, *(spec.name for spec in (*observation, action, *graph.outputs))]
        _check(len(set(names)) == len(names), "the names", "one for each array that goes in or out")
        return cls(
            name=name,
            observation=observation,
            action=action,
            noise=noise,
            graph=graph,
            files={path: _file_entry(path, entry) for path, entry in files.items()},
            provenance=_provenance(document),
            parity={FORMER_TARGETS.get(name, name): each for name, each in _any_json(document, "parity").items()},
            statistics=_statistics(document, observation),
        )


def read_manifest(bundle: Path) -> Manifest:
    """Read the manifest of the bundle in folder `bundle`. Raises `BundleError`."""
    path = bundle / MANIFEST_FILE
    try:
        return Manifest.from_json(read_at_most(path, MOST_MANIFEST_BYTES))
    except (FileNotFoundError, NotADirectoryError):
        raise BundleError(f"{bundle} is no bundle (no {MANIFEST_FILE}); make one with `trpo-tf export`") from None
    except OSError as error:
        raise BundleError(f"{path} can't be read ({error.strerror}); check its permissions") from None


def model_version(manifest: Manifest) -> str:
    """Return the version that the bundle states: `model_version` of its provenance, or "1"."""
    return str(manifest.provenance.get("model_version", 1))


def read_checked(bundle: Path, manifest: Manifest, name: str) -> bytes:
    """Return the bytes of one listed file, the same bytes whose checksum was verified. Raises `BundleError`."""
    entry = _entry(bundle, manifest, name)
    try:
        content = read_exactly(bundle / name, entry.size)
    except OSError as error:
        raise _unreadable(bundle / name, error) from None
    if FileEntry.of(content) != entry:
        raise _changed(bundle / name)
    return content


def check_file(bundle: Path, manifest: Manifest, name: str) -> None:
    """Check one listed file as `read_checked` does, without holding it in memory. Raises `BundleError`."""
    entry = _entry(bundle, manifest, name)
    try:
        digest = sha256_of_file(bundle / name, entry.size)
    except OSError as error:
        raise _unreadable(bundle / name, error) from None
    if digest != entry.sha256:
        raise _changed(bundle / name)


def _entry(bundle: Path, manifest: Manifest, name: str) -> FileEntry:
    entry = manifest.files.get(name)
    if entry is None:
        raise BundleError(f"{bundle}: {MANIFEST_FILE} lists no {name}; export the bundle again")
    return entry


def _unreadable(path: Path, error: OSError) -> BundleError:
    return BundleError(f"{path} can't be read ({error.strerror}); export it again")


def _changed(path: Path) -> BundleError:
    return BundleError(f"{path} is not what was exported (its sha256 differs); export it again")


def _parsed(text: bytes) -> Any:
    """Parse JSON, whose size and number of values are limited: that bounds the memory it takes."""
    try:
        if len(text) > MOST_MANIFEST_BYTES or sum(map(text.count, (b",", b"[", b"{"))) > MOST_MANIFEST_VALUES:
            raise ValueError(f"more than {MOST_MANIFEST_BYTES:,} bytes or {MOST_MANIFEST_VALUES:,} values")
        return json.loads(text, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise BundleError(f"{MANIFEST_FILE} is not JSON ({error}); export the bundle again") from None


def _any_json(document: dict[str, Any], key: str) -> dict[str, Any]:
    """Return an object of which every value can be written as JSON again: no infinite number, no lone surrogate."""
    value = _object(document, key)
    try:
        _check_depth(value, MOST_MANIFEST_DEPTH)
        json.dumps(value, ensure_ascii=False, allow_nan=False).encode()
    except ValueError as error:
        raise BundleError(f"{MANIFEST_FILE}: {key} is not JSON ({error}); export the bundle again") from None
    return value


def _check_depth(value: Any, most: int) -> None:
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    if most == 0 and inner:
        raise ValueError(f"objects and lists are nested more than {MOST_MANIFEST_DEPTH} deep")
    for each in inner:
        if isinstance(each, dict | list):
            _check_depth(each, most - 1)


def _check_array(spec: ArraySpec | NoiseSpec) -> None:
    if not _is_text(spec.name):
        raise BundleError(f"an array's name must be printable text, not {spec.name!r}")
    if spec.dtype not in DTYPES:
        raise BundleError(f"dtype of {spec.name!r} must be one of {', '.join(DTYPES)}, not {spec.dtype!r}")
    if not isinstance(spec.shape, list | tuple) or not all(type(n) is int and n > 0 for n in spec.shape):
        raise BundleError(f"shape of {spec.name!r} must be a tuple of positive integers, not {spec.shape!r}")


def _as_bound(spec: ArraySpec, which: str, infinite: float) -> Bound:
    value = getattr(spec, which)
    several = isinstance(value, list | tuple | np.ndarray)
    values = [
        infinite if bound is None else bound for bound in (np.ravel(np.asarray(value, object)) if several else [value])
    ]
    size = math.prod(spec.shape) if several else 1
    if len(values) != size or not all(isinstance(b, int | float | np.number) and not math.isnan(b) for b in values):
        raise BundleError(
            f"{which} of {spec.name!r} must be a number, or one for each of its {math.prod(spec.shape)} elements, or "
            f"None for no bound; it is {value!r}"
        )
    plain = [b.item() if isinstance(b, np.number) else b for b in values]
    return tuple(plain) if several else plain[0]


def _check(condition: bool, where: str, expected: str) -> None:
    if not condition:
        raise BundleError(f"{MANIFEST_FILE}: {where} must be {expected}; export the bundle again")


def _refuse_constant(constant: str) -> None:
    raise ValueError(f"{constant} is no JSON")


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and value != "" and value.isprintable()


def _is_name(value: Any) -> bool:
    return _is_text(value) and "/" not in value and len(value) <= MOST_NAME


def _object(document: dict[str, Any], key: str) -> dict[str, Any]:
    value = document.get(key)
    _check(isinstance(value, dict), key, "an object")
    return dict(value)  # type: ignore[arg-type]


def _array_specs(document: dict[str, Any], key: str) -> tuple[ArraySpec, ...]:
    parts = document.get(key)
    _check(isinstance(parts, list), key, "a list of objects, one for each array")
    named = {f"{key}[{place}]": part for place, part in enumerate(parts)}  # type: ignore[arg-type]
    return tuple(_array_spec(named, name) for name in named)


def _array_spec(document: dict[str, Any], key: str) -> ArraySpec:
    value = _object(document, key)
    _check(_is_text(value.get("name")), f"{key}.name", "printable text")
    return ArraySpec(
        name=value["name"],
        dtype=_dtype(value, key),
        shape=(shape := _shape(value, key)),
        low=_bound_from_json(value.get("low"), -math.inf, shape, f"{key}.low"),
        high=_bound_from_json(value.get("high"), math.inf, shape, f"{key}.high"),
    )


def _noise_spec(document: dict[str, Any]) -> NoiseSpec:
    value = _object(document, "noise")
    _check(_is_text(value.get("name")), "noise.name", "printable text")
    _check(value.get("law") in NOISE_LAWS, "noise.law", f"one of {', '.join(NOISE_LAWS)}")
    return NoiseSpec(value["law"], _shape(value, "noise"), value["name"], _dtype(value, "noise"))


def _graph_spec(document: dict[str, Any]) -> GraphSpec:
    value = _object(document, "graph")
    noise, batch = value.get("noise"), value.get("batch")
    _check(noise in NOISE_INPUTS, "graph.noise", f"one of {', '.join(NOISE_INPUTS)}")
    _check(batch is None or (type(batch) is int and batch > 0), "graph.batch", "a positive integer or null")
    return GraphSpec(str(noise), batch, _array_specs(value, "outputs"))


def _statistics(document: dict[str, Any], observation: tuple[ArraySpec, ...]) -> dict[str, Statistics]:
    if "statistics" not in document:
        return {}
    values, sizes = _object(document, "statistics"), {spec.name: math.prod(spec.shape) for spec in observation}
    for name in values:
        known = sizes.get(name, math.inf) <= MOST_STATISTICS
        _check(known, f"statistics[{name!r}]", f"of an input, of {MOST_STATISTICS} elements at most")
    return {name: _input_statistics(values, name, sizes[name]) for name in values}


def _input_statistics(values: dict[str, Any], name: str, size: int) -> Statistics:
    value = _object(values, name)
    for key in ("mean", "stddev"):
        numbers = value.get(key)
        _check(
            isinstance(numbers, list)
            and len(numbers) == size
            and all(_is_number(number) and (key == "mean" or number > 0) for number in numbers),
            f"statistics[{name!r}].{key}",
            f"a list of {size} finite numbers{'' if key == 'mean' else ' above 0'}",
        )
    return Statistics(tuple(value["mean"]), tuple(value["stddev"]))


def _provenance(document: dict[str, Any]) -> dict[str, Any]:
    value = _any_json(document, "provenance")
    version = value.get("model_version", 1)
    _check(type(version) is int or _is_name(version), "provenance.model_version", "an integer, or text as a name is")
    return value


def _dtype(value: dict[str, Any], key: str) -> str:
    dtype = value.get("dtype")
    _check(dtype in DTYPES, f"{key}.dtype", f"one of {', '.join(DTYPES)}")
    return str(dtype)


def _shape(value: dict[str, Any], key: str) -> tuple[int, ...]:
    shape = value.get("shape")
    _check(
        isinstance(shape, list) and len(shape) <= MOST_DIMENSIONS and all(type(n) is int and n > 0 for n in shape),
        f"{key}.shape",
        f"a list of at most {MOST_DIMENSIONS} positive integers",
    )
    return tuple(shape)  # type: ignore[arg-type]


def _bound_to_json(bound: Bound) -> float | list[float | None] | None:
    if isinstance(bound, tuple):
        return [b if math.isfinite(b) else None for b in bound]
    return bound if math.isfinite(bound) else None


def _bound_from_json(value: Any, infinite: float, shape: tuple[int, ...], where: str) -> Bound:
    if not isinstance(value, list):
        _check(value is None or _is_number(value), where, "a finite number, a list of them, or null")
        return infinite if value is None else value
    _check(
        len(value) == math.prod(shape) and all(b is None or _is_number(b) for b in value),
        where,
        "one finite number (or null) for each element of shape",
    )
    return tuple(infinite if b is None else b for b in value)


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and abs(value) <= sys.float_info.max


def _file_entry(path: str, value: Any) -> FileEntry:
    parts = PurePosixPath(path).parts
    _check(
        bool(parts) and path.isprintable() and ".." not in parts and not path.startswith("/") and "\\" not in path,
        f"files[{path!r}]",
        "a relative path inside the bundle",
    )
    _check(
        isinstance(value, dict) and type(value.get("size")) is int and isinstance(value.get("sha256"), str),
        f"files[{path!r}]",
        "an object with size and sha256",
    )
    return FileEntry(value["size"], value["sha256"])
