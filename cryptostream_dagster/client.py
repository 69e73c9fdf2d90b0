"""Candles, coverage and books as pandas frames, for people who analyse.

    from cryptostream_dagster import client

    client.candles("BTC", "2025-02-02 16:00", "2025-02-02 18:00")
    client.candles("BTC", freq="1h")
    client.coverage("BTC", "2025-02-02 16:00", "2025-02-02 18:00")
    client.books("BTC", "2025-02-02 16:00", "2025-02-02 16:10")

Where the data is, is looked for in this order: the settings in the environment and in `.env`, if they say it
(POSTGRES_HOST, PARQUET_URL, DAILY_URL); else the local stack under `.cryptostream`: the one that runs, or the
only one. `Client.from_state(".cryptostream/sim")` names one.

Moments are strings or datetimes. One without a zone is on the market's clock (MARKET_TIME_ZONE), and indexes
are on the market's clock, too. `frame.attrs["source"]` says whose data a frame holds.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import closing, nullcontext
from datetime import UTC, datetime
from decimal import Decimal
from itertools import groupby
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

import pandas as pd
import psycopg
import pyarrow as pa
import pyarrow.compute as pc
from dotenv import dotenv_values
from pydantic import ValidationError

from cryptostream_dagster.day import Day
from cryptostream_dagster.local.state import ENV_FILE, STATES_FOLDER, is_held
from cryptostream_dagster.settings import PipelineSettings
from cryptostream_dagster.sql import load_sql
from cryptostream_dagster.transforms.daily import DayReader, where_rows_are, window_stamps
from cryptostream_dagster.transforms.parquet import read_books
from cryptostream_dagster.transforms.storage import open_storage
from cryptostream_dagster.warehouse.connection import connect
from ingest_services.errors import UserError
from ingest_services.settings import load_settings
from ingest_services.upbit.markets import market_of, ticker_of

Moment = str | datetime
Freq = Literal["5min", "1h", "1d"]

# Settings that say where to read; if none is given, a local stack is looked for.
_WHERE = ("POSTGRES_HOST", "PARQUET_URL", "DAILY_URL")

_WAREHOUSE = "cryptostream_dagster.warehouse"
_QUERIES = {"5min": "read_candles", "1h": "read_candles_1h", "1d": "read_candles_1d"}
_MOMENTS = {
    *("event_time", "window_start", "first_book_at", "last_book_at", "built_at", "carried_from"),
    *("first_seen", "last_seen", "valid_from"),
}


class Client:
    """Reads one warehouse and one Parquet lake; a context manager that closes its connection.

    Args:
        settings: Where to read; by default as the module says.

    Raises:
        UserError: If it is not clear where to read.
    """

    def __init__(self, settings: PipelineSettings | None = None) -> None:
        self.settings = settings or _find_settings()
        self._connection: psycopg.Connection[Any] | None = None

    @classmethod
    def from_state(cls, state: str | Path) -> Client:
        """Return a client of a local stack, which must be running for candles, and need not for books.

        Args:
            state: Its folder, like `.cryptostream/sim`.

        Raises:
            UserError: If no stack was ever started there.
        """
        return cls(settings_of_state(Path(state)))

    def candles(
        self,
        ticker: str,
        start: Moment | None = None,
        end: Moment | None = None,
        *,
        freq: Freq = "5min",
        asof: Moment | None = None,
        filled: bool = False,
        exact: bool = False,
    ) -> pd.DataFrame:
        """Return candles of the mid price. Quotes, not trades: there is no volume.

        Args:
            ticker: `BTC` or `KRW-BTC`.
            start: First moment; all there is by default.
            end: End, exclusive.
            freq: `5min`; or `1h` or `1d`: hours and days of the market's clock, with the number of `windows`
                that had a book.
            asof: What was known at that moment: the candles that this would have returned then.
            filled: A row for every built window from the ticker's first candle on. One without a book has the
                last price before it, and says so: `carried_forward`, `carried_from`.
            exact: `Decimal`, digit for digit as stored, instead of float64.

        Returns:
            One row per window, hour or day that had a book, in order, indexed by `event_time`, its start;
            perhaps empty.

        Raises:
            UserError: If an argument cannot be understood or Postgres is not reachable.
        """
        name = _ticker(ticker)
        if freq not in _QUERIES:
            raise UserError(f"freq={freq!r} is none of {', '.join(_QUERIES)}")
        if (freq != "5min") + (asof is not None) + filled > 1:
            raise UserError("only one of freq, asof and filled can be asked for at a time")
        query = "read_candles_filled" if filled else _QUERIES[freq]
        arguments = {
            "ticker": name,
            "since": self._moment(start),
            "until": self._moment(end),
            "asof": self._moment(asof),
            "zone": self.settings.market_time_zone,
        }
        return self._query("read_candles_asof" if asof else query, arguments, "event_time", exact)

    def features(
        self, ticker: str, start: Moment | None = None, end: Moment | None = None, *, exact: bool = False
    ) -> pd.DataFrame:
        """Return what the books of each window say beyond its candle; docs/features.md defines the columns.

        Args:
            ticker: `BTC` or `KRW-BTC`.
            start: First moment; all there is by default.
            end: End, exclusive.
            exact: `Decimal`, digit for digit as stored, instead of float64.

        Returns:
            One row per candle, in order, indexed by `event_time`. Depth is NaN where a book ended sooner.

        Raises:
            UserError: If an argument cannot be understood or Postgres is not reachable.
        """
        name = _ticker(ticker)
        arguments = {"ticker": name, "since": self._moment(start), "until": self._moment(end)}
        return self._query("read_features", arguments, "event_time", exact)

    def markets(self, asof: Moment | None = None) -> pd.DataFrame:
        """Return the exchange's markets, the delisted ones included: `listed` says which they are.

        Args:
            asof: What was known at that moment; now by default.

        Returns:
            One row per market that was ever seen by then, in order, indexed by `market`.

        Raises:
            UserError: If the moment cannot be understood or Postgres is not reachable.
        """
        return self._query("read_markets", {"ticker": None, "asof": self._moment(asof)}, "market")

    def coverage(
        self, ticker: str | None = None, start: Moment | None = None, end: Moment | None = None
    ) -> pd.DataFrame:
        """Return how much of each window was listened to, and how many books it had.

        Args:
            ticker: `BTC` or `KRW-BTC`; all tickers by default.
            start: First moment; all there is by default.
            end: End, exclusive.

        Returns:
            One row per window and ticker that was subscribed to or has books, in order, indexed by
            `window_start`. `coverage_ratio` is 1 where every change was received, 0 where nobody listened,
            NaN where it is not known.

        Raises:
            UserError: If an argument cannot be understood or Postgres is not reachable.
        """
        name = None if ticker is None else _ticker(ticker)
        arguments = {"ticker": name, "since": self._moment(start), "until": self._moment(end)}
        return self._query("read_coverage", arguments, "window_start").astype({"coverage_ratio": "float64"})

    def books(self, ticker: str, start: Moment, end: Moment) -> pd.DataFrame:
        """Return order books, one row each: `ask_price1, ask_size1, bid_price1, …`, totals; float64.

        Closed days come from their daily files, but for windows that were built again since: docs/daily.md.
        Postgres is not needed.

        Args:
            ticker: `BTC` or `KRW-BTC`.
            start: First moment of exchange time.
            end: End, exclusive.

        Returns:
            Books in order, indexed by `exchange_time`. Empty if there is none.

        Raises:
            UserError: If an argument cannot be understood or the lake cannot be read.
        """
        name = _ticker(ticker)
        since, until = self._moment(start), self._moment(end)
        assert since is not None
        assert until is not None
        tables = self._tables(name, since.astimezone(UTC), until.astimezone(UTC))
        if not tables:
            return _label(pd.DataFrame(), name, self.settings.source)
        frame = pa.concat_tables(tables, promote_options="permissive").to_pandas()
        for column in frame.columns:
            if isinstance(frame[column].dtype, pd.DatetimeTZDtype):
                frame[column] = frame[column].dt.tz_convert(self.settings.zone)
        return _label(frame.set_index("exchange_time"), name, self.settings.source)

    def close(self) -> None:
        """Close the connection; the next question opens another."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _connect(self) -> psycopg.Connection[Any]:
        if self._connection is None:
            self._connection = connect(self.settings)
            self._connection.autocommit = True
        return self._connection

    def _moment(self, moment: Moment | None) -> datetime | None:
        if moment is None:
            return None
        try:
            stamp = pd.Timestamp(moment)
        except ValueError as error:
            raise UserError(f"{moment!r} is no moment; write it like 2025-02-02 16:05") from error
        if stamp.tzinfo is None:
            stamp = stamp.tz_localize(self.settings.zone)
        return stamp.to_pydatetime()

    def _query(
        self, query: str, arguments: Mapping[str, object], index: str, exact: bool = False
    ) -> pd.DataFrame:
        """Return the answer to a query of `warehouse/sql`."""
        connection = self._connect()
        try:
            found = connection.execute(load_sql(_WAREHOUSE, query), arguments)
            names = [column.name for column in found.description or ()]
            rows = found.fetchall()
            # The database knows whose it is; the settings say it for the lake.
            owner = connection.execute("SELECT value FROM meta WHERE key = 'source'").fetchone()
        except psycopg.errors.UndefinedTable as error:
            raise UserError("the warehouse has no tables yet: run `cryptostream migrate`") from error
        except psycopg.OperationalError as error:
            self.close()
            raise UserError(f"Postgres was lost in the middle of a query: {error}") from error
        frame = pd.DataFrame(rows, columns=names)
        for column in _MOMENTS.intersection(names):
            frame[column] = pd.to_datetime(frame[column], utc=True).dt.tz_convert(self.settings.zone)
        source = owner[0] if owner else self.settings.source
        if not exact:
            for column in frame.columns:
                if _is_decimal(frame[column]):
                    frame[column] = frame[column].astype("float64")
        return _label(frame.set_index(index), arguments["ticker"], source)

    def _tables(self, ticker: str, since: datetime, until: datetime) -> list[pa.Table]:
        """Return the books of [since, until) in order, each once."""
        parquet = open_storage("PARQUET_URL", self.settings.parquet_url)
        root = self.settings.daily_root
        daily = open_storage("DAILY_URL", root) if root else None
        tables: list[pa.Table] = []
        day = Day.at(since, self.settings.zone)
        while day.start < until:
            windows = [window for window in day.windows() if window.end > since and window.start < until]
            # The file before the list of objects: one that is replaced in between shows as the newer.
            reader = DayReader.open(daily, ticker, day) if daily else None
            with closing(reader) if reader else nullcontext():
                pieces = where_rows_are(
                    ticker, windows, reader, window_stamps(parquet, ticker, day), day.zone
                )
                for are_objects, group in groupby(pieces, lambda piece: isinstance(piece, str)):
                    if are_objects:
                        tables.append(read_books(parquet, [str(path) for path in group]))
                    elif reader:
                        tables += [reader.read(*piece) for piece in group]
            day = day.shifted(1)
        bounds = (pc.field("exchange_time") >= since) & (pc.field("exchange_time") < until)
        return [table.filter(bounds) for table in tables]


