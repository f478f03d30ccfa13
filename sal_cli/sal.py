"""The command line ``sal``: ``sal report`` and ``sal dashboard``."""

from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer

from sal_cli.shared import add, new_app, one_line

Name = Annotated[str, typer.Option(metavar="NAME", help="The callback's name, if it has one.")]


def report(
    run: Annotated[
        list[Path], typer.Argument(metavar="RUN", help="Folder or file of the run; several for successive fits.")
    ],
    against: Annotated[
        list[Path] | None, typer.Option(metavar="RUN", help="A run without SAL, to compare drift with.")
    ] = None,
    out: Annotated[Path, typer.Option(metavar="FILE", help="The page to write.")] = Path("sal-report.html"),
    name: Name = "",
) -> None:
    """Write an HTML page of a training run.

    It reads a folder of CSVLogger or an offline file of Weights & Biases.
    """
    with one_line("sal report", ImportError, OSError, ValueError):
        if find_spec("plotly") is None:
            raise ImportError('plotly not installed: pip install "sal-lightning[report]".')
        # Imported here so that other commands start without plotly and torch.
        from sal_lightning.report.page import write
        from sal_lightning.report.reading import read

        file = write(read(run, name), out, read(against) if against else None)
    typer.echo(f"Written: {file.resolve()}")


def dashboard(
    project: Annotated[str, typer.Argument(metavar="PROJECT", help="The project in Weights & Biases.")],
    entity: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="User or team in Weights & Biases. Default: that of the API key."),
    ] = None,
    name: Name = "",
) -> None:
    """Create a workspace in Weights & Biases.

    It has SAL's panels, and needs an API key.
    """
    with one_line("sal dashboard", ImportError, ValueError):
        from sal_lightning.report.dashboard import create

        typer.echo(f"Created: {create(project, entity, name)}")


app = new_app("Reports of trainings with Self-Alignment Learning.")
add(app, report)
add(app, dashboard)
