"""One window, raw objects → Parquet → candles in Postgres: against a bare scan, the seed's way, polars.

Each is a process of its own, its libraries imported before the clock starts, and they take turns; the figure
is the best of the turns. All read the same files, write to the same disk and the same embedded Postgres.

* **bare scan**: DuckDB reads the typed columns of every line and counts them. Nothing comes of it: the limit.
* **ours**: `parquet_step` and `candle_step` of a sealed window, with all that they check.
* **polars**: the same rows and the same Parquet objects, compared value by value, and the candles' prices.
* **seed's way**: ticker by ticker `json.loads` of each line, five levels, `from_pylist`, a Parquet object, a
  query over it and an insert, as its tasks do; that each of them is a process of its own is not counted.

Of our processor time the scan itself is more than a third. A quarter is Parquet's encoding, half of which is
zstd: Arrow begins it anew for each column of each object, 15 µs, which is longer than it then takes. Candles,
reading and laying out are a tenth each. LZ4 for the sizes would be 6 % faster and 12 % larger; not every
reader knows it.

The second table is the exchange as a whole at depth 30: what a run takes of memory. Its objects have 112,000
columns of 350 rows: half of the time is their encoding.
"""

from __future__ import annotations

import argparse
import json
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psycopg
from load import stack
from load.window import WINDOW, ZONE, write_lake
from rich.console import Console
from rich.table import Table

from cryptostream_dagster import steps
from cryptostream_dagster.local.ports import free_port
from cryptostream_dagster.local.postgres import EmbeddedPostgres
from cryptostream_dagster.resources import Platform
from cryptostream_dagster.settings import PipelineSettings
from cryptostream_dagster.transforms.books import parquet_path
from cryptostream_dagster.warehouse.connection import connect

TICKERS, BOOKS, DEPTH = 160, 192_000, 15
WHOLE_TICKERS, WHOLE_BOOKS, WHOLE_DEPTH = 855, 300_000, 30
LEVELS_OF_THE_SEED = 5
GOALS = {"bare scan": "ours <= 3 x", "seed's way": "ours >= 6 x faster", "polars": "ours >= 2 x faster"}
MEMORY_GOAL_MIB = 1536

UNIT = 'STRUCT(ap DOUBLE, bp DOUBLE, "as" DOUBLE, bs DOUBLE)[]'
LINE = {
    "partition": "INTEGER",
    "offset": "BIGINT",
    "received_us": "BIGINT",
    "connection": "VARCHAR",
    "book": f"STRUCT(cd VARCHAR, tms BIGINT, st VARCHAR, lv DOUBLE, tas DOUBLE, tbs DOUBLE, obu {UNIT})",
}


class Place:
    """Where a contender works."""

    def __init__(self, folder: Path, settings: dict[str, Any]) -> None:
        self.settings = PipelineSettings(_env_file=None, **settings)
        self.files = [str(path) for path in sorted((folder / "raw").glob("ticker=*/**/*.jsonl*"))]
        self.parquet = folder / "parquet"
        self.dsn = (
            f"postgresql://{self.settings.postgres_user}:{settings['postgres_password']}"
            f"@{self.settings.postgres_host}:{self.settings.postgres_port}/{self.settings.postgres_db}"
        )


def scan(place: Place) -> Callable[[], object]:
    import duckdb

    counts = ", ".join(f'count("{name}")' for name in LINE if name != "book")
    fields = ", ".join(f"count(book.{name})" for name in ("cd", "tms", "st", "lv", "tas", "tbs"))
    query = (
        f"SELECT count(*), {counts}, {fields}, sum(len(book.obu)) "
        f"FROM read_json($files, format = 'newline_delimited', columns = {LINE})"
    )

    def run() -> object:
        session = duckdb.connect(config={"threads": 2, "preserve_insertion_order": False})
        return session.execute(query, {"files": place.files}).fetchone()

    return run