def candles(ticker: str, start: Moment | None = None, end: Moment | None = None, **how: Any) -> pd.DataFrame:
    """Return candles; see `Client.candles`."""
    with Client() as client:
        return client.candles(ticker, start, end, **how)


def coverage(
    ticker: str | None = None, start: Moment | None = None, end: Moment | None = None
) -> pd.DataFrame:
    """Return how much was listened to; see `Client.coverage`."""
    with Client() as client:
        return client.coverage(ticker, start, end)


def features(ticker: str, start: Moment | None = None, end: Moment | None = None, **how: Any) -> pd.DataFrame:
    """Return book features; see `Client.features`."""
    with Client() as client:
        return client.features(ticker, start, end, **how)


def markets(asof: Moment | None = None) -> pd.DataFrame:
    """Return the exchange's markets; see `Client.markets`."""
    with Client() as client:
        return client.markets(asof)


def books(ticker: str, start: Moment, end: Moment) -> pd.DataFrame:
    """Return order books; see `Client.books`."""
    with Client() as client:
        return client.books(ticker, start, end)


def _find_settings() -> PipelineSettings:
    given = {**dotenv_values(".env"), **os.environ}
    if any(given.get(name) for name in _WHERE):
        return load_settings(PipelineSettings)
    try:
        return settings_of_state(find_state())
    except UserError as error:
        raise UserError(f"where is the data? {' and '.join(_WHERE)} are not set, and {error}") from error


