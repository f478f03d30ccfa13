"""``safi reaudit``: repeat audits that have failed after all attempts."""

from typing import Annotated

import typer

from safi_agent.cli.drain import GO_ON
from safi_agent.cli.options import LOG, STORE, Database, Log, Model, Timeout, Values, existing_store, one_line_errors

FAILED_AGAIN = 1


def reaudit(
    values: Values = "unesco",
    model: Model = None,
    store: Database = STORE,
    log: Log = LOG,
    turn: Annotated[list[str] | None, typer.Option(metavar="ID", help="Id of a turn; can be repeated.")] = None,
    timeout: Timeout = 300,
) -> None:
    """Repeat failed audits.

    They are those of the given turns, or all of the value set.

    Exit code: 0 if all audits succeeded; 1 if one failed again or is unfinished; 2 if none could be started.
    """
    from safi_agent import create_safi_chain
    from safi_agent.store.reaudit import failed_audits, open_reaudits

    with (
        one_line_errors("reaudit", interrupted=GO_ON),
        existing_store(store) as database,
        create_safi_chain(model, values, store=store, log=log) as safi,
    ):
        turn_ids = failed_audits(database, safi.values.name, turn or None)
        safi.reaudit(turn_ids)
        safi.drain(timeout)
        unfinished = open_reaudits(database, turn_ids)
        failed = failed_audits(database, safi.values.name, turn_ids)
    typer.echo(f"{len(turn_ids) - len(unfinished) - len(failed)} turns were audited, {len(failed)} failed again.")
    if unfinished:
        typer.echo(f"{len(unfinished)} are unfinished; 'safi drain' waits for them.")
    raise typer.Exit(FAILED_AGAIN if unfinished or failed else 0)