def ours(place: Place) -> Callable[[], object]:
    import duckdb  # noqa: F401
    import pyarrow.parquet  # noqa: F401

    import cryptostream_dagster.transforms.rows  # noqa: F401

    platform = Platform(place.settings)
    with platform.connect():
        pass  # the tables are there now
    connection = connect(place.settings)
    began_s = time.perf_counter()
    sealed = steps.seal_step(connection, platform.require_lake(), WINDOW, place.settings)
    seal_s = time.perf_counter() - began_s

    def run() -> object:
        began_s = time.perf_counter()
        built = steps.parquet_step(connection, WINDOW, place.settings)
        parquet_s = time.perf_counter() - began_s
        candles = steps.candle_step(connection, WINDOW, place.settings)
        assert built.written
        assert candles.written is not None
        assert sum(books.rows for books in built.tickers) == sealed.seal.rows
        return {
            "seal": seal_s,
            "parquet": parquet_s,
            "candles": time.perf_counter() - began_s - parquet_s,
            "rows": sealed.seal.rows,
            "new": candles.written.new,
        }

    return run


def by_polars(place: Place) -> Callable[[], object]:
    import polars as pl

    unit = pl.List(pl.Struct(dict.fromkeys(("ap", "bp", "as", "bs"), pl.Float64)))
    book = {"cd": pl.String, "tms": pl.Int64, "st": pl.String, "lv": pl.Float64}
    book |= {"tas": pl.Float64, "tbs": pl.Float64, "obu": unit}
    schema = {"partition": pl.Int32, "offset": pl.Int64, "received_us": pl.Int64, "connection": pl.String}

    def columns(depth: int) -> list[pl.Expr]:
        found = []
        for level in range(depth):
            at = pl.col("obu").list.get(level, null_on_oob=True).struct
            for side, price, size in (("ask", "ap", "as"), ("bid", "bp", "bs")):
                padding = (at.field(price) == 0) & (at.field(size) == 0)
                for what, field in (("price", price), ("size", size)):
                    value = pl.when(~padding).then(at.field(field))
                    found.append(value.alias(f"{side}_{what}{level + 1}"))
        return found

    def run() -> object:
        depth = place.settings.depth
        numbers = [
            f"{s}_{w}{n}" for n in range(1, depth + 1) for s in ("ask", "bid") for w in ("price", "size")
        ]
        order = ["ticker", "tms", "received_us", "partition", "offset"]
        rows = (
            pl.scan_ndjson(place.files, schema={**schema, "book": pl.Struct(book)})
            .unnest("book")
            .select(
                pl.col("cd").alias("market"),
                pl.col("cd").str.strip_prefix("KRW-").alias("ticker"),
                "tms",
                "received_us",
                pl.col("tms")
                .cast(pl.Datetime("ms", "UTC"))
                .cast(pl.Datetime("us", "UTC"))
                .alias("exchange_time"),
                pl.col("received_us").cast(pl.Datetime("us", "UTC")).alias("received_time"),
                pl.col("st").alias("stream_type"),
                pl.col("lv").alias("level"),
                pl.col("tas").alias("total_ask_size"),
                pl.col("tbs").alias("total_bid_size"),
                *columns(depth),
                "connection",
                "partition",
                "offset",
            )
            .sort(order)
            .unique(
                ["market", "tms", "level", "total_ask_size", "total_bid_size", *numbers],
                maintain_order=True,
                keep="first",
            )
            .collect()
        )
        mid = (pl.col("ask_price1") + pl.col("bid_price1")) / 2
        usable = pl.col("ask_price1").is_not_null() & (pl.col("bid_price1") <= pl.col("ask_price1"))
        for (ticker,), table in rows.partition_by("ticker", as_dict=True, maintain_order=True).items():
            path = object_of(place, str(ticker))
            table.drop("tms", "received_us").write_parquet(path, compression="zstd")
        candles = (
            rows.lazy()
            .filter(usable)
            .with_columns(
                mid.alias("mid"), ((pl.col("ask_price1") - pl.col("bid_price1")) / mid * 1e4).alias("spread")
            )
            .with_columns(
                (pl.col("tms").shift(-1).over("ticker").fill_null(WINDOW.end_ms) - pl.col("tms")).alias("ms")
            )
            .group_by("ticker", maintain_order=True)
            .agg(
                pl.col("mid").first().alias("open"),
                pl.col("mid").max().alias("high"),
                pl.col("mid").min().alias("low"),
                pl.col("mid").last().alias("close"),
                ((pl.col("mid") * pl.col("ms")).sum() / pl.col("ms").sum()).alias("twap"),
                ((pl.col("spread") * pl.col("ms")).sum() / pl.col("ms").sum()).alias("spread"),
                pl.len().alias("books"),
            )
            .collect()
        )
        insert(place.dsn, candles.rows())
        return {"rows": rows.height}

    return run


