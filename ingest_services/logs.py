"""Structured logs on stderr: for eyes on a terminal, JSON lines everywhere else.

A log that cannot be written (the disk is full, nobody reads the pipe any more, stderr was closed) costs its
lines, which are counted, and nothing else.
"""

from __future__ import annotations

import logging
import os
import sys
from typing import TextIO

import structlog

_STANDARD_DESCRIPTORS = 3


class _Lines:
    """Writes whole lines to stderr's descriptor, past the buffers of `sys.stderr`.

    What stays in a buffer is written again at the end of the process; failing there changes its exit status.
    """

    def __init__(self) -> None:
        self.lost = 0

    def write(self, text: str) -> int:
        try:
            stream = sys.stderr
            try:
                descriptor = stream.fileno()
            except (AttributeError, OSError, ValueError):
                _write_to(stream, text)
            else:
                left = text.encode(errors="backslashreplace")
                while left:
                    left = left[os.write(descriptor, left) :]
        except (OSError, ValueError):
            self.lost += text.count("\n") or 1
        return len(text)

    def flush(self) -> None:
        """Nothing is held back."""


def _write_to(stream: TextIO | None, text: str) -> None:
    """Write to a stream without a descriptor: a test's, or None if stderr was closed from the beginning."""
    if stream is None:
        raise ValueError("stderr is closed")
    stream.write(text)
    stream.flush()


_lines = _Lines()


def lost_lines() -> int:
    """Return how many log lines could not be written since the process began."""
    return _lines.lost


def setup_logging() -> None:
    """Configure structlog, and send what libraries log through the same lines at WARNING and above."""
    _occupy_standard_descriptors()
    processors: list[structlog.types.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    renderer: structlog.types.Processor = (
        structlog.dev.ConsoleRenderer()
        if sys.stderr is not None and sys.stderr.isatty()
        else structlog.processors.JSONRenderer()
    )
    structlog.configure(
        processors=[*processors, structlog.processors.format_exc_info, renderer],
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
        logger_factory=structlog.WriteLoggerFactory(file=_lines),  # type: ignore[arg-type]
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(_lines)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[*processors, structlog.stdlib.ExtraAdder()],
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, renderer],
        )
    )
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)


def _occupy_standard_descriptors() -> None:
    # A process that is started with stderr closed would give its number to the next file or socket that it
    # opens, and whatever writes to number 2 would write into that.
    while True:
        descriptor = os.open(os.devnull, os.O_RDWR)
        if descriptor >= _STANDARD_DESCRIPTORS:
            os.close(descriptor)
            return
