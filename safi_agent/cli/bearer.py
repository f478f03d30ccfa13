"""``safi bearer``: a new bearer key for a client of ``safi serve``."""

from pathlib import Path
from typing import Annotated

import typer

from safi_agent.cli.options import one_line_errors


def bearer(
    memory_key: Annotated[
        str, typer.Argument(metavar="CLIENT", help="Memory key of the client's turns, such as the client's name.")
    ],
    keys: Annotated[
        Path,
        typer.Option(
            metavar="FILE", envvar="SAFI_SERVE_KEYS_FILE", help="File to which the hash of the key is appended."
        ),
    ] = Path("safi-serve.keys"),
) -> None:
    """Create a bearer key for a client.

    It is printed; only its hash is stored, for "safi serve".
    """
    with one_line_errors("bearer"):
        from safi_agent.serve.bearer_keys import add_bearer_key

        key = add_bearer_key(keys, memory_key)
    typer.echo(key)
    typer.echo(f"Its hash is in {keys.resolve()}; start safi serve anew to let it in.", err=True)
