"""Tables for the terminal."""

from collections.abc import Iterable


def text_table(columns: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """Align cells in columns: the first to the left, the others to the right."""
    lines = [list(columns), *map(list, rows)]
    widths = [max(map(len, cells)) for cells in zip(*lines, strict=True)]
    first, *others = widths
    return "\n".join("  ".join([line[0].ljust(first), *map(str.rjust, line[1:], others)]) for line in lines)
