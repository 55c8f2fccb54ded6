"""How the processes of a cluster write their logs: one line a decision, for people or as JSON."""

from __future__ import annotations

import json
import logging
import sys
from pathlib import Path


class JsonFormatter(logging.Formatter):
    """One JSON object a line."""

    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": self.formatTime(record),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        decision = getattr(record, "decision", None)
        if decision is not None:
            line |= {"session": decision.session, "what": decision.what, "figures": dict(decision.figures)}
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


def last_lines(temp_dir: str, most: int = 5) -> list[str]:
    """The last `most` lines that each process of the Ray in this folder has logged."""
    found = []
    for path in sorted(Path(temp_dir).glob("session_latest/logs/worker-*.err")):
        lines = [line for line in path.read_text(errors="replace").splitlines() if not line.startswith(":")]
        found += lines[-most:]
    return found
