"""``safi report``: write an HTML report of a log."""

from pathlib import Path
from typing import Annotated

import typer

from safi_agent import defaults
from safi_agent.cli.options import LOG, LogFile, one_line_errors


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

    It shows trends, the ledger, and the turns to review, and needs no network.
    """
    from safi_agent.report.page import write_page

    page = out or log.with_suffix(".html")
    with one_line_errors("report"):
        review = write_page(log, page, newest, card, review_below=review_below, drift_above=drift_above)
    typer.echo(f"{page}: {review.turns} turns, {review.flagged} to review.")
