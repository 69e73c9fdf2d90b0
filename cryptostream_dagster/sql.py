"""SQL that is longer than three lines lives in `.sql` files beside the code that runs it."""

from __future__ import annotations

from functools import cache
from importlib.resources import files
from typing import LiteralString


@cache
def load_sql(package: str, name: str, folder: str = "sql") -> LiteralString:
    """Return `<package>/<folder>/<name>.sql`.

    The file is part of the program, hence a `LiteralString`: it holds no value from outside.
    """
    return (files(package) / folder / f"{name}.sql").read_text(encoding="utf-8")
