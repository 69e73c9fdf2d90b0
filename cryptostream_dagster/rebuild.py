"""`cryptostream catalog rebuild`: the catalog anew, from the lake, the Parquet and the tables.

The lake says which objects make a window; the Parquet says from which seal it was built; the tables say from
which version. Everything is put together in a schema of its own, while the platform goes on with the old
catalog, and takes its place in one transaction: a kill leaves the old one (`docs/housekeeping.md`).
Belongs here: what is concluded from what. Does not belong here: building anything but tables that lack rows.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import orjson
import psycopg
from psycopg import sql

from cryptostream_dagster.catalog.complete import complete_until
from cryptostream_dagster.catalog.coverage import Coverage, record_coverage, window_coverage
from cryptostream_dagster.catalog.reconcile import enter_empty_windows, find_candidates
from cryptostream_dagster.catalog.retention import Frozen, frozen_until, require_objects
from cryptostream_dagster.catalog.seal import SealedFile, digest_of
from cryptostream_dagster.catalog.sync import sync
from cryptostream_dagster.settings import PipelineSettings
from cryptostream_dagster.sql import load_sql
from cryptostream_dagster.steps import PARQUET, candle_step, feature_step, open_parquet, open_raw
from cryptostream_dagster.transforms.books import TickerBooks, parquet_path
from cryptostream_dagster.transforms.contents import Footer, read_footers
from cryptostream_dagster.transforms.storage import CONNECTIONS, ObjectGone, Storage
from cryptostream_dagster.warehouse.connection import Lock, connect
from cryptostream_dagster.warehouse.queries import CANDLES, FEATURES
from cryptostream_dagster.warehouse.schema import claim_database, ensure_partitions, migrate
from cryptostream_dagster.window import Window
from ingest_services.errors import UserError
from ingest_services.lake.store import ObjectStore

# Children after their parents, as the foreign keys want it.
CATALOG = (
    "lake_chain",
    "lake_partition",
    "lake_commit",
    "lake_file",
    "lake_window",
    "subscription",
    "seal",
    "seal_file",
    "built",
    "parquet_file",
)

# What is made from a window's Parquet, and by which step.
_TABLES = {CANDLES: candle_step, FEATURES: feature_step}

_WORKSHOP = "catalog_rebuild"
_WAREHOUSE = "cryptostream_dagster.warehouse"
_PACKAGE = "cryptostream_dagster.catalog"

# Windows whose files are in memory at once.
_WINDOWS_A_STEP = 24

# How far a rebuild looks for windows that are to be built: more than a year of them.
_MOST_CANDIDATES = 200_000


@dataclass(frozen=True, slots=True)
class Rebuilt:
    """What a rebuild found.

    Attributes:
        commits: Commits of the lake.
        windows: Windows that the lake or the time since it began has.
        built: Of these, built from all that the lake holds of them.
        completed: Windows whose tables lacked rows, which were written again from the Parquet.
        to_build: Windows that are left to the sensor: never built, grown since, or with damaged Parquet.
        frozen: Windows that would be, but their raw data is gone.
    """

    commits: int
    windows: int
    built: int
    completed: int
    to_build: int
    frozen: int


@dataclass(frozen=True, slots=True)
class Evidence:
    """What the Parquet of a window says about how it was built.

    Attributes:
        version: Newest version that an object names; 0: no object does.
        digest: Of the seal of that version; empty if unknown.
        commits: Chain, partition and base of the commits that it was built from.
        books: What became of each ticker's rows, if every object is of that version and none is missing.
        written_at: When the newest object was written; None if there is none.
    """

    version: int
    digest: str
    commits: frozenset[tuple[int, int, int]]
    books: tuple[TickerBooks, ...] | None
    written_at: datetime | None


@dataclass(frozen=True, slots=True)
class Told:
    """What one Parquet object tells: its footer, its size in bytes, and when it was written."""

    footer: Footer
    bytes: int
    written_at: datetime


def rebuild(
    settings: PipelineSettings, store: ObjectStore, say: Callable[[str], None] = lambda _: None
) -> Rebuilt:
    """Build the catalog anew and put it in the place of the old one.

    Producers, consumers and Dagster may go on meanwhile. Afterwards nothing that is built from all that the
    lake holds wants building again, and versions go on from where they were.

    Args:
        settings: Where lake, Parquet and warehouse are.
        store: The lake.
        say: Told in a line what is going on.

    Raises:
        UserError: If something cannot be reached, or another rebuild is under way.
    """
    with connect(settings) as connection:
        migrate(connection)
        claim_database(connection, settings.source, settings.market_time_zone)
        row = connection.execute("SELECT pg_try_advisory_lock(%s, 0)", (Lock.REBUILD,)).fetchone()
        if row is None or not row[0]:
            raise UserError("another rebuild of this catalog is under way; wait for it to end")
        home = _open_workshop(connection)
        started = _value(connection, "SELECT clock_timestamp()")
        say("reading the lake's chains and commits")
        sync(connection, store)
        restorer = _Restorer(connection, settings)
        starts = restorer.all_windows()
        for done in range(0, len(starts), _WINDOWS_A_STEP):
            if done % (12 * _WINDOWS_A_STEP) == 0:
                say(f"reading the Parquet: {done:,} of {len(starts):,} windows")
            restorer.restore(starts[done : done + _WINDOWS_A_STEP])
        say("putting the new catalog in place")
        _move_in(connection, store, restorer, home, started)
    with connect(settings) as connection:
        say("completing tables that lack rows")
        completed = _complete_tables(connection, settings, store)
        to_build, frozen = _find_work(connection, settings)
        return Rebuilt(
            commits=_value(connection, "SELECT count(*) FROM lake_commit"),
            windows=_value(connection, "SELECT count(*) FROM lake_window"),
            built=_value(connection, "SELECT count(*) FROM lake_window WHERE built_revision = revision"),
            completed=completed,
            to_build=to_build,
            frozen=frozen,
        )


def judge(files: Sequence[SealedFile], told: dict[str, Told | None]) -> Evidence:
    """Conclude from a window's Parquet how it was built.

    Args:
        files: The window's raw objects as the lake has them now.
        told: For each ticker of them what its object tells; None if there is none, or none of ours.
    """
    versions = {ticker: _fact(one, "version") for ticker, one in told.items() if one is not None}
    version = max((int(text) for text in versions.values() if text.isdecimal()), default=0)
    newest = [one for ticker, one in told.items() if one is not None and versions[ticker] == str(version)]
    digests = {_fact(one, "digest") for one in newest}
    if not newest or len(digests) != 1:
        return Evidence(version, "", frozenset(), None, None)
    (digest,) = digests
    commits = frozenset(
        (int(chain), int(partition), int(base))
        for chain, partition, base in orjson.loads(_fact(newest[0], "commits") or "[]")
    )
    sealed: dict[str, int] = defaultdict(int)
    for file in files:
        if (file.chain, file.partition, file.base) in commits:
            sealed[file.ticker] += file.rows
    books = []
    for ticker, rows in sorted(sealed.items()):
        one = told.get(ticker)
        # A ticker of whose rows none fits the schema has no object either. Nobody can tell it from one that
        # was lost, and building it again does no harm.
        if one is not None and versions[ticker] == str(version):
            books.append(_books(ticker, rows, one))
    whole = len(books) == len(sealed) and all(
        found.sealed_rows == found.rows + found.duplicates + found.quarantined for found in books
    )
    written_at = max(one.written_at for one in newest)
    return Evidence(version, digest, commits, tuple(books) if whole else None, written_at)


def _books(ticker: str, sealed_rows: int, told: Told) -> TickerBooks:
    # Objects of before the word changed say `rejected`.
    quarantined = _fact(told, "quarantined") or _fact(told, "rejected") or "0"
    rows = told.footer.metadata.num_rows
    duplicates = int(_fact(told, "duplicates") or 0)
    return TickerBooks(ticker, told.footer.path, told.bytes, sealed_rows, rows, duplicates, int(quarantined))


def _fact(told: Told, name: str) -> str:
    facts = told.footer.metadata.metadata or {}
    return str(facts.get(f"cryptostream.{name}".encode(), b"").decode())


class _Restorer:
    """Puts seals and built versions into the workshop, window by window."""

    def __init__(self, connection: psycopg.Connection, settings: PipelineSettings) -> None:
        self._connection = connection
        self._settings = settings
        self._parquet = open_parquet(settings)
        rows = connection.execute(load_sql(_WAREHOUSE, "versions_known"))
        self._versions: dict[datetime, int] = dict(rows)

    def all_windows(self) -> list[datetime]:
        """Enter the windows that nothing is in, too, and return the starts of all."""
        connection, until = self._connection, complete_until(self._connection)
        connection.execute(
            "INSERT INTO lake_window (window_start) SELECT unnest(%s::timestamptz[]) ON CONFLICT DO NOTHING",
            (list(self._versions),),
        )
        count = -1
        while count != (count := _value(connection, "SELECT count(*) FROM lake_window")):
            enter_empty_windows(connection, until)
        rows = self._connection.execute("SELECT window_start FROM lake_window ORDER BY 1")
        return [start for (start,) in rows]

    def restore(self, starts: Sequence[datetime]) -> None:
        """Restore some windows; what was restored of them before is replaced."""
        windows = [Window.at(start) for start in starts]
        files = self._files(windows)
        evidence = dict(zip(windows, self._evidence(windows, files), strict=True))
        tables = self._tables(windows)
        with self._connection.transaction():
            for table in ("built", "seal_file", "seal", "parquet_file"):
                self._connection.execute(
                    sql.SQL("DELETE FROM {} WHERE window_start = ANY(%s)").format(sql.Identifier(table)),
                    (list(starts),),
                )
            for window in windows:
                known = {table: of[window.start] for table, of in tables.items() if window.start in of}
                self._restore_one(window, files[window], evidence[window], known)

    def _restore_one(
        self,
        window: Window,
        files: list[tuple[int, SealedFile]],
        found: Evidence,
        tables: dict[str, tuple[int, datetime]],
    ) -> None:
        known = self._versions.get(window.start, 0)
        current = digest_of([file for _, file in files])
        if not files and not known:
            # Nothing was ever in it, so nothing is what was written of it.
            found = Evidence(1, current, frozenset(), (), None)
        version = max(found.version, known)
        if version == 0:
            return  # never built: the next seal is the first
        digest = found.digest if found.version == version else ""
        made_of = files
        if digest != current:
            made_of = [(n, f) for n, f in files if (f.chain, f.partition, f.base) in found.commits]
            made_of = made_of if digest_of([file for _, file in made_of]) == digest else []
        arguments: dict[str, Any] = {
            "start": window.start,
            "end": window.end,
            "version": version,
            "digest": digest,
            "is_current": digest == current,
            "sealed_at": found.written_at,
            "files": [number for number, _ in made_of],
            "late_after_us": (window.end_ms + round(self._settings.lateness_s * 1000)) * 1000,
        }
        for name in ("restore_seal", "restore_seal_files"):
            self._connection.execute(load_sql(_PACKAGE, name), arguments)
        if found.books is None or not digest:
            return
        self._connection.cursor().executemany(
            load_sql(_WAREHOUSE, "insert_parquet_files"),
            [
                (window.start, b.ticker, b.path, b.bytes, b.sealed_rows, b.rows, b.duplicates, b.quarantined)
                for b in found.books
            ],
        )
        self._note(arguments, PARQUET, found.written_at)
        times = []
        for table in _TABLES:
            table_version, built_at = tables.get(table, (0, found.written_at))
            # A table may have been built without a row of this version: then its step says so in a moment.
            if not files or table_version == version:
                self._note(arguments, table, built_at)
                times.append(built_at)
        if len(times) == len(_TABLES) and digest == current:
            built_at = max((time for time in times if time), default=None)
            self._connection.execute(
                load_sql(_PACKAGE, "restore_window"), {**arguments, "built_at": built_at}
            )

    def _note(self, arguments: dict[str, Any], asset: str, built_at: datetime | None) -> None:
        self._connection.execute(
            "INSERT INTO built (window_start, asset, version, digest, built_at) "
            "VALUES (%(start)s, %(asset)s, %(version)s, %(digest)s, "
            "coalesce(%(built_at)s, clock_timestamp()))",
            {**arguments, "asset": asset, "built_at": built_at},
        )

    def _files(self, windows: Sequence[Window]) -> dict[Window, list[tuple[int, SealedFile]]]:
        found: dict[Window, list[tuple[int, SealedFile]]] = {window: [] for window in windows}
        rows = self._connection.execute(
            load_sql(_PACKAGE, "files_of_windows"), {"windows": [window.start for window in windows]}
        )
        for start, number, *file in rows:
            found[Window.at(start)].append((number, SealedFile(*file)))
        return found

    def _evidence(
        self, windows: Sequence[Window], files: dict[Window, list[tuple[int, SealedFile]]]
    ) -> Iterator[Evidence]:
        zone = self._settings.zone
        tickers = {window: sorted({file.ticker for _, file in files[window]}) for window in windows}
        paths = [parquet_path(ticker, window, zone) for window in windows for ticker in tickers[window]]
        told = iter(_read(self._parquet, paths))
        for window in windows:
            yield judge(
                [file for _, file in files[window]], {ticker: next(told) for ticker in tickers[window]}
            )

    def _tables(self, windows: Sequence[Window]) -> dict[str, dict[datetime, tuple[int, datetime]]]:
        """Return for each table and window with all rows their newest version, and when that was written."""
        span = {"first": windows[0].start, "last": windows[-1].start}
        found = {}
        for table in _TABLES:
            query = sql.SQL(load_sql(_WAREHOUSE, "table_versions")).format(table=sql.Identifier(table))
            rows = self._connection.execute(query, span)
            found[table] = {start: (version, built_at) for start, version, built_at in rows}
        return found


def _read(parquet: Storage, paths: Sequence[str]) -> Iterator[Told | None]:
    """Read footers; None for an object that is not there or is none of ours."""
    with ThreadPoolExecutor(CONNECTIONS) as pool:  # asked for many at once, a bucket is asked one by one
        infos = list(pool.map(parquet.filesystem.get_file_info, map(parquet.locate, paths)))
    there = [path for path, info in zip(paths, infos, strict=True) if info.is_file]
    footers = {footer.path: footer for footer in read_footers(parquet, there)}
    for path, info in zip(paths, infos, strict=True):
        footer = footers.get(path)
        if footer is None or footer.metadata is None:
            yield None
            continue
        told = Told(footer, info.size, datetime.fromtimestamp((info.mtime_ns or 0) / 1e9, UTC))
        yield told if _fact(told, "version") else None


def _open_workshop(connection: psycopg.Connection) -> str:
    """Make empty copies of the catalog's tables, let this connection see those; return the real schema."""
    home = str(_value(connection, "SELECT current_schema()"))
    workshop = sql.Identifier(_WORKSHOP)
    with connection.transaction():
        # What a rebuild that was killed left.
        connection.execute(sql.SQL("DROP SCHEMA IF EXISTS {} CASCADE").format(workshop))
        connection.execute(sql.SQL("CREATE SCHEMA {}").format(workshop))
        for table in (*CATALOG, "meta"):
            connection.execute(
                sql.SQL("CREATE TABLE {} (LIKE {} INCLUDING ALL)").format(
                    sql.Identifier(_WORKSHOP, table), sql.Identifier(home, table)
                )
            )
    connection.execute(sql.SQL("SET search_path TO {}, {}").format(workshop, sql.Identifier(home)))
    return home


