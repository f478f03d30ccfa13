"""Sections of text and figures as one HTML file; its content security policy forbids foreign scripts and requests."""

import json
from base64 import b64encode
from collections.abc import Iterable
from hashlib import sha256
from html import escape
from importlib.resources import files
from typing import Any, NamedTuple

from sal_page.themes import FONT, THEMES, css, template

HEIGHT = 340  # default height of a figure in pixels


class Section(NamedTuple):
    """A heading, a text and the figures under it."""

    title: str
    text: str = ""
    figures: tuple[Any, ...] = ()  # of plotly.graph_objects
    wide: bool = False  # over the full width, also where two columns fit
    markup: str = ""  # trusted HTML: foreign text in it has to be escaped


def render(title: str, subtitle: str, sections: Iterable[Section], script: str = "") -> str:
    """Render the page; titles and texts are escaped.

    Args:
        title: heading of the page.
        subtitle: text under the heading.
        sections: the sections, in order.
        script: trusted JavaScript that runs after the figures are drawn.

    Raises:
        ImportError: plotly is not installed.
    """
    try:
        from plotly.offline import get_plotlyjs
    except ImportError as error:
        raise ImportError('Expected plotly: pip install "sal-lightning[report]".') from error
    drawn = "\n".join(map(_section, sections))
    themes = {name: template(theme) for name, theme in THEMES.items()}
    scripts = (get_plotlyjs(), _asset("page.js"), script)
    return f"""<!doctype html>
<html lang="en" data-theme="light">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy(scripts)}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<link rel="icon" href="data:,">
<title>{escape(title)}</title>
<style>
:root {{ --font: {FONT}; }}
{css()}{_asset("page.css")}</style>
<script>{scripts[0]}</script>
</head>
<body>
<header><div><h1>{escape(title)}</h1><p>{escape(subtitle)}</p></div><button id="theme" type="button"></button></header>
<main>
{drawn}
</main>
<script type="application/json" id="themes">{_json(themes)}</script>
<script>{scripts[1]}</script>
<script>{scripts[2]}</script>
</body>
</html>
"""


def policy(scripts: Iterable[str]) -> str:
    """The page's content security policy: allows these scripts, inline styles, and images exported by plotly."""
    hashes = " ".join(f"'sha256-{b64encode(sha256(text.encode()).digest()).decode()}'" for text in scripts)
    pictures = "style-src 'unsafe-inline'; img-src data: blob:"
    return f"default-src 'none'; script-src {hashes}; {pictures}; base-uri 'none'; form-action 'none'"


def _section(section: Section) -> str:
    figures = "\n".join(map(_figure, section.figures))
    kind = ' class="wide"' if section.wide else ""
    text = f"<p>{escape(section.text)}</p>" if section.text else ""
    return f"<section{kind}>\n<h2>{escape(section.title)}</h2>\n{text}\n{figures}\n{section.markup}</section>"


def _figure(figure: Any) -> str:
    drawn = json.loads(figure.to_json())
    drawn["layout"].pop("template", None)
    height = drawn["layout"].setdefault("height", HEIGHT)
    data = _json({"data": drawn["data"], "layout": drawn["layout"]})
    return f'<div class="figure" style="height: {height}px"></div><script type="application/json">{data}</script>'


def _json(value: Any) -> str:
    """JSON with escaped ``<``, so that it cannot close the script element that contains it."""
    return json.dumps(value, allow_nan=False).replace("<", "\\u003c")


def _asset(name: str) -> str:
    return files(__package__).joinpath(name).read_text(encoding="utf-8")
