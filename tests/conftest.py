"""What every test may use: fixtures live in plugins beside this file."""

import pytest
from hypothesis import settings
from xdist.remote import Producer
from xdist.scheduler import LoadScopeScheduling

pytest_plugins = [
    "tests.broker",
    "tests.fake_gcs",
    "tests.kafka_cluster",
    "tests.postgres_fixture",
    "tests.stack",
]

# No test is judged by the clock; and a failing example comes with the blob that repeats it.
settings.register_profile("cryptostream", deadline=None, print_blob=True)
settings.load_profile("cryptostream")

# Files whose tests start local stacks: two stacks at once would want the same ports.
STACKS = {"test_client.py", "test_dagster_ui.py", "test_local_stack.py"}


class FileByFile(LoadScopeScheduling):  # type: ignore[misc]
    """A file's tests on one worker, and all files of local stacks on the same one.

    xdist's own marks for this (`--dist loadgroup`) have no effect with pytest 9.
    """

    def _split_scope(self, nodeid: str) -> str:
        path = nodeid.split("::", 1)[0]
        return "stacks" if path.rpartition("/")[2] in STACKS else path


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> FileByFile:
    return FileByFile(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """See that no file starts a stack beside the others."""
    for item in items:
        if "local_stack" in getattr(item, "fixturenames", ()) and item.path.name not in STACKS:
            raise pytest.UsageError(
                f"{item.path.name} uses local_stack: add it to STACKS in tests/conftest.py"
            )
