"""``safi erase``: remove the contents of turns from the store and the log."""

import re
from datetime import timedelta
from typing import Annotated

import typer

from safi_agent.cli.options import STORE, Database, existing_store, one_line_errors
from safi_agent.unicode_text import many

UNFINISHED = 1
_DURATION = re.compile(r"(\d{1,6})([hdw])")
_UNITS = {"h": "hours", "d": "days", "w": "weeks"}


def erase(
    turn: Annotated[list[str] | None, typer.Option(metavar="ID", help="Id of a turn; can be repeated.")] = None,
    key: Annotated[str | None, typer.Option(metavar="KEY", help="All turns of this memory key.")] = None,
    older_than: Annotated[
        str | None,
        typer.Option(
            metavar="AGE", help="All turns that were answered longer ago than this, such as 90d; units: h, d, w."
        ),
    ] = None,
    store: Database = STORE,
) -> None:
    """Remove the contents of turns.

    Prompts, drafts, answers, reasons and metadata are removed from the store and from its logs. Figures, decisions and
    the order of turns remain, and "safi verify", "safi prove" and "safi replay" still hold.
    --key and --older-than can be combined. Others cannot write to the store while its database is written anew.

    Exit code: 0 if the contents are removed; 1 if some are left, with the place printed: repeat the command; 2 if
    nothing was changed.
    """
    from safi_agent.erasure import erase as erase_turns

    with one_line_errors("erase", interrupted="Repeat the command to finish it."), existing_store(store) as database:
        erased = erase_turns(database, turn_ids=turn or None, key=key, older_than=_duration(older_than))
    earlier = f", {many(erased.earlier, 'turn')} were erased before" if erased.earlier else ""
    typer.echo(f"{many(erased.turns, 'turn')} erased, in {many(erased.lines, 'line')} of the log{earlier}.")
    if erased.unfinished:
        for sentence in erased.unfinished:
            typer.echo(f"safi erase: contents are left. {sentence}", err=True)
        raise typer.Exit(UNFINISHED)
    typer.echo("Not erased: backups, exported proofs and reports that were written before.")


def _duration(text: str | None) -> timedelta | None:
    """A duration such as "90d".

    Raises:
        ValueError: it is anything else.
    """
    if text is None:
        return None
    if (match := _DURATION.fullmatch(text)) is None:
        raise ValueError(f"--older-than: expected a whole number and one of the units h, d and w, got {text!r}.")
    return timedelta(**{_UNITS[match[2]]: int(match[1])})
