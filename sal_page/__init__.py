"""The frame of the pages that both packages write: one HTML file, dark and light, that asks nothing of a network.

It needs plotly alone: neither torch nor LangChain is imported, and ``sal_lightning`` and ``safi_agent`` may both use it
without knowing of each other. What goes into a page is text, figures of plotly and, where a page needs more than that,
markup and script that the page's maker vouches for.
"""

from sal_page.frame import Section, render
from sal_page.themes import THEMES, Theme

__all__ = ["THEMES", "Section", "Theme", "render"]
