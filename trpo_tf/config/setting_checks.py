"""Check a setting's type and value when a config is made: the values come from Python and from files."""

import dataclasses
import reprlib
from collections.abc import Callable, Iterable
from typing import Any, Self, get_args, get_origin, get_type_hints

from trpo_tf.config.names_elsewhere import known_as
from trpo_tf.errors import UserError


class KnownSettings:
    """Base of dataclasses that refuse an unknown setting, and say which one is meant."""

    def __new__(cls, *_values: Any, **settings: Any) -> Self:
        """Raise `UserError` for a name that is no field."""
        refuse_unknown(cls, settings, cls._meant)
        return super().__new__(cls)

    @classmethod
    def _meant(cls, name: str) -> str:
        """Return which setting an unknown name means, as a clause of an error; empty if none is close."""
        return known_as(name, [field.name for field in dataclasses.fields(cls)])  # type: ignore[arg-type]


def refuse_unknown(kind: Any, names: Iterable[str], meant: Callable[[str], str]) -> None:
    """Raise `UserError` for the first of the names that is no field of a dataclass, with what is `meant` by it."""
    fields = [field.name for field in dataclasses.fields(kind)]
    for name in names:
        if name not in fields:
            known = f"{kind.__name__} has {', '.join(fields)}"
            raise UserError(f"setting {name!r} is unknown; {meant(name) or known}")


def check_types(config: Any, prefix: str = "") -> None:
    """Raise `UserError` naming the first field of a dataclass whose value is not of the field's type.

    The message has `prefix` before the name. Numbers and arrays of NumPy are replaced by Python's. A float without a
    fraction, such as 1e6, is accepted for an integer field and replaced by the integer.
    """
    for name, kind in get_type_hints(type(config)).items():
        given = getattr(config, name)
        value = _plain(given)
        if kind is int:
            value = whole_number(value)
        if value is not given:
            object.__setattr__(config, name, value)
        if not _is_of(value, kind):
            wanted = f"a tuple of {get_args(kind)[0].__name__}" if get_args(kind) else f"of type {kind.__name__}"
            raise UserError(f"{prefix}{name} must be {wanted}, not {reprlib.repr(value)}")


def require_one_of(value: str, name: str, known: tuple[str, ...]) -> None:
    """Raise `UserError` unless the setting is one of the `known` values."""
    require(value in known, name, f"one of {', '.join(known)}, not {value!r}")


def require(condition: bool, name: str, expected: str) -> None:
    """Raise `UserError` that the setting must be what is `expected`, unless the condition holds."""
    if not condition:
        raise UserError(f"{name} must be {expected}")


def whole_number(value: Any) -> Any:
    """Return a float without a fraction as an int (`1e5` as 100,000), and anything else unchanged."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _plain(value: Any) -> Any:
    """Return numbers and arrays of NumPy as Python's, also in a list or tuple, and anything else unchanged."""
    if hasattr(value, "dtype") and hasattr(value, "tolist"):
        value = value.tolist()
        return tuple(value) if isinstance(value, list) else value
    if isinstance(value, list | tuple) and any(hasattr(each, "dtype") for each in value):
        return tuple(map(_plain, value))
    return value


def _is_of(value: Any, kind: Any) -> bool:
    if kind in (int, float):
        return isinstance(value, (int, float) if kind is float else int) and not isinstance(value, bool)
    if get_origin(kind) is tuple:
        return isinstance(value, list | tuple) and all(_is_of(each, get_args(kind)[0]) for each in value)
    return isinstance(value, kind)
