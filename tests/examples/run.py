"""An example, run small as a notebook, and what it found."""

import json
from pathlib import Path
from typing import Any

import nbformat

from experiments.notebooks import execute, outputs, read, sources

# Before the example's first cell, whose own filters come after it.
STRICT = "import warnings; warnings.simplefilter('error')"


def run(name: str, folder: Path, settings: dict[str, Any], asked: dict[str, str]) -> dict[str, Any]:
    """Run it with these settings; answers with what the expressions are worth at its end."""
    (source,) = (source for source in sources() if source.stem == name)
    notebook = read(source)
    wanted = ", ".join(f"{key!r}: {expression}" for key, expression in asked.items())
    notebook.cells.insert(0, nbformat.v4.new_code_cell(STRICT))
    notebook.cells.append(nbformat.v4.new_code_cell(f"import json; print(json.dumps({{{wanted}}}))"))
    execute(notebook, folder, settings)
    assert [output.text for output in outputs(notebook) if output.get("name") == "stderr"] == []
    found: dict[str, Any] = json.loads(notebook.cells[-1].outputs[0].text)
    return found
