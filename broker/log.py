"""What the gateway says on stderr while it runs. The ledger is the record; this is not.

Rules this file keeps: one line an event, JSON unless stderr is a terminal; no payload, no key, no
routing id; nothing is logged for a single frame at level info or above, because a line costs more
than a decision. structlog is imported when a gateway is, and never by the command line's help or a
worker.
"""

from __future__ import annotations

import logging
import os
import sys
from typing import Protocol

import structlog

from broker.config import LogConfig


class Log(Protocol):
    """What callers may use of a logger: an event in a few words, and facts by name."""

    def debug(self, event: str, **facts: object) -> object:
        """Say what only a developer asks for."""

    def info(self, event: str, **facts: object) -> object:
        """Say what an operator expects to see."""

    def warning(self, event: str, **facts: object) -> object:
        """Say what an operator should look at."""

    def error(self, event: str, **facts: object) -> object:
        """Say what stops something."""


def open_log(config: LogConfig) -> Log:
    """Make the gateway's logger on stderr.

    Args:
        config: level and format; `auto` means text on a terminal and JSON elsewhere.
    """
    text = config.format == "text" or (config.format == "auto" and sys.stderr.isatty())
    plain = "NO_COLOR" in os.environ or not sys.stderr.isatty()
    renderer: structlog.typing.Processor = (
        structlog.dev.ConsoleRenderer(colors=not plain)
        if text
        else structlog.processors.JSONRenderer(sort_keys=True)
    )
    log: Log = structlog.wrap_logger(
        structlog.PrintLogger(sys.stderr),
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.UnicodeDecoder(),
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(
            logging.getLevelNamesMapping()[config.level.upper()]
        ),
        cache_logger_on_first_use=True,
    )
    return log
