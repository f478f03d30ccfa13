"""``safi drain``: what a process that is gone has left, finished."""

from typing import Annotated

import typer

from safi_agent.cli.options import LOG, STORE, Database, Log, Model, Values, in_plain_words


def drain(
    values: Values = "unesco",
    model: Model = None,
    store: Database = STORE,
    log: Log = LOG,
    timeout: Annotated[float, typer.Option(help="Seconds to wait at most.")] = 300,
) -> None:
    """Finish the audits that processes which are gone have left."""
    from safi_agent import create_safi_chain

    with in_plain_words("drain"), create_safi_chain(model, values, store=store, log=log) as safi:
        typer.echo(f"{safi.drain(timeout)} audits finished.")
