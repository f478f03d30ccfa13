"""``safi reaudit``: audits that failed for good, made again."""

from typing import Annotated

import typer

from safi_agent.cli.options import LOG, STORE, Database, Log, Model, Values, one_line_errors, open_existing_store

FAILED_AGAIN = 1


def reaudit(
    values: Values = "unesco",
    model: Model = None,
    store: Database = STORE,
    log: Log = LOG,
    turn: Annotated[list[str] | None, typer.Option(help="The id of a turn; may be given more than once.")] = None,
    timeout: Annotated[float, typer.Option(help="Seconds to wait at most.")] = 300,
) -> None:
    """Audit turns again whose audit has failed: those that are named, or all of the value set.

    Ends with 0 if all were audited, 1 if one failed again or is not done, 2 if it could not be tried.
    """
    from safi_agent import create_safi_chain
    from safi_agent.store.reaudit import failed_audits, open_reaudits

    with one_line_errors("reaudit"):
        kept = open_existing_store(store)
        with create_safi_chain(model, values, store=store, log=log) as safi:
            tried = failed_audits(kept, safi.values.name, turn or None)
            safi.reaudit(tried)
            safi.drain(timeout)
            left, again = open_reaudits(kept, tried), failed_audits(kept, safi.values.name, tried)
    typer.echo(f"{len(tried) - len(left) - len(again)} turns were audited, {len(again)} failed again.")
    if left:
        typer.echo(f"{len(left)} are not done; safi drain waits for them.")
    raise typer.Exit(FAILED_AGAIN if left or again else 0)
