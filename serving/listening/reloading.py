"""Reads keys and certificates again when their files change, or when the server is told to by SIGHUP.

Mounted secrets are replaced through a link, so what counts is the file that a path leads to in the end. The looking is
done in a thread, since a file system may not answer.
"""

import logging
import threading
from collections.abc import Callable, Sequence
from typing import NamedTuple

from trpo_tf.serving.errors import ServeError
from trpo_tf.serving.support.logs import emit
from trpo_tf.serving.support.regular_file import fingerprint

LOOK_SECONDS = 0.5
"""How often the files are looked at. One that has changed is read once it is the same at two looks."""


class Followed(NamedTuple):
    """Files, and what reads them again.

    Attributes:
        what: their content, as a log line names it.
        files: their paths.
        reload: reads them, and answers whether their content has changed. Raises `ServeError`, and changes nothing, if
            it can't be used.
    """

    what: str
    files: tuple[str, ...]
    reload: Callable[[], bool]


class Reloader:
    """Follows files, in a daemon thread."""

    def __init__(self, followed: Sequence[Followed], on_change: Callable[[], None], *, logs: bool) -> None:
        """Nothing is read until `start`; `on_change` is called in the thread. Only one of the workers `logs`."""
        self._followed, self._on_change, self._logs = followed, on_change, logs
        # None: read at first, for what has changed since the server has read them.
        self._seen: list[object] = [None] * len(followed)
        self._tried: list[object] = [None] * len(followed)
        self._asked = threading.Event()

    def start(self) -> None:
        """Follow from now on."""
        if self._followed:
            threading.Thread(target=self._follow, name="reload", daemon=True).start()

    def ask(self) -> None:
        """Have all files read again, changed or not."""
        self._asked.set()

    def _follow(self) -> None:
        while True:
            is_asked = self._asked.wait(LOOK_SECONDS)
            self._asked.clear()
            for number, followed in enumerate(self._followed):
                found = [fingerprint(file) for file in followed.files]
                is_due = found == self._seen[number] != self._tried[number]
                self._seen[number] = found
                if is_asked or is_due:
                    self._tried[number] = found
                    self._reload(followed, is_asked=is_asked)

    def _reload(self, followed: Followed, *, is_asked: bool) -> None:
        what = followed.what
        try:
            is_changed = followed.reload()
        except ServeError as error:
            self._log(f"the {what} stay as they were: {error}", logging.WARNING)
            return
        except Exception as error:  # noqa: BLE001 (it is logged, and the next change is followed)
            emit("fault", f"the {what} can't be read again", level=logging.ERROR, fault=error)
            return
        if is_changed:
            self._on_change()
        if is_changed or is_asked:
            self._log(f"the {what} were read again" + ("" if is_changed else ", and are the same"), logging.INFO)

    def _log(self, message: str, level: int) -> None:
        if self._logs:
            emit("reload", message, level=level)
