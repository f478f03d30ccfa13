"""The command line ``sal``: ``sal report`` and ``sal dashboard``."""

from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(help="What Self-Alignment Learning did in a training.", no_args_is_help=True, add_completion=False)


@app.command()
def report(
    run: Annotated[list[Path], typer.Argument(help="The run's folder or file; several are its fits, in order.")],
    against: Annotated[list[Path] | None, typer.Option(help="A plain run to compare drift with.")] = None,
    out: Annotated[Path, typer.Option(help="The page to write.")] = Path("sal-report.html"),
    name: Annotated[str, typer.Option(help="The callback's name, if it has one.")] = "",
) -> None:
    """Write one page of a run, from the folder of CSVLogger or the offline file of Weights & Biases."""
    if find_spec("plotly") is None:
        raise typer.BadParameter('plotly not installed: pip install "sal-lightning[report]".')
    # Not above: what is not asked for is not loaded.
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
    entity: Annotated[str | None, typer.Option(help="Whose it is; default: yours.")] = None,
    name: Annotated[str, typer.Option(help="The callback's name, if it has one.")] = "",
) -> None:
    """Create a workspace in Weights & Biases with SAL's panels; needs a key of theirs."""
    from sal_lightning.report.dashboard import create

    try:
        typer.echo(f"Created: {create(project, entity, name)}")
    except (ImportError, ValueError) as error:
        raise typer.BadParameter(str(error)) from error
