from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cryptostream_dagster.transforms import books
from cryptostream_dagster.transforms import rows as flat
from cryptostream_dagster.transforms.raw import RawObject
from cryptostream_dagster.transforms.schema import book_columns
from cryptostream_dagster.transforms.storage import Storage, open_storage
from cryptostream_dagster.window import Window
from ingest_services.consumer.entries import read_record
from ingest_services.errors import UserError
from ingest_services.lake import lines as lake_lines
from ingest_services.lake.chain import CommitFile
from ingest_services.record import BOOK, Envelope, headers_of
from ingest_services.upbit.frames import Book, read_frame
from tests.frame_mutations import BOOKS, NOW_MS, Mutator
from tests.lake_builder import MINUTE_MS, SEOUL, LakeBuilder, Row, frame, instant, ms

START = instant("2025-02-02 16:05:00")
WINDOW = Window.at(START)
BAD_UNITS = "number in the units missing, of another type or beyond a double"
T0 = ms(START)


@dataclass
class Room:
    folder: Path
    lake: LakeBuilder
    parquet: Storage

    def build(self, rows: Sequence[Row], depth: int = 15, **options: Any) -> dict[str, books.TickerBooks]:
        return self.build_files(self.lake.commit(rows).files, depth, **options)

    def build_files(
        self, files: Sequence[CommitFile], depth: int = 15, **options: Any
    ) -> dict[str, books.TickerBooks]:
        return {result.ticker: result for result in self.build_window(files, depth, **options).tickers}

    def build_window(self, files: Sequence[CommitFile], depth: int = 15, **options: Any) -> books.WindowBooks:
        objects = [
            RawObject(f.path, f.ticker, 1, f.rows, f.bytes, f.crc32c) for f in files if f.kind == "book"
        ]
        raw = open_storage("RAW_URL", self.lake.url)
        builder = books.BookBuilder(raw, self.parquet, depth, SEOUL, **options)
        return builder.build(WINDOW, objects, {"version": "1"})

    def read(self, result: books.TickerBooks) -> pa.Table:
        return pq.ParquetFile(self.folder / "parquet" / result.path).read()


def open_room(folder: Path) -> Room:
    return Room(
        folder, LakeBuilder(folder / "raw"), open_storage("PARQUET_URL", (folder / "parquet").as_uri())
    )


@pytest.fixture
def room(tmp_path: Path) -> Room:
    return open_room(tmp_path)


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


def test_a_window_of_books_without_any_level_is_rows_of_null(room: Room) -> None:
    rows = room.read(room.build([Row(frame("BTC", T0 + n, []), T0 * 1000) for n in range(2)])["BTC"])
    assert rows.num_rows == 2
    assert all(rows.column(f"{side}_price{n}").null_count == 2 for side in ("ask", "bid") for n in (1, 15))


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


