"""What every test may use: fixtures live in plugins beside this file."""

pytest_plugins = ["tests.broker", "tests.postgres_fixture", "tests.stack"]
