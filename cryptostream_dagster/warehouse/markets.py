"""The exchange's markets: asked for, believed or not, and kept with their history."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Literal

import psycopg

from cryptostream_dagster.sql import load_sql
from cryptostream_dagster.warehouse.connection import Lock
from ingest_services.errors import UserError
from ingest_services.upbit.markets import ticker_of
from ingest_services.upbit.rest import Rest, RestError, RestMarket

# An answer without most of the markets is a fault of the exchange, unless it stays like that for so long.
BELIEVE_AFTER = timedelta(days=1)

_PACKAGE = "cryptostream_dagster.warehouse"


@dataclass(frozen=True, slots=True)
class MarketsKept:
    """What a poll changed.

    Attributes:
        listed: Markets that the exchange tells now.
        new: Those that were never seen before.
        changed: How many are not what was known of them, delisted ones and those that came back included.
        delisted: Those that are not listed any more.
    """

    listed: int
    new: tuple[str, ...]
    changed: int
    delisted: tuple[str, ...]


def poll_markets(
    connection: psycopg.Connection, rest: Rest, source: Literal["upbit", "simulator"]
) -> MarketsKept:
    """Ask the exchange for its markets and keep what it says.

    A market that an answer does not name is asked for once more: a hiccup of the exchange is no delisting.

    Args:
        connection: In autocommit mode.
        rest: The exchange's REST API.
        source: Whose data the warehouse holds.

    Raises:
        UserError: If the exchange does not answer, is not the one that the warehouse is about, or names too
            few of its markets to be believed. Nothing is written then.
    """
    listed = {market for (market,) in connection.execute("SELECT market FROM market WHERE listed").fetchall()}
    try:
        told = {market.market: market for market in rest.listing()}
        if listed - told.keys():
            told |= {market.market: market for market in rest.listing()}
    except RestError as error:
        raise UserError(f"{error}; the markets stay as they are") from error
    if rest.simulated != (source == "simulator"):
        raise UserError(
            f"UPBIT_REST_URL={rest.url} is {'a' if rest.simulated else 'no'} simulator, the warehouse holds "
            f"data of source {source}: simulated and real data never mix"
        )
    return keep_markets(connection, list(told.values()), datetime.now(UTC))


def keep_markets(connection: psycopg.Connection, told: Sequence[RestMarket], now: datetime) -> MarketsKept:
    """Keep what the exchange said of its markets; what it contradicts becomes history.

    Args:
        connection: In autocommit mode.
        told: All markets that are listed, each once.
        now: When it said so. What was said later and is known already stays.

    Raises:
        UserError: If too few of the markets are among them to be believed.
    """
    with connection.transaction():
        connection.execute("SELECT pg_advisory_xact_lock(%s, 0)", (Lock.MARKETS,))
        rows = connection.execute("SELECT market, listed, last_seen FROM market").fetchall()
        known = {market for market, _, _ in rows}
        newest = max((last_seen for _, _, last_seen in rows), default=None)
        if newest is not None and newest >= now:
            return MarketsKept(sum(listed for _, listed, _ in rows), (), 0, ())
        codes = {market.market for market in told}
        listed = {market for market, is_listed, _ in rows if is_listed}
        if newest is not None and not believable(len(listed), len(listed - codes), now - newest):
            raise UserError(
                f"the exchange names {len(listed & codes)} of the {len(listed)} markets that were listed: "
                f"not believed before {newest + BELIEVE_AFTER:%F %R} UTC, and the markets stay as they are"
            )
        arguments = {"now": now}
        connection.execute(load_sql(_PACKAGE, "stage_markets"))
        with connection.cursor().copy("COPY told FROM STDIN") as copy:
            for market in told:
                copy.write_row(
                    (
                        market.market,
                        ticker_of(market.market),
                        market.korean_name,
                        market.english_name,
                        market.warning,
                        list(market.cautions),
                        market.tick_size,
                    )
                )
        changed = connection.execute(load_sql(_PACKAGE, "supersede_markets"), arguments).rowcount
        connection.execute(load_sql(_PACKAGE, "keep_markets"), arguments)
        gone = connection.execute(load_sql(_PACKAGE, "delist_markets"), arguments).fetchall()
    return MarketsKept(
        len(told), tuple(sorted(codes - known)), changed, tuple(sorted(market for (market,) in gone))
    )


def believable(listed: int, missing: int, age: timedelta) -> bool:
    """Return whether an answer can be true.

    Args:
        listed: Markets that were listed.
        missing: Those of them that it does not name.
        age: Since the last answer that was believed.
    """
    return 2 * missing <= listed or age >= BELIEVE_AFTER
