"""The declared columns of Parquet, candles and features; everything that names a column starts here.

Prices and sizes in Parquet are DOUBLE. That loses nothing: the exchange's numbers have at most 15 significant
digits, and every decimal of up to 15 digits survives the way into a double and back through its shortest
representation (IEEE 754), which is how the candles read them again (`sql/candles.sql`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    import pyarrow as pa

Kind = Literal["string", "string[]", "boolean", "timestamp", "int32", "int64", "double", "decimal", "date"]


@dataclass(frozen=True, slots=True)
class Column:
    """A declared column. What it may hold is checked in every window (`checks.py`) and shown in the UI.

    Attributes:
        name: Of the column.
        kind: Its type.
        description: What it means, with the unit.
        nullable: Whether it may be NULL.
        above: Every value is greater; None: no bound.
        least: Every value is at least so much; None: no bound.
        most: Every value is at most so much; None: no bound.
        one_of: The only values, in order; empty: any.
    """

    name: str
    kind: Kind
    description: str
    nullable: bool = False
    above: float | None = None
    least: float | None = None
    most: float | None = None
    one_of: tuple[str, ...] = ()

    @property
    def bounds(self) -> tuple[str, ...]:
        """What people read of the bounds: `> 0`, `SNAPSHOT or REALTIME`."""
        return (
            *((f"> {self.above:g}",) if self.above is not None else ()),
            *((f">= {self.least:g}",) if self.least is not None else ()),
            *((f"<= {self.most:g}",) if self.most is not None else ()),
            *((" or ".join(self.one_of),) if self.one_of else ()),
        )


def arrow_schema(columns: Sequence[Column], metadata: Mapping[str, str] | None = None) -> pa.Schema:
    """Return columns as Arrow and Parquet know them.

    Args:
        columns: Strings, timestamps and numbers that are no decimals.
        metadata: Of the whole.
    """
    import pyarrow as pa  # slow to import, and loading the definitions does without

    kinds = {
        "string": pa.string(),
        "timestamp": pa.timestamp("us", tz="UTC"),
        "double": pa.float64(),
        "int32": pa.int32(),
        "int64": pa.int64(),
    }
    return pa.schema(
        [pa.field(column.name, kinds[column.kind], nullable=column.nullable) for column in columns],
        dict(metadata) if metadata else None,
    )


def level_columns(depth: int) -> list[Column]:
    """Return the price and size columns of the book's levels, best first."""
    return [
        Column(
            f"{side}_{what}{level}",
            "double",
            f"{what.capitalize()} of {side} number {level} from the best; NULL beyond the book",
            nullable=True,
            above=0 if what == "price" else None,
            least=0 if what == "size" else None,
        )
        for level in range(1, depth + 1)
        for side in ("ask", "bid")
        for what in ("price", "size")
    ]


def book_columns(depth: int) -> list[Column]:
    """Return the columns of a Parquet object.

    Args:
        depth: Levels per side.
    """
    return [
        Column("market", "string", "Market code of the exchange, KRW-BTC"),
        Column("ticker", "string", "Canonical ticker, BTC"),
        Column("exchange_time", "timestamp", "The exchange's stamp of the book (tms), ms resolution, UTC"),
        Column("received_time", "timestamp", "When the producer received the frame, µs resolution, UTC"),
        Column(
            "stream_type",
            "string",
            "SNAPSHOT (state on subscribing) or REALTIME (a change)",
            one_of=("REALTIME", "SNAPSHOT"),
        ),
        Column("level", "double", "Price grouping that was asked for; 0: none", least=0),
        Column(
            "total_ask_size", "double", "Sum of all ask sizes, as the exchange says", nullable=True, least=0
        ),
        Column(
            "total_bid_size", "double", "Sum of all bid sizes, as the exchange says", nullable=True, least=0
        ),
        *level_columns(depth),
        Column("connection", "string", "Which connection of which producer received it"),
        Column("partition", "int32", "Kafka partition", least=0),
        Column("offset", "int64", "Kafka offset", least=0),
    ]


