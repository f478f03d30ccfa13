"""``safi verify``: whether a log is as it was written."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from safi_agent.cli.options import LOG, STORE, open_existing_store
from safi_agent.errors import LogError

if TYPE_CHECKING:
    from safi_agent.log.reconciliation import Checked
    from safi_agent.store import Store
    from safi_agent.store.log_account import LogAccount

WHOLE, TAMPERED, UNCHECKED, UNCHAINED = 0, 1, 2, 3


def verify(
    log: Annotated[Path, typer.Argument(help="The log; its full files are found beside it.")] = LOG,
    store: Annotated[str, typer.Option(help="URL of the store that wrote it.")] = STORE,
    without_store: Annotated[
        bool, typer.Option("--without-store", help="Do not compare the log with the store.")
    ] = False,
    first_line: Annotated[int, typer.Option(help="The first line here, if earlier files are elsewhere.", min=1)] = 1,
) -> None:
    """Check every line of a log against its chain, and the log against the store that wrote it.

    Ends with 0 if it is as it was written; 1 if it is not, and says where; 2 if that could not be checked; 3 if none of
    its lines has a mac, so that nothing can be said of it.
    """
    from safi_agent.store.database_errors import raise_as

    compared = raise_as(_unreadable, "The store could not be read")(_with_store)
    try:
        ended = _alone(log, first_line) if without_store else compared(log, store, first_line)
    except (LogError, ValueError, OSError) as error:
        typer.echo(f"{log}: not checked: {error}", err=True)
        raise typer.Exit(UNCHECKED) from None
    raise typer.Exit(ended)


def _unreadable(cause: str) -> LogError:
    return LogError(f"store: expected one that can be opened, got {cause}. Details are in the logger 'safi_agent'.")


def _alone(log: Path, first_line: int) -> int:
    """Without the store."""
    from safi_agent.log.reconciliation import Checked
    from safi_agent.log.verify import is_chained
    from safi_agent.log.verify import verify as verify_log

    if not is_chained(log):
        return _unchained(log)
    ended = _say(log, Checked(verify_log(log, _key(log), None, first_line), None, 0, 0))
    if ended == WHOLE:
        typer.echo("The store was not asked: nobody can see here whether lines are missing at the end.")
    return ended


def _with_store(log: Path, url: str, first_line: int) -> int:
    """Against the store, which may know the log under another path.

    Raises:
        LogError: the store never wrote the log, or there is no key, or another.
        FileNotFoundError: there is neither the log nor a store that could have written it.
        ValueError: the log is there, and the store is not or cannot be opened.
    """
    from safi_agent.log.reconciliation import check, find_other_path
    from safi_agent.log.verify import is_chained
    from safi_agent.store.log_account import read_log_account

    store = _opened(log, url)
    if (told := _remembered(store, log)) is not None:
        return _say(log, check(log, _key(log), store, told, first_line))
    if not is_chained(log):
        return _unchained(log)
    try:
        key = _key(log)
    except LogError as error:
        raise LogError(f"this store never wrote it at this path, and a copy is known by its key: {error}") from None
    if (known := find_other_path(store, str(log.resolve()), key)) is None:
        raise LogError("this store never wrote it; name the one that did by --store, or say --without-store.")
    ended = _say(log, check(log, key, store, read_log_account(store, known[0]), first_line))
    typer.echo(f"The store wrote it as {known[0]}: this is a copy, or it was moved.")
    return ended


def _unchained(log: Path) -> int:
    typer.echo(f"{log}: none of its lines has a mac, as in logs of an older version: nothing can be said of it.")
    return UNCHAINED


def _key(log: Path) -> bytes:
    from safi_agent.log.key import find_key, key_file

    if (key := find_key(log.resolve())) is None:
        raise LogError(f"expected its key in the environment (SAFI_LOG_KEY) or in {key_file(log)}, found none.")
    return key


def _opened(log: Path, url: str) -> "Store":
    from safi_agent.log.rotation import log_files

    try:
        return open_existing_store(url)
    except ValueError:
        if log_files(log):
            raise
    raise FileNotFoundError(f"expected a log that is there, got {str(log)!r}.")


def _remembered(store: "Store", log: Path) -> "LogAccount | None":
    """The store's account of a log at this path, also where the file does not exist any more."""
    from safi_agent.store.log_account import read_log_account

    for path in dict.fromkeys((log.resolve(), log.absolute())):
        if (told := read_log_account(store, str(path))).anchor or told.written:
            return told
    return None


def _say(log: Path, checked: "Checked") -> int:
    verdict, anchor, foreign, waiting = checked
    for fault in verdict.faults:
        typer.echo(str(fault))
    if verdict.faulty:
        many = "fault" if verdict.faulty == 1 else "faults"
        typer.echo(f"{log}: not as it was written: {verdict.faulty:,} {many} in {verdict.lines:,} lines.")
        return TAMPERED
    typer.echo(f"{log}: {verdict.lines:,} lines, as they were written.")
    if verdict.unsealed:
        typer.echo(f"The first {verdict.unsealed:,} have no mac; they are as they were when the chain began.")
    if anchor and verdict.tip and verdict.tip.lines > anchor.lines:
        typer.echo(f"{verdict.tip.lines - anchor.lines:,} at the end were written since the store was last told.")
    if foreign:
        typer.echo(
            f"{foreign:,} are of turns that this store does not have: another store wrote them, or this one was set "
            "back to an earlier state."
        )
    if waiting:
        typer.echo(f"{waiting:,} turns were committed and are not in the log yet; the logger 'safi_agent' says why.")
    return WHOLE