def _move_in(
    connection: psycopg.Connection, store: ObjectStore, restorer: _Restorer, home: str, started: datetime
) -> None:
    """Replace the catalog by what is in the workshop, in one transaction."""
    tables = [sql.Identifier(home, table) for table in CATALOG]
    try:
        with connection.transaction():
            connection.execute(
                sql.SQL("LOCK TABLE {} IN ACCESS EXCLUSIVE MODE").format(sql.SQL(", ").join(tables))
            )
            # What was committed and built since; nobody builds now.
            sync(connection, store)
            since = connection.execute(
                sql.SQL("SELECT window_start FROM {} WHERE built_at >= %s").format(
                    sql.Identifier(home, "built")
                ),
                (started,),
            )
            known = {start for (start,) in connection.execute("SELECT window_start FROM lake_window")}
            again = sorted({start for (start,) in since} & known)
            for done in range(0, len(again), _WINDOWS_A_STEP):
                restorer.restore(again[done : done + _WINDOWS_A_STEP])
            connection.execute(sql.SQL("TRUNCATE {}").format(sql.SQL(", ").join(tables)))
            for table in CATALOG:
                _copy(connection, table, home)
            connection.execute(
                sql.SQL(
                    "INSERT INTO {} SELECT key, value FROM meta WHERE key = 'windows_entered_until' "
                    "ON CONFLICT (key) DO UPDATE SET value = excluded.value"
                ).format(sql.Identifier(home, "meta"))
            )
            connection.execute(sql.SQL("DROP SCHEMA {} CASCADE").format(sql.Identifier(_WORKSHOP)))
    except psycopg.errors.LockNotAvailable as error:
        raise UserError(
            "the catalog was in use for too long to put the new one in its place; run this again"
        ) from error


