"""``safi verify``: check the integrity of a log."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from safi_agent.cli.options import LOG, STORE, LogFile, existing_store, one_line_errors
from safi_agent.errors import LogError
from safi_agent.unicode_text import many

if TYPE_CHECKING:
    from safi_agent.log.reconciliation import Checked
    from safi_agent.log.verify import Verdict
    from safi_agent.store import Store
    from safi_agent.store.log_account import LogAccount

WHOLE, TAMPERED, UNCHAINED = 0, 1, 3


def verify(
    log: LogFile = LOG,
    store: Annotated[str, typer.Option(metavar="URL", help="URL of the store that wrote the log.")] = STORE,
    without_store: Annotated[
        bool, typer.Option("--without-store", help="Do not compare the log with the store.")
    ] = False,
    first_line: Annotated[
        int,
        typer.Option(metavar="NUMBER", help="Number of the first line, if earlier files were moved away.", min=1),
    ] = 1,
    public_key: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="File of public keys: check signatures instead, without the store and the log's key."
        ),
    ] = None,
    checkpoint: Annotated[
        list[Path] | None,
        typer.Option(metavar="FILE", help="An earlier signed checkpoint that the log has to extend; can be repeated."),
    ] = None,
) -> None:
    """Check that a log is as it was written.

    Every line is checked against the hash chain, and the log against the store that wrote it.

    With --public-key, check it against its signed checkpoint instead, and against earlier ones.

    Exit code: 0 if the log is as it was written; 1 if it is not, with the lines printed; 2 if it could not be checked;
    3 if none of its lines has a MAC, so that it cannot be verified.
    """
    from safi_agent.store.database_errors import raise_as

    check_with_store = raise_as(_unreadable, "The store could not be read")(_with_store)
    with one_line_errors("verify", about=f"{log}: not checked"):
        if public_key is not None:
            code = _with_public_key(log, public_key, checkpoint or [], first_line)
        elif checkpoint:
            raise ValueError("expected --public-key with --checkpoint.")
        else:
            code = _without_store(log, first_line) if without_store else check_with_store(log, store, first_line)
    raise typer.Exit(code)


def _unreadable(cause: str) -> LogError:
    return LogError(
        f"store: expected a database that can be opened, got {cause}. Details are in the logger 'safi_agent'."
    )


def _with_public_key(log: Path, public_key: Path, exported: list[Path], first_line: int) -> int:
    """Verify the log against signed checkpoints; returns the exit code."""
    from safi_agent.log.signing_keys import read_public_keys
    from safi_agent.log.verify_signed import verify_signed

    verdict, signed, key = verify_signed(log, read_public_keys(public_key), exported, first_line)
    if signed is None or key is None or verdict.faulty:
        return _print_faults(log, verdict, "signed")
    typer.echo(f"{log}: {verdict.lines:,} lines, as they were signed by {key.label} for the log {signed.origin}.")
    _print_erased(verdict)
    for file in exported:
        typer.echo(f"They extend the checkpoint in {file}.")
    return WHOLE


def _without_store(log: Path, first_line: int) -> int:
    """Verify the log alone; returns the exit code."""
    from safi_agent.log.reconciliation import Checked
    from safi_agent.log.verify import is_chained
    from safi_agent.log.verify import verify as verify_log

    if not is_chained(log):
        return _unchained(log)
    code = _print_result(log, Checked(verify_log(log, log_key(log), None, first_line), None, 0, 0, 0))
    if code == WHOLE:
        typer.echo("The log was not compared with the store: lines missing at the end cannot be detected.")
    return code


def _with_store(log: Path, url: str, first_line: int) -> int:
    """Verify the log with the store, which may contain it under another path; returns the exit code.

    Raises:
        LogError: the store did not write the log, or the key is missing or differs.
        FileNotFoundError: neither the log nor the store exists.
        ValueError: the log exists, but the store does not or cannot be opened.
    """
    from safi_agent.log.reconciliation import check, find_other_path
    from safi_agent.log.verify import is_chained
    from safi_agent.store.log_account import read_log_account

    with _store_of(log, url) as store:
        if (account := find_account(store, log)) is not None:
            return _print_result(log, check(log, log_key(log), store, account, first_line))
        if not is_chained(log):
            return _unchained(log)
        try:
            key = log_key(log)
        except LogError as error:
            raise LogError(
                f"this store did not write a log at this path, and its key is needed to recognize a copy: {error}"
            ) from None
        if (original := find_other_path(store, str(log.resolve()), key)) is None:
            raise LogError("this store did not write it; give the store that did with --store, or use --without-store.")
        code = _print_result(log, check(log, key, store, read_log_account(store, original[0]), first_line))
        typer.echo(f"The store wrote it as {original[0]}: this is a copy, or it was moved.")
        return code


def _unchained(log: Path) -> int:
    typer.echo(f"{log}: none of its lines has a MAC, as in logs of an older version: it cannot be verified.")
    return UNCHAINED


def log_key(log: Path) -> bytes:
    """The key of a log.

    Raises:
        LogError: it is neither in the environment nor beside the log.
    """
    from safi_agent.log.key import find_key, key_file

    if (key := find_key(log.resolve())) is None:
        raise LogError(f"expected its key in the environment (SAFI_LOG_KEY) or in {key_file(log)}, found none.")
    return key


@contextmanager
def _store_of(log: Path, url: str) -> Iterator["Store"]:
    from safi_agent.log.rotation import log_files

    with ExitStack() as stack:
        try:
            store = stack.enter_context(existing_store(url))
        except ValueError:
            if log_files(log):
                raise
            raise FileNotFoundError(f"expected an existing log, got {str(log)!r}.") from None
        yield store


def find_account(store: "Store", log: Path) -> "LogAccount | None":
    """The store's account of a log at this path, even if the file no longer exists."""
    from safi_agent.store.log_account import read_log_account

    for path in dict.fromkeys((log.resolve(), log.absolute())):
        if (account := read_log_account(store, str(path))).anchor or account.written:
            return account
    return None


def _print_faults(log: Path, verdict: "Verdict", done: str) -> int:
    for fault in verdict.faults:
        typer.echo(str(fault))
    noun = "fault" if verdict.faulty == 1 else "faults"
    typer.echo(f"{log}: not as it was {done}: {verdict.faulty:,} {noun} in {verdict.lines:,} lines.")
    return TAMPERED


def _print_erased(verdict: "Verdict") -> None:
    if verdict.erased:
        typer.echo(f"{many(verdict.erased, 'line')} erased, as lines of the log record: figures without contents.")


def _print_result(log: Path, checked: "Checked") -> int:
    verdict, anchor, foreign, waiting, kept = checked
    if verdict.faulty:
        return _print_faults(log, verdict, "written")
    typer.echo(f"{log}: {verdict.lines:,} lines, as they were written.")
    _print_erased(verdict)
    if kept:
        typer.echo(
            f"{many(kept, 'line')} with contents that were erased in the store: repeat 'safi erase', and replace "
            "copies of the log by new ones."
        )
    if verdict.unsealed:
        typer.echo(f"The first {verdict.unsealed:,} have no MAC; they are unchanged since the chain began.")
    if anchor and verdict.tip and verdict.tip.lines > anchor.lines:
        typer.echo(f"{verdict.tip.lines - anchor.lines:,} at the end were written after the store's last anchor.")
    if foreign:
        typer.echo(
            f"{foreign:,} are of turns that this store does not have: another store wrote them, or this one was "
            "restored to an earlier state."
        )
    if waiting:
        typer.echo(f"{waiting:,} turns are committed but not in the log yet; the logger 'safi_agent' has the reason.")
    return WHOLE
