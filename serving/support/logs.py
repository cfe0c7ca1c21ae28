"""What the server tells its operator, on stderr: one line an event, as text or as JSON.

What comes from outside is cut short, and has no character that a terminal or another line could be made of.
"""

import json
import logging
import re
import sys
import traceback
from datetime import UTC, datetime
from typing import Any

from trpo_tf.serving.support.log_writer import Dropped, LineOutput

_MOST_BYTES = 256
"""Of a stranger's text that is shown."""

_MOST_TRACEBACK = 8000
"""Characters of a traceback that are shown: its last ones, which tell most."""

_UNSAFE = re.compile(rb"[^!#-\[\]-~]")

logger = logging.getLogger("trpo_tf.serving")


class _Handler(logging.Handler):
    """Writes to stderr as `LineOutput` does."""

    def __init__(self, formatter: logging.Formatter, dropped: Dropped, process: int, *, threaded: bool) -> None:
        # Before the rest: logging flushes at the end of the process whatever handlers were made, half or whole.
        self.output = LineOutput(
            # Once it is closed its number may be that of a client's connection.
            2 if sys.__stderr__ is not None else -1,
            lambda lines: self._line(_notice(lines)),
            lambda lines: dropped.add(process, lines),
            threaded=threaded,
        )
        super().__init__()
        self.setFormatter(formatter)
        self.dropped = dropped

    def emit(self, record: logging.LogRecord) -> None:
        self.output.put(self._line(record))

    def flush(self) -> None:
        self.output.flush()

    def _line(self, record: logging.LogRecord) -> bytes:
        return self.format(record).encode("utf-8", "backslashreplace") + b"\n"


def configure(log_format: str, workers: int = 1) -> None:
    """Send all logs and Python's warnings to stderr, as text or as JSON.

    The parent of several workers starts no thread for that, since it forks; each worker calls `configure_worker`.
    """
    formatter = _Json() if log_format == "json" else _Text()
    _install(_Handler(formatter, Dropped(1 + workers), 0, threaded=workers == 1))


def configure_worker(index: int) -> None:
    """Go on as `configure` has begun in the parent that has forked this worker."""
    before = _installed()
    if before is not None and before.formatter is not None:
        _install(_Handler(before.formatter, before.dropped, 1 + index, threaded=True))


def flush() -> None:
    """Wait until all is written, but only for a moment."""
    if (handler := _installed()) is not None:
        handler.flush()


def dropped_lines() -> int:
    """How many lines this process and those that share its work have dropped."""
    handler = _installed()
    return handler.dropped.total() if handler is not None else 0


def write_line(text: str) -> None:
    """Write a line on stderr after those of the log, unless nobody reads it."""
    flush()
    content = text.encode("utf-8", "backslashreplace") + b"\n"
    LineOutput(2 if sys.__stderr__ is not None else -1, lambda _: b"", lambda _: None, threaded=False).put(content)


def _install(handler: _Handler) -> None:
    logging.basicConfig(handlers=[handler], level=logging.WARNING, force=True)
    logging.captureWarnings(True)
    logger.setLevel(logging.INFO)


def _installed() -> _Handler | None:
    return next((handler for handler in logging.getLogger().handlers if isinstance(handler, _Handler)), None)


def _notice(lines: int) -> logging.LogRecord:
    message = f"{lines} line{' was' if lines == 1 else 's were'} dropped, since stderr could not be written to"
    record = logging.LogRecord("trpo_tf.serving", logging.WARNING, "", 0, message, (), None)
    record.event, record.fields = "dropped", {"lines": lines}
    return record


def emit(
    event: str, message: str = "", *, level: int = logging.INFO, fault: BaseException | None = None, **fields: Any
) -> None:
    """Log an event: in text its message, or its fields if it has none; in JSON all of it."""
    logger.log(level, "%s", message, exc_info=fault, extra={"event": event, "fields": fields})


def shown(text: bytes) -> str:
    """A stranger's bytes as one printable word, without quotes and blanks."""
    safe = _UNSAFE.sub(lambda found: b"\\x%02x" % found[0][0], text[:_MOST_BYTES]).decode()
    return safe + ("..." if len(text) > _MOST_BYTES else "")


class _Text(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        fields = getattr(record, "fields", {})
        message = record.getMessage() or " ".join([getattr(record, "event", ""), *_pairs(fields)])
        lines = [message, *_traceback(record).splitlines()]
        # Behind the first line all are indented, so that none can be taken for an event of its own.
        return "\n    ".join(_printable(line) for line in lines)


class _Json(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        document = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "event": getattr(record, "event", "log"),
            "message": record.getMessage(),
            **getattr(record, "fields", {"logger": record.name}),
            "traceback": _traceback(record),
        }
        return json.dumps({key: value for key, value in document.items() if value != ""}, default=str)


def _traceback(record: logging.LogRecord) -> str:
    if not record.exc_info or record.exc_info[1] is None:
        return ""
    return "".join(traceback.format_exception(record.exc_info[1]))[-_MOST_TRACEBACK:].rstrip()


def _pairs(fields: dict[str, Any]) -> list[str]:
    return [f"{key}={value}" for key, value in fields.items() if value != ""]


def _printable(line: str) -> str:
    return "".join(character if character.isprintable() else repr(character)[1:-1] for character in line)
