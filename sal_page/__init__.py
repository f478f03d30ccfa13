"""HTML pages for both packages: a single file with a light and a dark theme, which makes no network requests.

It depends on plotly only, not on torch or LangChain, so that ``sal_lightning`` and ``safi_agent`` can both use it
independently. A page consists of text, plotly figures, and optional markup and script, which must be trusted.
"""

from sal_page.frame import Section, render
from sal_page.themes import THEMES, Theme

__all__ = ["THEMES", "Section", "Theme", "render"]
