"""One DuckDB session: bounded, in memory, gone when it is closed."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def open_duckdb(threads: int, memory_mb: int, spill_dir: Path | None, *, in_order: bool = False) -> Any:
    """Open a session.

    Args:
        threads: How many.
        memory_mb: MiB before it spills to disk.
        spill_dir: Where to; None: what does not fit is an error.
        in_order: Whether results keep the order of what they are made from.
    """
    import duckdb  # a slow import

    return duckdb.connect(
        ":memory:",
        config={
            "threads": threads,
            "memory_limit": f"{memory_mb}MiB",
            "temp_directory": str(spill_dir or ""),
            "preserve_insertion_order": in_order,
            # Nothing is fetched from the network, and nothing here needs an extension.
            "autoinstall_known_extensions": False,
            "autoload_known_extensions": False,
        },
    )
