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


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Keep a file's tests together on one worker, and all that share the local stack."""
    for item in items:
        group = "stack" if "local_stack" in getattr(item, "fixturenames", ()) else item.path.name
        item.add_marker(pytest.mark.xdist_group(group))
