"""``safi prove``: a proof of one turn, or that a log extends an earlier checkpoint."""

from pathlib import Path
from typing import Annotated

import typer

from safi_agent.cli.options import LOG, one_line_errors


def prove(
    turn: Annotated[
        str | None, typer.Argument(metavar="[TURN]", help="Id of the turn, as in the answer's metadata.")
    ] = None,
    log: Annotated[Path, typer.Argument(metavar="[LOG]", help="Path of the log.")] = LOG,
    since: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="An earlier checkpoint: prove that the log extends it, instead of a turn."),
    ] = None,
) -> None:
    """Print a proof that a turn is in the log.

    It contains the turn's line, and anyone can check it.

    With --since, the proof is that the log's checkpoint extends an earlier one. Check either with "safi verify-proof".
    """
    from safi_agent.log.proofs import prove_extension, prove_turn

    with one_line_errors("prove"):
        if (turn is None) == (since is None):
            raise ValueError("expected either the id of a turn or --since.")
        proof = prove_turn(log, turn) if turn is not None else prove_extension(log, Path(str(since)).read_bytes())
    typer.echo(proof, nl=False)
