"""Logging: one line for each event, for people on a console or as JSON for machines.

Modules log a constant message and give what varies as `extra`, so that entries can be counted and searched:
`_log.warning("destination unreachable", extra={"destination": name})`.
"""

from __future__ import annotations

import datetime
import logging
import sys
from typing import Any, TextIO

import orjson

from homeserver.config import Log

_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}
_COLOURS = {"DEBUG": "\x1b[2m", "INFO": "", "WARNING": "\x1b[33m", "ERROR": "\x1b[31m", "CRITICAL": "\x1b[31m"}


def set_up_logging(config: Log, stream: TextIO | None = None) -> None:
    """Sends the process's log to standard error. For the command line: an embedding program sets up its own."""
    stream = stream or sys.stderr
    handler = logging.StreamHandler(stream)
    handler.setFormatter(JsonFormatter() if config.format == "json" else ConsoleFormatter(colours=stream.isatty()))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    logging.getLogger("homeserver").setLevel(config.level.upper())


class JsonFormatter(logging.Formatter):
    """One JSON object a line: ts, level, logger, message, what varies, and the traceback as text."""

    def format(self, record: logging.LogRecord) -> str:
        entry: dict[str, Any] = {
            "ts": _timestamp(record),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **_extras(record),
        }
        if record.exc_info:
            entry["traceback"] = self.formatException(record.exc_info)
        return orjson.dumps(entry, default=str).decode()


class ConsoleFormatter(logging.Formatter):
    """Time, level, message and what varies as `key=value`; the traceback below."""

    def __init__(self, *, colours: bool = False) -> None:
        super().__init__()
        self._colours = colours

    def format(self, record: logging.LogRecord) -> str:
        colour = _COLOURS.get(record.levelname, "") if self._colours else ""
        extras = "".join(f" {key}={_shown(value)}" for key, value in _extras(record).items())
        line = f"{_timestamp(record)} {record.levelname.lower():<7} {record.name}: {record.getMessage()}{extras}"
        if record.exc_info:
            line += "\n" + self.formatException(record.exc_info)
        return f"{colour}{line}\x1b[0m" if colour else line


def _timestamp(record: logging.LogRecord) -> str:
    moment = datetime.datetime.fromtimestamp(record.created, datetime.UTC)
    return moment.strftime("%Y-%m-%dT%H:%M:%S.") + f"{int(record.msecs):03d}Z"


def _extras(record: logging.LogRecord) -> dict[str, Any]:
    return {key: value for key, value in vars(record).items() if key not in _STANDARD}


def _shown(value: Any) -> str:
    text = str(value)
    # What a client or another server chose must not look like a line of the log, nor steer the terminal.
    return text if text.isprintable() and " " not in text else ascii(text)
