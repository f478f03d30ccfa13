"""``safi worker``: audit turns that other processes answer, through a shared PostgreSQL store."""

import signal
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Annotated, cast

import typer

from safi_agent.cli.drain import finish
from safi_agent.cli.options import LOG, Conscience, Escalation, Log, Model, Values, one_line_errors

if TYPE_CHECKING:
    from safi_agent import SafiChain
    from safi_agent.audit.postgres import PostgresAuditor
    from safi_agent.lifecycle import DrainResult

Shared = Annotated[
    str, typer.Option(metavar="URL", envvar="SAFI_STORE", help="URL of the store, postgresql+psycopg://….")
]
Grace = Annotated[
    float, typer.Option(metavar="SECONDS", help="Time for running audits to finish after a signal to stop.", min=0)
]


def worker(
    store: Shared,
    values: Values = "unesco",
    model: Model = None,
    conscience_model: Conscience = None,
    escalation_model: Escalation = None,
    log: Log = LOG,
    grace: Grace = 25,
) -> None:
    """Audit turns that other processes answer.

    It runs until SIGTERM or Ctrl-C; unfinished audits then return to the queue. Exit code: 1 if turns are left then.
    """
    from safi_agent import create_safi_chain

    with one_line_errors("worker"):
        if not store.startswith("postgresql"):
            scheme = store.partition(":")[0]  # the rest can contain a password
            raise ValueError(f"--store: expected a URL that begins with 'postgresql+psycopg://', got {scheme!r}.")
        safi = create_safi_chain(
            model,
            values,
            conscience_model=conscience_model,
            escalation_model=escalation_model,
            store=store,
            log=log,
        )
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    typer.echo(f"Auditing turns under {safi.values.name!r}.")
    finish(work(safi, grace), "worker")


def work(safi: "SafiChain", grace: float) -> "DrainResult":
    """Wait for a signal, then stop; returns what the chain's worker has finished and what is left."""
    auditor = cast("PostgresAuditor", safi._auditor)
    with suppress(KeyboardInterrupt):
        while True:
            time.sleep(3600)
    auditor.stop(grace)
    return auditor.drain_result(auditor.done)
