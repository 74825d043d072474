"""Diagnostics on standard error, as lines for people or as JSON for machines. They never hold an event's values.

In JSON all that the process's Python writes there is an object a line: what is said at start, errors, warnings of
libraries and what a model prints too.
"""

from __future__ import annotations

import io
import json
import logging
import sys
import threading
import time
from types import TracebackType

LOGGER = "penstock"


class JsonLines(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        entry = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
            + f".{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if hint := getattr(record, "hint", None):
            entry["hint"] = hint
        if record.exc_info:
            entry["exception"] = self.formatException(record.exc_info)
        return json.dumps(entry, ensure_ascii=False)


def start_diagnostics(style: str, level: str) -> None:
    """Send what the package reports to standard error: `style` is "lines" or "json"."""
    handler = logging.StreamHandler(sys.stderr)
    lines = logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s")
    handler.setFormatter(JsonLines() if style == "json" else lines)
    logger = logging.getLogger(LOGGER)
    logger.handlers[:] = [handler]
    logger.setLevel(level.upper())
    logger.propagate = False
    if style == "json":
        logging.getLogger().handlers[:] = [handler]
        logging.captureWarnings(True)
        sys.excepthook = _log_uncaught
        threading.excepthook = lambda args: _log_uncaught(args.exc_type, args.exc_value, args.exc_traceback)


def say(text: str, *, hint: str | None = None, level: int = logging.INFO) -> None:
    """Tell whoever started the program, whatever the level of diagnostics."""
    handlers = [each for each in logging.getLogger(LOGGER).handlers if isinstance(each.formatter, JsonLines)]
    if not handlers:
        print(text if hint is None else f"{text}\nhint: {hint}", file=sys.stderr, flush=True)
        return
    record = logging.LogRecord(LOGGER, level, "", 0, text, None, None)
    record.hint = hint
    handlers[0].handle(record)


class LoggedText(io.TextIOBase):
    """Takes what a user's function prints, a diagnostic for each line."""

    def __init__(self, logger: logging.Logger) -> None:
        self.logger = logger
        self.begun = ""

    def writable(self) -> bool:
        return True

    def write(self, text: str) -> int:
        *lines, self.begun = (self.begun + text).split("\n")
        for line in lines:
            self.logger.info("%s", line)
        return len(text)


def _log_uncaught(
    kind: type[BaseException], error: BaseException | None, trace: TracebackType | None
) -> None:
    error = error or kind()
    logging.getLogger(LOGGER).critical("ended by an error: %s", kind.__name__, exc_info=(kind, error, trace))
