"""Records that were spooled and cannot be read again: no heartbeat behind them may claim their time.

A heartbeat stands behind every frame that it vouches for, on disk too. If the disk spoils one of those frames
the heartbeat is still whole, and would claim what is not there. So heartbeats that come out of the spool
behind damage lose the span from the last whole record in front of it to each ticker's next book.

Pure: no file, no thread.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace

from ingest_services.producer.outgoing import Outgoing
from ingest_services.record import HEARTBEAT, Heartbeat, Span

_FOR_EVER_US = 1 << 63
_MOST = 100


@dataclass(slots=True)
class _Damage:
    since_us: int
    again_us: dict[bytes, int] = field(default_factory=dict)


class DamageRecord:
    """Follows the records of one spool on their way out, in order."""

    def __init__(self) -> None:
        """Begin without damage."""
        self._damages: list[_Damage] = []

    def lost_after(self, at_us: int) -> None:
        """Take note that records were lost here.

        Args:
            at_us: When the last whole record in front of them was received, µs since the epoch; 0 if unknown.
        """
        if len(self._damages) >= _MOST:
            # A disk that spoils this much: what lies between two places of damage is not worth the search.
            at_us = self._damages[0].since_us
            self._damages.clear()
        self._damages.append(_Damage(at_us))

    def correct(self, record: Outgoing) -> Outgoing:
        """Return the record as it may be delivered: a heartbeat without the claims that are not true now."""
        if not self._damages:
            return record
        if dict(record.headers).get("kind") != HEARTBEAT.encode():
            for damage in self._damages:
                damage.again_us.setdefault(record.key, record.received_us)
            return record
        try:
            heartbeat = Heartbeat.decode(record.value)
        except ValueError:
            return record
        covered = replace(heartbeat, covered=tuple(self._cut(heartbeat.covered)))
        return record._replace(value=covered.encode())

    def _cut(self, spans: Iterable[Span]) -> list[Span]:
        left: dict[tuple[int, int], list[str]] = {}
        for span in spans:
            for ticker in span.tickers:
                for piece in self._whole(span.from_us, span.to_us, ticker.encode()):
                    left.setdefault(piece, []).append(ticker)
        return [Span(from_us, to_us, tuple(tickers)) for (from_us, to_us), tickers in sorted(left.items())]

    def _whole(self, from_us: int, to_us: int, ticker: bytes) -> list[tuple[int, int]]:
        pieces = [(from_us, to_us)]
        for damage in self._damages:
            again_us = damage.again_us.get(ticker, _FOR_EVER_US)
            pieces = [
                piece
                for begin, end in pieces
                for piece in ((begin, min(end, damage.since_us)), (max(begin, again_us), end))
                if piece[0] < piece[1]
            ]
        return pieces
