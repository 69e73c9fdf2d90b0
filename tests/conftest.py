"""What every test may use: fixtures live in plugins beside this file."""

import pytest
from hypothesis import settings

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

# Those that start a local stack by themselves, beside all that share the session's.
STACKS = {"test_local_stack.py", "test_dagster_ui.py"}


@pytest.hookimpl(tryfirst=True)  # before xdist looks at the marks
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Keep a file's tests together on one worker, and all local stacks: two at once want the same ports."""
    for item in items:
        stack = "local_stack" in getattr(item, "fixturenames", ()) or item.path.name in STACKS
        item.add_marker(pytest.mark.xdist_group("stack" if stack else item.path.name))
