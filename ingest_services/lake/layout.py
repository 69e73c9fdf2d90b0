"""Where things are in the lake, and whose lake it is.

Code works with UTC epoch integers, the unit in the name; the market's time zone appears in paths alone.
"""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass
from datetime import datetime
from zoneinfo import ZoneInfo

import orjson

from ingest_services.errors import UserError
from ingest_services.lake.store import ObjectExists, ObjectMissing, ObjectStore

LAKE_FORMAT = 1
LAKE_FILE = "lake.json"
CHAINS = "_chains/"
COMMITS = "_commits/"
PROGRESS = "_progress/"
MINUTE_MS = 60_000

SUFFIXES = {"zstd": ".jsonl.zst", "none": ".jsonl"}


@dataclass(frozen=True, slots=True)
class LakeIdentity:
    """Whose lake it is; written once into `lake.json`.

    Attributes:
        format: Version of this contract.
        source: `upbit` or `simulator`.
        time_zone: The zone of the paths.
    """

    format: int
    source: str
    time_zone: str


def read_lake(store: ObjectStore) -> LakeIdentity | None:
    """Return the lake's identity, or None if nothing was ever written to it.

    Raises:
        UserError: If `lake.json` is there and cannot be understood.
    """
    try:
        message = orjson.loads(store.get(LAKE_FILE))
        return LakeIdentity(int(message["format"]), str(message["source"]), str(message["time_zone"]))
    except ObjectMissing:
        return None
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{store.url}/{LAKE_FILE}: cannot be understood ({error}); is this a raw lake?"
        ) from error


def claim_lake(store: ObjectStore, source: str, time_zone: str) -> None:
    """Make sure that the lake is ours: create `lake.json`, or compare.

    Raises:
        UserError: If the lake holds another source's data, or paths in another time zone or format.
    """
    ours = LakeIdentity(LAKE_FORMAT, source, time_zone)
    found: LakeIdentity | None = None
    try:
        found = read_lake(store)
        if found in (None, ours):
            # Also where it is there: a writer that may not create learns it now, not when it has records.
            store.create(LAKE_FILE, orjson.dumps(asdict(ours)))
            return
    except ObjectExists:
        found = read_lake(store)
    except OSError as error:
        if found is None or isinstance(error, PermissionError):
            raise UserError(
                f"{store.url}/{LAKE_FILE} cannot be created or read ({error}); "
                "docs/commit-chain.md says what a writer must be allowed to do"
            ) from error
        return  # The store fails now; the writer tries again whenever it does.
    if found != ours:
        raise UserError(
            f"{store.url}/{LAKE_FILE} says {found}, the settings say {ours}; "
            "simulated and real data never share a lake: set RAW_URL to another one"
        )


def minute_folder(minute_ms: int, zone: ZoneInfo) -> str:
    """Return `year=2025/month=02/day=02/hour=16/minute=16` for a minute's start, ms since the epoch."""
    moment = datetime.fromtimestamp(minute_ms / 1000, zone)
    return moment.strftime("year=%Y/month=%m/day=%d/hour=%H/minute=%M")


def book_path(
    ticker: str,
    minute_ms: int,
    first_tms: int,
    partition: int,
    base: int,
    token: str,
    zone: ZoneInfo,
    suffix: str,
) -> str:
    """Return the path of a data object.

    Args:
        ticker: Canonical ticker.
        minute_ms: Start of the minute that its books belong to, ms since the epoch.
        first_tms: Smallest exchange stamp in it, ms.
        partition: Kafka partition.
        base: First offset of the batch that it is part of.
        token: Random token of the attempt.
        zone: The market's time zone.
        suffix: One of `SUFFIXES`' values.
    """
    folder = f"ticker={ticker}/{minute_folder(minute_ms, zone)}"
    return f"{folder}/{ticker}-{first_tms}-p{partition:02d}-{base:020d}-{token}{suffix}"


def side_path(
    room: str, minute_ms: int, partition: int, base: int, token: str, zone: ZoneInfo, suffix: str
) -> str:
    """Return the path of an object in `coverage/` or `quarantine/`; arguments as for `book_path`."""
    # The instant stands in the name, too: where clocks are set back, one folder holds two minutes.
    return f"{room}/{minute_folder(minute_ms, zone)}/{minute_ms}-p{partition:02d}-{base:020d}-{token}{suffix}"


@dataclass(frozen=True, slots=True)
class DataPath:
    """What the path of a data object says about it.

    Attributes:
        room: `book`, `coverage` or `quarantine`.
        ticker: Canonical ticker of books; empty for the others.
        folder: The minute's folder, `year=2025/month=02/day=02/hour=16/minute=16`.
        stamp_ms: Smallest exchange stamp of books, the minute's start of the others, ms since the epoch.
        partition: Kafka partition.
        base: First offset of the batch that it is part of.
        token: Random token of the attempt.
    """

    room: str
    ticker: str
    folder: str
    stamp_ms: int
    partition: int
    base: int
    token: str


_MINUTE = r"year=\d{4}/month=\d\d/day=\d\d/hour=\d\d/minute=\d\d"
_BATCH = r"p(?P<partition>\d{2,})-(?P<base>\d{20})-(?P<token>[0-9a-f]{8})\.jsonl(?:\.zst)?"
_BOOK = re.compile(rf"ticker=(?P<ticker>[^/]+)/(?P<folder>{_MINUTE})/(?P=ticker)-(?P<stamp>\d+)-{_BATCH}")
_SIDE = re.compile(rf"(?P<room>coverage|quarantine)/(?P<folder>{_MINUTE})/(?P<stamp>\d+)-{_BATCH}")


def read_data_path(path: str) -> DataPath | None:
    """Read the path of a data object: what `book_path` and `side_path` made; None if it is none."""
    found = _BOOK.fullmatch(path) or _SIDE.fullmatch(path)
    if found is None:
        return None
    parts = found.groupdict()
    return DataPath(
        parts.get("room", "book"),
        parts.get("ticker", ""),
        parts["folder"],
        int(parts["stamp"]),
        int(parts["partition"]),
        int(parts["base"]),
        parts["token"],
    )


def chain_path(number: int) -> str:
    """Return the path of a chain's description."""
    return f"{CHAINS}{number:08d}.json"


def commit_path(chain: int, partition: int, base: int) -> str:
    """Return the path of the commit that begins at an offset."""
    return f"{commits_prefix(chain, partition)}{base:020d}.json"


def commits_prefix(chain: int, partition: int) -> str:
    """Return what the paths of all commits of a partition begin with."""
    return f"{COMMITS}{chain:08d}/{partition:04d}/"


def progress_path(chain: int, partition: int) -> str:
    """Return the path of a partition's progress object."""
    return f"{PROGRESS}{chain:08d}/{partition:04d}.json"
