"""``safi report``: a log as a page to look at."""

from pathlib import Path
from typing import Annotated

import typer

from safi_agent import defaults
from safi_agent.cli.options import LOG, one_line_errors


def report(
    log: Annotated[Path, typer.Argument(help="The log; its full files are found beside it.")] = LOG,
    to: Annotated[Path | None, typer.Option(help="The page. Default: the log's name with .html, beside it.")] = None,
    newest: Annotated[int, typer.Option(help="How many of the newest turns, and to review, can be read.")] = 500,
    review_below: Annotated[float, typer.Option(help="A score below it is to be reviewed.")] = defaults.REVIEW_BELOW,
    drift_above: Annotated[float, typer.Option(help="A drift above it is to be reviewed.")] = defaults.DRIFT_ABOVE,
) -> None:
    """Make a page of a log: trends, the ledger, and the turns to review. It opens without a network."""
    from safi_agent.report.page import write_page

    page = to or log.with_suffix(".html")
    with one_line_errors("report"):
        found = write_page(log, page, newest, review_below=review_below, drift_above=drift_above)
    typer.echo(f"{page}: {found.turns} turns, {found.flagged} to review.")
