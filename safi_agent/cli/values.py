"""``safi values check``: all that is wrong with the file of a value set, before a chain is held to it."""

from typing import Annotated

import typer

from safi_agent.values import load_values, text_of
from safi_agent.values.linting import lint

SOUND, WRONG, UNREAD = 0, 1, 2
app = typer.Typer(help="Value sets.", no_args_is_help=True)


@app.callback()
def values() -> None:
    """Value sets."""


@app.command()
def check(file: Annotated[str, typer.Argument(help="A value set in YAML, or the name of a shipped one.")]) -> None:
    """Name all that is wrong with a value set, by line.

    Ends with 0 if nothing is, and shows the weights as they will be used; 1 if something is; 2 if it cannot be read.
    """
    try:
        text = text_of(file)
    except (OSError, ValueError) as error:
        typer.echo(f"{file}: not read: {error}", err=True)
        raise typer.Exit(UNREAD) from None
    wrong = lint(text)
    for one in wrong:
        typer.echo(f"{file}:{one.line}: {one.what}")
    if wrong:
        typer.echo(f"{file}: {len(wrong)} {'error' if len(wrong) == 1 else 'errors'}.")
        raise typer.Exit(WRONG)
    found = load_values(file)
    for value in found.values:
        typer.echo(f"  {'gate' if value.gate else format(value.weight, '.3f'):>5}  {value.name}")
    typer.echo(f"{file}: {found.name!r}, {len(found.scored)} weighted values and {len(found.gates)} hard gates.")
