"""How Sphinx builds these pages: ``scripts/docs``."""

import importlib
import json
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer.cli
import typer.main
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.util import logging

import sal_lightning

# Before autodoc does it with TYPE_CHECKING set, with which fastapi cannot be imported.
importlib.import_module("safi_agent.serve")

project = "sal-lightning"
author = "The sal-lightning authors"
copyright = f"2025, {author}"
version = release = sal_lightning.__version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.mathjax",
    "sphinx.ext.napoleon",
    "sphinx_copybutton",
    "sphinx_design",
]
if os.environ.get("READTHEDOCS"):  # where there is a network: links to the names of other packages
    extensions.append("sphinx.ext.intersphinx")
    intersphinx_mapping = {
        "python": ("https://docs.python.org/3", None),
        "torch": ("https://docs.pytorch.org/docs/stable", None),
        "lightning": ("https://lightning.ai/docs/pytorch/stable", None),
    }
myst_enable_extensions = ["colon_fence", "deflist", "dollarmath", "html_image"]
copybutton_exclude = ".linenos, .gp, .go"
copybutton_prompt_text = "$ "

myst_heading_anchors = 3
highlight_language = "none"

autodoc_inherit_docstrings = False  # hooks of Lightning are explained there
autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
python_maximum_signature_line_length = 88
python_use_unqualified_type_names = True
nitpicky = True
nitpick_ignore_regex = [
    # Names of other packages, since no inventory is fetched, and of modules, in signatures: ours that are public stay.
    ("py:.*", r"(?!(sal_lightning|safi_agent|sal_page)\.\w+$).*"),
]

html_theme = "furo"
# Equations of pages are MathJax, which browsers load from a CDN; those of docstrings are code.
html_theme_options = {"light_css_variables": {"code-font-size": "var(--font-size--small)"}}
html_static_path, html_css_files = ["_static"], ["pages.css"]
pygments_dark_style = "a11y-high-contrast-dark"
html_title = f"{project} {release}"
html_copy_source = html_show_sourcelink = False

PUBLIC = (
    "sal_lightning",
    "sal_lightning.metrics",
    "safi_agent",
    "safi_agent.log",
    "safi_agent.serve",
    "safi_agent.store",
    "sal_page",
)
OWN = ("SECURITY", "CHANGELOG", "CONTRIBUTING")
COMMANDS = {"sal": "sal_cli.sal", "safi": "safi_agent.cli"}


def missing(known: set[str]) -> Iterator[str]:
    """Public names that the reference leaves out; one that several packages export has one entry."""
    public = [(package, name) for package in PUBLIC for name in importlib.import_module(package).__all__]
    documented = [getattr(sys.modules[package], name) for package, name in public if f"{package}.{name}" in known]
    for package, name in public:
        if not any(getattr(sys.modules[package], name) is one for one in documented):
            yield f"{package}.{name}"


def check_reference(app: Sphinx, env: BuildEnvironment) -> None:
    """Warn, and so fail, for each of them."""
    known = {name for name, *_ in env.get_domain("py").get_objects()}
    for name in missing(known):
        logging.getLogger(__name__).warning("reference: expected %s to be in it, found it nowhere.", name)


def say_nothing_of_numbers(app: Sphinx, what: str, name: str, of: object, options: object, lines: list[str]) -> None:
    """A field of a named tuple is documented by its name and its comment, not by its place."""
    if lines and lines[0].startswith("Alias for field number"):
        lines.clear()


def lead_to_pages(app: Sphinx, page: str, source: list[str]) -> None:
    """Links to the repository's own pages lead to what includes them here; a file's name gives way to its title."""
    source[0] = re.sub(r"\[[\w./-]+\.md\]\(([\w./#-]+)\)", r"[](\1)", source[0])
    source[0] = re.sub(r"\]\((?:\.\./)+README\.md", "](/index.md", source[0])
    own = "|".join(OWN)
    source[0] = re.sub(rf"\]\((?:\.\./)+({own})\.md", lambda at: f"](/project/{at[1].lower()}.md", source[0])


def write_commands(app: Sphinx, page: str, source: list[str]) -> None:
    """Put what each command says of itself in the place of ``<!-- sal -->`` and ``<!-- safi -->``."""
    if page == "reference/commands":
        for name, module in COMMANDS.items():
            command = typer.main.get_command(importlib.import_module(module).app)
            text = typer.cli.get_docs_for_click(obj=command, ctx=typer.Context(command), name=name, indent=1)
            source[0] = source[0].replace(f"<!-- {name} -->", text)


def write_notebooks(app: Sphinx, page: str, source: list[str]) -> None:
    """Put a notebook of examples/ with its outputs in the place of ``<!-- notebook: NAME -->``."""
    if (asked := re.fullmatch(r"<!-- notebook: (\w+) -->\s*", source[0])) is not None:
        file = Path(app.srcdir).parent / "examples" / f"{asked[1]}.ipynb"
        cells = json.loads(file.read_text(encoding="utf-8"))["cells"]
        source[0] = "\n\n".join(part for cell in cells for part in cell_parts(cell))


def cell_parts(cell: dict[str, Any]) -> Iterator[str]:
    """A cell as Markdown: its text, or its code and what it printed and showed."""
    text = "".join(cell["source"])
    if cell["cell_type"] == "markdown":
        yield text
        return
    yield f"```python\n{text}\n```"
    for output in cell["outputs"]:
        shown = output.get("data", {})
        if "image/png" in shown:
            picture = "".join(shown["image/png"]).replace("\n", "")
            yield f'<img src="data:image/png;base64,{picture}" alt="Output of the cell above">'
        elif "text/markdown" in shown:
            yield "".join(shown["text/markdown"])
        else:
            yield f"```text\n{''.join(output.get('text', shown.get('text/plain', ''))).rstrip()}\n```"


def setup(app: Sphinx) -> None:
    """Sphinx calls this."""
    app.connect("source-read", write_notebooks)
    app.connect("source-read", lead_to_pages)
    app.connect("source-read", write_commands)
    app.connect("autodoc-process-docstring", say_nothing_of_numbers)
    app.connect("env-check-consistency", check_reference)