CANDLE_COLUMNS = [
    Column("ticker", "string", "Canonical ticker, BTC"),
    Column("market", "string", "Market code of the exchange, KRW-BTC"),
    Column("event_time", "timestamp", "Start of the window [start, start + 5 min), exchange time"),
    Column("event_date", "date", "Market-zone date of event_time"),
    Column("open_price", "decimal", "Mid of the first book in the window", above=0),
    Column("high_price", "decimal", "Highest mid", above=0),
    Column("low_price", "decimal", "Lowest mid", above=0),
    Column("close_price", "decimal", "Mid of the last book in the window", above=0),
    Column(
        "prev_close_price",
        "decimal",
        "Close of the window before, if it has a candle",
        nullable=True,
        above=0,
    ),
    Column("twap_price", "decimal", "Mid, averaged over the time that it prevailed", nullable=True, above=0),
    Column("book_count", "int64", "Books that are two-sided and not crossed", least=1),
    Column("first_book_at", "timestamp", "Exchange time of the first of them"),
    Column("last_book_at", "timestamp", "Exchange time of the last of them"),
    Column(
        "mean_spread_bps",
        "decimal",
        "Spread over mid, basis points, averaged like twap_price",
        nullable=True,
        least=0,
    ),
    Column(
        "coverage_ratio",
        "double",
        "Share of the window that was listened to; NULL: unknown",
        nullable=True,
        least=0,
        most=1,
    ),
    Column("version", "int64", "Version of the seal with which the row took its values", least=1),
    Column("built_at", "timestamp", "When it did"),
    Column(
        "quoted_ms",
        "int64",
        "For how long a mid prevailed, ms: the weight of the means; NULL before it was kept",
        nullable=True,
        least=0,
        most=300_000,
    ),
]

# Half-widths of the bands around the mid in which a book's depth is told.
DEPTH_BANDS_BPS = (10, 50)


def depth_column(side: str, bps: int) -> str:
    """Return the name of a depth column: `ask_depth_10bps`."""
    return f"{side}_depth_{bps}bps"


FEATURE_COLUMNS = [
    *CANDLE_COLUMNS[:4],
    Column(
        "mean_spread_bps",
        "decimal",
        "Spread over mid, basis points, averaged over time: that of the candle",
        nullable=True,
        least=0,
    ),
    *(
        Column(
            depth_column(side, bps),
            "decimal",
            f"Sum of the {side}s' sizes within {bps} bps of the mid, base currency, averaged over time; "
            "NULL if a book ended sooner",
            nullable=True,
            least=0,
        )
        for bps in DEPTH_BANDS_BPS
        for side in ("ask", "bid")
    ),
    Column(
        "imbalance",
        "decimal",
        "(bid size - ask size) / (bid size + ask size) of the best level, averaged over time",
        nullable=True,
        least=-1,
        most=1,
    ),
    Column(
        "close_microprice",
        "decimal",
        "Best ask and best bid of the last book, each weighed by the size of the other side",
        nullable=True,
        above=0,
    ),
    Column(
        "realized_volatility",
        "decimal",
        "Square root of the sum of the mid's squared log returns from second to second; not annualised",
        nullable=True,
        least=0,
    ),
    Column(
        "return_count", "int32", "Returns in it: 300 if a mid prevailed from the start", least=0, most=300
    ),
    Column("book_count", "int64", "Books behind the row, those of the candle", least=1),
    *(column for column in CANDLE_COLUMNS if column.name in ("version", "built_at")),
]

MARKET_COLUMNS = [
    Column("market", "string", "Market code of the exchange, KRW-BTC"),
    Column("ticker", "string", "Canonical ticker, BTC"),
    Column("korean_name", "string", "As the exchange says"),
    Column("english_name", "string", "As the exchange says"),
    Column("warning", "boolean", "The exchange calls it a market that needs care"),
    Column("cautions", "string[]", "The exchange's cautions that are in force, by its own names"),
    Column("tick_size", "decimal", "Step between prices, at the price of that time", nullable=True, above=0),
    Column("listed", "boolean", "Whether the last poll named it"),
    Column("first_seen", "timestamp", "The first poll that named it"),
    Column("last_seen", "timestamp", "The last poll that named it"),
    Column("valid_from", "timestamp", "The poll that told first what the row says"),
]
