"""Structured logging for the whole process: JSON lines, or short lines of text on a terminal.

`chat_service.cli.commands.serve` calls `configure_logging` once. Libraries such as Tornado and
PyMongo log through the standard library; their lines get the same format.
"""

import atexit
import logging
import os
import sys
from typing import Any, Literal

import structlog

from config.outlet import Outlet, hold_standard_descriptors, stream_of
from config.terminal_lines import TerminalLines

log = structlog.get_logger(__name__)


def divert_output() -> Outlet:
    """Let threads write stdout and stderr, and return the outlet of stderr.

    This includes text that does not pass through `logging`, such as warnings and tracebacks. At
    exit, the queued text of each stream is written for up to a second.
    """
    hold_standard_descriptors()
    stdout, stderr = Outlet(1), Outlet(2, _log_dropped)
    sys.stdout, sys.stderr = stream_of(stdout, 1), stream_of(stderr, 2)
    for outlet in (stdout, stderr):
        atexit.register(outlet.flush)
    return stderr


def _log_dropped(lines: int) -> None:
    log.warning("log lines dropped because stderr was not read in time", lines=lines)


def configure_logging(level: str, form: Literal["auto", "json", "text"]) -> None:
    """Send all log lines to stderr. stdout is reserved for the `listening on` lines."""
    is_terminal = sys.stderr.isatty()
    as_text = form == "text" or (form == "auto" and is_terminal)
    is_short = as_text and is_terminal
    stamp = structlog.processors.TimeStamper(
        fmt="%H:%M:%S" if is_short else "iso", utc=not is_short, key="time"
    )
    shared: list[Any] = [
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        stamp,
    ]
    formatter = structlog.stdlib.ProcessorFormatter(
        foreign_pre_chain=shared,
        processors=[
            structlog.stdlib.ProcessorFormatter.remove_processors_meta,
            *_render(as_text, is_terminal),
        ],
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(formatter)
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    # Malformed requests are answered and counted, so Tornado need not log them.
    logging.getLogger("tornado.general").setLevel(logging.WARNING)
    for name in ("pymongo", "websockets"):
        logging.getLogger(name).setLevel(logging.WARNING)
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            *shared,
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=True,
    )


def _render(as_text: bool, is_terminal: bool) -> list[Any]:
    """Return the processors that turn an event into text."""
    if as_text and not is_terminal:
        # With packages such as Rich, the default shows variables: tokens and texts.
        plain = structlog.dev.plain_traceback
        return [
            structlog.dev.ConsoleRenderer(
                timestamp_key="time", colors=False, exception_formatter=plain
            )
        ]
    if as_text:
        has_colors = "NO_COLOR" not in os.environ and os.environ.get("TERM") != "dumb"
        return [structlog.processors.format_exc_info, TerminalLines(colors=has_colors)]
    return [structlog.processors.format_exc_info, structlog.processors.JSONRenderer()]
