"""Frames whose every byte can be told from two numbers: a serial and a stamp.

Depth 30, all markets in turn. What is read back from Kafka is compared with what must have been sent, byte
for byte, without either side keeping a copy.
"""

from __future__ import annotations

import random
import re

MARKETS = 855
DEPTH = 30
# Behind a digit of their own: a JSON number has no leading zero.
_SERIAL_FROM = 10**11
_SERIAL = re.compile(rb'"tms":(\d{13}),"tas":(\d{12})\.5,')


class Frames:
    """Renders frame number n, in 2 µs: the source is not to be the bottleneck."""

    def __init__(self, markets: int = MARKETS, depth: int = DEPTH, seed: int = 1) -> None:
        self.markets = [f"KRW-T{number}" for number in range(markets)]
        chance = random.Random(seed)
        self._parts = [self._render(market, depth, chance) for market in self.markets]

    def frame(self, serial: int, tms: int) -> bytes:
        head, tail = self._parts[serial % len(self._parts)]
        return b'%s%013d,"tas":%012d%s' % (head, tms, _SERIAL_FROM + serial, tail)

    def serial_of(self, value: bytes) -> int | None:
        """Return a frame's serial; None if it is not, to the byte, a frame of ours."""
        found = _SERIAL.search(value, 0, 200)
        if found is None:
            return None
        serial = int(found[2]) - _SERIAL_FROM
        return serial if self.frame(serial, int(found[1])) == value else None

    @staticmethod
    def _render(market: str, depth: int, chance: random.Random) -> tuple[bytes, bytes]:
        price = chance.choice((0.00001234, 1.234, 123.4, 12345.0, 142_000_000.0))
        units = ",".join(
            f'{{"ap":{price * (1 + level / 1000):.8g},"bp":{price * (1 - level / 1000):.8g},'
            f'"as":{chance.expovariate(0.01):.8f},"bs":{chance.expovariate(0.01):.8f}}}'
            for level in range(1, depth + 1)
        )
        head = f'{{"ty":"orderbook","cd":"{market}","tms":'
        tail = f'.5,"tbs":{chance.expovariate(0.01):.8f},"obu":[{units}],"st":"REALTIME","lv":0}}'
        return head.encode(), tail.encode()
