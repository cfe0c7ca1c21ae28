"""The package's presets: TOML files of settings, named after the environments that they are tuned for."""

import tomllib
from importlib import resources
from typing import Any

from trpo_tf.config.option_names import flat
from trpo_tf.errors import UserError

_FOLDER = resources.files("trpo_tf.config") / "presets"


def preset_names() -> list[str]:
    """Return the names of the package's presets: the environments, or namespaces, that they are tuned for."""
    return sorted(path.name.removesuffix(".toml") for path in _FOLDER.iterdir() if path.name.endswith(".toml"))


def preset_for(env_id: str) -> str:
    """Return the preset's name for `env_id`: the id, its namespace (`ALE/Pong-v5`: `ALE`), or `default`."""
    candidates = (env_id, env_id.rpartition(":")[2].partition("/")[0])
    return next((name for name in candidates if name in preset_names()), "default")


def read_preset(preset: str) -> dict[str, Any]:
    """Return a preset's settings by their own names. Raises `UserError` for an unknown preset."""
    if preset not in preset_names():
        raise UserError(f"preset {preset!r} is unknown; choose one of default, {', '.join(preset_names())}")
    return flat(tomllib.loads((_FOLDER / f"{preset}.toml").read_text()))
