"""``safi report``: write an HTML report of a log."""

from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from safi_agent import defaults
from safi_agent.cli.options import LOG, STORE, LogFile, existing_store, one_line_errors, printable
from safi_agent.errors import SafiError
from safi_agent.unicode_text import many

if TYPE_CHECKING:
    from safi_agent.report.seal import Seal


def report(
    log: LogFile = LOG,
    out: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Path of the report. Default: the log's path with the suffix .html."),
    ] = None,
    newest: Annotated[
        int,
        typer.Option(metavar="COUNT", help="Number of newest turns, and of newest turns to review, shown in full."),
    ] = 500,
    store: Annotated[str, typer.Option(metavar="URL", help="URL of the store that wrote the log.")] = STORE,
    card: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help='A calibration card to show, as "safi calibrate" writes it.'),
    ] = None,
    review_below: Annotated[
        float, typer.Option(metavar="NUMBER", help="Turns with a lower score are to be reviewed.")
    ] = defaults.REVIEW_BELOW,
    drift_above: Annotated[
        float, typer.Option(metavar="NUMBER", help="Turns with a higher drift are to be reviewed.")
    ] = defaults.DRIFT_ABOVE,
) -> None:
    """Write an HTML report of a log.

    It shows whether the log is as it was written, trends, the ledger, and the turns to review. It needs no network.
    """
    from safi_agent.report.page import write_page

    page = out or log.with_suffix(".html")
    with one_line_errors("report"):
        found = verified_seal(log, store)
        review = write_page(log, page, newest, card, found, review_below=review_below, drift_above=drift_above)
    typer.echo(f"{page}: {many(review.turns, 'turn')}, {review.flagged} to review.")
    if found.state == "changed":
        typer.echo(f"safi report: {printable(found.text)} 'safi verify' lists them.", err=True)


def verified_seal(log: Path, url: str) -> "Seal":
    """Verify the log: with the store if it wrote the log, otherwise by the log's own MACs."""
    from safi_agent.cli.verify import find_account, log_key
    from safi_agent.log.reconciliation import Checked, check
    from safi_agent.log.verify import is_chained
    from safi_agent.log.verify import verify as verify_log
    from safi_agent.report.seal import Seal, seal

    with suppress(ValueError), existing_store(url) as store:
        try:
            if (account := find_account(store, log)) is not None:
                return seal(check(log, log_key(log), store, account, 1), with_store=True)
        except (SafiError, OSError) as error:
            return Seal("unchecked", str(error))
    try:
        if not is_chained(log):
            return Seal("unchecked", "None of the lines has a MAC, as in logs of an older version.")
        return seal(Checked(verify_log(log, log_key(log)), None, 0, 0, 0), with_store=False)
    except (SafiError, ValueError, OSError) as error:
        return Seal("unchecked", str(error))
