"""Who tries again waits longer each time, says why, and ends."""

from __future__ import annotations

import pytest
from typer.testing import CliRunner

from cryptostream_dagster.warehouse import connection, schema
from ingest_services import backoff, kafka
from ingest_services.cli import build_app
from ingest_services.errors import UserError


class Clock:
    """Time that passes by sleeping."""

    def __init__(self) -> None:
        self.now_s = 100.0
        self.slept: list[float] = []

    def monotonic(self) -> float:
        return self.now_s

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now_s += seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(backoff, "time", clock)
    return clock


def test_what_may_pass_is_tried_again_until_it_has_passed(clock: Clock) -> None:
    answers = iter([OSError("one"), OSError("two"), "there"])

    def attempt() -> str:
        answer = next(answers)
        if isinstance(answer, OSError):
            raise answer
        return answer

    said: list[str] = []
    assert backoff.keep_trying(attempt, OSError, 60, said.append) == "there"
    assert [line.split(";")[0] for line in said] == ["one", "two"]
    assert 0 < clock.slept[0] <= 1
    assert clock.slept[0] < clock.slept[1] * 2


def test_it_ends_when_the_time_is_over_with_the_last_failure(clock: Clock) -> None:
    tries = []

    def attempt() -> None:
        tries.append(clock.now_s)
        raise OSError(f"number {len(tries)}")

    with pytest.raises(OSError, match="number") as last:
        backoff.keep_trying(attempt, OSError, 100, lambda _: None)
    assert str(last.value) == f"number {len(tries)}"
    assert tries[-1] == pytest.approx(200)
    assert 8 < len(tries) < 30
    assert max(clock.slept) <= 15


def test_what_needs_a_person_is_said_at_once(clock: Clock) -> None:
    def attempt() -> None:
        raise UserError("wrong")

    with pytest.raises(UserError, match="wrong"):
        backoff.keep_trying(attempt, kafka.Unreachable, 100, lambda _: None)
    assert not clock.slept


@pytest.mark.parametrize("wait", [[], ["--wait", "30"]])
def test_topic_waits_for_brokers_only_where_it_is_told_to(
    clock: Clock, monkeypatch: pytest.MonkeyPatch, wait: list[str]
) -> None:
    answers = iter([kafka.Unreachable("no broker answers"), None])

    def create(*_: object) -> None:
        if error := next(answers):
            raise error

    monkeypatch.setattr(kafka, "create_topics", create)
    done = CliRunner().invoke(build_app(), ["topic", *wait])
    assert (done.exit_code == 0) is bool(wait), done.output
    if wait:
        assert "no broker answers; trying for another 30 s" in done.stderr


@pytest.mark.parametrize("wait", [[], ["--wait", "30"]])
def test_migrate_waits_for_postgres_only_where_it_is_told_to(
    clock: Clock, monkeypatch: pytest.MonkeyPatch, wait: list[str]
) -> None:
    class Connection:
        def __enter__(self) -> Connection:
            return self

        def __exit__(self, *_: object) -> None:
            pass

    answers = iter([connection.Unreachable("Postgres is not there"), Connection()])

    def connect(_: object) -> Connection:
        answer = next(answers)
        if isinstance(answer, Exception):
            raise answer
        return answer

    monkeypatch.setattr(connection, "connect", connect)
    for name in ("migrate", "make_partitions_ahead"):
        monkeypatch.setattr(schema, name, lambda *_: [])
    monkeypatch.setattr(schema, "claim_database", lambda *_: None)
    done = CliRunner().invoke(build_app(), ["migrate", *wait])
    assert (done.exit_code == 0) is bool(wait), done.output
    if wait:
        assert "Postgres is not there; trying for another 30 s" in done.stderr
