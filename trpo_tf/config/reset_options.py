"""Options of an environment's reset that change over a run."""

from collections.abc import Iterable, Mapping
from typing import Any

from trpo_tf.errors import UserError

_ENDS = {"from", "to"}


def options_at(schedule: Mapping[str, Any], progress: float) -> dict[str, Any]:
    """Return the options at `progress`, the share of the run that is done, from 0 to 1.

    A value `{"from": a, "to": b}`, at any depth, is interpolated linearly, lists of numbers element by element, and
    rounded where both ends are integers. Other values stay as they are.
    """
    return {name: _value_at(value, progress) for name, value in schedule.items()}


def check_schedule(schedule: Mapping[str, Any]) -> None:
    """Raise `UserError` naming an option with one end alone, or whose ends aren't numbers or lists of one length."""
    for name, value in schedule.items():
        if _changes(value):
            _check_ends(name, value)
        else:
            for place, part in _parts(value):
                check_schedule({f"{name}.{place}": part})


def _check_ends(name: str, value: Mapping[str, Any]) -> None:
    if value.keys() != _ENDS:
        raise UserError(f'reset_options takes a schedule with both ends, {{"from": A, "to": B}}; {name} is {value}')
    if not _fit(*_ends(value)):
        raise UserError(
            f"reset_options must go from a number to a number, or between lists of equally many: {name} is {value}"
        )


def _value_at(value: Any, progress: float) -> Any:
    if _changes(value):
        return _at(*_ends(value), progress)
    if isinstance(value, dict):
        return options_at(value, progress)
    return [_value_at(part, progress) for part in value] if isinstance(value, list) else value


def _parts(value: Any) -> Iterable[tuple[Any, Any]]:
    if isinstance(value, dict):
        return value.items()
    return enumerate(value) if isinstance(value, list) else ()


def _changes(value: Any) -> bool:
    return isinstance(value, dict) and not _ENDS.isdisjoint(value)


def _ends(value: Mapping[str, Any]) -> tuple[Any, Any]:
    return value["from"], value["to"]


def _fit(first: Any, last: Any) -> bool:
    if isinstance(first, list) and isinstance(last, list):
        return len(first) == len(last) and all(map(_fit, first, last))
    return all(isinstance(end, int | float) and not isinstance(end, bool) for end in (first, last))


def _at(first: Any, last: Any, progress: float) -> Any:
    if isinstance(first, list):
        return [_at(*ends, progress) for ends in zip(first, last, strict=True)]
    value = (1.0 - progress) * first + progress * last
    return round(value) if isinstance(first, int) and isinstance(last, int) else value
