"""Values that other installed packages add to a table, each named by an entry point of a group."""

from collections.abc import Mapping
from functools import cache
from typing import Any, TypeVar, cast

Value = TypeVar("Value")


def find_value(
    name: str, table: Mapping[str, Value], group: str, kind: type[Value], error: type[Exception], setting: str
) -> Value:
    """Return the value called `name` of the table, or else of the group. Packages are searched only in the second case.

    Raises `error` if there is none, or if what a package adds can't be used; the message names the setting.
    """
    if name in table:
        return table[name]
    added = load_values(group, kind, error, name)
    if name not in added:
        names = [*table, *sorted({entry.name for entry in entries(group)})]
        known = f"no installed package adds one to {group}"
        if names:
            known = f"choose one of {', '.join(names)}, or install the package that adds it"
        raise error(f"{setting} {name!r} is unknown; {known}")
    return cast(Value, added[name])


def load_values(group: str, kind: type[Any], error: type[Exception], name: str | None = None) -> dict[str, Any]:
    """Load the values that packages add to a group, or only the one called `name`.

    Raises `error` for an entry point that can't be loaded, that is no `kind`, or whose name another one has.
    """
    values: dict[str, Any] = {}
    for entry in sorted(entries(group)):
        if name not in (None, entry.name):
            continue
        where = f"entry point {entry.name!r} ({entry.value}) of group {group}"
        if entry.name in values:
            raise error(f"{where} is there twice; uninstall one of its packages")
        try:
            value = entry.load()
        except Exception as failure:
            reason = " ".join(str(failure).split())
            raise error(f"{where} can't be loaded: {reason}; mend or uninstall its package") from failure
        if not isinstance(value, kind):
            raise error(f"{where} must be of type {kind.__name__}, not {value!r}")
        values[entry.name] = value
    return values


@cache
def entries(group: str) -> Any:
    """Return the entry points of a group."""
    # Not imported above: the import takes 28 ms and the search 10 ms, and few processes need them.
    from importlib.metadata import entry_points

    return entry_points(group=group)
