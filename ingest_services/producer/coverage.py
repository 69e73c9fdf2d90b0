"""What one connection covered, told as heartbeats: computed from what was received, never guessed.

The rules:

* A ticker is covered from the first whole book of it that this connection delivered and that was kept.
* Coverage is claimed up to a moment at which something was received, or up to a minute's end once something
  was received after it. Silence proves nothing.
* A frame that could not be kept ends its ticker's coverage at the moment it came; the ticker's next book that
  is kept begins it again. The span between is a hole.
* A frame that nobody can read is kept, and may have been anyone's book: it ends everyone's coverage, until
  the ticker's next book, or until a comparison with the exchange proves that nothing was missed.
* What was claimed and is found out later not to have been covered is taken back: a *hole*, told apart for
  each minute, because a heartbeat is filed under the minute that it speaks of.
* A heartbeat travels behind the frames that it vouches for, in the same order: if it arrived, they did.

Pure: no clock, no thread, no socket.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from ingest_services.record import Heartbeat, Span, split_at_minutes

MINUTE_US = 60_000_000
# Heartbeats are promised at least every 10 s. They are triggered by receiving something, and a live
# connection is pinged every 3 s, so 7 s keeps the promise on the quietest of sockets.
HEARTBEAT_EVERY_US = 7_000_000
# Supervision gives a silent socket up after 8 s. A longer silence means that the clock was set forward or the
# machine slept: nobody knows what was missed.
MAX_SILENCE_US = 30_000_000


class CoverageTracker:
    """Follows one connection from its opening to its end."""

    def __init__(
        self,
        section: str,
        connection: str,
        tickers: Iterable[str],
        opened_us: int,
        every_us: int = HEARTBEAT_EVERY_US,
    ) -> None:
        """Begin to follow a connection.

        Args:
            section: Producer section.
            connection: The connection's name.
            tickers: What it subscribed to.
            opened_us: When, µs since the epoch.
            every_us: Heartbeats come at least this often while something is received, µs.
        """
        self._section = section
        self._connection = connection
        self._subscribed = tuple(tickers)
        self._unseen = set(self._subscribed)
        self._doubted: dict[str, int] = {}
        self._every_us = every_us
        self._since: dict[str, int] = {}
        self._ended: list[tuple[int, int, str]] = []
        # By ticker, from when on everything that was told is taken back already.
        self._lost_since: dict[str, int] = {}
        self._last_us = opened_us
        self._schedule(opened_us)

    def receive(self, at_us: int, ticker: str | None = None) -> Heartbeat | None:
        """Take note that something was received.

        Args:
            at_us: When, µs since the epoch.
            ticker: The book's ticker; None for anything else (pong, status, garbage).

        Returns:
            A heartbeat if one is due. It vouches for what was received before this, so it goes first.
        """
        heartbeat = None
        if at_us >= self._due_us:
            minute_us = at_us - at_us % MINUTE_US
            if at_us - self._last_us > MAX_SILENCE_US:
                heartbeat = self._tell(self._last_us)
                self._begin_again(at_us)
            else:
                heartbeat = self._tell(minute_us if minute_us > self._told_us else at_us)
        elif at_us < self._last_us:
            # The machine's clock was set back. What was not told yet is given up (a hole, at worst a
            # heartbeat long) rather than claimed on a clock that was wrong.
            self._ended.clear()
            self._begin_again(at_us)
        self._last_us = at_us
        if ticker in self._unseen:
            self._unseen.discard(ticker)
            self._doubted.pop(ticker, None)
            self._since[ticker] = max(at_us, self._told_us)
        return heartbeat

    def lose(self, at_us: int, ticker: str | None) -> list[Heartbeat]:
        """Take note that a frame could not be kept.

        Args:
            at_us: When it was received, µs since the epoch.
            ticker: Whose book it was; None if it could have been anyone's.

        Returns:
            Heartbeats that take back what was told of the time behind it, if the loss was noticed that late.
        """
        lost = [each for each in self._subscribed if ticker in (None, each)]
        late = {}
        for each in lost:
            self._doubted.pop(each, None)
            self._end(at_us, each)
            # Whether or not anything is claimed for it now, it may have been then.
            if at_us < self._lost_since.get(each, self._told_us):
                late[each] = self._lost_since[each] = at_us
        return self.retract(late)

    def doubt(self, at_us: int) -> None:
        """Take note of a frame that was kept and that nobody can read: it could have been anyone's book.

        Args:
            at_us: When it was received, µs since the epoch.
        """
        for ticker in [*self._since, *self._doubted]:
            self._doubted[ticker] = at_us
            self._end(at_us, ticker)

    def prove(self, since_us: Mapping[str, int]) -> None:
        """Take note that tickers in doubt have not missed anything: their coverage begins again.

        A proof from before the last frame that nobody could read says nothing about that frame.

        Args:
            since_us: By ticker, from when on its book is known again, µs since the epoch.
        """
        for ticker, proof_us in since_us.items():
            if self._doubted.get(ticker, proof_us) < proof_us:
                del self._doubted[ticker]
                self._unseen.discard(ticker)
                self._since[ticker] = max(proof_us, self._told_us)

    def retract(self, since_us: Mapping[str, int]) -> list[Heartbeat]:
        """Take back what was claimed since the last proof; a ticker's next book begins its coverage again.

        Args:
            since_us: By ticker, up to when it was certainly covered, µs since the epoch.

        Returns:
            A heartbeat with holes for each minute that has some.
        """
        self._ended = [
            (from_us, min(end_us, since_us.get(ticker, end_us)), ticker)
            for from_us, end_us, ticker in self._ended
            if from_us < since_us.get(ticker, end_us)
        ]
        holes: dict[tuple[int, int], list[str]] = {}
        for ticker, proof_us in since_us.items():
            if not proof_us:
                continue  # it never delivered, and nothing was ever claimed
            self._doubted.pop(ticker, None)
            self._end(proof_us, ticker)
            # What of this was never claimed is no claim taken back, and does no harm.
            for span in split_at_minutes(proof_us, self._told_us):
                holes.setdefault(span, []).append(ticker)
        minutes: dict[int, list[Span]] = {}
        for (from_us, to_us), tickers in sorted(holes.items()):
            minutes.setdefault(from_us // MINUTE_US, []).append(Span(from_us, to_us, tuple(tickers)))
        return [
            Heartbeat(self._section, self._connection, self._subscribed, (), tuple(spans))
            for spans in minutes.values()
        ]

    def finish(self) -> Heartbeat:
        """Return a heartbeat up to the last moment at which something was received: for an end."""
        return self._tell(self._last_us)

    def cut(self) -> Heartbeat:
        """Return a heartbeat for where records change the way they travel.

        It vouches for all that was received so far, the last moment included: the next one goes another way,
        and may arrive before these records.
        """
        return self._tell(self._last_us + 1)

    def _end(self, at_us: int, ticker: str) -> None:
        since_us = self._since.pop(ticker, None)
        if since_us is not None:
            self._unseen.add(ticker)
            if since_us < at_us:
                self._ended.append((since_us, at_us, ticker))

    def _tell(self, to_us: int) -> Heartbeat:
        spans: dict[tuple[int, int], list[str]] = {}
        unfinished = []
        for from_us, end_us, ticker in self._ended:
            if from_us < to_us:
                spans.setdefault((from_us, min(end_us, to_us)), []).append(ticker)
            if end_us > to_us:
                unfinished.append((max(from_us, to_us), end_us, ticker))
        self._ended = unfinished
        for ticker, from_us in self._since.items():
            if from_us < to_us:
                spans.setdefault((from_us, to_us), []).append(ticker)
                self._since[ticker] = to_us
        covered = tuple(
            Span(piece_from_us, piece_to_us, tuple(tickers))
            for (from_us, end_us), tickers in sorted(spans.items())
            for piece_from_us, piece_to_us in split_at_minutes(from_us, end_us)
        )
        self._schedule(to_us)
        return Heartbeat(self._section, self._connection, self._subscribed, covered)

    def _schedule(self, told_us: int) -> None:
        self._told_us = told_us
        self._lost_since.clear()
        self._due_us = min(told_us + self._every_us, told_us - told_us % MINUTE_US + MINUTE_US)

    def _begin_again(self, at_us: int) -> None:
        self._since = dict.fromkeys(self._since, at_us)
        self._schedule(at_us)
