"""``safi verify``: whether a log is as it was written."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from safi_agent.cli.options import LOG, STORE, kept_store
from safi_agent.errors import LogError

if TYPE_CHECKING:
    from safi_agent.log.verify import Verdict
    from safi_agent.store import Anchor

WHOLE, TAMPERED, UNCHECKED, UNCHAINED = 0, 1, 2, 3


def verify(
    log: Annotated[Path, typer.Argument(help="The log; its full files are found beside it.")] = LOG,
    store: Annotated[str, typer.Option(help="URL of the store that wrote it.")] = STORE,
    without_store: Annotated[
        bool, typer.Option("--without-store", help="Do not ask the store how the log must end.")
    ] = False,
    first_line: Annotated[int, typer.Option(help="The first line here, if earlier files are elsewhere.", min=1)] = 1,
) -> None:
    """Check every line of a log against its chain, and its end against the store.

    Ends with 0 if it is as it was written; 1 if it is not, and says where; 2 if that could not be checked; 3 if none of
    its lines has a mac, so that nothing can be said of it.
    """
    from safi_agent.log.key import find_key, key_file
    from safi_agent.log.verify import is_chained
    from safi_agent.log.verify import verify as verify_log

    try:
        full = log.absolute()
        anchor = None if without_store else _remembered(full, store)
        if anchor is None and not is_chained(full):
            typer.echo(
                f"{log}: none of its lines has a mac, as in logs of an older version: nothing can be said of it."
            )
            raise typer.Exit(UNCHAINED)
        if anchor is None and not without_store:
            raise LogError("this store never wrote it; name the one that did by --store, or say --without-store.")
        if (key := find_key(full)) is None:
            raise LogError(f"expected its key in the environment (SAFI_LOG_KEY) or in {key_file(log)}, found none.")
        verdict = verify_log(log, key, anchor, first_line)
    except (LogError, ValueError, OSError) as error:
        typer.echo(f"{log}: not checked: {error}", err=True)
        raise typer.Exit(UNCHECKED) from None
    raise typer.Exit(_say(log, verdict, anchor))


def _remembered(log: Path, store: str) -> "Anchor | None":
    """What the store remembers of the log: also of one that is gone, which only the store can tell.

    Raises:
        FileNotFoundError: there is neither the log nor a store that could have written it.
        ValueError: the log is there, and the store is not or cannot be opened.
    """
    from safi_agent.log.files import log_files
    from safi_agent.store.failing import opening

    try:
        return opening(kept_store(store).anchor)(str(log))
    except ValueError:
        if log_files(log):
            raise
    raise FileNotFoundError(f"expected a log that is there, got {str(log)!r}.")


def _say(log: Path, verdict: "Verdict", anchor: "Anchor | None") -> int:
    for fault in verdict.faults:
        typer.echo(str(fault))
    if verdict.faulty:
        many = "fault" if verdict.faulty == 1 else "faults"
        typer.echo(f"{log}: not as it was written: {verdict.faulty:,} {many} in {verdict.lines:,} lines.")
        return TAMPERED
    typer.echo(f"{log}: {verdict.lines:,} lines, as they were written.")
    if verdict.unsealed:
        typer.echo(f"The first {verdict.unsealed:,} have no mac; they are as they were when the chain began.")
    if anchor is None:
        typer.echo("The store was not asked: nobody can see here whether lines are missing at the end.")
    elif verdict.tip and verdict.tip.lines > anchor.lines:
        typer.echo(f"{verdict.tip.lines - anchor.lines:,} at the end were written since the store was last told.")
    return WHOLE
