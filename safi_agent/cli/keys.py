"""``safi keys``: a new pair of keys to sign logs with."""

from pathlib import Path
from typing import Annotated

import typer

from safi_agent.cli.options import one_line_errors


def keys(
    name: Annotated[
        str,
        typer.Argument(
            metavar="NAME", help="Name of the key, best a URL without its scheme, such as example.com/safi."
        ),
    ],
    out: Annotated[
        Path, typer.Option(metavar="FILE", help="File of the private key; the public key is written to FILE.pub.")
    ] = Path("safi-signing.key"),
) -> None:
    """Generate a key pair to sign logs with.

    The keys are Ed25519, in two new files.
    """
    from safi_agent.log.signing_keys import FILE, generate_key, write_key_files

    with one_line_errors("keys"):
        public = write_key_files(generate_key(name), out)
    typer.echo(f"Written: {out.resolve()}, readable by you alone; processes sign with it if {FILE} names it.")
    typer.echo(f"Written: {public.resolve()}, to give to everyone who verifies the log.")
