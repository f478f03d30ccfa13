"""``safi drain``: what a process that is gone has left, finished."""

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
    timeout: Annotated[float, typer.Option(help="Seconds to wait at most.")] = 300,
) -> None:
    """Finish the audits that processes which are gone have left; ends with 1 if turns are left then."""
    from safi_agent import create_safi_chain

    with one_line_errors("drain"):
        safi = create_safi_chain(model, values, store=store, log=log)
        done = safi.drain(timeout)
        safi.close(0)
    finish(done, "drain")


def finish(done: "DrainResult", command: str) -> None:
    """Print what was finished, and what is left and why.

    Raises:
        typer.Exit: with 1, where turns are left or something stands in their way.
    """
    typer.echo(f"{many(done, 'audit')} finished.")
    if not done.left and not done.blocked:
        return
    typer.echo(f"safi {command}: {many(done.left, 'turn')} left.", err=True)
    for sentence in done.blocked:
        typer.echo(f"safi {command}: {sentence}", err=True)
    raise typer.Exit(1)
