"""What a simulator is told: its port, its markets, its pace."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ingest_services.errors import UserError
from ingest_services.simulator.faults import Scheduled
from ingest_services.upbit.markets import QUOTES, market_of
from ingest_services.upbit.request import DEPTHS

DEFAULT_TICKERS = ("BTC", "ETH", "XRP", "SOL", "DOGE")
# Where a walk starts, in KRW. Orders of magnitude that put the usual tickers on different tick sizes.
KRW_PRICES = {
    "BTC": 160_000_000,
    "ETH": 5_600_000,
    "SOL": 262_000,
    "AVAX": 38_500,
    "LINK": 25_300,
    "DOT": 6_120,
    "XRP": 3_190,
    "ADA": 912,
    "TRX": 470,
    "DOGE": 284,
    "XLM": 390,
    "SHIB": 0.0184,
    "PEPE": 0.0137,
    "BTT": 0.00089,
    "USDT": 1_450,
}
# Stamps are whole milliseconds and strictly increasing per ticker.
MAX_RATE = 500.0
MAX_MARKETS = 5000
# Markets of the exchange by quote currency, in 2026.
_SHARES = {"KRW": 289, "BTC": 328, "USDT": 238}


@dataclass(frozen=True, slots=True)
class SimulatorConfig:
    """Settings of one simulator.

    Attributes:
        host: Address to listen on.
        port: TCP port; 0 takes a free one.
        tickers: Tickers or market codes that exist (not used with `playback`).
        rate: Books per second and ticker.
        seed: Same seed, same walk (relative to the moment at which a ticker starts).
        history_minutes: Minutes of back-dated books for the first who subscribes to a ticker; 0 is none.
        depth: Levels a side that the books have at most, 1 to 30.
        playback: Recording to play instead of the walk.
        speed: Of the playback: 1 is the recorded pace, 0 as fast as the client takes it.
        shift: Move the recording's stamps to the present.
        loop: Start the recording again when it has ended.
        idle_timeout_s: Seconds without traffic in either direction after which a socket dies.
        status_interval_s: Seconds between two `{"status":"UP"}`.
        thin_share: Share of markets whose sides have few levels.
        one_sided_share: Share of books without one of the sides.
        crossed_share: Share of books whose best bid is above the best ask.
        queue_bytes: What may wait for one client before it is dropped.
        stall_timeout_s: Seconds that a history waits for a client that does not read, before it is dropped.
        limits: Keep the exchange's limits: connections, messages, requests with an `Origin`, and patience.
        snapshot_delay_ms: Between which bounds a subscription waits before it takes effect.
        faults: Faults and when they strike.
        chaos_seed: Strike at random, with this seed.
        chaos_every_s: Seconds between two random faults, on average.
        journal: File for the journal.
        journal_in_memory: Keep the journal in memory, too, for `/simulator/journal`.
    """

    host: str = "127.0.0.1"
    port: int = 8765
    tickers: tuple[str, ...] = DEFAULT_TICKERS
    rate: float = 2.0
    seed: int = 1
    history_minutes: float = 30.0
    depth: int = 30
    playback: Path | None = None
    speed: float = 1.0
    shift: bool = False
    loop: bool = False
    idle_timeout_s: float = 60.0
    status_interval_s: float = 10.0
    thin_share: float = 0.3
    one_sided_share: float = 0.002
    crossed_share: float = 0.0005
    queue_bytes: int = 8 << 20
    stall_timeout_s: float = 30.0
    limits: bool = False
    snapshot_delay_ms: tuple[float, float] = (0.0, 0.0)
    faults: tuple[Scheduled, ...] = ()
    chaos_seed: int | None = None
    chaos_every_s: float = 10.0
    journal: Path | None = None
    journal_in_memory: bool = False

    def markets(self) -> tuple[str, ...]:
        """Return the market codes of `tickers`.

        Raises:
            UserError: If one is no ticker, has a quote that Upbit does not have, or is named twice.
        """
        markets: dict[str, str] = {}
        for ticker in self.tickers:
            try:
                market = market_of(ticker)
            except ValueError as error:
                raise UserError(f"--tickers: {error}") from error
            if market.partition("-")[0] not in QUOTES:
                raise UserError(f"--tickers {ticker}: the quote currency must be one of {', '.join(QUOTES)}")
            if market in markets:
                raise UserError(f"--tickers: {market} is named twice ({markets[market]} and {ticker})")
            markets[market] = ticker
        if not markets:
            raise UserError("--tickers: name at least one")
        return tuple(markets)

    def validate(self) -> None:
        """Check every value.

        Raises:
            UserError: Naming the first option that cannot be, and what it may be.
        """
        limits = (
            ("--port", self.port, 0, 65535),
            ("--rate", self.rate, 0.001, MAX_RATE),
            ("--history-minutes", self.history_minutes, 0, 7 * 24 * 60),
            ("--depth", self.depth, 1, DEPTHS[-1]),
            ("--speed", self.speed, 0, 1000),
            ("--idle-timeout", self.idle_timeout_s, 0.05, 86400),
            ("--snapshot-delay", self.snapshot_delay_ms[0], 0, self.snapshot_delay_ms[1]),
            ("--snapshot-delay", self.snapshot_delay_ms[1], 0, 60_000),
            ("--chaos-every", self.chaos_every_s, 0.01, 86400),
        )
        for option, value, low, high in limits:
            if not low <= value <= high:
                raise UserError(f"{option} {value}: must be from {low:g} to {high:g}")
        if self.playback is None:
            self.markets()
        if self.loop and not (self.shift and 0 < self.speed <= 1):
            raise UserError(
                "--loop needs --shift and a --speed above 0 and up to 1: "
                "otherwise the second round's stamps would repeat or lie in the future"
            )


def many_tickers(count: int) -> tuple[str, ...]:
    """Return so many tickers, of all three quote currencies in the exchange's own proportion.

    855 gives 289 KRW, 328 BTC and 238 USDT markets. The first of each quote have names that exist.

    Raises:
        UserError: If there cannot be so many.
    """
    if not 1 <= count <= MAX_MARKETS:
        raise UserError(f"--markets {count}: must be from 1 to {MAX_MARKETS}")
    total = sum(_SHARES.values())
    krw = max(1, round(count * _SHARES["KRW"] / total))
    btc = min(count - krw, round(count * _SHARES["BTC"] / total))
    counts = {"KRW": krw, "BTC": btc, "USDT": count - krw - btc}
    return tuple(f"{quote}-{_base(quote, number)}" for quote, n in counts.items() for number in range(n))


def _base(quote: str, number: int) -> str:
    known = [name for name in KRW_PRICES if name != quote]
    return known[number] if number < len(known) else f"C{number:04d}"
