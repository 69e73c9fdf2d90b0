"""Quiet or dead: which tickers of a connection have been silent for longer than usual, and what that means.

A subscription may die alone, without a word, on a socket on which everything else goes on. The rules:

* *Usual* is learned, and remembered from one connection to the next: a ticker is overdue after
  `OVERDUE_FACTOR` times its mean gap, at least 2 s, at most 60 s after its last book. One that has delivered
  nothing is overdue `SNAPSHOT_BOUND_US` after the subscription: the exchange begins with a snapshot of every
  code.
* An overdue ticker is compared with the exchange's present book, asked for over a second path. The same book:
  it is *quiet*, and proven to be covered up to the question. A newer and different one is *suspect*: it may
  be on its way. If everything that was received within `GRACE_US` after the answer has been looked at and the
  book was not among it, the subscription is *dead*.
* A dead subscription missed something after its last proof, nobody knows when: all of that is a hole.
* A ticker that speaks again after ten times its mean gap, and for whose silence nobody answered (the second
  path was blocked) or not in time (`ANSWER_US`: it was slow), may have missed something: what was claimed
  since its last proof is taken back.
* If the second path answers nobody in time, a new connection is the third: its snapshots are compared.
* An answer that is older than what we have comes from a path that lags behind: it proves nothing.
* A frame that nobody can read may have been any ticker's book: all of them are soon overdue, until their next
  book or the comparison.

A change that the exchange withholds for less than the time after which a ticker is overdue, and makes up for
with a later book, cannot be told from a quiet market: there is no sequence number.

Pure: no clock, no thread, no socket. Written by the publisher's thread, and read by the keeper's.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable

import orjson

from ingest_services.upbit.rest import RestBook

OVERDUE_FACTOR = 10
OVERDUE_US = (2_000_000, 60_000_000)
# Snapshots came 170 to 350 ms after the request.
SNAPSHOT_BOUND_US = 5_000_000
GRACE_US = 2_000_000
# Overdue tickers are asked about every 3 s, and the answer comes at once. Whoever is not answered for by then
# may have been dead and come back.
ANSWER_US = 6_000_000
# A live connection is pinged every 3 s. If nothing at all came for longer, we did not listen, or the path
# held everything up: what was on its way comes after all, and nobody in particular was silent.
DEAF_US = 4_000_000
# The mean is that of the first eight gaps, and from then on each gap has the weight of an eighth.
_MEAN_SHIFT = 3


class Verdict(enum.StrEnum):
    """What a comparison with the exchange's present book says about an overdue ticker."""

    QUIET = "quiet"
    SUSPECT = "suspect"
    DEAD = "dead"
    UNKNOWN = "unknown"
    UNANSWERED = "unanswered"


class _Heard:
    """What is known of one ticker; times in µs since the epoch, 0 = never."""

    __slots__ = (
        "asked_us",
        "doubted_us",
        "first_us",
        "frame",
        "gaps",
        "last_us",
        "mean_us",
        "proven_us",
        "suspect_tms",
        "suspect_us",
        "tms",
        "unanswered",
        "unknown",
    )

    def __init__(self) -> None:
        self.first_us = 0
        self.last_us = 0
        self.gaps = 0
        self.mean_us = OVERDUE_US[1]
        self.tms = 0
        self.frame = b""
        self.asked_us = 0
        self.doubted_us = 0
        self.proven_us = 0
        self.suspect_tms = 0
        self.suspect_us = 0
        self.unanswered = False
        self.unknown = False

    def set_back(self, at_us: int) -> None:
        self.first_us = min(self.first_us, at_us)
        self.last_us = min(self.last_us, at_us)
        self.asked_us = min(self.asked_us, at_us)
        self.doubted_us = min(self.doubted_us, at_us)
        self.proven_us = min(self.proven_us, at_us)
        self.suspect_us = min(self.suspect_us, at_us)

    @property
    def proof_us(self) -> int:
        """Up to when it had certainly not missed anything."""
        return max(self.last_us, self.proven_us)

    @property
    def unusual_after_us(self) -> int:
        return max(OVERDUE_US[0], OVERDUE_FACTOR * self.mean_us)

    @property
    def overdue_after_us(self) -> int:
        return min(OVERDUE_US[1], self.unusual_after_us)


