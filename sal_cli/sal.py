"""The command line ``sal``: ``sal report`` and ``sal dashboard``."""

from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(help="Reports of trainings with Self-Alignment Learning.", no_args_is_help=True, add_completion=False)


@app.command()
def report(
    run: Annotated[list[Path], typer.Argument(help="Folder or file of the run; several for successive fits.")],
    against: Annotated[list[Path] | None, typer.Option(help="A run without SAL, to compare drift with.")] = None,
    out: Annotated[Path, typer.Option(help="The page to write.")] = Path("sal-report.html"),
    name: Annotated[str, typer.Option(help="The callback's name, if it has one.")] = "",
) -> None:
    """Write an HTML page of a run, from a folder of CSVLogger or an offline file of Weights & Biases."""
    if find_spec("plotly") is None:
        raise typer.BadParameter('plotly not installed: pip install "sal-lightning[report]".')
    # Imported here so that other commands start without plotly and torch.
    from sal_lightning.report.page import write
    from sal_lightning.report.reading import read

    try:
        file = write(read(run, name), out, read(against) if against else None)
    except (ImportError, OSError, ValueError) as error:
        raise typer.BadParameter(str(error)) from error
    typer.echo(f"Written: {file.resolve()}")


@app.command()
def dashboard(
    project: Annotated[str, typer.Argument(help="The project in Weights & Biases.")],
    entity: Annotated[
        str | None, typer.Option(help="User or team in Weights & Biases; default: the key's own.")
    ] = None,
    name: Annotated[str, typer.Option(help="The callback's name, if it has one.")] = "",
) -> None:
    """Create a workspace with SAL's panels in Weights & Biases; needs an API key."""
    from sal_lightning.report.dashboard import create

    try:
        typer.echo(f"Created: {create(project, entity, name)}")
    except (ImportError, ValueError) as error:
        raise typer.BadParameter(str(error)) from error
