from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.fs
import pyarrow.parquet as pq
import pytest

from cryptostream_dagster.transforms import books
from cryptostream_dagster.transforms import rows as flat
from cryptostream_dagster.transforms.raw import RawObject
from cryptostream_dagster.transforms.schema import book_columns
from cryptostream_dagster.transforms.storage import Storage, open_storage
from cryptostream_dagster.window import Window
from ingest_services.consumer.entries import read_record
from ingest_services.errors import UserError
from ingest_services.lake.chain import CommitFile
from ingest_services.record import BOOK, Envelope, headers_of
from ingest_services.upbit.frames import Book, read_frame
from tests.frame_mutations import BOOKS, NOW_MS, Mutator
from tests.lake_builder import MINUTE_MS, SEOUL, LakeBuilder, Row, frame, instant, ms

START = instant("2025-02-02 16:05:00")
WINDOW = Window.at(START)
T0 = ms(START)


@dataclass
class Room:
    folder: Path
    lake: LakeBuilder
    parquet: Storage

    def build(self, rows: Sequence[Row], depth: int = 15, **options: Any) -> dict[str, books.TickerBooks]:
        return self.build_files(self.lake.commit(rows).files, depth, **options)

    def build_files(
        self, files: Sequence[CommitFile], depth: int = 15, raw: Storage | None = None, **options: Any
    ) -> dict[str, books.TickerBooks]:
        objects = [
            RawObject(f.path, f.ticker, 1, f.rows, f.bytes, f.crc32c) for f in files if f.kind == "book"
        ]
        builder = books.BookBuilder(
            raw or open_storage("RAW_URL", self.lake.url), self.parquet, depth, SEOUL, **options
        )
        return {result.ticker: result for result in builder.build(WINDOW, objects, {"version": "1"}).tickers}

    def read(self, result: books.TickerBooks) -> pa.Table:
        return pq.ParquetFile(self.folder / "parquet" / result.path).read()


@pytest.fixture
def room(tmp_path: Path) -> Room:
    return Room(
        tmp_path, LakeBuilder(tmp_path / "raw"), open_storage("PARQUET_URL", (tmp_path / "parquet").as_uri())
    )


def book(tms: int = T0, ask: float | str = 101.0, **options: Any) -> Row:
    received = options.pop("received_us", (T0 + 1000) * 1000)
    ticker = options.pop("ticker", "BTC")
    return Row(frame(ticker, tms, [(ask, 100.0, 1.5, 2.5), (102.0, 99.0, 1.0, 2.0)], **options), received)


def test_columns_are_the_declared_ones_at_every_depth(room: Room) -> None:
    for depth in (1, 5, 15, 30):
        table = room.read(room.build([book()], depth)["BTC"])
        assert table.column_names == [column.name for column in book_columns(depth)]
        assert len(table.column_names) == 11 + 4 * depth
    (row,) = table.to_pylist()
    assert (row["market"], row["ticker"], row["stream_type"], row["level"]) == (
        "KRW-BTC",
        "BTC",
        "REALTIME",
        0,
    )
    assert (row["ask_price1"], row["ask_size1"], row["bid_price2"], row["bid_size2"]) == (101, 1.5, 99, 2)
    assert row["exchange_time"] == START
    assert row["ask_price3"] is None
    assert row["bid_size30"] is None


def test_the_path_says_ticker_and_window_in_market_time(room: Room) -> None:
    result = room.build([book()])["BTC"]
    assert result.path == "ticker=BTC/year=2025/month=02/day=02/hour=16/BTC-202502021605.parquet"


def test_both_formats_and_exponents_give_the_same_row(room: Room) -> None:
    result = room.build(
        [
            book(ask="1.01E2", ticker="BTC"),
            book(ask=101, ticker="ETH", default_format=True),
        ]
    )
    plain, default = (room.read(result[ticker]).to_pylist()[0] for ticker in ("BTC", "ETH"))
    differ = {name for name in plain if plain[name] != default[name]}
    assert differ == {"market", "ticker", "offset"}


