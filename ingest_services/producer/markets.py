"""Which markets `tickers=ALL-KRW` means, now: told by the exchange's REST API, followed, and remembered.

The rules:

* A new listing is subscribed at once. A market that is missing from one answer is dropped only if another
  answer, `CONFIRM_S` later, agrees: a hiccup of the exchange must not end a subscription.
* An answer in which more than half of the markets are missing is no answer: the list before it is kept. If it
  is true all the same, a new start takes it.
* What was told last is remembered on disk. A start at which the exchange does not tell begins with that;
  without it, the exchange is asked for ever.

Belongs here: asking, following, remembering. Does not belong here: what is done about a change (`keeper.py`).
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote as quote_path

import orjson
import structlog

from ingest_services.backoff import Backoff
from ingest_services.errors import UserError
from ingest_services.producer.metrics import MarketList, SectionStats
from ingest_services.upbit.markets import ticker_of
from ingest_services.upbit.rest import Rest, RestError

FOLLOW_EVERY_S = 30.0
CONFIRM_S = 5.0
RETRY_BASE_S = 1.0
# Before anything is collected the exchange is waited for no longer than this.
START_TIMEOUT_S = 6.0
# An answer that stays untrue, or away, is told again no more often than this.
REPEAT_S = 600.0

_log = structlog.get_logger()


def markets_of(codes: Iterable[str], quote: str) -> tuple[str, ...]:
    """Return the codes whose quote it is (`KRW`, `BTC`, `USDT`), in order."""
    return tuple(sorted({code for code in codes if code.startswith(f"{quote}-")}))


class MarketMemory:
    """The list of markets that one section was told last: a small file beside its spool."""

    def __init__(self, spool_dir: Path, section: str, rest_url: str, quote: str) -> None:
        """Say where it is kept; nothing is read or written yet.

        Args:
            spool_dir: SPOOL_DIR.
            section: Producer section.
            rest_url: Whose list it is: another exchange's is not used.
            quote: `KRW`, `BTC` or `USDT`.
        """
        self.path = spool_dir / quote_path(section, safe="") / "markets.json"
        self._rest_url = rest_url
        self._quote = quote

    def load(self) -> tuple[str, ...]:
        """Return what was remembered; empty if nothing was, or nothing that is of use."""
        try:
            kept = orjson.loads(self.path.read_bytes())
            if (kept["rest_url"], kept["quote"]) != (self._rest_url, self._quote):
                return ()
            for code in kept["markets"]:
                ticker_of(code)
            return markets_of(kept["markets"], self._quote)
        except FileNotFoundError:
            return ()
        except (OSError, ValueError, TypeError, KeyError) as error:
            _log.warning("markets_memory_unreadable", path=str(self.path), error=repr(error))
            return ()

    def save(self, markets: tuple[str, ...]) -> None:
        """Remember a list; the one before it stays until this one is whole. A disk that refuses is logged."""
        content = {
            "rest_url": self._rest_url,
            "quote": self._quote,
            "told_us": time.time_ns() // 1000,
            "markets": markets,
        }
        # Two processes of one section write the same file.
        temporary = self.path.with_name(f"markets.{os.getpid()}.new")
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with temporary.open("wb") as file:
                file.write(orjson.dumps(content))
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(self.path)
        except OSError as error:
            _log.warning("markets_not_remembered", path=str(self.path), error=str(error))
            try:
                temporary.unlink(missing_ok=True)
            except OSError:
                return


def ask_once(rest: Rest, timeout_s: float = START_TIMEOUT_S) -> tuple[str, ...]:
    """Return the codes of all markets; empty if the exchange does not tell them in time.

    Args:
        rest: The exchange's REST API.
        timeout_s: How long to wait, whatever hangs, seconds.
    """
    told: list[tuple[str, ...]] = []

    def ask() -> None:
        try:
            told.append(rest.markets())
        except RestError as error:
            _log.warning("markets_unknown", error=str(error))

    thread = threading.Thread(target=ask, name="markets", daemon=True)
    thread.start()
    thread.join(timeout_s)
    return told[0] if told else ()


def first_markets(
    memory: MarketMemory, quote: str, told: tuple[str, ...], stats: SectionStats
) -> tuple[str, ...]:
    """Return the markets with which a section of `tickers=ALL-…` begins; empty if nobody knows them yet.

    Args:
        memory: Where the list is remembered.
        quote: `KRW`, `BTC` or `USDT`.
        told: All markets that the exchange tells; empty if it does not.
        stats: The section's numbers; takes note of where the list comes from.

    Raises:
        UserError: If the exchange tells its markets, and none of them has this quote.
    """
    if told:
        markets = markets_of(told, quote)
        if not markets:
            raise UserError(
                f"producer.conf [{stats.section}] tickers=ALL-{quote}: the exchange (UPBIT_REST_URL) tells "
                f"{len(told)} markets, and no {quote} market is among them"
            )
        stats.market_list = MarketList.FOLLOWED
        stats.markets_read_us = time.time_ns() // 1000
        memory.save(markets)
        return markets
    markets = memory.load()
    if markets:
        stats.market_list = MarketList.REMEMBERED
        _log.warning("markets_remembered", section=stats.section, quote=quote, markets=len(markets))
    else:
        stats.market_list = MarketList.UNKNOWN
        _log.error("markets_awaited", section=stats.section, quote=quote)
    return markets


class Answer(NamedTuple):
    """What an answer of the exchange changes.

    Attributes:
        markets: What to subscribe to now.
        doubt: Whether to ask again soon, because some markets are missing for the first time.
        believed: Whether the answer could be true.
    """

    markets: tuple[str, ...]
    doubt: bool
    believed: bool


class Listing:
    """Decides what each answer of the exchange means for a list of markets."""

    def __init__(self, markets: tuple[str, ...]) -> None:
        """Begin with a list; empty if none is known."""
        self.markets = markets
        self._missing: set[str] = set()

    def take(self, told: tuple[str, ...]) -> Answer:
        """Take one answer.

        Args:
            told: All markets of the quote, as the exchange tells them.
        """
        known = set(self.markets)
        missing = known.difference(told)
        if not told or 2 * len(missing) > len(known):
            self._missing.clear()
            return Answer(self.markets, doubt=False, believed=False)
        gone = missing & self._missing
        self._missing = missing - gone
        self.markets = tuple(sorted((known | set(told)) - gone))
        return Answer(self.markets, doubt=bool(self._missing), believed=True)


class MarketFollower(threading.Thread):
    """Asks the exchange again and again which markets there are, and reports every change."""

    def __init__(
        self,
        rest: Rest,
        quote: str,
        markets: tuple[str, ...],
        memory: MarketMemory,
        stats: SectionStats,
        on_change: Callable[[tuple[str, ...]], None],
    ) -> None:
        """Describe a follower; `start` begins it.

        Args:
            rest: The exchange's REST API.
            quote: `KRW`, `BTC` or `USDT`.
            markets: What is subscribed to now; empty if that is not known yet.
            memory: Where the list is remembered.
            stats: The section's numbers.
            on_change: Called, in this thread, with all markets when they differ from before.
        """
        super().__init__(name=f"{stats.section}-markets", daemon=True)
        self._rest = rest
        self._quote = quote
        self._listing = Listing(markets)
        self._memory = memory
        self._stats = stats
        self._on_change = on_change
        self._stopping = threading.Event()
        self._retries = Backoff(RETRY_BASE_S, FOLLOW_EVERY_S)
        self._complained_s = -REPEAT_S

    def stop(self) -> None:
        """Ask no more; a question that is under way is not waited for."""
        self._stopping.set()

    def run(self) -> None:
        """Ask until stopped; an exchange that does not answer changes nothing."""
        known = self._stats.market_list is MarketList.FOLLOWED
        delay_s = FOLLOW_EVERY_S if known else self._retries.next_s()
        while not self._stopping.wait(delay_s):
            try:
                delay_s = self._turn()
            except Exception:  # noqa: BLE001 (whatever the exchange tells, the next answer counts)
                _log.exception("market_follower_failed", section=self._stats.section)
                delay_s = FOLLOW_EVERY_S

    def _turn(self) -> float:
        """Ask once; return after how many seconds to ask again."""
        stats = self._stats
        try:
            told = markets_of(self._rest.markets(), self._quote)
        except RestError as error:
            retry_s = self._retries.next_s()
            _log.warning(
                "markets_unknown",
                section=stats.section,
                quote=self._quote,
                error=str(error),
                collecting=len(self._listing.markets),
                retry_in_s=round(retry_s, 1),
            )
            return retry_s
        self._retries.reset()
        before = self._listing.markets
        answer = self._listing.take(told)
        if not answer.believed:
            self._distrust(told)
            return FOLLOW_EVERY_S
        stats.market_list = MarketList.FOLLOWED
        stats.markets_read_us = time.time_ns() // 1000
        self._complained_s = -REPEAT_S
        if answer.markets != before:
            _log.info(
                "markets_changed",
                section=stats.section,
                quote=self._quote,
                listed=sorted(set(answer.markets) - set(before)),
                delisted=sorted(set(before) - set(answer.markets)),
            )
            self._memory.save(answer.markets)
            self._on_change(answer.markets)
        stats.forget_tickers(map(ticker_of, answer.markets))
        return CONFIRM_S if answer.doubt else FOLLOW_EVERY_S

    def _distrust(self, told: tuple[str, ...]) -> None:
        if self._listing.markets:
            self._stats.market_list = MarketList.DISTRUSTED
        if time.monotonic() - self._complained_s >= REPEAT_S:
            self._complained_s = time.monotonic()
            _log.error(
                "markets_distrusted",
                section=self._stats.section,
                quote=self._quote,
                told=len(told),
                kept=len(self._listing.markets),
            )
