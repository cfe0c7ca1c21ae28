"""Search spaces: for each setting the values that a search may try, read from a TOML file.

    trust_region.max_kl = { low = 0.005, high = 0.05, log = true }
    critic.epochs = { low = 5, high = 20 }
    policy.hidden_sizes = [[64, 64], [256, 256]]

Names are those of config.toml. A list holds choices. A table holds bounds: of integers if both are.
"""

import json
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trpo_tf.config.settings import Config
from trpo_tf.errors import UserError

if TYPE_CHECKING:
    import optuna

Space = dict[str, Any]
"""List of choices, or table of bounds, by dotted name."""

_BOUNDS = frozenset(("low", "high", "log", "step"))


def read_space(path: Path, config: Config) -> Space:
    """Read a search space for runs that start from `config`.

    Raises `UserError` for a file that can't be read or is no TOML, an unknown setting, or a value that can't work.
    """
    try:
        space = dict(_flattened(tomllib.loads(path.read_text("utf-8"))))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not valid TOML: {error}") from error
    except OSError as error:
        reason = f"the search space {path} can't be read: {error.strerror}"
        raise UserError(f"{reason}; give a TOML file to --space") from error
    if not space:
        raise UserError(f"{path} names no setting; for example: trust_region.damping = [0.03, 0.1, 1.0]")
    for name, values in space.items():
        _check(name, values, config, path)
    return space


def with_values(config: Config, values: Mapping[str, Any]) -> Config:
    """Return the config with settings replaced, by their dotted names. Raises `UserError`."""
    changed = config.to_dict()
    for name, value in values.items():
        *groups, field = name.split(".")
        place = changed
        for group in groups:
            place = place.setdefault(group, {})
        place[field] = value
    return Config.from_dict(changed)


def suggest(trial: "optuna.Trial", space: Space) -> dict[str, Any]:
    """Return a value for each setting of the space."""
    return {name: _suggested(trial, name, values) for name, values in space.items()}


def present_values(space: Space, config: Config) -> dict[str, Any]:
    """Return the config's own values, as Optuna's parameters, of the settings whose space has them."""
    found = {}
    for name, values in space.items():
        own: Any = config.to_dict()
        for part in name.split("."):
            own = own[part]
        own = list(own) if isinstance(own, tuple) else own
        if isinstance(values, list):
            if own in values:
                found[name] = json.dumps(own)
        elif values["low"] <= own <= values["high"]:
            found[name] = own
    return found


def _flattened(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, dict) and not value.keys() & _BOUNDS:
            yield from _flattened(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


def _check(name: str, values: Any, config: Config, path: Path) -> None:
    if name in ("env_id", "seed"):
        raise UserError(f"{path}: {name} can't be searched; it is an option of the command")
    if isinstance(values, list) and values:
        tried = values
    elif isinstance(values, dict) and _are_bounds(values):
        tried = [values["low"], values["high"]]
    else:
        raise UserError(
            f"{path}: {name} must be a list of choices, or a table such as {{ low = 0.01, high = 1.0, log = true }}"
        )
    for value in tried:
        try:
            with_values(config, {name: value})
        except (UserError, TypeError, AttributeError) as error:
            raise UserError(f"{path}: {name} = {value} can't work: {error}") from error


def _are_bounds(values: Mapping[str, Any]) -> bool:
    """Return whether a table has numbers as bounds, and options that go with them."""
    ends = [values.get("low"), values.get("high")]
    if not values.keys() <= _BOUNDS or not all(type(end) in (int, float) for end in ends):
        return False
    positive = values["low"] > 0 or not values.get("log", False)
    return bool(values["low"] < values["high"] and positive and not (values.get("log") and "step" in values))


def _suggested(trial: "optuna.Trial", name: str, values: Any) -> Any:
    if isinstance(values, list):  # as JSON, since storages make lists of tuples
        return json.loads(trial.suggest_categorical(name, [json.dumps(value) for value in values]))
    bounds = {key: values[key] for key in ("step", "log") if key in values}
    whole = isinstance(values["low"], int) and isinstance(values["high"], int)
    return (trial.suggest_int if whole else trial.suggest_float)(name, values["low"], values["high"], **bounds)
