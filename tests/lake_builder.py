"""Small lakes for tests, written by the lake's own public functions."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from zoneinfo import ZoneInfo

import crc32c
import orjson

from ingest_services.lake import chain as chains
from ingest_services.lake import layout, lines
from ingest_services.lake.store import ObjectStore
from ingest_services.lake.stores import open_store
from ingest_services.record import Heartbeat, Span
from ingest_services.upbit.frames import Book, read_frame
from ingest_services.upbit.markets import market_of

MINUTE_MS = 60_000
SEOUL = ZoneInfo("Asia/Seoul")
DEFAULT_KEYS = {
    "ty": "type",
    "cd": "code",
    "tms": "timestamp",
    "tas": "total_ask_size",
    "tbs": "total_bid_size",
    "obu": "orderbook_units",
    "st": "stream_type",
    "lv": "level",
}
DEFAULT_UNIT_KEYS = {"ap": "ask_price", "bp": "bid_price", "as": "ask_size", "bs": "bid_size"}

Level = tuple[float | str, float | str, float | str, float | str]


def instant(text: str) -> datetime:
    """Read `2025-02-02 16:05:00` in Seoul."""
    return datetime.fromisoformat(text).replace(tzinfo=SEOUL).astimezone(UTC)


def ms(moment: datetime) -> int:
    return round(moment.timestamp() * 1000)


def frame(
    ticker: str,
    tms: int,
    levels: Iterable[Level],
    stream_type: str = "REALTIME",
    *,
    level: float = 0,
    default_format: bool = False,
) -> bytes:
    """Return a frame. A level is ask price, bid price, ask size, bid size; a string goes in as it is."""
    units = [dict(zip(("ap", "bp", "as", "bs"), unit, strict=True)) for unit in levels]
    book: dict[str, object] = {
        "ty": "orderbook",
        "cd": market_of(ticker),
        "tms": tms,
        "tas": sum(float(u["as"]) for u in units),
        "tbs": sum(float(u["bs"]) for u in units),
        "obu": [{key: _number(value) for key, value in unit.items()} for unit in units],
        "st": stream_type,
        "lv": level,
    }
    if default_format:
        book["obu"] = [{DEFAULT_UNIT_KEYS[k]: v for k, v in unit.items()} for unit in book["obu"]]  # type: ignore[attr-defined]
        book = {DEFAULT_KEYS[key]: value for key, value in book.items()}
    return orjson.dumps(book, option=orjson.OPT_PASSTHROUGH_SUBCLASS)


def _number(value: float | str) -> object:
    return orjson.Fragment(value) if isinstance(value, str) else value


@dataclass
class Row:
    """A record on its way into the lake; `ticker` files it there, whatever the frame says."""

    frame: bytes
    received_us: int
    ticker: str = ""
    connection: str = "upbit_producer1-test-1"


@dataclass
class LakeBuilder:
    """One topic with some partitions, committed by hand."""

    folder: Path
    partitions: int = 1
    source: str = "simulator"
    suffix: str = ".jsonl.zst"
    topic_id: str = "topic-1"
    since: datetime = field(default_factory=lambda: instant("2025-02-02 15:00:00"))

    def __post_init__(self) -> None:
        self.url = self.folder.absolute().as_uri()
        self.store: ObjectStore = open_store(self.url)
        self._tokens = itertools.count(1)
        layout.claim_lake(self.store, self.source, "Asia/Seoul")
        log = dict.fromkeys(range(self.partitions), 0)
        self.chain = chains.open_chain(
            self.store, "orderbook", self.topic_id, log, lambda: log, ms(self.since)
        )
        self.next = dict(log)

    def commit(
        self,
        rows: Iterable[Row] = (),
        heartbeats: Iterable[tuple[Heartbeat, int]] = (),
        quarantine: Iterable[Row] = (),
        partition: int = 0,
        missing: int = 0,
        committed: datetime | None = None,
    ) -> chains.Commit:
        """Write objects and their commit, as a consumer would at a cut; `missing` offsets come last."""
        base = self.next[partition]
        token = f"{next(self._tokens):08x}"
        offsets = itertools.count(base)
        groups: dict[tuple[chains.FileKind, str, int], list[tuple[bytes, int | None, int]]] = {}
        for row in rows:
            book = read_frame(row.frame)
            ticker = row.ticker or (book.ticker if isinstance(book, Book) else "")
            tms = book.tms if isinstance(book, Book) else row.received_us // 1000
            snapshot = isinstance(book, Book) and book.stream_type == "SNAPSHOT"
            at = row.received_us // 1000 if snapshot else tms
            line = lines.book_line(partition, next(offsets), row.received_us, row.connection, row.frame)
            groups.setdefault(("book", ticker, at - at % MINUTE_MS), []).append((line, tms, row.received_us))
        for heartbeat, received_us in heartbeats:
            at = ((heartbeat.to_us or received_us) - 1) // 1000
            line = lines.heartbeat_line(
                partition, next(offsets), received_us, heartbeat.connection, heartbeat.encode()
            )
            groups.setdefault(("heartbeat", "", at - at % MINUTE_MS), []).append((line, None, received_us))
        for row in quarantine:
            at = row.received_us // 1000
            line = lines.quarantine_line(
                partition, next(offsets), row.received_us, row.connection, "not JSON", b"", row.frame
            )
            groups.setdefault(("quarantine", "", at - at % MINUTE_MS), []).append(
                (line, None, row.received_us)
            )
        files = [
            self._write(kind, ticker, minute, content, partition, base, token)
            for (kind, ticker, minute), content in groups.items()
        ]
        counts = {
            kind: sum(f.rows for f in files if f.kind == kind) for kind in ("book", "heartbeat", "quarantine")
        }
        lost = next(offsets)
        after = lost + missing
        commit = chains.Commit(
            self.chain.number,
            partition,
            base,
            after,
            token,
            tuple(files),
            counts["book"],
            counts["heartbeat"],
            counts["quarantine"],
            ((lost, after),) if missing else (),
            ms(committed or datetime.now(UTC)),
        )
        if after > base:
            chains.write_commit(self.store, commit)
            self.next[partition] = after
        return commit

    def through(self, until: datetime, *partitions: int, reported: datetime | None = None) -> None:
        """Claim that partitions (default: all) are through everything before an instant."""
        for partition in partitions or range(self.partitions):
            chains.write_progress(
                self.store,
                chains.Progress(
                    self.chain.number,
                    partition,
                    self.next[partition],
                    ms(until),
                    ms(reported or datetime.now(UTC)),
                ),
            )

    def _write(
        self,
        kind: chains.FileKind,
        ticker: str,
        minute_ms: int,
        content: list[tuple[bytes, int | None, int]],
        partition: int,
        base: int,
        token: str,
    ) -> chains.CommitFile:
        stamps = [tms for _, tms, _ in content if tms is not None]
        received = [received_us for _, _, received_us in content]
        if kind == "book":
            path = layout.book_path(
                ticker, minute_ms, min(stamps), partition, base, token, SEOUL, self.suffix
            )
        else:
            room = {"heartbeat": "coverage", "quarantine": "quarantine"}[kind]
            path = layout.side_path(room, minute_ms, partition, base, token, SEOUL, self.suffix)
        data = lines.pack([line for line, _, _ in content], self.suffix)
        self.store.create(path, data)
        return chains.CommitFile(
            kind,
            path,
            ticker,
            minute_ms,
            len(content),
            len(data),
            f"{crc32c.crc32c(data):08x}",
            min(stamps, default=None),
            max(stamps, default=None),
            min(received),
            max(received),
        )


def heartbeat(
    start: datetime, end: datetime, *tickers: str, section: str = "upbit_producer1", connection: int = 1
) -> tuple[Heartbeat, int]:
    """Return a heartbeat that covered [start, end) of some tickers, and when it was received."""
    from_us, to_us = ms(start) * 1000, ms(end) * 1000
    beat = Heartbeat(section, f"{section}-test-{connection}", tickers, (Span(from_us, to_us, tickers),))
    return beat, to_us + 1000


def hole(
    start: datetime,
    end: datetime,
    *tickers: str,
    found_out: datetime,
    subscribed: tuple[str, ...] = (),
    section: str = "upbit_producer1",
    connection: int = 1,
) -> tuple[Heartbeat, int]:
    """Return a heartbeat that takes back what its connection claimed of [start, end)."""
    lost = Span(ms(start) * 1000, ms(end) * 1000, tickers)
    beat = Heartbeat(section, f"{section}-test-{connection}", subscribed or tickers, (), (lost,))
    return beat, ms(found_out) * 1000


def covered_minutes(
    start: datetime, minutes: int, *tickers: str, connection: int = 1
) -> list[tuple[Heartbeat, int]]:
    """Return heartbeats that cover whole minutes from an instant on."""
    begin = ms(start)
    return [
        heartbeat(
            datetime.fromtimestamp((begin + n * MINUTE_MS) / 1000, UTC),
            datetime.fromtimestamp((begin + (n + 1) * MINUTE_MS) / 1000, UTC),
            *tickers,
            connection=connection,
        )
        for n in range(minutes)
    ]
