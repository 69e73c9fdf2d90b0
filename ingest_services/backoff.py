"""Pauses between tries, for whoever tries again."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


class Backoff:
    """Capped exponential delays with jitter, for ever: there is no last try."""

    def __init__(
        self, base_s: float = 0.25, cap_s: float = 30.0, chance: random.Random | None = None
    ) -> None:
        self._base_s = base_s
        self._cap_s = cap_s
        self._failures = 0
        self._chance = chance or random.Random()  # noqa: S311 (spreads load, guards nothing)

    def next_s(self, at_least_s: float = 0.0) -> float:
        """Return how long to wait after one more failure, seconds, between half and all of the step."""
        step_s = min(self._cap_s, self._base_s * float(1 << min(self._failures, 20)))
        self._failures += 1
        return max(at_least_s, step_s * self._chance.uniform(0.5, 1.0))

    def reset(self) -> None:
        """Begin again at the base: a connection delivered."""
        self._failures = 0


def keep_trying(
    attempt: Callable[[], T], passing: type[Exception], within_s: float, say: Callable[[str], None]
) -> T:
    """Try until it succeeds, at most for some time; for commands, which have nothing else to do meanwhile.

    Args:
        attempt: What is tried, at least once.
        passing: The errors that may pass; any other ends it at once.
        within_s: For how long to go on after the first failure, seconds.
        say: Told each failure that is not the last.

    Returns:
        What the attempt returned.

    Raises:
        Exception: The last failure, when the time is over; and any other at once.
    """
    until_s = time.monotonic() + within_s
    pauses = Backoff(base_s=1.0, cap_s=15.0)
    while True:
        try:
            return attempt()
        except passing as error:
            left_s = until_s - time.monotonic()
            if left_s <= 0:
                raise
            say(f"{error}; trying for another {left_s:.0f} s")
            time.sleep(min(left_s, pauses.next_s()))
