"""``safi drain``: finish the audits of processes that have ended."""

from typing import TYPE_CHECKING, Annotated

import typer

from safi_agent.cli.options import LOG, STORE, Database, Log, Model, Values, one_line_errors
from safi_agent.unicode_text import many

if TYPE_CHECKING:
    from safi_agent.lifecycle import DrainResult


def drain(
    values: Values = "unesco",
    model: Model = None,
    store: Database = STORE,
    log: Log = LOG,
    timeout: Annotated[float, typer.Option(help="Maximum number of seconds to wait.")] = 300,
) -> None:
    """Finish the audits that ended processes left unfinished. Exit code 1 if some are still unfinished afterwards."""
    from safi_agent import create_safi_chain

    with one_line_errors("drain"):
        safi = create_safi_chain(model, values, store=store, log=log)
        result = safi.drain(timeout)
        safi.close(0)
    finish(result, "drain")


def finish(result: "DrainResult", command: str) -> None:
    """Print the number of finished audits, the number of unfinished turns and the reasons.

    Raises:
        typer.Exit: with code 1, if turns are unfinished or blocked.
    """
    typer.echo(f"{many(result, 'audit')} finished.")
    if not result.left and not result.blocked:
        return
    typer.echo(f"safi {command}: {many(result.left, 'turn')} left.", err=True)
    for sentence in result.blocked:
        typer.echo(f"safi {command}: {sentence}", err=True)
    raise typer.Exit(1)
