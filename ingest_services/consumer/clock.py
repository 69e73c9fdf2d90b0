"""The clocks that the writer reads; a test puts its own in their place."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass


def _now_ms() -> int:
    return time.time_ns() // 1_000_000


@dataclass(frozen=True, slots=True)
class Clock:
    """What time it is.

    Attributes:
        now_ms: Wall clock, ms since the epoch.
        monotonic_s: A clock that nobody sets, s.
    """

    now_ms: Callable[[], int] = _now_ms
    monotonic_s: Callable[[], float] = time.monotonic
