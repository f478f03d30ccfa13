"""``safi drain``: finish the audits of processes that have ended."""

from typing import TYPE_CHECKING

import typer

from safi_agent.cli.options import LOG, STORE, Database, Log, Model, Timeout, Values, one_line_errors
from safi_agent.unicode_text import many

if TYPE_CHECKING:
    from safi_agent.lifecycle import DrainResult

GO_ON = "Unfinished audits stay in the store; 'safi drain' finishes them."


def drain(
    values: Values = "unesco",
    model: Model = None,
    store: Database = STORE,
    log: Log = LOG,
    timeout: Timeout = 300,
) -> None:
    """Finish the audits of ended processes.

    Exit code: 0 if none is left unfinished; 1 if some are.
    """
    from safi_agent import create_safi_chain

    with one_line_errors("drain", interrupted=GO_ON):
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
