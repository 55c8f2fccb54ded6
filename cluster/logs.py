"""How the processes of a cluster write their logs: one line a decision, for people or as JSON."""

from __future__ import annotations

import json
import logging
import sys


class JsonFormatter(logging.Formatter):
    """One JSON object a line."""

    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": self.formatTime(record),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line)


def configure(level: str, as_json: bool) -> None:
    """Send what the package logs, from `level` on, to standard error."""
    handler = logging.StreamHandler(sys.stderr)
    plain = logging.Formatter("%(asctime)s %(levelname).1s %(name)s: %(message)s")
    handler.setFormatter(JsonFormatter() if as_json else plain)
    logger = logging.getLogger(__name__.split(".")[0])
    logger.handlers = [handler]
    logger.setLevel(level.upper())
    logger.propagate = False
