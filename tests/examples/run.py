"""An example, run small, and what it found: as a notebook, or cell by cell in a process that is forked."""

import json
import os
from pathlib import Path
from typing import Any

import nbformat

from experiments.notebooks import PARAMETERS, execute, outputs, read, sources
from tests import forked

# Before the example's first cell, whose own filters come after it.
STRICT = "import warnings; warnings.simplefilter('error')"
CELLS = """
import json, sys, tempfile, torch
from pathlib import Path
from IPython.core.interactiveshell import InteractiveShell
torch.set_num_threads(1)
tempfile.tempdir = sys.argv[1]
shell = InteractiveShell.instance()
for cell in json.loads(Path(sys.argv[1], "cells.json").read_text()):
    shell.run_cell(cell).raise_error()
"""


def asking(name: str, asked: dict[str, str]) -> nbformat.NotebookNode:
    """The example with what the expressions are worth as its last output."""
    (source,) = (source for source in sources() if source.stem == name)
    notebook = read(source)
    wanted = ", ".join(f"{key!r}: {expression}" for key, expression in asked.items())
    notebook.cells.insert(0, nbformat.v4.new_code_cell(STRICT))
    notebook.cells.append(nbformat.v4.new_code_cell(f"import json; print(); print(json.dumps({{{wanted}}}))"))
    return notebook


def in_a_kernel(name: str, folder: Path, settings: dict[str, Any], asked: dict[str, str]) -> dict[str, Any]:
    """Run it with these settings; answers with what the expressions are worth at its end."""
    notebook = execute(asking(name, asked), folder, settings)
    assert [output.text for output in outputs(notebook) if output.get("name") == "stderr"] == []
    printed = "".join(output.text for output in notebook.cells[-1].outputs)  # a slow kernel prints in several parts
    found: dict[str, Any] = json.loads(printed)
    return found


def in_a_fork(name: str, folder: Path, settings: dict[str, Any], asked: dict[str, str]) -> dict[str, Any]:
    """The same without a kernel, which would import for as long as a small example runs."""
    cells = [cell for cell in asking(name, asked).cells if cell.cell_type == "code"]
    (at,) = (i for i, cell in enumerate(cells) if PARAMETERS in cell.metadata.get("tags", ()))
    sources = [cell.source for cell in cells]
    sources[at] += "".join(f"\n{name} = {value!r}" for name, value in settings.items())
    (folder / "cells.json").write_text(json.dumps(sources))
    # IPython warns of an environment that is active while that of another checkout runs.
    ours = {name: value for name, value in os.environ.items() if name != "VIRTUAL_ENV"}
    env = {**ours, "PLOTLY_RENDERER": "plotly_mimetype", "IPYTHONDIR": str(folder)}
    done = forked.run(CELLS, folder, cwd=folder, env=env, timeout=600)
    assert (done.returncode, done.stderr) == (0, ""), done.stdout + done.stderr
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found