def seed(place: Place) -> Callable[[], object]:
    import duckdb
    import pyarrow as pa
    from pyarrow import parquet

    def convert(ticker: str, names: list[str]) -> int:
        rows = []
        for name in names:
            for line in Path(name).read_text().splitlines():
                book = json.loads(line)["book"]
                row = {key: value for key, value in book.items() if key != "obu"}
                for number, level in enumerate(book["obu"][:LEVELS_OF_THE_SEED], 1):
                    row |= {f"{key}{number}": value for key, value in level.items()}
                rows.append(row)
        path = object_of(place, ticker)
        parquet.write_table(pa.Table.from_pylist(rows), path)
        with duckdb.connect() as session:
            candle = session.execute(
                "SELECT any_value(cd), arg_min(mid, tms), max(mid), min(mid), arg_max(mid, tms), avg(mid), "
                "NULL, count(*) FROM (SELECT *, (ap1 + bp1) / 2 AS mid FROM read_parquet($path))",
                {"path": str(path)},
            ).fetchall()
        insert(place.dsn, candle)
        return len(rows)

    def run() -> object:
        names: dict[str, list[str]] = {}
        for name in place.files:
            names.setdefault(Path(name).name.split("-")[0], []).append(name)
        return {"rows": sum(convert(ticker, found) for ticker, found in names.items())}

    return run


def object_of(place: Place, ticker: str) -> Path:
    path = place.parquet / parquet_path(ticker, WINDOW, ZONE)
    path.parent.mkdir(parents=True)
    return path


def insert(dsn: str, candles: list[tuple[Any, ...]]) -> None:
    with psycopg.connect(dsn) as connection:
        connection.execute(
            "CREATE TABLE IF NOT EXISTS candle (ticker text PRIMARY KEY, open numeric, high numeric, "
            "low numeric, close numeric, twap numeric, spread numeric, books bigint)"
        )
        with connection.cursor().copy("COPY candle FROM STDIN") as copy:
            for candle in candles:
                copy.write_row(candle)


CONTENDERS = {"bare scan": scan, "ours": ours, "polars": by_polars, "seed's way": seed}


def work(name: str, folder: Path, settings: dict[str, Any]) -> None:
    """What the process of a contender does; print its figures."""
    run = CONTENDERS[name](Place(folder, settings))
    began_s, cpu_s = time.perf_counter(), time.process_time()
    told = run()
    took_s, cpu_s = time.perf_counter() - began_s, time.process_time() - cpu_s
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps({"s": took_s, "cpu_s": cpu_s, "peak_mib": peak, "told": told}))