def test_padding_is_null_and_an_empty_level_with_a_price_is_not(room: Room) -> None:
    row = Row(frame("BTC", T0, [(101.0, 0, 1.0, 0), (0, 99.0, 0, 0)]), T0 * 1000)
    (read,) = room.read(room.build([row])["BTC"]).to_pylist()
    assert (read["bid_price1"], read["bid_size1"]) == (None, None)
    assert (read["ask_price2"], read["ask_size2"]) == (None, None)
    assert (read["bid_price2"], read["bid_size2"]) == (99.0, 0.0)


def test_microsecond_stamps_are_brought_to_milliseconds(room: Room) -> None:
    result = room.build([book((T0 + 7) * 1000 + 999), book(T0 + 6)])["BTC"]
    stamps = [moment.timestamp() * 1000 for moment in room.read(result)["exchange_time"].to_pylist()]
    assert stamps == [T0 + 6, T0 + 7]


def test_the_same_book_in_either_unit_and_either_format_is_one_row(room: Room) -> None:
    rows = [
        book(T0 * 1000 + 999, received_us=3_000),
        book(T0, received_us=1_000),
        book(T0 * 1000, received_us=2_000, default_format=True),
        book(T0 * 1000 + 500, 103.0, received_us=500),  # another book of the same ms
    ]
    result = room.build(rows)["BTC"]
    assert (result.sealed_rows, result.rows, result.duplicates, result.quarantined) == (4, 2, 2, 0)
    read = room.read(result).to_pylist()
    assert {row["exchange_time"] for row in read} == {START}
    assert [(row["received_time"].microsecond, row["ask_price1"]) for row in read] == [
        (500, 103),
        (1_000, 101),
    ]


def test_a_key_that_occurs_twice_puts_no_book_under_another_market_or_time(room: Room) -> None:
    # The consumer takes the last of them, DuckDB the first.
    good = book().frame
    twice = [
        good.replace(b'"cd"', b'"cd":"KRW-ETH","cd"'),
        good.replace(b'"tms"', b'"tms":%d,"tms"' % (T0 - 1)),
        good.replace(b'"tms"', b'"tms":%d,"tms"' % WINDOW.end_ms),
        good.replace(b'"tms"', b'"tms":5,"tms"'),
        good.replace(b'"st"', b'"st":"SNAPSHOT","st"').replace(b'"tms"', b'"tms":1,"tms"'),
    ]
    result = room.build([Row(value, (T0 + 9) * 1000, "BTC") for value in [good, *twice]])
    assert set(result) == {"BTC"}
    assert (result["BTC"].rows, result["BTC"].quarantined) == (1, 5)


def test_a_snapshot_may_be_of_long_ago_and_a_realtime_book_may_not(room: Room) -> None:
    old = T0 - 86_400_000
    files = room.lake.commit([book(old, stream_type="SNAPSHOT"), book(T0), book(T0 + 299_999, 104.0)]).files
    assert room.build_files(files)["BTC"].rows == 3
    files = room.lake.commit([book(old), book(T0 + 300_000)]).files
    assert room.build_files(files)["BTC"].quarantined == 2


def test_the_same_book_twice_is_one_row_and_counted(room: Room) -> None:
    result = room.build(
        [
            book(received_us=3_000),
            book(received_us=1_000, stream_type="SNAPSHOT", ask="101.00"),
            book(received_us=2_000, ask="1.01E2"),
            book(received_us=2_000, level=10),
            book(received_us=2_000, ask=101.5),
            book(received_us=2_000, ticker="ETH"),
        ]
    )
    assert (result["BTC"].sealed_rows, result["BTC"].rows, result["BTC"].duplicates) == (6 - 1, 3, 2)
    rows = room.read(result["BTC"]).to_pylist()
    # Of the three that are the same, the one received first stays.
    assert [(row["received_time"].microsecond, row["level"], row["ask_price1"]) for row in rows] == [
        (1_000, 0, 101.0),
        (2_000, 10, 101.0),
        (2_000, 0, 101.5),
    ]


