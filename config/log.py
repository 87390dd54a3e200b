"""Structured logging for the whole process: JSON lines, or coloured text on a terminal.

`configure_logging` is called once by `chat_service.cli.commands.serve`. Lines of libraries
(Tornado,
PyMongo) go through the standard library and come out in the same form.
"""

import atexit
import logging
import sys
from typing import Any, Literal

import structlog

from config.outlet import Outlet, hold_standard_descriptors, stream_of

log = structlog.get_logger(__name__)


def divert_output() -> Outlet:
    """Have stdout and stderr written by threads of their own, and give the outlet of stderr.

    This takes in what never goes through `logging`: warnings and tracebacks of Python and of
    libraries. At exit each reader gets a second to take what is queued.
    """
    hold_standard_descriptors()
    stdout, stderr = Outlet(1), Outlet(2, _say_dropped)
    sys.stdout, sys.stderr = stream_of(stdout, 1), stream_of(stderr, 2)
    for outlet in (stdout, stderr):
        atexit.register(outlet.settle)
    return stderr


def _say_dropped(lines: int) -> None:
    log.warning("log lines were dropped; stderr was not read in time", lines=lines)


def configure_logging(level: str, form: Literal["auto", "json", "text"]) -> None:
    """Send every log line to stderr; stdout is kept for the one line that says `listening`."""
    as_text = form == "text" or (form == "auto" and sys.stderr.isatty())
    shared: list[Any] = [
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True, key="time"),
    ]
    last: list[Any] = (
        [structlog.dev.ConsoleRenderer(timestamp_key="time", colors=sys.stderr.isatty())]
        if as_text
        else [structlog.processors.format_exc_info, structlog.processors.JSONRenderer()]
    )
    formatter = structlog.stdlib.ProcessorFormatter(
        foreign_pre_chain=shared,
        processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *last],
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(formatter)
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    # A client that sends rubbish is counted and answered; it is not news for an operator.
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
