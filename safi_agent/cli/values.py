"""``safi values``: list the shipped value sets, and validate a value set with its errors by line."""

from shutil import get_terminal_size
from textwrap import fill
from typing import Annotated

import typer

from safi_agent.cli.options import one_line_errors, printable
from safi_agent.unicode_text import many
from safi_agent.values import load_values, shipped, text_of
from safi_agent.values.linting import lint
from sal_cli.shared import Command

INVALID = 1
app = typer.Typer(help="List and check value sets.", no_args_is_help=True, rich_markup_mode=None)


@app.command("list", cls=Command)
def list_sets() -> None:
    """List the value sets of the package.

    Their names are what --values takes, besides the path of a YAML file.
    """
    for name in shipped():
        values = load_values(name)
        typer.echo(fill(f"{name}: {values.description}", get_terminal_size().columns))
        typer.echo(f"  {many(len(values.scored), 'weighted value')}, {many(len(values.gates), 'hard gate')}")


@app.command(cls=Command)
def check(
    file: Annotated[str, typer.Argument(metavar="SET", help="A value set in YAML, or the name of a shipped one.")],
) -> None:
    """List all errors of a value set.

    They are listed by line; without errors, the weights as they will be used.

    Exit code: 0 if the value set is valid; 1 if it has errors; 2 if it cannot be read.
    """
    with one_line_errors("values check", about=f"{file}: not read"):
        text = text_of(file)
    errors = lint(text)
    for found in errors:
        typer.echo(f"{file}:{found.line}: {found.what}")
    if errors:
        typer.echo(f"{file}: {len(errors)} {'error' if len(errors) == 1 else 'errors'}.")
        raise typer.Exit(INVALID)
    value_set = load_values(file)
    for value in value_set.values:
        typer.echo(f"  {'gate' if value.gate else format(value.weight, '.3f'):>5}  {printable(value.name)}")
    typer.echo(
        f"{file}: {value_set.name!r}, {len(value_set.scored)} weighted values and {len(value_set.gates)} hard gates."
    )