def test_rows_are_in_total_order_whatever_the_files_say(room: Room) -> None:
    late = room.lake.commit([book(T0 + 2, received_us=9), book(T0 + 1, received_us=9)]).files
    early = room.lake.commit([book(T0 + 2, 102.5, received_us=8), book(T0, received_us=99)]).files
    for files in ([*late, *early], [*early, *late]):
        rows = room.read(room.build_files(files)["BTC"]).to_pylist()
        order = [(row["exchange_time"], row["received_time"], row["offset"]) for row in rows]
        assert order == sorted(order)
        assert [row["offset"] for row in rows] == [3, 1, 2, 0]


def test_lines_that_do_not_fit_are_quarantined_and_counted(room: Room) -> None:
    good = frame("BTC", T0, [(101.0, 100.0, 1.0, 1.0)])
    bad = [
        b'{"cd":"KRW-BTC","tms":1,"obu":[7],"st":"REALTIME"}',
        b'{"cd":"KRW-BTC","tms":1,"obu":[],"st":"REALTIME",',
        b'{"cd":"KRW-BTC","tms":1,"obu":{"ap":1},"st":"REALTIME"}',
        b'{"cd":"KRW-BTC","tms":"soon","obu":[],"st":"REALTIME"}',
        good.replace(b"101.0", b'"x"'),
        good.replace(b"101.0", b"1e999"),
        good.replace(b"REALTIME", b"RUMOUR"),
        b"7",
    ]
    result = room.build([Row(value, T0 * 1000, "BTC") for value in [good, *bad]])["BTC"]
    assert (result.sealed_rows, result.rows, result.duplicates, result.quarantined) == (9, 1, 0, 8)


def test_a_row_that_gets_lost_is_no_duplicate_but_stops_the_build(
    room: Room, monkeypatch: pytest.MonkeyPatch
) -> None:
    order = flat.total_order

    def lossy(lines: flat.Lines, chosen: flat.Numbers) -> flat.Numbers:
        found = order(lines, chosen)
        return found[found != 1]

    files = room.lake.commit([book(T0), book(T0), book(T0 + 1), book(T0 + 1)]).files
    assert room.build_files(files)["BTC"].duplicates == 2
    monkeypatch.setattr(flat, "total_order", lossy)
    with pytest.raises(RuntimeError, match="BTC: 4 sealed rows are not 2 written \\+ 1 duplicates"):
        room.build_files(files)


def test_a_ticker_whose_every_line_is_quarantined_has_no_object(room: Room) -> None:
    result = room.build([Row(b"7", T0 * 1000, "BTC")])["BTC"]
    assert (result.path, result.rows, result.quarantined) == ("", 0, 1)


def test_the_same_raw_data_gives_the_same_bytes(room: Room) -> None:
    rows = [book(T0 + n % 50, 101 + n, ticker=f"T{n % 7}") for n in range(300)]
    files = room.lake.commit(rows).files

    def written(**options: Any) -> dict[str, bytes]:
        result = room.build_files(files, **options)
        return {r.ticker: (room.folder / "parquet" / r.path).read_bytes() for r in result.values()}

    whole = written()
    assert written(threads=1) == whole
    assert written(batch_rows=50) == whole


def test_objects_that_are_not_files_are_fetched_first(room: Room, monkeypatch: pytest.MonkeyPatch) -> None:
    files = room.lake.commit([book(ticker=f"T{n}") for n in range(20)]).files
    monkeypatch.setattr(Storage, "is_local", property(lambda self: self.url != "memory://raw"))
    raw = Storage("memory://raw", pyarrow.fs.LocalFileSystem(), str(room.folder / "raw"))
    assert sum(result.rows for result in room.build_files(files, raw=raw).values()) == 20


