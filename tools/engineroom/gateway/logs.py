"""Logs as JSON, one object a line, without prompts and answers unless the level is debug."""

import json
import logging
import sys
from datetime import UTC, datetime


class JsonFormatter(logging.Formatter):
    """``time``, ``level``, ``message``, and what a record has as ``facts``."""

    def format(self, record: logging.LogRecord) -> str:
        """One line."""
        made = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "message": record.getMessage(),
            **getattr(record, "facts", {}),
        }
        if record.exc_info:
            made["exception"] = self.formatException(record.exc_info)
        return json.dumps(made)


def set_up(level: str) -> None:
    """Write the gateway's and uvicorn's logs to standard error."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter())
    for name, least in (("engineroom.gateway", level), ("uvicorn.error", "WARNING")):
        logger = logging.getLogger(name)
        logger.handlers[:] = [handler]
        logger.setLevel(max(logging.getLevelName(level.upper()), logging.getLevelName(least.upper())))
        logger.propagate = False