def _copy(connection: psycopg.Connection, table: str, home: str) -> None:
    theirs, ours = sql.Identifier(home, table), sql.Identifier(_WORKSHOP, table)
    connection.execute(
        sql.SQL("INSERT INTO {} OVERRIDING SYSTEM VALUE SELECT * FROM {}").format(theirs, ours)
    )
    if table == "lake_file":
        connection.execute(
            sql.SQL(
                "SELECT setval(pg_get_serial_sequence({}, 'file_id'), greatest(max(file_id), 1)) FROM {}"
            ).format(sql.Literal(f"{home}.{table}"), theirs)
        )


def _complete_tables(connection: psycopg.Connection, settings: PipelineSettings, store: ObjectStore) -> int:
    """Write coverage anew, and the rows of tables that lack some; return of how many windows."""
    until = frozen_until(connection, settings, datetime.now(UTC))
    rows = connection.execute(load_sql(_PACKAGE, "windows_with_parquet"), {"parquet": PARQUET}).fetchall()
    completed = 0
    for start, has_coverage, built in rows:
        window = Window.at(start)
        if not has_coverage or until is None or window.end > until:
            _cover(connection, settings, store, window, known=bool(has_coverage))
        lacking = [step for table, step in _TABLES.items() if table not in built]
        for step in lacking:
            step(connection, window, settings)
        completed += bool(lacking)
    return completed


