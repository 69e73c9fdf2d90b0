"""The console script `cryptostream`: every package brings its own commands through entry points."""

from __future__ import annotations

import sys
from importlib.metadata import entry_points

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
        try:
            register = entry_point.load()
        except ModuleNotFoundError as error:
            # An optional half whose extra is not installed: its commands are left out. Anything else that is
            # missing is a broken installation and must be seen.
            if not entry_point.extras or (error.name or "").startswith(
                ("ingest_services", "cryptostream_dagster")
            ):
                raise
            continue
        register(app)
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
