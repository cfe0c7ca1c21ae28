"""Names of settings outside of their groups, as options and arguments of `Config.for_env` have them."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from trpo_tf.config.former_names import SETTINGS


def own_name(group: str, name: str) -> str:
    """Return the name of a setting outside its group, as an option or an argument of `Config.for_env` has it."""
    return f"critic_{name}" if group == "critic" else name


def former_own_names() -> dict[str, str]:
    """Return the settings whose own name has changed since earlier releases: former name -> present name."""
    names = {}
    for former, present in SETTINGS.items():
        group, _, name = present.rpartition(".")
        names[former.rpartition(".")[2]] = own_name(group, name)
    return {former: present for former, present in names.items() if former != present}


def flat(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings under their own names, without groups."""
    groups = {name: value for name, value in values.items() if isinstance(value, dict)}
    flat = {name: value for name, value in values.items() if name not in groups}
    return flat | {
        own_name(group, name): value for group, settings in groups.items() for name, value in settings.items()
    }


def nested(settings: Mapping[str, Any], config: Any) -> dict[str, Any]:
    """Return the settings in the groups of the dataclass `config`: the inverse of `flat`.

    Unknown names stay outside of groups.
    """
    groups = {f.name: f.type for f in dataclasses.fields(config) if dataclasses.is_dataclass(f.type)}
    places = {
        own_name(group, f.name): (group, f.name) for group, kind in groups.items() for f in dataclasses.fields(kind)
    }
    values: dict[str, Any] = {}
    for name, value in settings.items():
        if name in places:
            group, own = places[name]
            values.setdefault(group, {})[own] = value
        else:
            values[name] = value
    return values
