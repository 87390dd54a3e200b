"""Structured logging for the whole process: JSON lines, or coloured text on a terminal.

`configure_logging` is called once by `chat_service.cli.serve`. Lines of libraries (Tornado,
PyMongo) go through the standard library and come out in the same form.
"""

import logging
import sys
from typing import Any, Literal

import structlog


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
