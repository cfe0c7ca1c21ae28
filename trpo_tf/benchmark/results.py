"""Files of a benchmark's runs, and the check that existing ones have the same settings.

runs/NAME/result.json   the result; exists only once the run is finished
runs/NAME/run/          the run folder
runs/NAME/bundle/       its exported policy
runs/NAME/log.txt       output of its process
"""

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from trpo_tf.config.settings import Config, read_config
from trpo_tf.errors import UserError
from trpo_tf.support.atomic_write import write_atomically

EPISODES = 20
"""Episodes of an evaluation."""

RESULT_FILE = "result.json"
RUN_FOLDER = "run"
BUNDLE_FOLDER = "bundle"
LOG_FILE = "log.txt"

_CONFIG_FILE = "config.toml"


@dataclass(frozen=True)
class Result:
    """Result of a finished run."""

    environment: str
    seed: int
    steps: int
    """environment steps that it took; no iteration begins that could go beyond what was asked for"""
    evaluation: Mapping[str, Any]
    """evaluation of the exported policy: fields of `trpo_tf.evaluation.evaluate.Evaluation`"""
    curve: tuple[tuple[int, float], ...]
    """environment steps so far, and mean return of the last 20 episodes that ended in training"""
    seconds: float
    """time in iterations, compiling included"""
    steps_per_second: float
    config: Mapping[str, Any]
    versions: Mapping[str, str]
    machine: Mapping[str, Any]
    untrained_return: float | None = None
    """mean return of the new policy, actions sampled; None if it was not measured"""

    @property
    def score(self) -> float:
        """Mean return of the exported policy."""
        return float(self.evaluation["mean_return"])

    def to_dict(self) -> dict[str, Any]:
        """Return the result as plain values."""
        return asdict(self)


def name_of(config: Config) -> str:
    """Return the name of a run, for its folder and for people."""
    return f"{re.sub(r'[^A-Za-z0-9.]+', '-', config.env_id)}-seed{config.seed}"


def folder_of(out: Path, config: Config) -> Path:
    """Return the folder of a run's files."""
    return out / "runs" / name_of(config)


def write_result(folder: Path, result: Result) -> None:
    """Write a run's result, which says that it is finished."""
    write_atomically(folder / RESULT_FILE, f"{json.dumps(result.to_dict())}\n".encode())


def is_finished(folder: Path) -> bool:
    """Return whether the run in this folder has a result."""
    return (folder / RESULT_FILE).is_file()


def read_result(folder: Path) -> Result:
    """Read a finished run's result. Raises `UserError` if it can't be read."""
    path = folder / RESULT_FILE
    try:
        values = json.loads(path.read_text())
        return Result(**{**values, "curve": tuple((steps, mean) for steps, mean in values["curve"])})
    except (ValueError, TypeError, KeyError) as error:
        raise UserError(f"{path} is not a result ({error}); remove {folder} to do the run again") from error


def require_same_settings(folder: Path, config: Config) -> None:
    """Raise `UserError` if a run, finished or not, was begun in `folder` with other settings than `config`."""
    begun = _begun_settings(folder)
    if begun is None:
        return
    now, then = (_flat(settings.to_dict()) for settings in (config, begun))
    changed = [name for name in now if now[name] != then[name]]
    if changed:
        name = changed[0]
        raise UserError(
            f"{folder} was begun with other settings ({name} was {then[name]}, now {now[name]}); "
            "choose another --out, or remove that folder"
        )


def _begun_settings(folder: Path) -> Config | None:
    """Read the settings of a run that was begun; None if there is none. Missing ones take defaults."""
    if is_finished(folder):
        return Config.from_dict(dict(read_result(folder).config))
    path = folder / RUN_FOLDER / _CONFIG_FILE
    return read_config(path) if path.is_file() else None


def _flat(values: Mapping[str, Any]) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in values.items():
        flat |= _flat(value) if isinstance(value, Mapping) else {name: value}
    return flat
