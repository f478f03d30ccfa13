"""``safi checkpoint``: the signed checkpoint of a log, to be kept where the log's owner cannot change it."""

from pathlib import Path
from typing import Annotated

import typer

from safi_agent.cli.options import LOG, STORE, existing_store, one_line_errors


def checkpoint(
    log: Annotated[Path, typer.Argument(metavar="[LOG]", help="Path of the log.")] = LOG,
    store: Annotated[str, typer.Option(metavar="URL", help="URL of the store that wrote the log.")] = STORE,
    without_store: Annotated[
        bool, typer.Option("--without-store", help="Sign lines that continue the hash chain, without asking the store.")
    ] = False,
) -> None:
    """Print the signed checkpoint of a log.

    Lines that are not signed yet are signed first, if there is a key.

    Exit code: 0 if the checkpoint covers all lines; 2 if it does not, or there is none.
    """
    with one_line_errors("checkpoint"):
        _sign_rest(log, store, without_store)
        note = _checkpoint_of_all(log)
    typer.echo(note, nl=False)


def _sign_rest(log: Path, url: str, without_store: bool) -> None:
    """Sign the lines that are not signed yet; nothing without a key."""
    from safi_agent.log.path import log_path
    from safi_agent.log.rotation import log_files
    from safi_agent.log.signing_keys import given_signing_key
    from safi_agent.log.writer import sign

    if not log_files(log):
        raise FileNotFoundError(f"expected an existing log, got {str(log)!r}.")
    if (key := given_signing_key()) is None:
        return
    if without_store:
        sign(None, log_path(log), key)
    else:
        with existing_store(url) as database:
            sign(database, log_path(log), key)


def _checkpoint_of_all(log: Path) -> bytes:
    from safi_agent.errors import LogError
    from safi_agent.log.checkpoint import checkpoint_file, parse_checkpoint, read_note
    from safi_agent.log.signed_note import parse_note
    from safi_agent.log.signing_keys import FILE
    from safi_agent.log.verify import last_seal
    from safi_agent.unicode_text import many

    note, last = read_note(checkpoint_file(log)), last_seal(log)
    size = parse_checkpoint(parse_note(note).text).size if note is not None else 0
    if note is None or (last and last.line > size):
        missing = many(last.line - size if last else 0, "line")
        raise LogError(f"{log}: {missing} without a signature, and no key to sign with: set {FILE}.")
    return note
