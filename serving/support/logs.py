"""Structured logs on stderr: one line per event, as text or as JSON.

Text from clients is shortened, and its control characters are escaped: it can't forge lines or terminal sequences.
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
"""Most bytes of a client's text that are shown."""

_MOST_TRACEBACK = 8000
"""Most characters of a traceback that are shown: its last ones, which say most."""

_UNSAFE = re.compile(rb"[^!#-\[\]-~]")

logger = logging.getLogger("trpo_tf.serving")


class _Handler(logging.Handler):
    """Logging handler that writes to stderr through `LineOutput`."""

    def __init__(self, formatter: logging.Formatter, dropped: Dropped, process: int, *, threaded: bool) -> None:
        # Set first: at exit, logging flushes every handler, even one whose `__init__` has failed after this.
        self.output = LineOutput(
            # If stderr is closed, a client's connection may have got descriptor 2.
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
    """Send all logs and Python warnings to stderr, as text or as JSON.

    The parent of several workers starts no writer thread, since it forks. Each worker calls `configure_worker`.
    """
    formatter = _Json() if log_format == "json" else _Text()
    _install(_Handler(formatter, Dropped(1 + workers), 0, threaded=workers == 1))


def configure_worker(index: int) -> None:
    """Set up logs in a forked worker, with the format and the counts of dropped lines of its parent's `configure`."""
    before = _installed()
    if before is not None and before.formatter is not None:
        _install(_Handler(before.formatter, before.dropped, 1 + index, threaded=True))


def flush() -> None:
    """Wait until all log lines are written, at most `FLUSH_SECONDS`."""
    if (handler := _installed()) is not None:
        handler.flush()


def dropped_lines() -> int:
    """Return how many log lines this process, its parent and the other workers have dropped."""
    handler = _installed()
    return handler.dropped.total() if handler is not None else 0


def write_line(text: str) -> None:
    """Write a line to stderr, after pending log lines. It is dropped if stderr can't be written to."""
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
    """Log an event. Text shows its message, or its fields if it has none; JSON shows both."""
    logger.log(level, "%s", message, exc_info=fault, extra={"event": event, "fields": fields})


def shown(text: bytes) -> str:
    """Return a client's bytes as one printable word, shortened, with quotes, blanks and other bytes escaped."""
    safe = _UNSAFE.sub(lambda found: b"\\x%02x" % found[0][0], text[:_MOST_BYTES]).decode()
    return safe + ("..." if len(text) > _MOST_BYTES else "")


class _Text(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        fields = getattr(record, "fields", {})
        message = record.getMessage() or " ".join([getattr(record, "event", ""), *_pairs(fields)])
        lines = [message, *_traceback(record).splitlines()]
        # Lines after the first are indented, so that they can't be taken for separate events.
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