def turn(name: str, folder: Path, postgres: EmbeddedPostgres, depth: int) -> dict[str, Any]:
    """Run a contender once, in a database of its own and with no Parquet there."""
    shutil.rmtree(folder / "parquet", ignore_errors=True)
    database = f"bench_{time.time_ns()}"
    with psycopg.connect(postgres.dsn, autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {database}")  # type: ignore[arg-type]
    settings = {
        **{key.lower(): value for key, value in postgres.environment.items()},
        "postgres_db": database,
        "raw_url": (folder / "raw").as_uri(),
        "parquet_url": (folder / "parquet").as_uri(),
        "source": "simulator",
        "depth": depth,
        "partitions_start": "2026-02-01T00:00+0900",
        "seal_wait_s": 0,
    }
    command = [sys.executable, __file__, "--work", name, "--folder", str(folder)]
    done = subprocess.run(command, input=json.dumps(settings), stdout=subprocess.PIPE, text=True, check=True)
    figures: dict[str, Any] = json.loads(done.stdout)
    return figures


def differences(one: Path, other: Path) -> int:
    """Return how many Parquet objects of one folder are not, value by value, those of another."""
    from pyarrow import parquet

    found = {path.relative_to(one) for path in one.rglob("*.parquet")}
    assert found == {path.relative_to(other) for path in other.rglob("*.parquet")}
    wrong = 0
    for path in found:
        ours = parquet.read_table(one / path, partitioning=None).replace_schema_metadata()
        theirs = parquet.read_table(other / path, partitioning=None).cast(ours.schema)
        wrong += not ours.equals(theirs)
    return wrong


def compare(folder: Path, postgres: EmbeddedPostgres, repeats: int, suffix: str) -> Table:
    size = write_lake(folder / "raw", TICKERS, BOOKS, DEPTH, suffix)
    turns: dict[str, list[dict[str, Any]]] = {name: [] for name in CONTENDERS}
    compared = ""
    for _ in range(repeats):
        for name in CONTENDERS:
            turns[name].append(turn(name, folder, postgres, DEPTH))
            if name == "ours":
                shutil.rmtree(folder / "ours", ignore_errors=True)
                (folder / "parquet").rename(folder / "ours")
            if name == "polars" and not compared:
                wrong = differences(folder / "ours", folder / "parquet")
                compared = (
                    "polars' Parquet is ours in every value" if not wrong else f"{wrong} objects DIFFER"
                )
    best = {name: min(found, key=lambda figures: figures["s"]) for name, found in turns.items()}
    mine = best["ours"]
    table = Table(
        title=f"One window: {TICKERS} tickers, {BOOKS} books, depth {DEPTH}, {size / 1e6:.0f} MB of lines "
        f"in {TICKERS * 5} objects ({suffix}); best of {repeats}"
    )
    for column in ("", "s", "CPU s", "rows/s", "ours against it", "goal", "peak MiB"):
        table.add_column(column, justify="right")
    for name, figures in best.items():
        if name == "ours":
            ratio = ""
        elif name == "bare scan":
            ratio = f"{mine['s'] / figures['s']:.2f} x its time"
        else:
            ratio = f"{figures['s'] / mine['s']:.1f} x faster"
        table.add_row(
            name,
            f"{figures['s']:.2f}",
            f"{figures['cpu_s']:.2f}",
            f"{BOOKS / figures['s']:,.0f}",
            ratio,
            GOALS.get(name, ""),
            f"{figures['peak_mib']:.0f}",
        )
    parts = mine["told"]
    table.caption = (
        f"of ours: Parquet {parts['parquet']:.2f} s, candles {parts['candles']:.2f} s; before, not counted: "
        f"the catalog and the seal, {parts['seal']:.2f} s. {compared}. {stack.machine()}"
    )
    return table


def whole(folder: Path, postgres: EmbeddedPostgres, suffix: str) -> Table:
    size = write_lake(folder / "raw", WHOLE_TICKERS, WHOLE_BOOKS, WHOLE_DEPTH, suffix)
    figures = turn("ours", folder, postgres, WHOLE_DEPTH)
    parts = figures["told"]
    table = Table(
        title=f"The whole exchange: {WHOLE_TICKERS} tickers, {parts['rows']} books, depth {WHOLE_DEPTH}, "
        f"{size / 1e6:.0f} MB of lines ({suffix}); once"
    )
    for column in ("seal s", "Parquet s", "candles s", "CPU s", "rows/s", "peak MiB", "goal"):
        table.add_column(column, justify="right")
    table.add_row(
        *(f"{parts[name]:.1f}" for name in ("seal", "parquet", "candles")),
        f"{figures['cpu_s']:.1f}",
        f"{parts['rows'] / figures['s']:,.0f}",
        f"{figures['peak_mib']:.0f}",
        f"<= {MEMORY_GOAL_MIB}",
    )
    return table


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument(
        "--suffix", default=".jsonl", choices=(".jsonl", ".jsonl.zst"), help="of the raw objects"
    )
    parser.add_argument("--work", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.work:
        work(options.work, options.folder, json.load(sys.stdin))
        return
    console = Console(width=140)
    with (
        tempfile.TemporaryDirectory(prefix="cryptostream-bench-") as name,
        EmbeddedPostgres(Path(name) / "postgres", free_port()) as postgres,
    ):
        for part in ("one", "whole"):
            (Path(name) / part).mkdir()
        console.print(compare(Path(name) / "one", postgres, options.repeats, options.suffix))
        shutil.rmtree(Path(name) / "one")
        console.print(whole(Path(name) / "whole", postgres, ".jsonl.zst"))


if __name__ == "__main__":
    main()
