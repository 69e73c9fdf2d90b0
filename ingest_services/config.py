"""Who collects what: the sections of `producer.conf` and `consumer.conf`.

The two INI files are the seed's. Every mistake is one `UserError` that names file, section and key, raised
before anything starts.
"""

from __future__ import annotations

import configparser
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeVar

from ingest_services.errors import UserError
from ingest_services.upbit.markets import QUOTES, market_of

ALL_PREFIX = "ALL-"
MAX_PARTITIONS = 1000
# What Kafka takes; `.` and `..` would be folders.
_TOPIC = re.compile(r"(?!\.{1,2}$)[A-Za-z0-9._-]{1,249}")

_PRODUCER_KEYS = ("topic_name", "partition_number", "tickers")
_CONSUMER_KEYS = ("topic_name", "partition_number", "group_name")


@dataclass(frozen=True, slots=True)
class ProducerSection:
    """One `[upbit_producerN]`: a connection, its markets and the partition its records go to.

    Attributes:
        name: The section's name.
        topic: Kafka topic.
        partition: The one partition that this section writes.
        markets: Market codes in the order of the file; empty if `all_of` is set.
        all_of: A quote (`KRW`) whose every market is subscribed to, discovered from the REST API.
    """

    name: str
    topic: str
    partition: int
    markets: tuple[str, ...]
    all_of: str | None = None


@dataclass(frozen=True, slots=True)
class ConsumerSection:
    """One `[gcs_consumerN]`: the partition it carries into the lake.

    Attributes:
        name: The section's name.
        topic: Kafka topic.
        partition: The one partition that this section reads.
        group: Kafka consumer group under which offsets are published as a hint.
    """

    name: str
    topic: str
    partition: int
    group: str


class _Section(Protocol):
    @property
    def name(self) -> str: ...


SectionT = TypeVar("SectionT", bound=_Section)


def read_producers(path: Path) -> list[ProducerSection]:
    """Read `producer.conf`.

    Raises:
        UserError: If the file is missing or malformed, a key is missing or unknown, a topic's name is none, a
            partition is no number, a ticker is none, or a market is named twice (in whatever spelling, in one
            section or in two).
    """
    sections: list[ProducerSection] = []
    for name, values in _read_ini(path, _PRODUCER_KEYS):
        where = f"{path} [{name}]"
        markets, all_of = _read_tickers(where, values["tickers"])
        sections.append(
            ProducerSection(
                name,
                _read_topic(where, values["topic_name"]),
                _read_partition(where, values["partition_number"]),
                markets,
                all_of,
            )
        )
    _refuse_repeats(path, sections)
    return sections


def read_consumers(path: Path) -> list[ConsumerSection]:
    """Read `consumer.conf`.

    Raises:
        UserError: As `read_producers`; and if two sections read the same partition of the same topic.
    """
    sections: list[ConsumerSection] = []
    owner: dict[tuple[str, int], str] = {}
    for name, values in _read_ini(path, _CONSUMER_KEYS):
        where = f"{path} [{name}]"
        partition = _read_partition(where, values["partition_number"])
        topic = _read_topic(where, values["topic_name"])
        section = ConsumerSection(name, topic, partition, values["group_name"])
        other = owner.setdefault((section.topic, partition), name)
        if other != name:
            raise UserError(
                f"{where} partition_number={partition}: [{other}] reads it already; each has one reader"
            )
        sections.append(section)
    return sections


def select(
    path: Path, sections: Sequence[SectionT], names: Sequence[str], *, everything: bool
) -> list[SectionT]:
    """Return the sections that a person named, or all of them.

    Raises:
        UserError: If a name is no section, or neither names nor `everything` were given.
    """
    if everything and not names:
        return list(sections)
    known = {section.name: section for section in sections}
    if everything or not names:
        raise UserError(f"name one or more sections of {path} ({', '.join(known)}), or --all")
    for name in names:
        if name not in known:
            raise UserError(f"{path}: no section [{name}]; it has {', '.join(known)}")
    return [known[name] for name in dict.fromkeys(names)]


def partitions_of(sections: Iterable[ProducerSection]) -> dict[str, int]:
    """Return how many partitions each topic has: exactly those that producer.conf names, 0 to n - 1.

    Raises:
        UserError: If a topic's partitions have a hole.
    """
    named: dict[str, set[int]] = {}
    for section in sections:
        named.setdefault(section.topic, set()).add(section.partition)
    for topic, numbers in named.items():
        missing = sorted(set(range(max(numbers) + 1)) - numbers)
        if missing:
            raise UserError(
                f"producer.conf, topic_name={topic}: partition_number {missing[0]} is named by no section; "
                f"partitions are numbered 0 to {max(numbers)} without holes"
            )
    return {topic: len(numbers) for topic, numbers in named.items()}


