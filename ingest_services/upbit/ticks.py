"""Tick sizes: the prices at which orders may stand, by quote currency.

KRW is measured; BTC and USDT are from Upbit's order-book policy pages. Where a live answer can be had,
`/v1/orderbook/instruments` is to be preferred.
"""

from __future__ import annotations

from bisect import bisect_right
from decimal import Decimal

# Prices and sizes have at most eight decimals, so a whole number of these units is exact.
UNITS_PER_ONE = 10**8

# (lowest price of the band, tick size within it), highest band first.
_BANDS: dict[str, tuple[tuple[str, str], ...]] = {
    "KRW": (
        ("1000000", "1000"),
        ("500000", "500"),
        ("100000", "100"),
        ("50000", "50"),
        ("10000", "10"),
        ("5000", "5"),
        ("100", "1"),
        ("10", "0.1"),
        ("1", "0.01"),
        ("0.1", "0.001"),
        ("0.01", "0.0001"),
        ("0.001", "0.00001"),
        ("0.0001", "0.000001"),
        ("0.00001", "0.0000001"),
        ("0", "0.00000001"),
    ),
    "BTC": (("0", "0.00000001"),),
    "USDT": (
        ("10", "0.01"),
        ("1", "0.001"),
        ("0.1", "0.0001"),
        ("0.01", "0.00001"),
        ("0.001", "0.000001"),
        ("0.0001", "0.0000001"),
        ("0", "0.00000001"),
    ),
}


def to_units(price: Decimal) -> int:
    """Return a price as a whole number of 10⁻⁸.

    Raises:
        ValueError: If it has more than eight decimals.
    """
    units = price * UNITS_PER_ONE
    if units != int(units):
        raise ValueError(f"{price} has more than eight decimals")
    return int(units)


class Ladder:
    """All prices of one quote currency in ascending order; rung 0 is the lowest price above zero."""

    def __init__(self, quote: str) -> None:
        """Build the ladder of `KRW`, `BTC` or `USDT`.

        Raises:
            KeyError: If the quote currency is none of them.
        """
        self._lows: list[int] = []
        self._ticks: list[int] = []
        self._first_rungs: list[int] = []
        rungs = 0
        for low, tick in reversed(_BANDS[quote]):
            # The lowest band starts one tick above zero: nothing is offered for nothing.
            low_units = to_units(Decimal(low)) or to_units(Decimal(tick))
            if self._lows:
                rungs += (low_units - self._lows[-1]) // self._ticks[-1]
            self._lows.append(low_units)
            self._ticks.append(to_units(Decimal(tick)))
            self._first_rungs.append(rungs)

    def price(self, rung: int) -> int:
        """Return the price on a rung, in units of 10⁻⁸.

        Raises:
            ValueError: If the rung is negative.
        """
        if rung < 0:
            raise ValueError(f"rung {rung} is below the lowest price")
        band = bisect_right(self._first_rungs, rung) - 1
        return self._lows[band] + (rung - self._first_rungs[band]) * self._ticks[band]

    def rung(self, units: int) -> int:
        """Return the highest rung whose price is not above `units` (10⁻⁸); rung 0 if there is none."""
        band = max(0, bisect_right(self._lows, units) - 1)
        return max(0, self._first_rungs[band] + (units - self._lows[band]) // self._ticks[band])

    def tick(self, units: int) -> int:
        """Return the tick size at a price; both in units of 10⁻⁸."""
        return self._ticks[max(0, bisect_right(self._lows, units) - 1)]
