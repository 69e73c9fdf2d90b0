"""The console script `cryptostream`: every package brings its own commands through entry points."""

from __future__ import annotations

import re
import sys
from importlib.metadata import EntryPoint, PackageNotFoundError, distribution, entry_points

import typer
from rich.console import Console
from rich.markup import escape

from ingest_services.errors import UserError

COMMANDS_GROUP = "cryptostream.commands"


def build_app() -> typer.Typer:
    """Return the command line with the commands of every package that is installed whole."""
    app = typer.Typer(
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
        help="Upbit order books: every frame kept for ever, and turned into research-grade tables.",
    )
    for entry_point in sorted(entry_points(group=COMMANDS_GROUP), key=lambda e: e.name != "ingest"):
        if _is_whole(entry_point):
            entry_point.load()(app)
    return app


def main() -> None:
    """Run the command line; a `UserError` is one line on stderr and exit status 2."""
    try:
        build_app()()
    except UserError as error:
        Console(stderr=True, soft_wrap=True, highlight=False).print(
            f"[bold red]error:[/] {escape(str(error))}"
        )
        sys.exit(2)


def _is_whole(entry_point: EntryPoint) -> bool:
    """Whether what the entry point's extras require is installed; without them its commands are left out."""
    assert entry_point.dist is not None
    for requirement in entry_point.dist.requires or ():
        if any(f'extra == "{extra}"' in requirement for extra in entry_point.extras):
            try:
                distribution(re.split(r"[^\w.-]", requirement, maxsplit=1)[0])
            except PackageNotFoundError:
                return False
    return True
