"""From the lake's commit chain into Postgres: incrementally, each commit once, cursor and rows together."""

from __future__ import annotations

import time
from collections.abc import Iterator
from datetime import UTC, datetime
from itertools import islice

import psycopg

from cryptostream_dagster.catalog.coverage import note_subscriptions
from cryptostream_dagster.sql import load_sql
from ingest_services.errors import UserError
from ingest_services.lake.chain import Chain, Commit, commits_from, read_chains, read_progress
from ingest_services.lake.store import ObjectStore

# Commits a transaction takes: bounds its memory, and how much a crash repeats.
_COMMITS_A_STEP = 50

_PACKAGE = "cryptostream_dagster.catalog"


def sync(connection: psycopg.Connection, store: ObjectStore, budget_s: float | None = None) -> bool:
    """Take every new commit of the lake into the catalog.

    May run in several processes at once: each partition's cursor is a row that one of them locks at a time.

    Args:
        connection: In autocommit mode.
        store: The lake.
        budget_s: Stop after so many seconds; None: go on to the tail.

    Returns:
        Whether everything that was in the lake at the start is in the catalog now.

    Raises:
        UserError: If the catalog belongs to another lake.
    """
    deadline = None if budget_s is None else time.monotonic() + budget_s
    chains = read_chains(store)
    _sync_chains(connection, chains)
    rows = connection.execute(
        "SELECT chain, partition FROM lake_partition WHERE end_offset IS NULL OR next_offset < end_offset "
        "ORDER BY chain, partition"
    ).fetchall()
    for chain, partition in rows:
        # First the claim, then the commits: what a claim speaks of is committed before it is made.
        progress = read_progress(store, chain, partition)
        while _sync_step(connection, store, chain, partition):
            if deadline is not None and time.monotonic() > deadline:
                return False
        if progress is not None:
            connection.execute(
                load_sql(_PACKAGE, "claim"),
                {
                    "chain": chain,
                    "partition": partition,
                    "next": progress.next,
                    "minutes_through": _instant(progress.minutes_through_ms),
                    "claimed_at": _instant(progress.at_ms),
                },
            )
    return True


def _sync_chains(connection: psycopg.Connection, chains: list[Chain]) -> None:
    known: dict[int, str] = dict(connection.execute("SELECT chain, topic_id FROM lake_chain"))
    for chain in chains:
        if known.get(chain.number, chain.topic_id) != chain.topic_id:
            raise UserError(
                f"chain {chain.number} of the lake is of topic id {chain.topic_id}, the catalog knows it as "
                f"{known[chain.number]}: this database belongs to another lake; set POSTGRES_DB or RAW_URL"
            )
        if chain.number in known:
            continue
        with connection.transaction():
            connection.execute(
                "INSERT INTO lake_chain (chain, topic, topic_id, since, predecessor, reason) "
                "VALUES (%s, %s, %s, %s, %s, %s) ON CONFLICT DO NOTHING",
                (
                    chain.number,
                    chain.topic,
                    chain.topic_id,
                    _instant(chain.since_ms),
                    chain.predecessor,
                    chain.reason,
                ),
            )
            for partition in chain.partitions:
                connection.execute(
                    "INSERT INTO lake_partition (chain, partition, next_offset) VALUES (%s, %s, %s) "
                    "ON CONFLICT DO NOTHING",
                    (chain.number, partition, chain.start[partition]),
                )
            for partition, end in chain.predecessor_end.items():
                _close(connection, chain.predecessor, partition, end)


def _close(connection: psycopg.Connection, chain: int | None, partition: int, end: int) -> None:
    # A writer that did not know yet may have committed beyond the end before the new chain was there to see:
    # those commits never counted, and their offsets are read again on the new chain.
    arguments = {"chain": chain, "partition": partition, "end": end}
    connection.execute(load_sql(_PACKAGE, "close_partition"), arguments)
    connection.execute(load_sql(_PACKAGE, "drop_beyond_end"), arguments)


def _sync_step(connection: psycopg.Connection, store: ObjectStore, chain: int, partition: int) -> bool:
    """Take some commits of one partition; return whether there may be more."""
    with connection.transaction():
        row = connection.execute(
            "SELECT next_offset, end_offset FROM lake_partition "
            "WHERE chain = %s AND partition = %s FOR UPDATE",
            (chain, partition),
        ).fetchone()
        assert row is not None
        cursor, end = row
        commits = list(islice(_until(commits_from(store, chain, partition, cursor), end), _COMMITS_A_STEP))
        if not commits:
            return False
        _insert(connection, commits)
        note_subscriptions(connection, store, (file for commit in commits for file in commit.files))
        connection.execute(
            "UPDATE lake_partition SET next_offset = %s WHERE chain = %s AND partition = %s",
            (commits[-1].next, chain, partition),
        )
    return len(commits) == _COMMITS_A_STEP


def _until(commits: Iterator[Commit], end: int | None) -> Iterator[Commit]:
    for commit in commits:
        if end is not None and commit.base >= end:
            return
        yield commit


def _insert(connection: psycopg.Connection, commits: list[Commit]) -> None:
    cursor = connection.cursor()
    cursor.executemany(
        "INSERT INTO lake_commit VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s)",
        [
            (
                c.chain,
                c.partition,
                c.base,
                c.next,
                c.books,
                c.heartbeats,
                c.quarantined,
                sum(end - start for start, end in c.missing),
                _instant(c.committed_ms),
            )
            for c in commits
        ],
    )
    cursor.execute(load_sql(_PACKAGE, "new_files_table"))
    with cursor.copy("COPY new_file FROM STDIN") as copy:
        for commit in commits:
            for file in commit.files:
                copy.write_row(
                    (
                        commit.chain,
                        commit.partition,
                        commit.base,
                        file.kind,
                        file.path,
                        file.ticker,
                        _instant(file.minute_ms),
                        file.rows,
                        file.bytes,
                        file.crc32c,
                        file.min_received_us,
                        file.max_received_us,
                    )
                )
    cursor.execute(load_sql(_PACKAGE, "add_files"))
    cursor.execute(load_sql(_PACKAGE, "touch_windows"))


def _instant(ms: int) -> datetime:
    return datetime.fromtimestamp(ms / 1000, UTC)