def test_lines_that_do_not_fit_are_quarantined_counted_and_told_with_the_reason(room: Room) -> None:
    good = book().frame
    unfit = [
        (b'{"cd":"KRW-BTC","tms":1,"obu":[],"st":"REALTIME",', "not JSON"),
        (good.replace(b"101.0", b'"\xff"'), "not JSON"),
        (b"7", "market missing or of another type"),
        (good.replace(b'"cd":"KRW-BTC",', b""), "market missing or of another type"),
        (good.replace(b"KRW-BTC", b"USDT-BTC"), "another market than its object"),
        (good.replace(b'"tms":%d' % T0, b'"tms":"soon"'), "stamp missing or of another type"),
        (good.replace(b'"tms":%d' % T0, b'"tms":%d' % (T0 - 1)), "stamp outside the window"),
        (good.replace(b'"tms":%d' % T0, b'"tms":%d' % WINDOW.end_ms), "stamp outside the window"),
        (book(12, stream_type="SNAPSHOT").frame, "impossible stamp"),
        (good.replace(b"REALTIME", b"RUMOUR"), "unknown stream type"),
        (
            good.replace(b'"obu":[', b'"obu":{"a":[').replace(b'],"st"', b']},"st"'),
            "units missing or of another type",
        ),
        (good.replace(b'"lv":0', b'"lv":"none"'), "number of another type"),
        (good.replace(b'"tas":', b'"tas":[],"x":'), "number of another type"),
        (
            book(default_format=True).frame.replace(b'"total_bid_size":', b'"total_bid_size":{},"x":'),
            "number of another type",
        ),
        (good.replace(b'"lv":0', b'"lv":1e999'), "number beyond a double"),
        (good.replace(b'"obu":[', b'"obu":[7,'), BAD_UNITS),
        (good.replace(b"101.0", b'"x"'), BAD_UNITS),
        (good.replace(b'"ap":101.0,', b""), BAD_UNITS),
        (good.replace(b"101.0", b"1e999"), BAD_UNITS),
        (good.replace(b"101.0", b"NaN"), BAD_UNITS),
    ]
    files = room.lake.commit([Row(value, T0 * 1000, "BTC") for value in [good, *dict(unfit)]]).files
    built = room.build_window(files)
    (result,) = built.tickers
    assert (result.sealed_rows, result.rows, result.duplicates) == (1 + len(unfit), 1, 0)
    assert result.quarantined == len(unfit)
    lines = {
        file.path: lake_lines.decompress(file.path, room.lake.store.get(file.path)).split(b"\n")
        for file in files
    }
    told = {lines[row.path][row.line - 1]: row for row in built.quarantined}
    assert len(told) == len(unfit) <= books.QUARANTINE_SHOWN
    for line, row in told.items():
        read = re.fullmatch(rb'\{"partition":(\d+),"offset":(\d+),.*,"book":(.*)\}', line)
        assert read is not None
        assert row.reason == dict(unfit)[read[3]], line
        not_text = b"\xff" in line  # Nothing is read of that.
        assert (row.partition, row.offset) == ((None, None) if not_text else (int(read[1]), int(read[2])))


def test_what_is_told_of_quarantine_is_bounded_and_its_number_is_not(room: Room) -> None:
    rows = [Row(b"%d" % n, T0 * 1000, ticker) for n in range(30) for ticker in ("BTC", "ETH")]
    built = room.build_window(room.lake.commit([*rows, book()]).files, batch_rows=40, chunk_rows=20)
    assert [(t.ticker, t.quarantined) for t in built.tickers] == [("BTC", 30), ("ETH", 30)]
    assert [(row.ticker, row.offset) for row in built.quarantined] == [
        (ticker, 2 * n + number)
        for number, ticker in enumerate(("BTC", "ETH"))
        for n in range(books.QUARANTINE_SHOWN)
    ]


@pytest.mark.parametrize("ticker", ["../../etc/passwd", "a/b", "..", "", "btc"])
def test_a_ticker_that_is_named_like_a_path_stops_the_build(room: Room, ticker: str) -> None:
    (file,) = room.lake.commit([book()]).files
    builder = books.BookBuilder(open_storage("RAW_URL", room.lake.url), room.parquet, 15, SEOUL)
    item = RawObject(file.path, ticker, 1, file.rows, file.bytes, file.crc32c)
    with pytest.raises(
        UserError, match=rf"{re.escape(file.path)}: a commit says that it is of '{re.escape(ticker)}'"
    ):
        builder.build(WINDOW, [item], {})
    assert not (room.folder / "parquet").exists()


def test_a_window_of_which_one_object_is_bad_is_not_written_in_part(room: Room) -> None:
    files = room.lake.commit([book(ticker=f"T{n}") for n in range(9)]).files
    whole = {
        t.path: (room.folder / "parquet" / t.path).read_bytes() for t in room.build_window(files).tickers
    }
    more = [*files, *room.lake.commit([book(T0 + 1, ticker=f"T{n}") for n in range(9)]).files]
    bad = room.folder / "raw" / max(file.path for file in more)
    content = bad.read_bytes()
    bad.write_bytes(content[:-1] + b"x")
    with pytest.raises(UserError, match="has crc32c"):
        room.build_files(more, batch_rows=2)
    assert {path: (room.folder / "parquet" / path).read_bytes() for path in whole} == whole
    bad.write_bytes(content)
    assert {t.rows for t in room.build_window(more, batch_rows=2).tickers} == {2}


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


