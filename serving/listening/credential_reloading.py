"""Reloading of keys and certificates when their files change, and on SIGHUP.

Mounted secrets are replaced through a symbolic link, so the file at the end of the links is compared. This is done in a
thread, since a file system may hang.
"""

import logging
import threading
from collections.abc import Callable, Sequence
from typing import NamedTuple

from trpo_tf.serving.errors import ServeError
from trpo_tf.serving.support.logs import emit
from trpo_tf.serving.support.regular_file import fingerprint

LOOK_SECONDS = 0.5
"""How often the files are checked. A changed file is read once two checks in a row find it the same."""


class Followed(NamedTuple):
    """Files, and the function that reads them again.

    Attributes:
        what: their content, as a log line names it.
        files: their paths.
        reload: reads them, and returns whether their content has changed. Raises `ServeError`, and changes nothing, if
            it can't be used.
    """

    what: str
    files: tuple[str, ...]
    reload: Callable[[], bool]


class Reloader:
    """Checks files for changes in a daemon thread, and reloads them."""

    def __init__(self, followed: Sequence[Followed], on_change: Callable[[], None], *, logs: bool) -> None:
        """Prepare to follow the files; `start` begins. `on_change` is called in the thread. Only one worker `logs`."""
        self._followed, self._on_change, self._logs = followed, on_change, logs
        # None makes the thread read each file at first: it may have changed since the server read it.
        self._seen: list[object] = [None] * len(followed)
        self._tried: list[object] = [None] * len(followed)
        self._reload_requested = threading.Event()

    def start(self) -> None:
        """Start the thread, if there are files to follow."""
        if self._followed:
            threading.Thread(target=self._follow, name="reload", daemon=True).start()

    def request_reload(self) -> None:
        """Request that all files are read again, changed or not."""
        self._reload_requested.set()

    def _follow(self) -> None:
        while True:
            is_requested = self._reload_requested.wait(LOOK_SECONDS)
            self._reload_requested.clear()
            for number, followed in enumerate(self._followed):
                found = [fingerprint(file) for file in followed.files]
                is_due = found == self._seen[number] != self._tried[number]
                self._seen[number] = found
                if is_requested or is_due:
                    self._tried[number] = found
                    self._reload(followed, is_requested=is_requested)

    def _reload(self, followed: Followed, *, is_requested: bool) -> None:
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
        if is_changed or is_requested:
            self._log(f"the {what} were read again" + ("" if is_changed else ", and are the same"), logging.INFO)

    def _log(self, message: str, level: int) -> None:
        if self._logs:
            emit("reload", message, level=level)
