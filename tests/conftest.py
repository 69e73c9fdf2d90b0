"""What every test may use: fixtures live in plugins beside this file."""

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