def find_state() -> Path:
    """Return the state folder of the local stack that is meant: the one that runs, or the only one there is.

    Raises:
        UserError: If there is none, or it is not clear which.
    """
    states = [file.parent for file in sorted(STATES_FOLDER.glob(f"*/{ENV_FILE}"))]
    if not states:
        raise UserError("no local stack was started here (`make dev`)")
    running = [state for state in states if is_held(state)]
    if len(chosen := running or states) > 1:
        names = " and ".join(map(str, chosen))
        how = "all of them run" if running else "none of them runs"
        raise UserError(
            f'there are {names} and {how}: say which with Client.from_state("{chosen[0]}") or --state'
        )
    return chosen[0]


def settings_of_state(state: Path) -> PipelineSettings:
    """Return the settings with which a local stack was started last.

    Raises:
        UserError: If none ever was, or a setting is malformed.
    """
    file = state / ENV_FILE
    if not file.is_file():
        raise UserError(f"{file}: not there; was a local stack ever started in {state}?")
    values = dotenv_values(file, interpolate=False)
    # Given outright: what the environment of this process says is about another lake.
    given = {name.lower(): value for name, value in values.items() if value is not None}
    try:
        return PipelineSettings(
            **{name: given[name] for name in PipelineSettings.model_fields if name in given}  # type: ignore[arg-type]
        )
    except ValidationError as error:
        first = error.errors()[0]
        name = str(first["loc"][0])
        where = file if name in given else "environment or .env"
        raise UserError(f"{where}: {name.upper()}={first['input']!r}: {first['msg']}") from error


def _ticker(name: str) -> str:
    try:
        return ticker_of(market_of(name.upper()))
    except ValueError as error:
        raise UserError(str(error)) from error


def _label(frame: pd.DataFrame, ticker: object, source: str) -> pd.DataFrame:
    frame.attrs |= {"ticker": ticker, "source": source}
    return frame


def _is_decimal(column: pd.Series[Any]) -> bool:
    if column.dtype != object:
        return False
    first = column.first_valid_index()
    return first is None or isinstance(column.loc[first], Decimal)
