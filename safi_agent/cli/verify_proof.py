"""``safi verify-proof``: check a proof without the log."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

from safi_agent.errors import LogError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from safi_agent.log.signing_keys import PublicKey

PROVEN, NOT_PROVEN, UNCHECKED = 0, 1, 2


def verify_proof(
    proof: Annotated[Path, typer.Argument(metavar="PROOF", help="File of the proof.")],
    public_key: Annotated[Path, typer.Option(metavar="FILE", help="File of public keys, one on each line.")],
    checkpoint: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="The earlier checkpoint, for a proof that a log extends it."),
    ] = None,
) -> None:
    """Check a proof of "safi prove".

    The proof of a turn is followed by the line of the log that it proves.

    Exit code: 0 if it holds; 1 if it does not; 2 if it could not be checked.
    """
    from safi_agent.log.signing_keys import read_public_keys

    try:
        content, keys = proof.read_bytes(), read_public_keys(public_key)
        old = None if checkpoint is None else checkpoint.read_bytes()
    except (OSError, ValueError) as error:
        _fail(proof, f"not checked: {error}", UNCHECKED)
    try:
        _check(proof, content, keys, old)
    except LogError as error:
        _fail(proof, f"not checked: {error}.", UNCHECKED)
    except ValueError as error:
        _fail(proof, f"proves nothing: {error}.", NOT_PROVEN)


def _check(proof: Path, content: bytes, keys: "Sequence[PublicKey]", old: bytes | None) -> None:
    from safi_agent.contents import is_erased
    from safi_agent.log.hash_chain import record_of
    from safi_agent.log.proofs import check_extension, check_turn, is_turn_proof

    if is_turn_proof(content):
        line, number, head, key = check_turn(content, keys)
        typer.echo(f"{proof}: line {number:,} of {head.size:,} of the log {head.origin}, signed by {key.label}.")
        if is_erased(record_of(line + b"\n")):
            typer.echo("Its contents were erased.")
        typer.echo(line.decode("utf-8", "backslashreplace"))
        return
    if old is None:
        raise LogError("expected the earlier checkpoint with --checkpoint")
    size, head, key = check_extension(content, keys, old)
    typer.echo(
        f"{proof}: the checkpoint of {head.size:,} lines of the log {head.origin}, signed by {key.label}, extends that "
        f"of {size:,} lines."
    )


def _fail(proof: Path, what: str, code: int) -> NoReturn:
    typer.echo(f"safi verify-proof: {proof}: {what}", err=True)
    raise typer.Exit(code) from None