def _cover(
    connection: psycopg.Connection,
    settings: PipelineSettings,
    store: ObjectStore,
    window: Window,
    *,
    known: bool,
) -> None:
    try:
        coverage = window_coverage(connection, store, window)
    except ObjectGone:
        if known:
            return  # what was known before the heartbeats went stays
        coverage = Coverage(False, {})
    tickers = connection.execute(
        "SELECT DISTINCT ticker FROM lake_file WHERE minute >= %s AND minute < %s AND kind = 'book'",
        (window.start, window.end),
    )
    ensure_partitions(connection, window, settings.zone)
    with connection.transaction():
        record_coverage(connection, window, coverage, settings.source, [ticker for (ticker,) in tickers])


def _find_work(connection: psycopg.Connection, settings: PipelineSettings) -> tuple[int, int]:
    """Return how many windows are left to build, and how many would be but are frozen."""
    raw = open_raw(settings)
    now = datetime.now(UTC)
    first = settings.first_window
    candidates = find_candidates(connection, first, limit=_MOST_CANDIDATES)
    until = frozen_until(connection, settings, now)
    frozen = 0
    for candidate in candidates:
        if until is not None and candidate.window.start < until:
            frozen += 1
            continue
        try:
            require_objects(connection, raw, candidate.window, settings)
        except Frozen:
            frozen += 1
    return len(candidates) - frozen, frozen


def _value(connection: psycopg.Connection, query: str) -> Any:
    row = connection.execute(query).fetchone()
    assert row is not None
    return row[0]


__all__ = ["CATALOG", "Evidence", "Rebuilt", "Told", "judge", "rebuild"]
