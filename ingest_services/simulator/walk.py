"""A market's books as a seeded random walk on the exchange's tick sizes.

A walk is a pure function of seed, market and starting instant: begun again, it gives the same bytes, which is
how a history that was cut off can be sent once more without two versions of the truth.
"""

from __future__ import annotations

import random
from decimal import Decimal

from ingest_services.simulator.books import SimulatedBook, number_text
from ingest_services.simulator.config import KRW_PRICES, SimulatorConfig
from ingest_services.simulator.feed import window_start
from ingest_services.upbit.ticks import UNITS_PER_ONE, Ladder

_QUOTE_IN_KRW = {"KRW": 1, "BTC": 160_000_000, "USDT": 1_450}

_CHANGED_LEVELS = 3
_TEXTS_EACH_WAY = 400


class Walk:
    """The simulated books of one market."""

    has_snapshots = True
    place = 0

    def __init__(self, market: str, config: SimulatorConfig, now_ms: int) -> None:
        """Stand at the opening book.

        Args:
            market: Market code.
            config: Rate, depth, seed, history and the shares of thin, one-sided and crossed books.
            now_ms: Now, ms since the epoch. Until the walk begins, the opening book is older than any
                history that could still be asked for, so that it is nobody's event.
        """
        self.market = market
        self._config = config
        self._history_ms = round(config.history_minutes * 60_000)
        self._mean_ms = 1000 / config.rate
        self._from_ms: int | None = None
        quote, _, self._base = market.partition("-")
        self._quote = quote
        self._ladder = Ladder(quote)
        self._bid = self._asks = self._bids = 0
        self._text_from = self._text_to = 0
        self._open(window_start(now_ms - self._history_ms))

    @property
    def from_ms(self) -> int:
        """Where the walk starts, ms since the epoch."""
        return self._start_ms

    @property
    def current(self) -> SimulatedBook:
        """The newest book."""
        return self._current

    @property
    def due_ms(self) -> int:
        """Stamp of the next book, ms since the epoch."""
        return self._due_ms

    def begin(self, now_ms: int) -> None:
        """Go to the start: of the history if there is one, else now."""
        if self._from_ms is None:
            self._from_ms = window_start(now_ms - self._history_ms) if self._history_ms else now_ms
        self._open(self._from_ms)

    def step(self) -> SimulatedBook:
        """Walk on to the next book."""
        rng = self._rng
        move = rng.randint(-self._reach, self._reach) if rng.random() < 0.4 else 0
        if abs(self._bid - self._home) > self._leash:
            move = -abs(move) if self._bid > self._home else abs(move)
        self._bid = max(self._bid + move, 1)
        if rng.random() < 0.1:
            self._gap = rng.randint(1, 3)
        self._change_sizes()
        if self._thin:
            self._asks = min(max(self._asks + rng.randint(-1, 1), 1), self._config.depth)
            self._bids = min(max(self._bids + rng.randint(-1, 1), 1), self._config.depth)
        self._current = self._draw(self._due_ms, rng.random())
        self._set_due()
        return self._current

    def _open(self, start_ms: int) -> None:
        """Take the state before the first book; its stamp lies in the window before the start."""
        self._start_ms = start_ms
        self._rng = rng = random.Random(f"{self._config.seed}:{self.market}")  # noqa: S311
        depth = self._config.depth
        units = self._opening_units(rng)
        self._home: int = max(self._ladder.rung(units), 1)
        self._bid = self._home
        # About one move in three is seen at a basis point, whatever the tick size.
        self._reach: int = max(1, round(units * 0.0001 / self._ladder.tick(units)))
        self._leash: int = max(20, self._home - self._ladder.rung(units * 97 // 100))
        self._gap = 1
        self._stride = rng.choice((1, 1, 2))
        self._thin: bool = rng.random() < self._config.thin_share
        self._asks = rng.randint(1, depth) if self._thin else depth
        self._bids = rng.randint(1, depth) if self._thin else depth
        # A level is worth some 10⁵ to 10⁸ won; large numbers of cheap coins keep fewer decimals.
        worth_units = UNITS_PER_ONE * 3_000_000 / _QUOTE_IN_KRW[self._quote]
        self._typical = max(worth_units * UNITS_PER_ONE / units, 1000.0)
        self._grain: int = 10 ** max(0, len(str(int(self._typical))) - 12)
        self._ask_sizes = [self._size() for _ in range(depth)]
        self._bid_sizes = [self._size() for _ in range(depth)]
        self._ask_texts = list(map(number_text, self._ask_sizes))
        self._bid_texts = list(map(number_text, self._bid_sizes))
        self._current = self._draw(window_start(start_ms) - 1, 1.0)
        self._clock_ms = start_ms - self._mean_ms / 2
        self._due_ms: int = start_ms - 1
        self._set_due()

    def _opening_units(self, rng: random.Random) -> int:
        krw = float(KRW_PRICES.get(self._base) or 10 ** rng.uniform(-1, 5))
        quote_in_krw: int = _QUOTE_IN_KRW[self._quote]
        return max(int(krw / quote_in_krw * UNITS_PER_ONE), 50)

    def _set_due(self) -> None:
        self._clock_ms += self._mean_ms * (0.5 + self._rng.random())
        self._due_ms = max(self._due_ms + 1, int(self._clock_ms))

    def _size(self) -> int:
        grains = int(self._typical * 10 ** self._rng.uniform(-1.5, 1.5)) // self._grain
        return max(grains, 1) * self._grain

    def _change_sizes(self) -> None:
        rng = self._rng
        depth = self._config.depth
        for sizes, texts in ((self._ask_sizes, self._ask_texts), (self._bid_sizes, self._bid_texts)):
            for _ in range(_CHANGED_LEVELS):
                # Squared: the levels near the best change most.
                level = int(rng.random() ** 2 * depth)
                sizes[level] = size = self._size()
                texts[level] = number_text(size)

    def _draw(self, tms: int, chance: float) -> SimulatedBook:
        """Write the book down; a small `chance` makes it one-sided or crossed."""
        stride = self._stride
        bid = self._bid
        ask = bid + self._gap
        asks, bids = self._asks, min(self._bids, bid // stride + 1)
        one_sided, crossed = self._config.one_sided_share, self._config.crossed_share
        if chance < one_sided / 2:
            asks = 0
        elif chance < one_sided:
            bids = 0
        elif chance < one_sided + crossed:
            ask = bid - 1
        self._cover(bid, ask)
        first_ask = ask - self._text_from
        first_bid = bid - self._text_from
        ask_prices = self._texts[first_ask : first_ask + asks * stride : stride]
        # A slice downwards cannot be told to stop before index 0, so it is taken upwards and turned round.
        bid_prices = (
            self._texts[first_bid - max(bids - 1, 0) * stride : first_bid + 1 : stride][::-1] if bids else []
        )
        return SimulatedBook(
            self.market,
            tms,
            number_text(sum(self._ask_sizes[:asks])),
            number_text(sum(self._bid_sizes[:bids])),
            ask_prices,
            self._ask_texts[:asks],
            bid_prices,
            self._bid_texts[:bids],
            Decimal(ask_prices[0]) if asks else None,
            Decimal(bid_prices[0]) if bids else None,
        )

    def _cover(self, bid: int, ask: int) -> None:
        """Have the price texts of every rung that a book around here can touch."""
        span = self._stride * self._config.depth
        low, high = max(min(bid, ask) - span, 0), max(bid, ask) + span
        if low >= self._text_from and high < self._text_to:
            return
        self._text_from = max(low - _TEXTS_EACH_WAY, 0)
        self._text_to = high + _TEXTS_EACH_WAY
        self._texts = [
            number_text(self._ladder.price(rung)) for rung in range(self._text_from, self._text_to)
        ]