class Silences:
    """How the tickers of one connection were heard."""

    def __init__(self, tickers: Iterable[str], before: Silences | None = None) -> None:
        """Begin with nothing heard.

        Args:
            tickers: What the connection subscribed to.
            before: How they were heard on the connection before; what is usual with a ticker stays so.
        """
        self._heard = {ticker: _Heard() for ticker in tickers}
        for ticker, known in before._heard.items() if before else ():
            heard = self._heard.get(ticker)
            if heard is not None and known.gaps == 1 << _MEAN_SHIFT:
                heard.gaps, heard.mean_us = known.gaps, known.mean_us
        self.opened_us = 0
        self.looked_at_us = 0
        self.message_us = 0
        self._deaf = (0, 0)

    def alive(self, at_us: int) -> None:
        """Take note that everything received until then was looked at.

        Args:
            at_us: µs since the epoch. The first is the moment of the subscription.
        """
        if not self.opened_us:
            self.opened_us = self.message_us = at_us
        elif at_us < self.looked_at_us:
            self._set_back(at_us)
        elif at_us - self.looked_at_us > DEAF_US:
            self._deaf = self.looked_at_us, at_us
        self.looked_at_us = at_us

    def message(self, at_us: int) -> None:
        """Take note of a message that speaks for the stream: a book or a status."""
        self.alive(at_us)
        self.message_us = at_us

    def book(self, ticker: str, at_us: int, tms: int, frame: bytes) -> None:
        """Take note of a book.

        Args:
            ticker: Whose book; one that was not subscribed to is passed over.
            at_us: When it was received, µs since the epoch.
            tms: The exchange's stamp, ms; 0 if it is not to be believed.
            frame: Its bytes.
        """
        heard = self._heard.get(ticker)
        if heard is None:
            return
        if not heard.last_us:
            heard.first_us = at_us
        elif heard.gaps < 1 << _MEAN_SHIFT:
            heard.gaps += 1
            if heard.gaps == 1 << _MEAN_SHIFT:
                heard.mean_us = (at_us - heard.first_us) >> _MEAN_SHIFT
        else:
            heard.mean_us += (at_us - heard.last_us - heard.mean_us) >> _MEAN_SHIFT
        heard.last_us = at_us
        heard.doubted_us = 0
        heard.unanswered = heard.unknown = False
        heard.tms = max(heard.tms, tms)
        heard.frame = frame

    def doubt(self, at_us: int) -> None:
        """Take note of a frame that nobody could read, received at `at_us` (µs since the epoch)."""
        for heard in self._heard.values():
            heard.doubted_us = at_us

    def unheard(self) -> tuple[str, ...]:
        """Return the tickers that delivered nothing yet."""
        return tuple(ticker for ticker, heard in self._heard.items() if not heard.last_us)

    @property
    def settled(self) -> bool:
        """Whether every ticker has delivered, or the bound for it has passed."""
        if not self.opened_us:
            return False
        return self.looked_at_us - self.opened_us >= SNAPSHOT_BOUND_US or not self.unheard()

    def overdue(self, now_us: int) -> list[str]:
        """Return the tickers that are to be compared with the exchange's present books."""
        return [
            ticker
            for ticker, heard in self._heard.items()
            if not heard.suspect_us and self._is_overdue(heard, now_us)
        ]

    def judge(self, ticker: str, book: RestBook, asked_us: int, answered_us: int) -> Verdict:
        """Compare an overdue ticker with the exchange's present book.

        Args:
            ticker: The ticker.
            book: The exchange's book.
            asked_us: When it was asked for, µs since the epoch.
            answered_us: When it came.

        Returns:
            QUIET, SUSPECT, or UNANSWERED if a frame came meanwhile that nobody could read, or if the answer
            is older than what we have.
        """
        heard = self._heard[ticker]
        heard.asked_us = asked_us
        if asked_us <= heard.doubted_us:
            return Verdict.UNANSWERED
        if heard.last_us and (book.tms == heard.tms or same_levels(heard.frame, book)):
            heard.proven_us = asked_us
            heard.suspect_tms = 0
            heard.unanswered = False
            return Verdict.QUIET
        if heard.last_us and book.tms < heard.tms:
            heard.unanswered = heard.last_us < asked_us
            return Verdict.UNANSWERED
        heard.suspect_tms, heard.suspect_us = book.tms, answered_us
        return Verdict.SUSPECT

    def leave_open(self, tickers: Iterable[str]) -> None:
        """Take note that nobody answers for some overdue tickers."""
        for ticker in tickers:
            self._heard[ticker].unanswered = True

    def returned(self, ticker: str, at_us: int) -> int:
        """Tell whether a book ends a silence that nobody can answer for; call it before `book`.

        Args:
            ticker: Whose book.
            at_us: When it was received, µs since the epoch.

        Returns:
            Up to when it had certainly not missed anything, µs since the epoch; 0 if the silence was usual,
            or was answered for, or there was none.
        """
        heard = self._heard.get(ticker)
        if heard is None:
            return 0
        bearable_us = heard.unusual_after_us + (0 if heard.unanswered else ANSWER_US)
        return heard.proof_us if self._silent_us(heard, at_us) > bearable_us else 0

    def abandoned(self) -> list[str]:
        """Return the tickers for whose unusual silence nobody answered in time."""
        return [
            ticker
            for ticker, heard in self._heard.items()
            if heard.last_us
            and not heard.unknown
            and self._silent_us(heard, self.looked_at_us) > heard.unusual_after_us + ANSWER_US
        ]

    def excuse(self, ticker: str, now_us: int) -> None:
        """Leave a ticker alone until it is overdue again: it is none of the exchange's markets."""
        heard = self._heard[ticker]
        heard.asked_us = now_us
        heard.unknown = True

    def dead(self) -> dict[str, int]:
        """Return the suspects that have to be called dead, each with its last proof; they are told once.

        Returns:
            By ticker, when it was certainly not missing anything for the last time, µs since the epoch.
        """
        found = {}
        for ticker, heard in self._heard.items():
            if not heard.suspect_us:
                continue
            if heard.last_us and heard.tms >= heard.suspect_tms:
                heard.suspect_us = 0
            elif self.looked_at_us >= heard.suspect_us + GRACE_US:
                heard.suspect_us = 0
                heard.asked_us = self.looked_at_us
                found[ticker] = heard.proof_us
        return found

    def compare(self, other: Silences) -> None:
        """Take a newer connection's books for a second opinion before this one is closed.

        Where it has nothing newer, this one has not missed anything; where it has, this one must deliver the
        same before its end.

        Args:
            other: How the tickers were heard on the newer connection.
        """
        for ticker, heard in self._heard.items():
            theirs = other._heard.get(ticker)
            # Without a stamp that can be believed it says nothing.
            if theirs is None or not theirs.tms or not heard.last_us:
                continue
            if theirs.tms <= heard.tms:
                heard.proven_us = max(heard.proven_us, theirs.last_us)
            else:
                heard.suspect_tms, heard.suspect_us = theirs.tms, theirs.last_us

    def doubtful(self, by_us: bool) -> dict[str, int]:
        """Return what cannot be vouched for at the end of the connection.

        Silence before an end that we did not ask for may have been its beginning, so nothing is proven beyond
        the last message. If we ended it, only the tickers that were silent for longer than is usual with them
        are in doubt, and those of which a newer book was seen elsewhere.

        Args:
            by_us: Whether we ended the connection.

        Returns:
            By ticker, up to when it was certainly not missing anything, µs since the epoch.
        """
        found = {}
        for ticker, heard in self._heard.items():
            proof_us = heard.proof_us
            if not heard.last_us:
                continue
            # A verdict that was told may still be on its way.
            behind = heard.tms < heard.suspect_tms
            if behind or self.looked_at_us - proof_us > heard.unusual_after_us:
                found[ticker] = proof_us
            elif not by_us:
                found[ticker] = max(self.message_us, heard.proven_us)
        return found

    def _silent_us(self, heard: _Heard, at_us: int) -> int:
        deaf_from_us, deaf_to_us = self._deaf
        deaf_us = deaf_to_us - deaf_from_us if heard.proof_us <= deaf_from_us else 0
        return at_us - heard.proof_us - deaf_us

    def _set_back(self, at_us: int) -> None:
        # The machine's clock was. Nobody would be overdue until it is again as late as it was.
        self.opened_us = min(self.opened_us, at_us)
        self.message_us = min(self.message_us, at_us)
        for heard in self._heard.values():
            heard.set_back(at_us)

    def _is_overdue(self, heard: _Heard, now_us: int) -> bool:
        if not heard.last_us:
            since_us = max(self.opened_us, heard.asked_us)
            bound_us = OVERDUE_US[1] if heard.asked_us else SNAPSHOT_BOUND_US
            return bool(self.opened_us) and now_us - since_us >= bound_us
        since_us = max(heard.last_us, heard.asked_us)
        in_doubt = heard.doubted_us > heard.proven_us
        return now_us - since_us > (OVERDUE_US[0] if in_doubt else heard.overdue_after_us)


def same_levels(frame: bytes, book: RestBook) -> bool:
    """Tell whether a frame shows the same book as the REST API, as deep as the frame goes.

    A change below the depth that we subscribed to moves the stamp, and need not be sent to us.

    Args:
        frame: A frame that was read as a book (SIMPLE or DEFAULT format).
        book: The REST API's answer.
    """
    message = orjson.loads(frame)
    simple = "obu" in message
    units = message["obu" if simple else "orderbook_units"]
    names = ("ap", "as", "bp", "bs") if simple else ("ask_price", "ask_size", "bid_price", "bid_size")
    try:
        levels = [tuple(float(unit[name]) for name in names) for unit in units]
    except (TypeError, KeyError, ValueError):
        return False
    return _stripped(levels) == _stripped(book.levels[: len(levels)])


def _stripped(levels: Iterable[tuple[float, ...]]) -> list[tuple[float, ...]]:
    # Thin sides are padded with zeros, and one path may pad more than the other.
    stripped = list(levels)
    while stripped and not any(stripped[-1]):
        stripped.pop()
    return stripped
