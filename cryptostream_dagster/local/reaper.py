"""`python -m cryptostream_dagster.local.reaper LIST` ends the listed processes when its input closes."""

from __future__ import annotations

import sys
from pathlib import Path

from cryptostream_dagster.local.processes import end_leftovers


def main() -> None:
    """Wait for the supervisor's end, then end what it left."""
    sys.stdin.read()
    end_leftovers(Path(sys.argv[1]))


if __name__ == "__main__":
    main()
