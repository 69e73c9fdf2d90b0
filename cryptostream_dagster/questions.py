"""What must hold of a window, asked of the warehouse and the Parquet: how many things are wrong, and which?

Belongs here: the list of questions and how each is answered, without Dagster. Does not belong here: when they
are asked and how the answers are reported (`checks.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from cryptostream_dagster.settings import PipelineSettings
from cryptostream_dagster.sql import load_sql
from cryptostream_dagster.transforms.contents import Footer, miscounted, outside, read_footers, undeclared
from cryptostream_dagster.transforms.schema import CANDLE_COLUMNS, FEATURE_COLUMNS, Column
from cryptostream_dagster.transforms.storage import Storage, open_storage
from cryptostream_dagster.warehouse.declared import undeclared_rows
from cryptostream_dagster.window import Window

if TYPE_CHECKING:
    import psycopg

# Mean coverage of a window that is an alarm: 1 % is three seconds, less than a producer's restart takes.
ENOUGH_COVERAGE = 0.99

# A detail lives in the event log for ever; the count is always whole.
_DETAIL_CHARACTERS = 600


class Answer(NamedTuple):
    """How many things of a window are wrong, and which; or why it cannot be said."""

    violations: int
    detail: str | None


@dataclass
class Ground:
    """Where answers are found.

    Attributes:
        connection: To the warehouse.
        settings: Where the Parquet is.
    """

    connection: psycopg.Connection
    settings: PipelineSettings
    _footers: tuple[Window, list[Footer], dict[str, int]] | None = field(default=None, init=False)

    @property
    def parquet(self) -> Storage:
        """Where the Parquet is."""
        return open_storage("PARQUET_URL", self.settings.parquet_url)

    def footers(self, window: Window) -> tuple[list[Footer], dict[str, int]]:
        """Return the footers of a window's Parquet, and the rows that were written, by path.

        Three questions in a row read them once.
        """
        if self._footers is None or self._footers[0] != window:
            rows = self.connection.execute(
                "SELECT path, rows FROM parquet_file WHERE window_start = %s AND path <> '' ORDER BY path",
                (window.start,),
            )
            written: dict[str, int] = dict(rows.fetchall())
            self._footers = window, read_footers(self.parquet, list(written)), written
        return self._footers[1:]


Ask = Callable[[Ground, Window], Answer]


def _query(name: str) -> Ask:
    """Ask `warehouse/checks/<name>.sql`, which answers with `violations` and `detail`."""

    def ask(ground: Ground, window: Window) -> Answer:
        query = load_sql("cryptostream_dagster.warehouse", name, "checks")
        arguments = {"start": window.start, "end": window.end, "enough": ENOUGH_COVERAGE}
        row = ground.connection.execute(query, arguments).fetchone()
        return Answer(0, None) if row is None else Answer(int(row[0]), _short(row[1]))

    return ask


def _rows_as_declared(table: str, columns: Sequence[Column]) -> Ask:
    return lambda ground, window: _list(undeclared_rows(ground.connection, table, columns, window))


def _rows_add_up(ground: Ground, window: Window) -> Answer:
    """Ask the accounts, and whether the objects hold what the accounts say."""
    accounts = _query("rows_add_up")(ground, window)
    objects = miscounted(*ground.footers(window))
    said = [*([accounts.detail] if accounts.detail else []), *objects]
    return Answer(accounts.violations + len(objects), _short("; ".join(said) or None))


def _parquet_as_declared(ground: Ground, window: Window) -> Answer:
    return _list(undeclared(ground.footers(window)[0]))


def _parquet_in_window(ground: Ground, window: Window) -> Answer:
    return _list(outside(ground.parquet, ground.footers(window)[0], window))


def _list(found: Sequence[str]) -> Answer:
    return Answer(len(found), _short("; ".join(found) or None))


def _short(detail: str | None) -> str | None:
    if detail is None or len(detail) <= _DETAIL_CHARACTERS:
        return detail
    return detail[: _DETAIL_CHARACTERS - 1] + "…"


@dataclass(frozen=True, slots=True)
class Question:
    """Something that must hold of every window.

    Attributes:
        asset: The asset that it is about.
        name: What must hold, as the check's name.
        description: The same as a sentence.
        ask: Answers it for one window.
        warns: Whether a violation is a fact about the market or about who listened, not a fault of ours.
    """

    asset: str
    name: str
    description: str
    ask: Ask
    warns: bool = False


_DECLARED = "Every column is what is declared: of its kind, NULL only where it may be, within its bounds."

QUESTIONS = (
    Question(
        "raw_orderbook",
        "offsets_contiguous",
        "The commits around the window follow each other without a hole, and the broker had every offset. "
        "When a missing record was received nobody knows: it counts in every window where it may have been.",
        _query("offsets_contiguous"),
        warns=True,
    ),
    Question(
        "raw_orderbook",
        "commits_add_up",
        "Books + heartbeats + quarantined + missing = offsets, in every commit with an object in the window.",
        _query("commits_add_up"),
    ),
    Question(
        "raw_orderbook",
        "listened",
        f"Mean coverage of the subscribed tickers is at least {ENOUGH_COVERAGE}, or unknown.",
        _query("listened"),
        warns=True,
    ),
    Question(
        "orderbook_parquet",
        "rows_add_up",
        "Sealed rows = written + duplicates + quarantined, and the objects hold what was written.",
        _rows_add_up,
    ),
    Question("orderbook_parquet", "as_declared", _DECLARED, _parquet_as_declared),
    Question(
        "orderbook_parquet",
        "times_in_window",
        "A REALTIME book is stamped in its window, a SNAPSHOT was received in it.",
        _parquet_in_window,
    ),
    Question("ohlc_5m_ticker", "prices_in_order", "low ≤ open, close ≤ high.", _query("prices_in_order")),
    Question(
        "ohlc_5m_ticker",
        "books_have_candles",
        "A ticker has a candle exactly if it has a book.",
        _query("books_have_candles"),
    ),
    Question("ohlc_5m_ticker", "as_declared", _DECLARED, _rows_as_declared("ohlc_5m_ticker", CANDLE_COLUMNS)),
    Question(
        "ohlc_5m_ticker",
        "times_in_window",
        "The first and the last book of a candle lie in its window, and its date is the market's.",
        _query("times_in_window"),
    ),
    Question(
        "ohlc_5m_ticker",
        "no_crossed_books",
        "No book has its best bid above its best ask. Those that do are in no candle.",
        _query("no_crossed_books"),
        warns=True,
    ),
    Question(
        "orderbook_features_5m",
        "as_declared",
        _DECLARED,
        _rows_as_declared("orderbook_features_5m", FEATURE_COLUMNS),
    ),
    Question(
        "orderbook_features_5m",
        "candles_have_features",
        "A ticker has features exactly if it has a candle, of the same books and with the same spread.",
        _query("candles_have_features"),
    ),
)
