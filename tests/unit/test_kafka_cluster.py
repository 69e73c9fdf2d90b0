"""A machine that cannot run Kafka says what it lacks; CI does not let that pass."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests import kafka_cluster
from tests.kafka_cluster import free_ports, require_jars

OLD_JAVA = "#!/bin/sh\necho 'openjdk version \"11.0.2\" 2019-01-15' >&2\n"
JAVA = "#!/bin/sh\necho 'openjdk version \"21.0.1\" 2023-10-17' >&2\n"


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine with nothing on its PATH and nothing fetched."""
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(kafka_cluster, "CACHE", tmp_path / "cache")
    monkeypatch.delenv("CI", raising=False)
    return tmp_path


def put(programs: Path, name: str, script: str) -> None:
    (programs / name).write_text(script)
    (programs / name).chmod(0o755)


@pytest.mark.parametrize(
    ("java", "words"),
    [(None, "no Java"), (OLD_JAVA, "is too old"), (JAVA, "no Maven")],
    ids=["", "old", "good"],
)
def test_what_is_missing_is_named_by_a_skip_and_in_ci_by_a_failure(
    programs: Path, monkeypatch: pytest.MonkeyPatch, java: str | None, words: str
) -> None:
    if java:
        put(programs, "java", java)
    with pytest.raises(pytest.skip.Exception, match=words):
        require_jars()
    monkeypatch.setenv("CI", "true")
    with pytest.raises(pytest.fail.Exception, match=words):
        require_jars()


def test_a_download_that_breaks_off_is_not_taken_for_a_whole_one(programs: Path) -> None:
    put(programs, "java", JAVA)
    put(
        programs,
        "mvn",
        '#!/bin/sh\nfor a; do case $a in -DoutputDirectory=*) /bin/mkdir -p "${a#*=}";; esac; done\nexit 1\n',
    )
    for _ in range(2):
        with pytest.raises(pytest.fail.Exception, match="could not fetch"):
            require_jars()
    put(
        programs,
        "mvn",
        '#!/bin/sh\nfor a; do case $a in -DoutputDirectory=*) /bin/mkdir -p "${a#*=}";; esac; done\n',
    )
    folder = require_jars()
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]
    (programs / "mvn").unlink()
    assert require_jars() == folder


def test_ports_lie_where_no_client_gets_them_by_chance() -> None:
    ports = free_ports(6)
    assert len(set(ports)) == 6
    assert max(ports) < 32_768
