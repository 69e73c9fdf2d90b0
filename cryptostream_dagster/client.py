"""Candles and books as pandas frames, for people who analyse.

    from cryptostream_dagster import client

    client.candles("BTC", "2025-02-02 16:00", "2025-02-02 18:00")
    client.books("BTC", "2025-02-02 16:00", "2025-02-02 16:10")

Where the data is, is looked for in this order: the settings in the environment and in `.env`, if they say it
(POSTGRES_HOST, PARQUET_URL); else the local stack under `.cryptostream`: the one that runs, or the only one.
`Client.from_state(".cryptostream/sim")` names one.

Moments are strings or datetimes. One without a zone is on the market's clock (MARKET_TIME_ZONE), and indexes
are on the market's clock, too. `frame.attrs["source"]` says whose data a frame holds.
"""

from __future__ import annotations

import os
from datetime import datetime, timedelta
from decimal import Decimal
from pathlib import Path
from types import TracebackType
from typing import Any

import pandas as pd
import psycopg
from dotenv import dotenv_values
from pydantic import ValidationError

from cryptostream_dagster.local.state import ENV_FILE, STATES_FOLDER, is_held
from cryptostream_dagster.settings import PipelineSettings
from cryptostream_dagster.transforms.books import parquet_path
from cryptostream_dagster.transforms.parquet import read_books
from cryptostream_dagster.transforms.storage import Storage, open_storage
from cryptostream_dagster.warehouse.connection import connect
from cryptostream_dagster.window import WINDOW, Window
from ingest_services.errors import UserError
from ingest_services.settings import load_settings
from ingest_services.upbit.markets import market_of, ticker_of

Moment = str | datetime

# Settings that say where to read; if neither is given, a local stack is looked for.
_WHERE = ("POSTGRES_HOST", "PARQUET_URL")

_CANDLES = """
SELECT event_time, open_price, high_price, low_price, close_price, prev_close_price, twap_price, book_count,
    first_book_at, last_book_at, mean_spread_bps, coverage_ratio, version, built_at
FROM ohlc_5m_ticker
WHERE ticker = %(ticker)s
    AND (%(since)s::timestamptz IS NULL OR event_time >= %(since)s)
    AND (%(until)s::timestamptz IS NULL OR event_time < %(until)s)
ORDER BY event_time
"""


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
        return cls(_settings_of(Path(state)))

    def candles(
        self, ticker: str, start: Moment | None = None, end: Moment | None = None, *, exact: bool = False
    ) -> pd.DataFrame:
        """Return 5-minute candles of the mid price. Quotes, not trades: there is no volume.

        Args:
            ticker: `BTC` or `KRW-BTC`.
            start: First moment; all there is by default.
            end: End, exclusive.
            exact: `Decimal`, digit for digit as stored, instead of float64.

        Returns:
            One row per window that had a book, in order, indexed by `event_time`, its start; perhaps empty.

        Raises:
            UserError: If an argument cannot be understood or Postgres is not reachable.
        """
        name = _ticker(ticker)
        since, until = self._moment(start), self._moment(end)
        connection = self._connect()
        try:
            found = connection.execute(_CANDLES, {"ticker": name, "since": since, "until": until})
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
        for column in ("event_time", "first_book_at", "last_book_at", "built_at"):
            frame[column] = pd.to_datetime(frame[column], utc=True).dt.tz_convert(self.settings.zone)
        source = owner[0] if owner else self.settings.source
        if not exact:
            for column in frame.columns:
                if _is_decimal(frame[column]):
                    frame[column] = frame[column].astype("float64")
        return _label(frame.set_index("event_time"), name, source)

    def books(self, ticker: str, start: Moment, end: Moment) -> pd.DataFrame:
        """Return order books, one row each: `ask_price1, ask_size1, bid_price1, …`, totals; float64.

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
        parquet = open_storage("PARQUET_URL", self.settings.parquet_url)
        paths = self._objects(parquet, name, since, until)
        if not paths:
            return _label(pd.DataFrame(), name, self.settings.source)
        frame = read_books(parquet, paths).to_pandas()
        frame = frame[(frame["exchange_time"] >= since) & (frame["exchange_time"] < until)]
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

    def _objects(self, parquet: Storage, ticker: str, since: datetime, until: datetime) -> list[str]:
        """The objects of the windows that overlap [since, until): one listing a day."""
        zone = self.settings.zone
        wanted = set()
        window = Window.at(since)
        while window.start < until:
            wanted.add(parquet_path(ticker, window, zone))
            window = Window(window.start + WINDOW)
        day, last = since.astimezone(zone).date(), until.astimezone(zone).date()
        paths: list[str] = []
        while day <= last:
            paths += parquet.find(f"ticker={ticker}/{day:year=%Y/month=%m/day=%d}")
            day += timedelta(days=1)
        return sorted(wanted.intersection(paths))


def candles(
    ticker: str, start: Moment | None = None, end: Moment | None = None, *, exact: bool = False
) -> pd.DataFrame:
    """Return 5-minute candles; see `Client.candles`."""
    with Client() as client:
        return client.candles(ticker, start, end, exact=exact)


def books(ticker: str, start: Moment, end: Moment) -> pd.DataFrame:
    """Return order books; see `Client.books`."""
    with Client() as client:
        return client.books(ticker, start, end)


def _find_settings() -> PipelineSettings:
    given = {**dotenv_values(".env"), **os.environ}
    if any(given.get(name) for name in _WHERE):
        return load_settings(PipelineSettings)
    states = [file.parent for file in sorted(STATES_FOLDER.glob(f"*/{ENV_FILE}"))]
    if not states:
        raise UserError(
            f"where is the data? {' and '.join(_WHERE)} are not set, and no local stack was started here "
            "(`make dev`)"
        )
    running = [state for state in states if is_held(state)]
    if len(chosen := running or states) > 1:
        names = " and ".join(map(str, chosen))
        how = "all of them run" if running else "none of them runs"
        raise UserError(
            f'there are {names} and {how}: say which with Client.from_state("{chosen[0]}") or --state'
        )
    return _settings_of(chosen[0])


def _settings_of(state: Path) -> PipelineSettings:
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


def _label(frame: pd.DataFrame, ticker: str, source: str) -> pd.DataFrame:
    frame.attrs |= {"ticker": ticker, "source": source}
    return frame


def _is_decimal(column: pd.Series[Any]) -> bool:
    if column.dtype != object:
        return False
    first = column.first_valid_index()
    return first is None or isinstance(column.loc[first], Decimal)
