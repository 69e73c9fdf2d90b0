"""The state folder of a local stack: what is in it, who holds it, what it remembers between two starts.

Belongs here: `.cryptostream/sim`, `.cryptostream/live` and everything written into them that is not data.
Does not belong here: processes.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path

from ingest_services.errors import UserError

STATES_FOLDER = Path(".cryptostream")
ENV_FILE = "env"
LOCK_FILE = "lock"

# A handful, as the embedded broker keeps everything in memory; two sections show what partitions are for.
_PRODUCER_CONF = """\
# Yours to edit; read at the next start. One section is one connection and one partition.

[upbit_producer1]
topic_name=orderbook
partition_number=0
tickers=BTC,ETH,XRP

[upbit_producer2]
topic_name=orderbook
partition_number=1
tickers=SOL,DOGE
"""
_CONSUMER_CONF = """\
# Yours to edit; read at the next start. Every partition that producer.conf names needs one section.

[gcs_consumer1]
topic_name=orderbook
partition_number=0
group_name=cryptostream

[gcs_consumer2]
topic_name=orderbook
partition_number=1
group_name=cryptostream
"""


@dataclass
class Memory:
    """What a state remembers.

    Attributes:
        ports: Loopback port by name.
        partitions_start: First window of the lake, as the setting PARTITIONS_START takes it.
    """

    ports: dict[str, int] = field(default_factory=dict)
    partitions_start: str = ""


class StateFolder:
    """One stack's folder.

    Args:
        root: Created if it does not exist.

    Raises:
        UserError: If it cannot be created or written.
    """

    def __init__(self, root: Path) -> None:
        self.root = root.absolute()
        self.raw = self.root / "raw"
        self.parquet = self.root / "parquet"
        self.daily = self.root / "daily"
        self.postgres = self.root / "postgres"
        self.dagster = self.root / "dagster"
        self.spool = self.root / "spool"
        self.logs = self.root / "logs"
        self.producer_conf = self.root / "producer.conf"
        self.consumer_conf = self.root / "consumer.conf"
        self.env_file = self.root / ENV_FILE
        self.pids = self.root / "pids.json"
        self._lock = self.root / LOCK_FILE
        self._memory = self.root / "memory.json"
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            for folder in (self.raw, self.parquet, self.dagster, self.spool, self.logs):
                folder.mkdir(exist_ok=True)
        except OSError as error:
            raise UserError(
                f"state folder {root}: cannot be made ({error.strerror}: {error.filename})"
            ) from error
        for folder in (self.root, self.logs):
            if not os.access(folder, os.W_OK | os.X_OK):
                raise UserError(
                    f"state folder {folder}: cannot be written; change its owner or choose another (--state)"
                )

    @contextmanager
    def held(self) -> Iterator[None]:
        """Hold the folder alone; the lock ends with this process, however it ends.

        Raises:
            UserError: If another process holds it; the line tells its id and where its Dagster is.
        """
        descriptor = os.open(self._lock, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                raise UserError(f"{self.root} is in use: {self._holder()}; stop that one first") from error
            self._write_holder({"pid": os.getpid()})
            yield
        finally:
            os.close(descriptor)

    def announce(self, url: str) -> None:
        """Tell those who find the folder held where the holder's Dagster is."""
        self._write_holder({"pid": os.getpid(), "url": url})

    def remember(self) -> Memory:
        """Return what the last start wrote down.

        Raises:
            UserError: If the file is there and cannot be understood.
        """
        try:
            return Memory(**json.loads(self._memory.read_text(encoding="utf-8")))
        except FileNotFoundError:
            return Memory()
        except (OSError, ValueError, TypeError) as error:
            raise UserError(f"{self._memory}: cannot be understood ({error}); delete it") from error

    def write_memory(self, memory: Memory) -> None:
        """Write down what the next start should know."""
        _replace(self._memory, json.dumps(asdict(memory), indent=2) + "\n")

    def write_conf(self) -> None:
        """Write the two .conf files, unless a person has theirs there."""
        for path, text in ((self.producer_conf, _PRODUCER_CONF), (self.consumer_conf, _CONSUMER_CONF)):
            if not path.exists():
                path.write_text(text, encoding="utf-8")

    def write_env(self, settings: Mapping[str, str]) -> None:
        """Write the stack's settings in the form of an .env file, for clients; it holds the password."""
        lines = [f"{name}='{value}'\n" for name, value in sorted(settings.items())]
        _replace(self.env_file, "# Written at every start: how to reach this stack.\n" + "".join(lines))

    def has_data(self) -> bool:
        """Return whether the raw lake holds a commit."""
        return any(path.is_file() for path in (self.raw / "_commits").rglob("*.json"))

    def log(self, name: str) -> Path:
        """Return the log of a program."""
        return self.logs / f"{name}.log"

    def _write_holder(self, holder: Mapping[str, object]) -> None:
        self._lock.write_text(json.dumps(holder), encoding="utf-8")

    def _holder(self) -> str:
        try:
            holder = json.loads(self._lock.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return "by another process that is just starting"
        url = f", Dagster at {holder['url']}" if "url" in holder else ", still starting"
        return f"process {holder['pid']}{url}"


def is_held(root: Path) -> bool:
    """Return whether a stack runs on a state folder."""
    try:
        descriptor = os.open(root / LOCK_FILE, os.O_RDONLY)
    except OSError:
        return False
    try:
        # Shared, so that two who ask at once do not take each other for a stack.
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return True
    finally:
        os.close(descriptor)
    return False


def url_of(root: Path) -> str | None:
    """Return where the Dagster of the stack on a folder is; None if none runs or it is still starting."""
    if not is_held(root):
        return None
    try:
        url = json.loads((root / LOCK_FILE).read_text(encoding="utf-8")).get("url")
    except (OSError, ValueError):
        return None
    return None if url is None else str(url)


def _replace(path: Path, text: str) -> None:
    fresh = path.with_name(path.name + ".new")
    descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write(text)
    fresh.replace(path)
