"""Whether Kafka has what the sections write to: looked at at the start, and whenever records have to wait.

Kafka that is away is no reason not to collect: the spool takes everything, and delivers it. A topic or a
partition that is not there is a mistake that a person has to put right: before the start it ends the process,
later it is said again and again while the spool goes on.

Belongs here: asking and telling. Does not belong here: sending (`lane.py`).
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Sequence

import structlog
from kafka.admin import KafkaAdminClient
from kafka.errors import KafkaError

from ingest_services.config import ProducerSection
from ingest_services.errors import UserError
from ingest_services.kafka import Unreachable, open_admin, topic_id, unreachable
from ingest_services.producer.metrics import SectionStats

LOOK_EVERY_S = 5.0
REPEAT_S = 60.0

_log = structlog.get_logger()


def find_problems(sections: Iterable[ProducerSection], bootstrap: str) -> dict[str, str]:
    """Return, by section, why Kafka cannot take its records; empty if it can.

    Raises:
        Unreachable: If no broker answers.
    """
    problems = {}
    with open_admin(bootstrap) as admin:
        for section in sections:
            try:
                partitions = _partitions(admin, section.topic, bootstrap)
            except Unreachable:
                raise
            except UserError as error:
                problems[section.name] = str(error)
                continue
            if section.partition not in partitions:
                problems[section.name] = (
                    f"producer.conf [{section.name}] partition_number={section.partition}: topic "
                    f"{section.topic} has partitions 0 to {len(partitions) - 1}"
                )
    return problems


def _partitions(admin: KafkaAdminClient, topic: str, bootstrap: str) -> tuple[int, ...]:
    try:
        return topic_id(admin, topic)[1]
    except KafkaError as error:
        raise unreachable(bootstrap, error) from error


class TopicWatch(threading.Thread):
    """Looks once, and then for as long as it has not found everything in place or a section spools."""

    def __init__(
        self, sections: Sequence[ProducerSection], bootstrap: str, stats: Sequence[SectionStats]
    ) -> None:
        """Describe a watch; `start` begins it.

        Args:
            sections: What writes.
            bootstrap: Brokers, as in KAFKA_BOOTSTRAP.
            stats: The sections' numbers; `topic_problem` is kept there.
        """
        super().__init__(name="topics", daemon=True)
        self._sections = sections
        self._brokers = bootstrap
        self._stats = stats
        self._stopping = threading.Event()
        self._looked = threading.Event()
        self._found = False
        self._told_s = -REPEAT_S
        self.unreachable: Unreachable | None = None

    def stop(self) -> None:
        """Look no more; a question that is under way is not waited for."""
        self._stopping.set()

    def first_look(self, timeout_s: float) -> bool:
        """Wait for the first answer.

        Returns:
            Whether Kafka answered and has everything.

        Raises:
            UserError: If it answered, and lacks a topic or a partition.
        """
        self._looked.wait(timeout_s)
        for stats in self._stats:
            if stats.topic_problem:
                raise UserError(stats.topic_problem)
        return self._found

    def run(self) -> None:
        """Look until stopped."""
        while True:
            if not self._found or any(stats.spooling for stats in self._stats):
                try:
                    self._look()
                except Exception:  # noqa: BLE001 (whatever a broker answers, the next look counts)
                    _log.exception("topic_watch_failed")
                self._looked.set()
            if self._stopping.wait(LOOK_EVERY_S):
                return

    def _look(self) -> None:
        try:
            problems = find_problems(self._sections, self._brokers)
        except Unreachable as error:
            self.unreachable = error
            return
        self.unreachable = None
        self._found = not problems
        cured = []
        for stats in self._stats:
            problem = problems.get(stats.section, "")
            if stats.topic_problem and not problem:
                cured.append(stats.section)
            stats.topic_problem = problem
        if cured:
            _log.info("topic_found", sections=cured)
        # The first look's problem is told by whoever waits for it.
        if problems and self._looked.is_set() and time.monotonic() - self._told_s >= REPEAT_S:
            self._told_s = time.monotonic()
            _log.error("topic_missing", problems=problems)
        elif not problems:
            self._told_s = -REPEAT_S