def require_consumers(
    partitions: dict[str, int], consumers: Iterable[ConsumerSection], consumer_conf: Path
) -> None:
    """Check that every partition of every topic has a consumer section, and no section reads one that is not.

    Args:
        partitions: Partition count by topic.
        consumers: All sections of consumer.conf.
        consumer_conf: Its path, for the message.

    Raises:
        UserError: Naming the first partition without a reader, or the first section without a partition.
    """
    owned: dict[str, set[int]] = {}
    for section in consumers:
        count = partitions.get(section.topic)
        if count is None:
            raise UserError(
                f"{consumer_conf} [{section.name}] topic_name={section.topic}: no producer writes this topic"
            )
        if section.partition >= count:
            raise UserError(
                f"{consumer_conf} [{section.name}] partition_number={section.partition}: "
                f"topic {section.topic} has partitions 0 to {count - 1}"
            )
        owned.setdefault(section.topic, set()).add(section.partition)
    for topic, count in partitions.items():
        missing = sorted(set(range(count)) - owned.get(topic, set()))
        if missing:
            raise UserError(
                f"{consumer_conf}: partition {missing[0]} of topic {topic} has no consumer section; add "
                f"[gcs_consumerN] with topic_name={topic}, partition_number={missing[0]} and a group_name"
            )


def _read_ini(path: Path, keys: tuple[str, ...]) -> list[tuple[str, dict[str, str]]]:
    parser = configparser.ConfigParser(interpolation=None, default_section="")
    try:
        # Editors of Windows begin a file with a byte order mark.
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read ({error}); set PRODUCER_CONF and CONSUMER_CONF") from error
    try:
        parser.read_string(text, source=str(path))
    except configparser.Error as error:
        raise UserError(f"{path}: {' '.join(str(error).split())}") from error
    if not parser.sections():
        raise UserError(f"{path}: no section; it needs at least one with the keys {', '.join(keys)}")
    sections = []
    for name in parser.sections():
        values = {key: value.strip() for key, value in parser[name].items()}
        for key in values:
            if key not in keys:
                raise UserError(f"{path} [{name}] {key}: unknown key; the keys are {', '.join(keys)}")
        for key in keys:
            if not values.get(key):
                raise UserError(f"{path} [{name}] {key}: missing")
        sections.append((name, values))
    return sections


def _read_topic(where: str, text: str) -> str:
    if not _TOPIC.fullmatch(text):
        raise UserError(
            f"{where} topic_name={' '.join(text.split())}: is no name of a topic; "
            "that is 1 to 249 of letters, digits, '.', '_' and '-'"
        )
    return text


def _read_partition(where: str, text: str) -> int:
    # The length comes first: Python refuses to read numbers of thousands of digits.
    if not (text.isascii() and text.isdigit() and len(text) <= len(str(MAX_PARTITIONS))) or (
        int(text) >= MAX_PARTITIONS
    ):
        shown = " ".join(text.split())
        raise UserError(f"{where} partition_number={shown}: must be a number from 0 to {MAX_PARTITIONS - 1}")
    return int(text)


def _read_tickers(where: str, text: str) -> tuple[tuple[str, ...], str | None]:
    tickers = [part.strip() for part in text.split(",")]
    everything = next((ticker for ticker in tickers if ticker.upper().startswith(ALL_PREFIX)), None)
    if everything is not None:
        quote = everything.removeprefix(ALL_PREFIX)
        if quote not in QUOTES:
            raise UserError(
                f"{where} tickers={everything}: must be one of {', '.join(ALL_PREFIX + q for q in QUOTES)}"
            )
        if len(tickers) > 1:
            raise UserError(f"{where} tickers: {everything} stands alone; give the other names a section")
        return (), quote
    markets: dict[str, str] = {}
    for number, ticker in enumerate(tickers, start=1):
        if not ticker:
            raise UserError(f"{where} tickers: number {number} is empty; there is a comma too many")
        try:
            market = market_of(ticker)
        except ValueError as error:
            raise UserError(f"{where} tickers: {error}") from error
        if market in markets:
            raise UserError(f"{where} tickers: {market} is named twice ({markets[market]} and {ticker})")
        markets[market] = ticker
    return tuple(markets), None


def _refuse_repeats(path: Path, sections: Sequence[ProducerSection]) -> None:
    owner: dict[tuple[str, str], str] = {}
    for section in sections:
        quote = {f"{ALL_PREFIX}{section.all_of}"} if section.all_of else set()
        for market in quote or section.markets:
            other = owner.setdefault((section.topic, market), section.name)
            if other != section.name:
                raise UserError(f"{path} [{section.name}] tickers: {market} is in [{other}] already")
    for section in sections:
        for market in section.markets:
            other_all = owner.get((section.topic, ALL_PREFIX + market.split("-")[0]))
            if other_all:
                raise UserError(
                    f"{path} [{section.name}] tickers: {market} is in [{other_all}] already "
                    f"(tickers={ALL_PREFIX}{market.split('-')[0]})"
                )
