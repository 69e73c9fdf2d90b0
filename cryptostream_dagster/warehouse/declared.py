"""Rows of a table against the columns that are declared: one query, made from `transforms/schema.py`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, LiteralString

from cryptostream_dagster.transforms.schema import Column
from cryptostream_dagster.window import Window

if TYPE_CHECKING:
    import psycopg
    from psycopg import sql

_ROWS: LiteralString = """
SELECT ticker, wrong
FROM (SELECT ticker, concat_ws(', ', {wrong}) AS wrong FROM {table} WHERE event_time = %s) AS judged
WHERE wrong <> ''
ORDER BY ticker
"""


def undeclared_rows(
    connection: psycopg.Connection, table: str, columns: Sequence[Column], window: Window
) -> list[str]:
    """Return what is not as declared in a window, one text a row: `BTC: low_price, version`.

    Args:
        connection: To the warehouse.
        table: A table with `ticker` and `event_time`.
        columns: Its declared columns.
        window: The window.
    """
    from psycopg import sql

    query = sql.SQL(_ROWS).format(
        wrong=sql.SQL(", ").join(_name_if_wrong(column) for column in columns), table=sql.Identifier(table)
    )
    return [f"{ticker}: {names}" for ticker, names in connection.execute(query, (window.start,))]


def _name_if_wrong(column: Column) -> sql.Composable:
    from psycopg import sql

    name = sql.Identifier(column.name)
    tests: list[sql.Composable] = []
    if not column.nullable:
        tests.append(sql.SQL("{} IS NULL").format(name))
    if column.kind in ("double", "decimal"):
        tests.append(sql.SQL("{} = 'NaN'").format(name))
    if column.above is not None:
        tests.append(sql.SQL("{} <= {}").format(name, sql.Literal(column.above)))
    if column.least is not None:
        tests.append(sql.SQL("{} < {}").format(name, sql.Literal(column.least)))
    if column.most is not None:
        tests.append(sql.SQL("{} > {}").format(name, sql.Literal(column.most)))
    if column.one_of:
        tests.append(sql.SQL("{} <> ALL ({})").format(name, sql.Literal(list(column.one_of))))
    if not tests:
        return sql.SQL("NULL")
    return sql.SQL("CASE WHEN {} THEN {} END").format(sql.SQL(" OR ").join(tests), sql.Literal(column.name))
