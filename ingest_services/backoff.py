"""Pauses between tries, for whoever tries again."""

from __future__ import annotations

import random


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
