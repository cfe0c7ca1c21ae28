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

_MOST_BYTES = 256
"""Of a stranger's text that is shown."""

_MOST_TRACEBACK = 8000
"""Characters of a traceback that are shown: its last ones, which tell most."""

_UNSAFE = re.compile(rb"[^!#-\[\]-~]")

logger = logging.getLogger("serving")


def configure(log_format: str) -> None:
    """Send all logs of this process to stderr, as text or as JSON."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Json() if log_format == "json" else _Text())
    logging.basicConfig(handlers=[handler], level=logging.WARNING, force=True)
    logger.setLevel(logging.INFO)


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
