"""``safi values check``: validate a value set and list its errors by line."""

from typing import Annotated

import typer

from safi_agent.values import load_values, text_of
from safi_agent.values.linting import lint

INVALID, UNREADABLE = 1, 2
app = typer.Typer(help="Value sets.", no_args_is_help=True)


@app.callback()
def values() -> None:
    """Value sets."""


@app.command()
def check(file: Annotated[str, typer.Argument(help="A value set in YAML, or the name of a shipped one.")]) -> None:
    """List all errors of a value set, by line; without errors, the weights as they will be used.

    Exit code: 0 if the value set is valid; 1 if it has errors; 2 if it cannot be read.
    """
    try:
        text = text_of(file)
    except (OSError, ValueError) as error:
        typer.echo(f"{file}: not read: {error}", err=True)
        raise typer.Exit(UNREADABLE) from None
    errors = lint(text)
    for found in errors:
        typer.echo(f"{file}:{found.line}: {found.what}")
    if errors:
        typer.echo(f"{file}: {len(errors)} {'error' if len(errors) == 1 else 'errors'}.")
        raise typer.Exit(INVALID)
    value_set = load_values(file)
    for value in value_set.values:
        typer.echo(f"  {'gate' if value.gate else format(value.weight, '.3f'):>5}  {value.name}")
    typer.echo(
        f"{file}: {value_set.name!r}, {len(value_set.scored)} weighted values and {len(value_set.gates)} hard gates."
    )
