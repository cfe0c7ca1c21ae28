"""Packages that add something by an entry point, as pip would install them, made of the code in docs/howto/extend."""

import importlib
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.support.paths import ROOT
from tests.support.processes import command_line
from trpo_tf.serving.support import entry_points


def page_module(page: str) -> tuple[str, str]:
    """The name of the module in a page of docs/howto/extend, which its first line tells, and its code."""
    text = (ROOT / "docs" / "howto" / "extend" / f"{page}.md").read_text()
    ((name, code),) = re.findall(r"```python\n# (\w+)\.py\n(.*?)```", text, re.DOTALL)
    return name, code


def page_entry_point(page: str) -> tuple[str, str, str]:
    """The group, the name and the value of the entry point in a page of docs/howto/extend."""
    text = (ROOT / "docs" / "howto" / "extend" / f"{page}.md").read_text()
    (found,) = re.findall(r'\n\[project.entry-points."(.*?)"\]\n(\S+) = "(.*?)"\n```', text)
    return found


def install(folder: Path, page: str, value: str | None = None) -> None:
    """Install the package of such a page in `folder`; another `value` of its entry point may be given."""
    module, code = page_module(page)
    group, name, named = page_entry_point(page)
    metadata = folder / f"{module}-1.dist-info"
    metadata.mkdir(parents=True)
    (folder / f"{module}.py").write_text(code)
    (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {module}\nVersion: 1\n")
    (metadata / "entry_points.txt").write_text(f"[{group}]\n{name} = {value or named}\n")


@contextmanager
def installed(folder: Path, page: str, value: str | None = None) -> Iterator[None]:
    """Install it in this process, for as long as the context is open."""
    install(folder, page, value)
    sys.path.insert(0, str(folder))
    importlib.invalidate_caches()
    entry_points.entries.cache_clear()
    try:
        yield
    finally:
        sys.path.remove(str(folder))
        sys.modules.pop(page_module(page)[0], None)
        entry_points.entries.cache_clear()


def environment(folder: Path) -> dict[str, str]:
    """The environment of a process in which the packages in `folder` are installed."""
    return {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, [folder, ROOT]))}


def run(folder: Path, code: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    """Run code where the packages in `folder` are installed."""
    return command_line.run(ROOT, *arguments, code=code, paths=[folder], timeout=600)