@settings(max_examples=12, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    rows=st.lists(
        st.tuples(st.sampled_from("ABC"), st.integers(0, 3), st.integers(0, 2), st.integers(0, 1)), min_size=1
    ),
    cuts=st.lists(st.integers(0, 20), max_size=3),
    order=st.randoms(),
    batch=st.integers(1, 30),
    chunk=st.integers(1, 30),
    threads=st.integers(1, 3),
)
def test_the_same_raw_data_gives_the_same_bytes_in_whatever_order_and_pieces_it_is_read(
    rows: list[tuple[str, int, int, int]], cuts: list[int], order: Any, batch: int, chunk: int, threads: int
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        room = open_room(Path(folder))
        given_rows = [
            book(T0 + tms, 101 + ask, ticker=f"T{ticker}", received_us=received)
            for ticker, tms, ask, received in rows
        ]
        ends = sorted({min(cut, len(rows)) for cut in cuts} | {0, len(rows)})
        files = [f for a, b in pairwise(ends) for f in room.lake.commit(given_rows[a:b]).files]

        def written(chosen: list[CommitFile], **options: Any) -> dict[str, bytes]:
            results = room.build_window(chosen, **options).tickers
            return {r.ticker: (room.folder / "parquet" / r.path).read_bytes() for r in results}

        whole = written(files)
        order.shuffle(files)
        assert written(files, batch_rows=batch, chunk_rows=chunk, threads=threads) == whole
        for ticker, result in room.build_files(files).items():
            read = (
                room.read(result)
                .select(["exchange_time", "received_time", "offset", "ask_price1"])
                .to_pylist()
            )
            keys = [tuple(row.values())[:3] for row in read]
            assert keys == sorted(keys)
            said = {(f"T{t}", tms, ask) for t, tms, ask, _ in rows if f"T{t}" == ticker}
            assert len(read) == len(said)


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
    with pytest.raises(
        UserError, match=r"BTC-.*has crc32c .*, its commit says .*bring back what was written"
    ):
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


WITHOUT_PANDAS = """
import sys
from datetime import datetime
from zoneinfo import ZoneInfo

from cryptostream_dagster.transforms.books import BookBuilder
from cryptostream_dagster.transforms.candles import window_candles
from cryptostream_dagster.transforms.raw import RawObject
from cryptostream_dagster.transforms.storage import open_storage
from cryptostream_dagster.window import Window

raw, parquet, start, *found = sys.argv[1:]
window, parquet = Window.at(datetime.fromisoformat(start)), open_storage("PARQUET_URL", parquet)
objects = [
    RawObject(path, "BTC", 1, int(rows), int(size), crc) for path, rows, size, crc in zip(*[iter(found)] * 4)
]
builder = BookBuilder(open_storage("RAW_URL", raw), parquet, 15, ZoneInfo("Asia/Seoul"))
(built,) = builder.build(window, objects, {}).tickers
(candle,) = window_candles(parquet, [built.path], window)
print(built.rows, built.duplicates, built.quarantined, candle.book_count, "pandas" in sys.modules)
"""


def test_a_window_is_built_without_pandas_which_takes_an_eighth_of_the_time_to_import(room: Room) -> None:
    rows = [book(), book(), book(T0 + 1, ask=101.5), Row(b"7", T0 * 1000, "BTC")]
    files = room.lake.commit(rows).files
    found = [str(what) for f in files for what in (f.path, f.rows, f.bytes, f.crc32c)]
    command = [sys.executable, "-c", WITHOUT_PANDAS, room.lake.url, room.parquet.url, str(START), *found]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.split() == ["2", "1", "1", "2", "False"]


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
    sent: list[Book | None] = []
    rows: list[Row] = []
    for value in Mutator(BOOKS, seed).inputs(8_000):
        entry = read_record(0, 0, NOW_MS, None, value, headers)
        if entry.kind == "book" and window.start_ms <= entry.minute_ms < window.end_ms:
            read = read_frame(value)
            assert isinstance(read, Book)
            sent.append(None if has_a_key_twice(value) else read)
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
            book = sent[row["offset"]]
            found = (row["market"], row["ticker"], ms(row["exchange_time"]))
            if book is not None:
                assert found == (book.market, book.ticker, book.tms), (seed, rows[row["offset"]].frame)
