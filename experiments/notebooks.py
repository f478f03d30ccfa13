"""``python -m experiments.notebooks``: run the examples in full, and write each notebook next to its script."""

import argparse
import base64
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from io import BytesIO
from itertools import zip_longest
from pathlib import Path
from typing import Any

import jupytext
import nbformat
import plotly.graph_objects as go
from nbclient import NotebookClient
from PIL import Image
from traitlets.config import Config

from experiments.browser import browser
from experiments.filing import write_whole
from experiments.provenance import ROOT
from sal_page import Section, render

EXAMPLES = ROOT / "examples"
PARAMETERS = "parameters"  # tag of the cell whose settings can be replaced
PATIENCE = 1800  # seconds for one cell
PLOTLY = "application/vnd.plotly.v1+json"
WIDTH = 840  # width of a page of figures in pixels
KERNEL = {"name": "python3", "display_name": "Python 3", "language": "python"}
Notebook = nbformat.NotebookNode


def sources(folder: Path = EXAMPLES) -> list[Path]:
    """The scripts of the examples."""
    return sorted(folder.glob("*.py"))


def read(source: Path) -> Notebook:
    """Convert the script to a notebook without outputs, deterministically."""
    notebook: Notebook = jupytext.read(source)
    for number, cell in enumerate(notebook.cells):
        cell["id"] = f"cell-{number}"
    notebook["metadata"] = nbformat.from_dict({"kernelspec": KERNEL})
    return notebook


def execute(notebook: Notebook, folder: Path, settings: Mapping[str, Any] | None = None) -> Notebook:
    """Run all cells in a folder, on one thread, with ``settings`` replacing the settings cell.

    Raises:
        nbclient.exceptions.CellExecutionError: a cell failed.
    """
    if settings:
        (at,) = (i for i, cell in enumerate(notebook.cells) if PARAMETERS in cell.metadata.get("tags", ()))
        lines = "\n".join(f"{name} = {value!r}" for name, value in settings.items())
        notebook.cells.insert(at + 1, nbformat.v4.new_code_cell(lines))
    environment = os.environ | {
        "PYTHONPATH": str(ROOT),
        "PYTHONWARNINGS": "ignore:IProgress not found",  # tqdm's widgets are not needed
        "PLOTLY_RENDERER": "plotly_mimetype",
        "OMP_NUM_THREADS": "1",
        "IPYTHONDIR": str(folder),
        "TMPDIR": str(folder),
    }
    with tempfile.TemporaryDirectory() as sockets:  # a short path, as sockets need
        own = {"transport": "ipc", "connection_file": f"{sockets}/kernel.json"}
        resources = {"metadata": {"path": str(folder)}}
        config = Config({"AsyncKernelManager": own})
        NotebookClient(notebook, timeout=PATIENCE, resources=resources, config=config).execute(env=environment)
    return notebook


def unlike(one: Notebook, other: Notebook) -> list[int]:
    """Indices of the cells whose source differs between two notebooks."""
    cells = ([(cell.cell_type, cell.source, cell.metadata.get("tags")) for cell in of.cells] for of in (one, other))
    return [number for number, (a, b) in enumerate(zip_longest(*cells)) if a != b]


def outputs(notebook: Notebook) -> Iterator[Notebook]:
    """All outputs, in order."""
    for cell in notebook.cells:
        yield from cell.get("outputs", ())


def drawn(notebook: Notebook) -> Notebook:
    """The notebook with plotly figures replaced by images, for viewers without plotly."""
    figures = [output for output in outputs(notebook) if PLOTLY in output.get("data", {})]
    if not figures:
        return notebook
    with tempfile.TemporaryDirectory() as folder, browser() as window:
        page, picture = Path(folder, "figures.html"), Path(folder, "figure.png")
        sections = [Section("", figures=(go.Figure(output["data"][PLOTLY]),)) for output in figures]
        page.write_text(render("", "", sections), encoding="utf-8")
        window.goto(page, WIDTH)
        for number, output in enumerate(figures, 1):
            window.picture(picture, f"section:nth-of-type({number}) .figure")
            output["data"] = {"image/png": base64.b64encode(small(picture)).decode()}
    return notebook


def small(picture: Path) -> bytes:
    """The image reduced to 256 colours."""
    content = BytesIO()
    Image.open(picture).convert("RGB").quantize(dither=Image.Dither.NONE).save(content, "PNG", optimize=True)
    return content.getvalue()


def write(source: Path) -> Path:
    """Run an example in full, and write its notebook next to its script."""
    with tempfile.TemporaryDirectory() as folder:
        notebook = drawn(execute(read(source), Path(folder)))
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)  # timestamps
    file = source.with_suffix(".ipynb")
    write_whole(file, f"{nbformat.writes(notebook)}\n".encode())
    return file


def main(argv: Sequence[str] | None = None) -> None:
    """Run the given examples, or all."""
    parser = argparse.ArgumentParser(prog="python -m experiments.notebooks", description=__doc__)
    parser.add_argument("names", nargs="*", help=f"of {', '.join(source.stem for source in sources())} (default: all)")
    parser.add_argument("--folder", type=Path, default=EXAMPLES, help="where the scripts are")
    asked = parser.parse_args(argv)
    for source in sources(asked.folder):
        if not asked.names or source.stem in asked.names:
            print(f"{write(source)} is written.")


if __name__ == "__main__":
    main()