@pytest.mark.parametrize("suffix", [".jsonl", ".jsonl.zst"])
def test_an_object_that_is_not_what_its_commit_says_stops_the_build(tmp_path: Path, suffix: str) -> None:
    lake = LakeBuilder(tmp_path / "raw", suffix=suffix)
    room = Room(tmp_path, lake, open_storage("PARQUET_URL", (tmp_path / "parquet").as_uri()))
    files = lake.commit([book(T0 + n) for n in range(50)]).files
    path = tmp_path / "raw" / files[0].path
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match=r"BTC-.*bytes, its commit says"):
        room.build_files(files)
    path.write_bytes(whole[: len(whole) // 2] + b"\0" * (len(whole) - len(whole) // 2))
    with pytest.raises(UserError, match=r"BTC-.*has crc32c .*, its commit says"):
        room.build_files(files)
    # As many bytes and lines as before, every one a book: only the checksum can tell.
    flipped = whole.replace(b"101.0", b"191.0") if suffix == ".jsonl" else whole[:-1] + b"\0"
    path.write_bytes(flipped)
    with pytest.raises(UserError, match=r"BTC-.*has crc32c .*, its commit says"):
        room.build_files(files)
    path.unlink()
    with pytest.raises(UserError, match="not there"):
        room.build_files(files)
    assert not list((tmp_path / "parquet").rglob("*.parquet"))


def test_metadata_tells_where_the_rows_came_from(room: Room) -> None:
    result = room.build([book(), book()])["BTC"]
    metadata = room.read(result).schema.metadata
    assert metadata[b"cryptostream.version"] == b"1"
    assert metadata[b"cryptostream.ticker"] == b"BTC"
    assert metadata[b"cryptostream.duplicates"] == b"1"


def has_a_key_twice(value: bytes) -> bool:
    """Whether parsers disagree about a frame: then all that is promised is its market and its window."""
    sizes: list[bool] = []
    json.loads(value, object_pairs_hook=lambda pairs: sizes.append(len(dict(pairs)) < len(pairs)))
    return any(sizes)


@pytest.mark.parametrize("seed", [1, 2])
def test_whatever_damage_the_consumer_lets_pass_is_a_row_of_that_instant_a_duplicate_or_quarantined(
    room: Room, seed: int
) -> None:
    window = Window.at(datetime.fromtimestamp(NOW_MS / 1000, UTC))
    headers = headers_of(Envelope(BOOK, NOW_MS * 1000, "c"))
    given: list[Book | None] = []
    rows: list[Row] = []
    for value in Mutator(BOOKS, seed).inputs(8_000):
        entry = read_record(0, 0, NOW_MS, None, value, headers)
        if entry.kind == "book" and window.start_ms <= entry.minute_ms < window.end_ms:
            read = read_frame(value)
            assert isinstance(read, Book)
            given.append(None if has_a_key_twice(value) else read)
            rows.append(Row(value, NOW_MS * 1000))
    # In the order in which the builder numbers them: by arrival.
    files = room.lake.commit(rows).files
    assert all(window.start_ms <= f.minute_ms <= window.end_ms - MINUTE_MS for f in files)
    builder = books.BookBuilder(open_storage("RAW_URL", room.lake.url), room.parquet, 15, SEOUL)
    objects = [RawObject(f.path, f.ticker, 1, f.rows, f.bytes, f.crc32c) for f in files]
    results = builder.build(window, objects, {}).tickers
    assert sum(r.sealed_rows for r in results) == len(rows) > 1_000
    assert sum(r.rows + r.duplicates + r.quarantined for r in results) == len(rows)
    assert all(sum(getattr(r, what) for r in results) > 100 for what in ("rows", "duplicates", "quarantined"))
    for result in (r for r in results if r.rows):
        for row in room.read(result).select(["market", "ticker", "offset", "exchange_time"]).to_pylist():
            book = given[row["offset"]]
            found = (row["market"], row["ticker"], ms(row["exchange_time"]))
            if book is not None:
                assert found == (book.market, book.ticker, book.tms), (seed, rows[row["offset"]].frame)
